"""What an evaluation judges: sources by the names that its report gives them, and the rows that it will hold."""

import functools
from pathlib import Path

from gendistil.common.errors import UserError
from gendistil.common.flags import given
from gendistil.evaluation.teachers import fits, open_teacher
from gendistil.sources import RealImages, Refined, Refinement, check_fits, load_source, refine

REAL, WHOLE, TRAIN = "random real images", "whole training set", "training set without its held-out images"


def named_paths(args):
    """The paths of --pretrain-weight by the names that the report gives them."""
    paths = {}
    for text in args.pretrain_weight:
        name, _, path = ("", "", text) if Path(text).exists() else text.rpartition("=")
        path = Path(path)
        name = name or path.resolve().name
        if name in paths or name in (REAL, WHOLE, TRAIN):
            raise UserError(f"--pretrain-weight: two sources are called '{name}': name them apart, NAME=PATH")
        if (args.output_dir / args.tag).resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"--pretrain-weight {path} lies in the folder that --tag {args.tag} writes: choose another --tag")
        paths[name] = path
    return paths


def load_sources(args, paths, dataset, real):
    """The sources of the report and the paths of the distilled ones, by their names; that of a refined one says how.

    Args: paths, by the names that they were given; real, the `Split` of --compare.
    Raises UserError for a source that does not fit the data set or its flags.
    """
    for flag in given(Refinement, args) if not paths else ():
        raise UserError(f"--{flag.replace('_', '-')} is for generators, not for real images: give --pretrain-weight")
    device, sources, named = dataset.train.images.device, {}, {}
    for name, path in paths.items():
        source = load_source(path, device)
        check_fits(source, dataset.spec, f"--pretrain-weight {path}")
        source = refine(source, path, args, functools.partial(open_teacher, dataset=dataset), device)
        name += f", {source.refinement.words}" if isinstance(source, Refined) else ""
        sources[name], named[name] = source, path
    if "random" in args.compare:
        sources[REAL] = RealImages(real, dataset.spec.num_classes)
    return sources, named


def list_rows(args, sources):
    """What the report will hold: dicts of source, sampling, ipc, model and labels."""
    filters = {name: {"refined_by": source.teacher.name} if isinstance(source, Refined) and source.teacher else {}
               for name, source in sources.items()}
    rows = [{"source": name, "sampling": sampling, "ipc": ipc, "model": model, "labels": kind, **filters[name]}
            for model in args.eval_model for kind in args.labels for name in sources for sampling in args.sampling
            for ipc in args.ipc if fits(kind, sampling) and (name != REAL or ipc <= sources[REAL].max_ipc)]
    if "whole" in args.compare:
        name = TRAIN if args.keep_students else WHOLE
        rows += [{"source": name, "sampling": "all", "ipc": None, "model": model, "labels": "hard"}
                 for model in args.eval_model]
    return rows
