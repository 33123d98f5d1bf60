"""The loop of a run: its rhythm, what the clock counts, and what signals and bad losses do to it."""

import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from gendistil.common import loop as loops
from gendistil.common.errors import UserError
from gendistil.common.loop import Clock, Loop


@pytest.fixture
def ticks(monkeypatch):
    """A clock that is set by hand, and a device that lags ten seconds behind what it is given."""
    now = SimpleNamespace(seconds=0.0, waited=0)

    def wait(device):
        now.waited += 1
        now.seconds += 10

    monkeypatch.setattr(loops.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(loops, "synchronise", wait)
    return now


def test_the_clock_waits_for_the_device(ticks):
    clock = Clock(torch.device("cpu"), 5.0)
    clock.start()
    ticks.seconds += 1
    clock.stop()
    assert clock.seconds == 16
    ticks.seconds += 100  # what happens meanwhile is not counted
    clock.start()
    clock.start()
    ticks.seconds += 2
    clock.stop()
    clock.stop()
    assert clock.seconds == 28


class Silent:
    """A run that keeps what is logged."""

    name, is_main = "silent", False

    def __init__(self):
        self.accelerator, self.logged = Accelerator(cpu=True), []

    def log(self, metrics, step):
        self.logged.append((step, metrics["loss"]))


@pytest.mark.parametrize(("start", "steps", "saved"), [(0, 7, [3, 6, 7]), (3, 7, [6, 7]), (7, 7, []), (9, 7, [])])
def test_a_loop_takes_the_missing_steps_in_its_rhythm(start, steps, saved):
    run, taken, saves = Silent(), [], []
    with Loop(run, start, steps, 2) as loop:
        for step in loop:
            taken.append(step)
            loop.report({"loss": torch.tensor(float(step))})
            if loop.saves(3):
                saves.append(loop.done)
    assert taken == list(range(start, steps))
    assert saves == saved
    assert [step for step, _ in run.logged] == [step for step in (2, 4, 6, 7) if step > start and start < steps]


def test_a_loop_ends_by_the_clock_and_counts_no_pause(ticks):
    run = Silent()
    with Loop(run, 0, math.inf, 100, limit=25) as loop:
        for _ in loop:
            ticks.seconds += 1
            loop.report({"loss": torch.tensor(0.0)})
            if loop.due(1):
                ticks.seconds += 1000
    assert (loop.done, loop.seconds) == (3, 33)


def test_compiling_in_the_first_step_is_not_counted(ticks):
    for compiled, first in ((True, 3), (False, 500)):
        with Loop(Silent(), 0, 4, 100, compiled=compiled) as loop:
            for step in loop:
                ticks.seconds += 3 if step else 500
                loop.report({"loss": torch.tensor(0.0)})
                loop.due(100)
        assert loop.seconds == first + 3 * 3 + 10  # for which the last pause waited
    for start, steps, expected in ((0, 5, 2 * 30 + 3 * 3), (1, 3, 2 * 3), (0, 2, 2 * 3)):
        with Loop(Silent(), start, steps, 100, compiled=True, rhythm=4) as loop:
            for step in loop:
                ticks.seconds += (3 if step % 4 else 30) + (500 if step == start else 0)
                loop.report({"loss": torch.tensor(0.0)})
                loop.due(100)
        assert loop.seconds == expected + 10


def test_compiling_is_not_counted_in_a_run_that_is_interrupted_early(ticks):
    loop = Loop(Silent(), 0, 9, 100, compiled=True, rhythm=4)

    def run():
        with loop:
            loop.interrupt.requested = lambda done: done == 3
            for step in loop:
                ticks.seconds += 3 if step else 500
                loop.report({"loss": torch.tensor(0.0)})
                loop.saves(100)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert loop.seconds == 3 * 3 + 10


def test_several_processes_agree_at_every_tenth_step_or_where_steps_are_slow_at_every_one(ticks, monkeypatch):
    asked = []
    monkeypatch.setattr(loops, "any_process", lambda accelerator, flag: asked.append(flag) or flag)
    for processes, seconds, expected in ((1, 0.1, [*range(1, 31)]), (2, 0.1, [1, 10, 20, 30]), (2, 5, [*range(1, 31)])):
        ask, agreed = loops.Agreement(SimpleNamespace(num_processes=processes)), []
        for step in range(1, 31):
            ticks.seconds += seconds
            ask.begin(step)
            agreed += [step] * ask(True)
        assert agreed == expected
    assert len(asked) == 30 + 2 * 4 + 2 * 30


def test_a_loop_that_is_timed_waits_for_the_device_no_more_than_another(ticks):
    waited = []
    for limit in (math.inf, 1e6):
        before = ticks.waited
        with Loop(Silent(), 0, 20, 10, limit=limit) as loop:
            for _ in loop:
                loop.report({"loss": torch.tensor(0.0)})
        waited.append(ticks.waited - before)
    assert waited[0] == waited[1]


def test_a_loop_that_is_not_timed_waits_only_where_something_is_due(ticks):
    with Loop(Silent(), 0, 20, 10) as loop:
        for _ in loop:
            loop.report({"loss": torch.tensor(0.0)})
            loop.saves(20)
    assert ticks.waited == 2


def test_a_loss_that_is_not_finite_stops_before_it_is_saved():
    def run():
        with Loop(Silent(), 0, 3, 100) as loop:
            for step in loop:
                loop.report({"loss": torch.tensor(math.nan if step == 1 else 0.0)})
                loop.saves(4)

    with pytest.raises(UserError, match="NaN or infinite at step 2"):
        run()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_loop_asks(number):
    before = signal.getsignal(number)

    def work():
        with loops.Interruptible() as interruptible:
            assert not interruptible.requested(1)
            os.kill(os.getpid(), number)
            assert interruptible.requested(1)
            finished.append(number)

    finished = []
    with pytest.raises(KeyboardInterrupt):  # once all is done, which nothing else may follow
        work()
    assert finished
    assert signal.getsignal(number) is before
