"""How an evaluation trains and scores its students, by its flags, what its rows say of that, and rows of more students."""

import functools
import math
import re
from dataclasses import replace

import torch

from gendistil.common.cli import say
from gendistil.common.device import device_name
from gendistil.common.errors import Diverged, UserError
from gendistil.common.flags import flag_fields, override, refuse_idle
from gendistil.common.inherit import MAY_CHANGE, check_options, same_place
from gendistil.common.rng import seed_of
from gendistil.common.run import read_config
from gendistil.data import DATASETS, original
from gendistil.evaluation.protocols import IDLE, flags_that_changed, protocol_for
from gendistil.evaluation.rows import PLAIN, REPORT, SCORED, read_report, row_key, unique
from gendistil.evaluation.students import Result, steps_per_epoch
from gendistil.evaluation.teachers import Labels
from pools import check_classifiers, usual_classifier

_FEW = 10  # epochs


def add_scored_on(parser):
    """Add --scored-on to a parser or a group of one."""
    parser.add_argument("--scored-on", choices=SCORED, default="test", help="real images that students are scored on; "
                        "held_out: to choose settings by, so that the test set is looked at once; students see none of them")


def first_seed(seed, scored_on, rows=None):
    """The seed of an evaluation's first student: that of its `rows`, by their keys, if there are some, else `seed`. On held-out
    images it is another, so that no student that settings are chosen by is reported."""
    if rows:
        return next(iter(rows.values())).get("seed", seed)
    return seed if scored_on == "test" else seed_of(seed, "held out")


def protocol_of(args, data, kind="convnet"):
    """The protocol of the flags for students of a kind on the data set called `data`.

    Raises UserError for a flag that does nothing in it.
    """
    protocol = override(protocol_for(args.protocol, data, kind), args)
    if not args.resume:  # whose flags are those of its start
        refuse_idle(args, protocol, IDLE)
    return protocol


def check_students(args, spec):
    """The protocols of the students that validate.py trains, by their kinds, --eval-model, which this fills in.

    Raises UserError for kinds that do not suit the images of `spec`, and for --ranking where students see images as they are.
    """
    args.eval_model = args.eval_model or [usual_classifier(spec.size)]
    protocols = {kind: protocol_of(args, spec.name, kind) for kind in args.eval_model}
    check_classifiers(args.eval_model, spec, "--eval-model")
    if args.ranking and any(protocol.aug_type == PLAIN and not protocol.cutmix for protocol in protocols.values()):
        raise UserError("--ranking compares students with and without augmentation, and these have none: give --aug-type")
    return protocols


def full_protocol(args, protocol, spec, real, plan, sources, earlier=None):
    """The protocol of all real images: that of the students of an `earlier` row, or --full-epochs, else as many steps as the
    largest set of `plan`, the rows of `list_rows`, takes."""
    shown = max((sources[row["source"]].decoded(row["ipc"]) for row in plan if row["ipc"]), default=args.ipc[-1])
    steps = max(protocol.epochs * steps_per_epoch(spec.num_classes * shown, protocol), protocol.min_steps)
    once = steps_per_epoch(len(real), replace(protocol, lessons="set"))
    epochs = earlier["epochs"] if earlier else args.full_epochs or math.ceil(steps / once)
    if epochs < _FEW and not earlier and not args.full_epochs and protocol.schedule != "constant":
        say(f"the students of all real images take {epochs} epoch(s), as many steps as those of a set, which is too few for "
            f"--schedule {protocol.schedule} to fall as it does for a set: --full-epochs {_FEW} or more trains them better")
    return replace(protocol, lessons="set", epochs=epochs, min_steps=0)


def count_pixels(args, plan, protocols, spec):
    """About how many pixels are shown to students, the whole training set left out."""
    images = 0
    for row in plan:
        protocol = protocols[row["model"]]
        steps = protocol.epochs * steps_per_epoch(spec.num_classes * (row["ipc"] or 0), protocol)
        images += protocol.batch_size * max(steps, protocol.min_steps)
    return args.num_eval * images * spec.size**2


def data_words(args, spec):
    """What a report calls the data set that `spec` describes, with the size that --image-size gave one of another or of unknown
    size, the classes that --classes gave it, and whether its images are mirrored if --mirror says so of it."""
    row = DATASETS.get(original(spec.name))
    size = f", {spec.size} pixels" if args.image_size and (row is None or spec.size != row.size) else ""
    classes = f", classes {' '.join(map(str, args.classes))}" if args.classes else ""
    usual = row is None or row.flip
    return spec.title + size + classes + ("" if spec.flip == usual else ", mirrored" if spec.flip else ", not mirrored")


def facts_of_all(args, spec, kind, engine):
    """What all rows of a report say, whose students, among them of this kind, an `Engine` runs on images of `spec`: a dict."""
    changed = flags_that_changed(protocol_of(args, spec.name, kind), protocol_for(args.protocol, spec.name, kind))
    return {"data": data_words(args, spec), "protocol": args.protocol, "scored_on": args.scored_on, "flags": changed,
            "device": device_name(engine.accelerator.device), "torch": torch.__version__, "precision": engine.precision}


def resumed(args, paths, kind="validation", stored=()):
    """The rows that the evaluation of --resume has already, by their `row_key`, and the paths of all its sources by name.

    Without that flag no row is there. `paths` are those that are given now, `kind` a key of `MAY_CHANGE`, `stored` the names of
    sources whose images are one set, which earlier reports called fresh all the same.
    Raises UserError for flags that do not fit what is there.
    """
    paths = {name: str(path) for name, path in paths.items()}
    if not args.resume:
        return {}, paths
    folder = args.output_dir / args.tag
    config = read_config(folder)
    rows = read_report(folder / REPORT) if (folder / REPORT).exists() else []
    may_change = MAY_CHANGE[kind]
    if not any(row.get("teacher") for row in rows) and config.get("keep_above") is None:  # no teacher yet
        may_change = may_change | {field.name for field in flag_fields(Labels) if field.name != "own"}
    if config.get("factor") is None:  # no set was read by it yet
        may_change = may_change | {"factor"}
    if not any(row["sampling"] == "all" for row in rows):
        may_change = may_change | {"full_epochs"}
    check_options(vars(args), may_change)
    known = config.get("sources", {})
    for name, path in paths.items():
        if not same_place(known.get(name, path), path):
            raise UserError(f"--resume: '{name}' was {known[name]} when the evaluation was started: give {path} another name")
    rows = [{**row, "sampling": "fixed"} if row["source"] in stored and row["sampling"] == "fresh" else row for row in rows]
    return {row_key(row): row for row in rows}, {**known, **paths}


def with_more_students(earlier, row):
    """The row of a report for the students of `earlier`, None for none, and those of `row`, who have the next seeds.

    Raises UserError where they were trained in another way.
    """
    if earlier is None:
        return row
    if _unscored(earlier) == _unscored(row) is not None:  # another precision or machine scores another decimal
        row = {**row, "teacher": earlier["teacher"]}
    for fact in ("epochs", "steps", "lr", "teacher", "seed", "flags"):
        if earlier.get(fact, row.get(fact)) != row.get(fact):
            raise UserError(f"--resume: students of {row['source']} that are there have {fact} {earlier[fact]}, and new ones "
                            f"{row.get(fact)}: give another --tag, or the flags from when they were trained")
    both = {fact: "; ".join(unique([*earlier[fact].split("; "), row[fact]])) for fact in ("device", "torch", "precision")
            if fact in earlier and fact in row}
    return {**earlier, **row, **Result.of_rows(earlier, row).row(), **both}


def _unscored(row):
    """What a row says of its teacher, but for how much that knows; None where there is none."""
    return re.sub(r"[\d.]+ % of the held-out", "", str(row["teacher"])) if row.get("teacher") else None


def names_its_row(judge):
    """`judge(row, ...)` with an error of a training that diverges which says whose students these are."""
    @functools.wraps(judge)
    def named(row, *args):
        try:
            return judge(row, *args)
        except Diverged as error:
            raise UserError(f"students of {row['source']} ({row['model']}, {row['sampling']}, {row['labels']} labels): {error}")
    return named
