"""Contestants of a race: processes that take steps on demand and say how long each took."""

import contextlib
import itertools
import multiprocessing
import resource
import sys
import time

import torch

from gendistil.common.errors import UserError


def _serve(pipe, build, options):
    """What a contestant's process does: one step to warm up, then a timed one for each message."""
    sys.stdout = sys.stderr  # the published code prints
    step = build(**options)
    with contextlib.suppress(EOFError):  # until nobody asks any more
        for number in itertools.count():
            start = time.perf_counter()
            report = step(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            memory = peak_memory()
            pipe.send((seconds, {"mib": memory, **(report() if report else {})}))
            pipe.recv()


def peak_memory():
    """The most memory that this process has held, in MiB: of the GPU, else of the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Contestant:
    """A process that takes the steps of `build(**options)` on demand. Raises UserError if it ends before it is closed."""

    def __init__(self, name, build, options):
        spawn = multiprocessing.get_context("spawn")  # a fresh interpreter: nothing is inherited
        self.name, self.seconds, self.reports = name, [], []
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other, build, options), daemon=True)
        self.process.start()
        other.close()
        print(f"{name}: first step {self._answer()[0]:.2f} s", file=sys.stderr)

    def time_step(self):
        """Take one step and add its seconds to `seconds`, and what else it gave to `reports`."""
        self.pipe.send(None)
        seconds, report = self._answer()
        self.seconds.append(seconds)
        self.reports.append(report)
        print(f"{self.name}: {self.seconds[-1]:.2f} s", file=sys.stderr)

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError(f"the process of '{self.name}' ended: its error stands above") from None

    def close(self):
        self.pipe.close()
        self.process.join()
