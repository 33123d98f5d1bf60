"""Class-incremental learning: the classes come step by step, and a memory stands for the images of those that are gone.

As in GDumb (Prabhu et al., ECCV 2020) and in DM's `CL_DM.py` (arXiv 2110.04181), a new student is trained at every step on the
memories of all steps so far, and scored on all classes seen so far without being told which step an image belongs to.
"""

import contextlib
import io
import shlex
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from gendistil.common.cli import COUNT, Parser, add_data_arguments, add_run_arguments, tag
from gendistil.common.errors import UserError
from gendistil.common.flags import flag_of, option, override
from gendistil.common.hub import is_hub
from gendistil.common.run import CHECKPOINT
from gendistil.evaluation.students import SAMPLINGS, Result, evaluate
from gendistil.evaluation.teachers import keep_student
from gendistil.matching import METHODS, OBJECTIVES, initial
from gendistil.matching.build import kind_of
from gendistil.matching.methods import DRAWN, GENERATOR, LATENTS, PIXELS
from gendistil.sources import Joined, Taught, Teacher
from pools import KeptClassifiers

_GROUP = "continual learning"


def _hard(parts, pools, previous):
    return Joined(parts)


def _previous(parts, pools, previous):
    return Joined([Taught(Joined(parts[:-1]), previous, 1.0, stored=False), parts[-1]] if previous else parts)


def _pool(parts, pools, previous):
    return Joined([Taught(part, pool, 1.0, stored=part.max_ipc is not None) for part, pool in zip(parts, pools)])


@dataclass(frozen=True)
class Labelling:
    """Whose answers students learn.

    `join(parts, pools, previous)` makes one source of the memories of the steps so far: `pools` are `Teacher`s, one for each
    part, and `previous` is a student of the step before, as a `Teacher`, or None. `needs` names which of the two it takes, and
    `words` are what a report calls it.
    """

    join: Callable
    needs: str | None = None
    words: str | None = None


LABELLINGS = {
    "hard": Labelling(_hard),
    "previous": Labelling(_previous, "previous", "the first student of the step before, for images of earlier steps"),
    "pool": Labelling(_pool, "pools", "the pool of each image's own step"),
}
"""What students learn to answer, by the name that --labels knows."""


@dataclass(frozen=True)
class Continual:
    """In which steps the classes come, what is kept of them and what students learn from it."""

    steps: int = option("steps, each of which brings as many new classes", 5, type=COUNT, group=_GROUP)
    orders: int = option("orders of the classes; order i is numpy.random.RandomState(i).permutation of them", 5, type=COUNT,
                         group=_GROUP)
    ipc: int = option("images of every class that a memory stores", 10, type=COUNT, group=_GROUP)
    replay_ipc: int | None = option("images of every class that a generator replays in an epoch (default: --ipc)", None,
                                    type=COUNT, group=_GROUP)
    sampling: str = option("of what a generator replays; fixed: one set; representative: one chosen by clustering; fresh: a "
                           "new one every epoch", "fresh", choices=SAMPLINGS, group=_GROUP)
    labels: tuple = option("hard: the classes' own (the default); previous: for images of earlier steps, the answers of the "
                           "first student of the step before; pool: for every image, those of the pool that the memory of its "
                           "step was matched with, among the classes of that step", ("hard",), choices=LABELLINGS, nargs="+",
                           group=_GROUP)


def needs_pools(labels):
    """Whether a labelling of these names takes the pools of the memories."""
    return any(LABELLINGS[name].needs == "pools" for name in labels)


def class_order(index, num_classes):
    """Order `index` of the classes, a list of labels: that of the published code, which sets NumPy's seed to the index."""
    return np.random.RandomState(index).permutation(num_classes).tolist()


def steps_of(order, steps):
    """An order of the classes as lists, one for each step. Raises UserError where the classes cannot be shared evenly."""
    each, rest = divmod(len(order), steps)
    if rest:
        even = [str(count) for count in range(1, len(order) + 1) if len(order) % count == 0]
        raise UserError(f"--steps {steps} cannot share {len(order)} classes evenly: give one of {', '.join(even)}")
    return [order[first:first + each] for first in range(0, len(order), each)]


@dataclass(frozen=True)
class Memory:
    """How the memory of a step's new classes is made: by commands, each of which starts from the run of the one before.

    `commands` are tuples of a script, a module with `parse_args(words)` and `main(words)`, and a list of words; `text` is what
    --memory says.
    """

    name: str
    commands: tuple
    text: str

    @classmethod
    def parse(cls, text, scripts):
        """The memory that NAME="COMMAND" describes; `scripts` are those that a command may name. Raises ArgumentTypeError."""
        name, _, commands = text.partition("=")
        try:
            commands = [shlex.split(command) or [""] for command in commands.split("&&")]
        except ValueError as error:
            raise ArgumentTypeError(f"{text}: {error}")
        shared = Parser()
        add_run_arguments(shared, None)
        add_data_arguments(shared, whiten=True)
        taken = {*shared._option_string_actions, "--ipc", "--resume"}
        for script, *words in commands:
            if script not in scripts:
                raise ArgumentTypeError(f"{text}: write NAME=\"COMMAND\", a command of {' or '.join(scripts)}, or several with "
                                        "&& between them")
            for word in (word for word in words if word.split("=")[0] in taken):
                remedy = "students see them as pictures: leave it out" if word.startswith("--whiten") else \
                    "it is the same for all memories: give it to continual.py itself"
                raise ArgumentTypeError(f"{name}: {word}: {remedy}")
        if any(word.split("=")[0] == "--weight" for _, *words in commands[1:] for word in words):
            raise ArgumentTypeError(f"{name}: a command after && starts from the run before it: leave out its --weight")
        return cls(tag(name), tuple((scripts[script], words) for script, *words in commands), text)

    def __str__(self):
        return self.text

    def folder(self, args, step):
        """Where that of a step, by its name, is kept."""
        return args.output_dir / args.tag / "memories" / f"{self.name}-{step}"

    def _runs(self, args, step, classes, seed):
        """The runs that make that of a step as (script, words, options, folder): a command line, as it is and parsed, and where
        its run is kept."""
        weight = []
        for place, (script, words) in enumerate(self.commands, 1):
            folder = self.folder(args, step if place == len(self.commands) else f"{step}-{place}")
            words = [*words, "--tag", folder.name, "--output-dir", folder.parent, "--seed", seed, "--data", args.data,
                     "--held-out", args.held_out, "--precision", args.precision, "--compile", args.compile,
                     "--classes", *classes, *weight]
            for flag, value in (("--data-dir", args.data_dir), ("--image-size", args.image_size)):
                words += [] if value is None else [flag, value]
            words += [] if args.mirror is None else ["--mirror" if args.mirror else "--no-mirror"]
            words = [str(word) for word in words]
            try:
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    options = script.parse_args(words)
            except UserError as error:
                raise UserError(f"--memory {self.name}: {error}")
            except SystemExit:
                reason = said.getvalue().partition("error: ")[2].strip()
                raise UserError(f"--memory {self.name}: {reason or 'its command makes nothing'}") from None
            yield script, [*words, *(["--ipc", str(args.ipc)] if _stores(options) else [])], options, folder
            weight = ["--weight", folder]

    def check(self, args, dataset):
        """Whether it stores images. Raises UserError, before anything is made, for commands that cannot make what is asked."""
        made = []
        for _, _, options, folder in self._runs(args, "check", [0], args.seed):
            for name in ("weight", "control_of", "teacher"):
                path, flag = getattr(options, name, None), flag_of(name)
                if path and path not in made and not is_hub(path) and not path.exists():
                    raise UserError(f"--memory {self.name}: {flag} {path} does not exist: check its command")
                if path and path not in made and args.steps > 1:
                    raise UserError(f"--memory {self.name}: {flag} {path} is of one set of classes, and each step has "
                                    "others: make one for each by a command before, with && between the two")
            made.append(folder)
        row = override(METHODS[options.method], options) if "method" in options else None
        trains = row and row.match in OBJECTIVES and OBJECTIVES[row.match].per == "training" and row.steps != 0
        if trains and dataset.spec.num_classes // args.steps == 1:
            raise UserError(f"--memory {self.name}: --match {row.match}: networks learn nothing of one class alone: lower "
                            "--steps")
        if row and {PIXELS: row.init != "noise", LATENTS: True, DRAWN: row.pull > 0}.get(kind_of(row)):
            initial.check_count(dataset, args.ipc * row.factor**2, f"--memory {self.name} starts from: lower --ipc")
        if needs_pools(args.labels) and (row is None or row.pool_training != "pretrained" or row.match == "none"):
            raise UserError(f"--labels pool: memory '{self.name}' is matched with no pretrained pool: add --pool-training "
                            "pretrained to a method of pixels, or && pool_match.py --steps 0 to a generator")
        return _stores(options)

    def make(self, args, step, classes, seed):
        """Make that of a step, or what is missing of it; every process calls it.

        Args: args, the flags of the evaluation; step, its name; classes, their labels in the data set; seed, of the runs.
        """
        for script, words, options, folder in self._runs(args, step, classes, seed):
            first = METHODS[options.method].first if "method" in options else None
            tags = [folder.name, *([f"{folder.name}-{first}"] if first else [])]
            begun = any((folder.parent / tag / CHECKPOINT).exists() for tag in tags)
            try:
                script.main([*words, "--resume" if begun else "--overwrite"])
            except UserError as error:
                raise UserError(f"--memory {self.name}: {error}")
            PartialState().wait_for_everyone()  # the main process has written what the next command starts from


def _stores(options):
    """Whether a command with these options makes images that are stored, and no generator."""
    return "method" in options and kind_of(METHODS[options.method]) != GENERATOR


def open_teacher(folder, device, engine):
    """The pool, or the student that `judge` kept, in a folder, as a `Teacher`."""
    return Teacher.of(KeptClassifiers.open(folder, device), engine=engine)


def judge(source, dataset, model_name, ipc, sampling, *, num_eval, seed, accelerator, engine, kept=None, **settings):
    """As `evaluate`, with the students shared out over the processes: the `Result` of all of them.

    Every process calls it. The first student is kept in the folder `kept`, if one is named, in place of what is there.
    """
    mine = torch.arange(num_eval).tensor_split(accelerator.num_processes)[accelerator.process_index].tolist()
    results = [evaluate(source, dataset, model_name, ipc, sampling, num_eval=len(mine), seed=seed + mine[0], engine=engine,
                        **settings)] if mine else []
    if kept and accelerator.is_main_process:
        keep_student(kept, results[0], model_name, dataset, seed=seed, engine=engine)
    return Result.of_rows(*gather_object([result.row() for result in results]))  # waits until it is kept


def order_row(row, result, earlier=None):
    """The row of a report after one more order, whose students are those of `result`; `earlier` is that of the orders before.

    An order counts once, by the mean of its students, however many they are; `students` has the accuracies of each.
    """
    one = replace(result, accuracies=(result.mean,)).row()
    students = [*(earlier["students"] if earlier else []), list(result.accuracies)]
    return {**row, **one, "students": students}
