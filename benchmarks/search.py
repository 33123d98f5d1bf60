"""Variants of a training at equal seconds, by the students of what each trained: what the searches of both stages share.

Scores are those of students on held-out training images, so that choosing by them leaves the test set untouched. Seconds are
those of the processor on a CPU, so that a busy machine does not shorten a variant's training. Rows are written as they come;
a variant that the file holds is not trained again, so a search that was stopped goes on, and one that is over takes more.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from gendistil.common.cli import COUNT, POSITIVE, add_data_arguments
from gendistil.common.device import device_name, make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import write_json
from gendistil.common.inherit import check_classes, check_held_out, inherit_data
from gendistil.data import load_asked
from gendistil.evaluation import PROTOCOLS, SAMPLINGS, Result, evaluate
from gendistil.evaluation.rows import read_report
from gendistil.evaluation.tables import tables
from pools import usual_classifier


def judged(text):
    """An argparse type: IPC:SAMPLING:STUDENTS."""
    ipc, sampling, students = text.split(":")
    if sampling not in SAMPLINGS:
        raise ValueError
    return COUNT(ipc), sampling, COUNT(students)


def add_arguments(parser, variants, seconds, scores, output):
    """The flags of a search; `variants` maps names to what is compared, the others are defaults."""
    parser.add_argument("--seconds", type=POSITIVE, default=seconds, help="training of each variant, in seconds")
    parser.add_argument("--repeats", type=COUNT, default=1, help="trainings of each variant, each with another seed")
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=variants, metavar="NAME",
                        help=f"some of: {', '.join(variants)} (default: all)")
    parser.add_argument("--scores", type=judged, nargs="+", default=[judged(text) for text in scores],
                        metavar="IPC:SAMPLING:STUDENTS", help=f"how each training is scored (default: {' '.join(scores)})")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="compile the networks, before the clock starts")
    parser.add_argument("--output", type=Path, default=Path(output), help="JSON file that the rows are written to")
    add_data_arguments(parser)


def begin(args, weight=None):
    """(`Engine`, `Dataset`) of the command line; `weight`, of --weight, is a run whose data set is the default.

    Raises UserError where that run has learned from images that are held out here, or other classes.
    """
    inherit_data(args, weight)
    check_held_out(weight, "--weight", args.held_out)
    engine = Engine(make_accelerator("auto"))
    engine.choose(args.compile)
    dataset = load_asked(args, engine.accelerator)
    check_classes(weight, "--weight", dataset.spec, "learned: give the same --classes")
    return engine, dataset


def student_protocol(epochs):
    """That of the scores: the default one, shorter."""
    return dataclasses.replace(PROTOCOLS["default"], epochs=epochs, min_steps=150)


def train(learner, matcher, seconds, pace=lambda progress: None):
    """Train for `seconds`; the number of steps taken. `pace` is told before each what share of the time is over."""
    clock = time.process_time if learner.accelerator.device.type == "cpu" else time.perf_counter
    began, step = clock(), 0
    while (passed := clock() - began) < seconds:
        pace(passed / seconds)
        learner.step(step, matcher)
        step += 1
    return step


def search(args, variants, engine, dataset, train_one, **facts):
    """Train and score what `args.variants` names, and print the table of all that --output holds.

    Args: variants, what is compared by name, each a dataclass or a dict; train_one, called as `train_one(name, seed)`, gives
    (source, a dict of facts); facts, which hold for all variants. A fact of a training is kept as a list over --repeats.
    Raises UserError for a file of another search, or of something else.
    """
    device = engine.accelerator.device
    make_folder(args.output.parent)
    settings = {"data": dataset.spec.name, "image_size": dataset.spec.size, "held_out": args.held_out,
                "mirror": args.mirror,
                "train_seconds": args.seconds, "repeats": args.repeats, "scores": args.scores,
                "eval_epochs": args.eval_epochs, "model": usual_classifier(dataset.spec.size), "compile": args.compile,
                "device": device_name(device), **facts}
    rows = kept_rows(args.output, lambda row: {**settings, "variant": _values(variants.get(row["source"]))})
    protocol, known = student_protocol(args.eval_epochs), {row["source"] for row in rows}
    for name in tqdm([name for name in args.variants if name not in known], "search", unit="variant"):
        trained = [train_one(name, seed) for seed in range(args.repeats)]
        each = {fact: [found[fact] for _, found in trained] for fact in trained[0][1]}
        for ipc, sampling, students in args.scores:
            results = [evaluate(source, dataset, settings["model"], ipc, sampling, num_eval=students, seed=100 * seed,
                                protocol=protocol, scored_on="held_out", engine=engine)
                       for seed, (source, _) in enumerate(trained)]
            together = Result.of_rows(*[result.row() for result in results])
            rows.append({"source": name, "sampling": sampling, "ipc": ipc, "scored_on": "held_out",
                         "protocol": "default", "torch": torch.__version__, **settings,
                         "variant": _values(variants[name]), "bytes": trained[0][0].stored_bytes(ipc), **each,
                         **({"kin": facts["generator"]} if "generator" in facts else {}),  # of variants with one start
                         **together.row()})
        write_json(args.output, rows)
    print(tables(sorted(rows, key=lambda row: -row["mean"])))


def _values(variant):
    return dataclasses.asdict(variant) if dataclasses.is_dataclass(variant) else variant


def make_folder(folder, flag="--output"):
    """Make the folder in which what `flag` names will lie. Raises UserError where that or writing to it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: the folder {folder} cannot be made ({error.strerror}): name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: the folder {folder} cannot be written: name another")


def kept_rows(path, settings_of):
    """The rows of an earlier part of a search. UserError where they are not what `settings_of(row)`, a dict, says."""
    rows = read_report(path) if path.exists() else []
    for row in rows:
        for name, value in json.loads(json.dumps(settings_of(row))).items():
            if row.get(name) != value:
                found = "another" if isinstance(value, dict) else row.get(name)
                raise UserError(f"--output {path} holds rows of another search: {name} of {row['source']} is {found}; give "
                                "another --output")
    return rows
