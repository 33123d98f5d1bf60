"""What an evaluation judges: sources by the names that its report gives them, and the rows that it will hold."""

import functools
import math
import os
from pathlib import Path

from gendistil.common.cli import say
from gendistil.common.errors import UserError
from gendistil.common.flags import flag_of, from_flags, given
from gendistil.common.hub import is_hub
from gendistil.common.inherit import check_classes, check_held_out, name_other_data
from gendistil.common.run import check_outside, made_by
from gendistil.evaluation.rows import OWN_LABELS, PLAIN, REAL, TRAIN, WHOLE
from gendistil.evaluation.settings import protocol_of
from gendistil.evaluation.students import lessons_of, settled
from gendistil.evaluation.teachers import Labels, Teachers, fits, named_teachers, open_pool
from gendistil.sources import (
    Reading,
    RealImages,
    Refined,
    Refinement,
    check_fits,
    check_read,
    forget,
    load_source,
    refine,
    weights_digest,
)


def named_paths(args):
    """The paths of --pretrain-weight by the names that the report gives them."""
    paths = {}
    for text in args.pretrain_weight:
        splits = [("", text), *((text[:place], text[place + 1:]) for place, letter in enumerate(text) if letter == "=")]
        splits = [(name, os.path.expanduser(path)) for name, path in splits if path]
        if not splits:
            raise UserError(f"--pretrain-weight '{text}' names no path")
        name, path = next((pair for pair in splits if Path(pair[1]).exists() or is_hub(pair[1])), splits[-1])
        path = Path(path)
        name = (name or path.resolve().name).encode("utf-8", "backslashreplace").decode()  # of a file: any bytes
        if name in paths or name in (REAL, WHOLE, TRAIN):
            raise UserError(f"--pretrain-weight: two sources are called '{name}': name them apart, NAME=PATH")
        check_outside(args, "--pretrain-weight", path)
        paths[name] = path
    if args.teacher:
        check_outside(args, "--teacher", args.teacher)
    return paths


def load_sources(args, paths, dataset, real):
    """The sources of the report and the paths of the distilled ones, by their names; that of a refined one says how.

    Fills in `args.compare` where no flag does. Args: paths, by the names that they were given; real, which gives the `Split` of
    --compare. Raises UserError for a source that does not fit the data set or its flags.
    """
    for flag in given(Refinement, args) if not paths else ():
        raise UserError(f"{flag_of(flag)} is for generators, not for real images: give --pretrain-weight")
    device, sources, named, learned = dataset.train.images.device, {}, {}, False
    for name, path in paths.items():
        source = load_source(path, device, from_flags(Reading, args), dataset.spec).fitted(dataset.spec)
        _check_source(args, path, source, dataset.spec)
        learned = learned or source.soft or source.step_size is not None
        name, source = _as_judged(args, name, path, source, dataset)
        sources[name], named[name] = source, path
    if not args.resume:
        check_read(args, sources.values())
    if not args.own and not learned and not args.resume:
        raise UserError("--no-own: no run of --pretrain-weight has learned labels or a step size of its own: leave it out")
    if args.compare is None:
        args.compare = _usual_comparison(args, paths, sources)
    if "random" in args.compare:
        sources[REAL] = images = RealImages(real(), dataset.spec.num_classes)
        if not paths and "whole" not in args.compare and args.ipc[0] > images.max_ipc:
            raise UserError(f"--ipc {args.ipc[0]}: the smallest class has {images.max_ipc} images: lower it")
    for name, source in sources.items():
        if args.ipc[-1] > (source.max_ipc or math.inf):
            say(f"no row of {name} above --ipc {source.max_ipc}: "
                f"{'the smallest class has' if name == REAL else 'it keeps'} no more")
    return sources, named


def _check_source(args, path, source, spec):
    """Raise UserError for a source that does not fit images of `spec`, or what the flags would do with it."""
    check_fits(source, spec, f"--pretrain-weight {path}")
    check_classes(path, "--pretrain-weight", spec, "judged: judge them apart")
    chosen = args.scored_on == "held_out" or args.teacher_snapshots == "auto"  # by held-out images
    name_other_data(path, "--pretrain-weight", spec, judged=chosen)
    if chosen:
        check_held_out(path, "--pretrain-weight", args.held_out)
    if source.max_ipc is not None and "fixed" not in lessons_of(args.protocol).samplings:
        raise UserError(f"--protocol {args.protocol} draws new images at every step, and those of --pretrain-weight {path} "
                        "are stored: use another")
    if args.push_to_hub and not hasattr(source, "save_pretrained"):
        raise UserError(f"--push-to-hub uploads models of this suite, and --pretrain-weight {path} is a pipeline")


def _as_judged(args, name, path, source, dataset):
    """The name in the report and the source, with what it has learned beside its images and refined, as the flags say.

    Raises UserError where that does not go with the other flags.
    """
    name += f", {source.remark}" if source.remark else ""
    forget(source, labels=not args.own, step_size=not args.own or args.lr is not None)
    for ipc in args.ipc:
        settled(source, ipc, protocol_of(args, dataset.spec.name), f"--pretrain-weight {path}")
    source = refine(source, path, functools.partial(_open_outside, args, dataset), given(Refinement, args), args.teacher,
                    dataset.train.images.device)
    name += f", {source.refinement.words}" if isinstance(source, Refined) else ""
    if args.ranking and (source.soft or source.step_size is not None):
        shared = "hard labels" if source.soft else "one learning rate"
        raise UserError(f"--ranking compares sets by {shared}, and {name} has learned its own: add --no-own")
    if args.ipc[0] > (source.max_ipc or math.inf):
        raise UserError(f"--ipc {args.ipc[0]}: {name} has {source.max_ipc} images of a class: lower it")
    return name, source


def _open_outside(args, dataset, folder):
    """As `open_pool`; UserError also for a folder that --overwrite would empty before it answers."""
    check_outside(args, "--teacher", Path(folder))
    return open_pool(folder, dataset)


def make_teachers(args, paths, sources, dataset, engine):
    """The `Teachers` of --labels, by the runs at `paths`, or None where all labels are hard. Raises UserError as they do."""
    if args.labels == ("hard",):
        return None
    protocol = protocol_of(args, dataset.spec.name)
    begun = made_by(args.output_dir / args.tag) if args.resume else {}
    teachers = Teachers(from_flags(Labels, args), paths, sources, dataset, engine=engine, protocol=protocol, seed=args.seed,
                        chosen=begun.get("teachers_chosen"))
    if teachers.pool:
        check_outside(args, "--teacher", teachers.pool.dir)
        if args.scored_on == "held_out" and args.teacher_snapshots == "auto":
            say("--teacher-snapshots auto chooses by the images that --scored-on held_out scores on: scores are a little high")
    return teachers


def compared(args):
    """What --compare stands for: a list, or None where the labels decide."""
    names = ["random", "whole"] if args.compare == [] else args.compare
    if "none" in (names or ()) and len(names) > 1:
        raise UserError(f"--compare {' '.join(names)}: none goes with no other")
    if args.full_epochs and "whole" not in (names or ()):
        raise UserError("--full-epochs is for all real images: add --compare whole")
    return [] if names == ["none"] else names


def _usual_comparison(args, paths, sources):
    """What --compare is where no flag says it: labels of a teacher help any images, so random ones stand beside."""
    if args.labels == ("hard",) or lessons_of(args.protocol).settle:
        return []
    asked = "teacher" in args.labels or args.teacher or any(source.rows is None for source in sources.values())
    if asked or any(Path(folder).is_dir() for folder in named_teachers(paths.values())[:1]):
        return ["random"]
    say("no random real images beside: the sources keep their rows, and the classifier that answers for others is not here; "
        "--teacher names it")
    return []


def real_images(args, dataset):
    """The `Split` of --compare: without the held-out images where they score students, or a student is kept as a teacher."""
    return dataset.train if _spare_held_out(args) else dataset.full_train


def _spare_held_out(args):
    return args.keep_students or args.scored_on == "held_out"


def list_rows(args, sources):
    """What the report will hold: dicts of source, sampling, ipc, model and labels, and of augmentation where there is none.

    Raises UserError for a choice among stored images whose bytes nobody could tell.
    """
    for name, source in sources.items():
        if "representative" in args.sampling and not source.even and min(args.ipc) < source.max_ipc:
            raise UserError(f"--sampling representative: {name} has parts of several sizes (--decoder), of which some may take "
                            f"any number of bytes: give --sampling fixed, or --ipc {source.max_ipc} alone")
    refined = {name: {"refinement": source.refinement.words, **({"refined_by": source.teacher.name} if source.teacher else {})}
               for name, source in sources.items() if isinstance(source, Refined)}

    def samplings(name, kind):
        # Stored images are one set. Fresh real ones are the whole training set, no match for a generator and its teacher: a
        # fixed set stands in.
        taught = name == REAL and kind != "hard" and "fixed" in lessons_of(args.protocol).samplings
        fixed = taught or not sources[name].varies
        return dict.fromkeys("fixed" if fixed and sampling == "fresh" else sampling for sampling in args.sampling
                             if fits(kind, sampling))

    rows = [{"source": name, "sampling": sampling, "ipc": ipc, "model": model,
             "labels": OWN_LABELS if kind == "hard" and sources[name].soft else kind, **refined.get(name, {})}
            for model in args.eval_model for kind in args.labels for name in sources for sampling in samplings(name, kind)
            for ipc in args.ipc if ipc <= (sources[name].max_ipc or math.inf)]
    if args.ranking:
        rows += [{**row, "augmentation": PLAIN} for row in rows]
    if "whole" in args.compare:
        name = TRAIN if _spare_held_out(args) else WHOLE
        rows += [{"source": name, "sampling": "all", "ipc": None, "model": model, "labels": "hard"}
                 for model in args.eval_model]
    return rows


def made_as(paths, rows):
    """What rows say of how the runs at `paths`, a dict, were made, and of real images: dicts by the names of the sources.

    They have `weights`, a name of these; `kin`, see `KEYS`; and `learned_with`, the classifiers in whose eyes the images were
    matched or chosen, a list that is empty where there were none.

    Raises UserError where a row that is there, of `rows`, is of other weights.
    """
    found = {REAL: {"kin": REAL, "learned_with": []}}
    for name, path in paths.items():
        values, weights = made_by(path).get("method_values") or {}, weights_digest(path)
        chosen = values.get("init", "real") not in ("noise", "real")
        matched = values.get("match") != "none" and values.get("steps") != 0
        found[name] = {"weights": weights, "kin": made_by(path).get("kin") or weights,
                       "learned_with": list(values.get("pool", ())) if matched or chosen else []}
        if any(row["source"] == name and row.get("weights", weights) != weights for row in rows):
            raise UserError(f"--resume: {path} holds another model than '{name}' was when the evaluation was started: give it "
                            "another name, NAME=PATH, or another --tag")
    return found


def kept_bytes(row, source):
    """The bytes of a row: those that the images of `source` take. Fresh real images have none, because they are the whole
    training set."""
    return {} if (row["source"], row["sampling"]) == (REAL, "fresh") else {"bytes": source.stored_bytes(row["ipc"])}
