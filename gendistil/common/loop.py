"""The loop of a training run: its bar, its meter, its clock, its rhythm and what Ctrl-C does to it."""

import math
import signal
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from gendistil.common.device import process_mean, synchronise
from gendistil.common.errors import UserError

_SLOW = 0.5  # seconds of a step


class Loop:
    """The steps of a run, from the first that is missing. One step of a script reads

        for step in loop:
            loop.report(trainer.step(...))
            if loop.due(interval):     # every so many steps, and after the last one
                ...
            if loop.saves(interval):   # the same, and when the run is interrupted
                ...

    Args: run, a `Run`; start, steps that were taken already; steps, of the whole run, or infinity; log_interval, steps between
    log entries; seconds, that training took already; limit, seconds after which it ends; compiled, whether networks are;
    rhythm, every so many steps one does more than the others.
    `done` counts the steps taken, and `last` says whether the run ends here. `seconds` is the time that training has taken,
    without what a script does after `due` or `saves`. The first step of a process takes longer where networks are compiled or a
    GPU begins, and counts there as the next one that does as much, or as the last if none does. As a context, it makes Ctrl-C
    and SIGTERM wait for the end of a step, or of the context.
    """

    def __init__(self, run, start, steps, log_interval, *, seconds=0.0, limit=math.inf, compiled=False, rhythm=1):
        self.run, self.done, self.steps, self.log_interval, self.limit = run, start, steps, log_interval, limit
        self.clock, self.meter, self.interrupt = Clock(run.accelerator.device, seconds), Meter(), Interruptible()
        self.ask = Agreement(run.accelerator, start)
        self.last = start >= steps or seconds >= limit
        self.interrupted, self._first = False, None
        self._alike = start + (1 if start % rhythm else rhythm)  # the step that does as much as the first
        self._forgives = compiled or run.accelerator.device.type != "cpu"

    def __enter__(self):
        self.interrupt.__enter__()
        return self

    def __exit__(self, *exception):
        self.interrupt.__exit__(*exception)

    @property
    def seconds(self):
        return self.clock.seconds

    def __iter__(self):
        total = self.steps if math.isfinite(self.steps) else None
        with tqdm(desc=self.run.name, initial=self.done, total=total, disable=not self.run.is_main) as self.bar:
            while not self.last:
                self.clock.start()
                self._began = self.clock.read()
                yield self.done
                self.bar.update()
                if self.interrupted:
                    raise KeyboardInterrupt

    def report(self, losses):
        """Count one step with its 0-dim `losses`, and write their means where an entry is due."""
        self.done += 1
        self.meter.add(self.done, **losses)
        self.ask.begin(self.done)
        self.last, self.interrupted = self.done >= self.steps, self.ask(self.interrupt.requested(self.done))
        self._forgive()
        if math.isfinite(self.limit):
            self.last = self.last or self.ask(self.clock.reaches(self.limit))
        if self.due(self.log_interval):
            metrics = self.meter.read()
            self.run.log(metrics, self.done)
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()})

    def _forgive(self):
        """After a step that does as much as the first, or the last here, take from the clock what the first took beyond it."""
        took = self.clock.read() - self._began
        if self._first is None:
            self._first = took
        elif self._forgives and (self.last or self.interrupted or self.done > self._alike):
            self.clock.seconds -= max(0.0, self._first - took)
            self._forgives = False

    def due(self, interval):
        """Whether something that happens every `interval` steps, and after the last, happens now."""
        return self._pause(self.last or self.done % interval == 0)

    def saves(self, interval):
        """Whether a checkpoint is due, or the run was interrupted. Raises UserError if a loss has not been finite."""
        saves = self.due(interval) or self._pause(self.interrupted)
        if saves:
            self.meter.check()
        return saves

    def _pause(self, now):
        if now:
            self.clock.stop()
        return now


class Clock:
    """Seconds of work, from `start` to `stop`, by a clock that waits for the device to finish."""

    def __init__(self, device, seconds=0.0):
        self.device, self.seconds, self._began, self._lag = device, seconds, None, 0.0

    def start(self):
        """Go on counting, if it does not count already."""
        if self._began is None:
            self._began = time.perf_counter()

    def stop(self):
        """Wait for the device, and count no further."""
        if self._began is not None:
            waiting = time.perf_counter()
            synchronise(self.device)
            now = time.perf_counter()
            self.seconds, self._began, self._lag = self.seconds + now - self._began, None, max(self._lag, now - waiting)

    def read(self):
        """The seconds so far, without waiting for the device."""
        return self.seconds + (0.0 if self._began is None else time.perf_counter() - self._began)

    def reaches(self, limit):
        """Whether so many seconds have been counted. Only near the limit, as far as the device was ever seen to lag behind the
        host, does this wait for it."""
        if self._began is not None and self.read() + self._lag >= limit:
            self.stop()
        return self.seconds >= limit


class Meter:
    """Means of what a step reports, kept on the device and read once per log interval."""

    def __init__(self):
        self._clear()

    def _clear(self):
        self._sums, self._counts, self._first_bad, self._steps = {}, {}, None, 0

    def add(self, step, **values):
        """Add 0-dim tensors; nothing is copied to the host. `step` is remembered if one of them is not finite."""
        values = {name: value.detach().float() for name, value in values.items()}
        finite = torch.stack([value.isfinite() for value in values.values()]).all()
        self._steps += 1
        if self._steps == 1:
            self._began = time.perf_counter()
        never = torch.full_like(finite, 2**62, dtype=torch.int64)
        bad = torch.where(finite, never, torch.full_like(never, step))
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1  # a penalty is not reported at every step

    def check(self):
        """Raise UserError in every process, naming the first such step, if a value has been NaN or infinite in any."""
        if self._first_bad is None:
            return
        if dist.is_initialized():
            dist.all_reduce(self._first_bad, dist.ReduceOp.MIN)
        first_bad = int(self._first_bad)
        if first_bad < 2**62:
            raise UserError(f"a loss was NaN or infinite at step {first_bad}: lower --lr or use --precision fp32 "
                            "(the last checkpoint, if there is one, is kept: --resume continues from it)")

    def read(self):
        """The means since the last read, over all processes, as floats, after a `check`.

        `steps_per_second` leaves out the first step, and with it whatever went on between the last read and that step.
        """
        self.check()
        names = list(self._sums)
        means = process_mean(torch.stack([self._sums[name] / self._counts[name] for name in names])).tolist()
        speed = {"steps_per_second": (self._steps - 1) / (time.perf_counter() - self._began)} if self._steps > 1 else {}
        self._clear()
        return dict(zip(names, means)) | speed


class Interruptible:
    """While in this context, Ctrl-C and SIGTERM are only noted, so that a loop can save before it leaves."""

    def __enter__(self):
        self._noted = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self._noted = True

    def requested(self, step):
        """Whether a signal has come; `step`, which says when this is asked, is for those who stand in for it."""
        return self._noted

    def __exit__(self, kind, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._noted and kind is None:
            raise KeyboardInterrupt


class Agreement:
    """Whether something is so in any process, so that all can end at once.

    Several ask each other at every tenth step alone, because they wait for each other then, and say False at the others; at
    every step where steps are slow, of which a launcher that has passed on Ctrl-C does not wait for ten.
    """

    def __init__(self, accelerator, start=0):
        self.accelerator, self._every, self._last, self._asked = accelerator, 1, start, time.perf_counter()

    def begin(self, step):
        """Find out whether they ask each other after step `step`; once a step."""
        self._asks = self.accelerator.num_processes == 1 or step % self._every == 0
        if self._asks and self.accelerator.num_processes > 1:
            now = time.perf_counter()
            slow = any_process(self.accelerator, now - self._asked > _SLOW * (step - self._last))
            self._every, self._last, self._asked = 1 if slow else 10, step, now

    def __call__(self, flag):
        """Whether `flag` is true in any process."""
        return self._asks and any_process(self.accelerator, flag)


def any_process(accelerator, flag):
    """Whether `flag` is true in any process; the same answer in all of them."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)
