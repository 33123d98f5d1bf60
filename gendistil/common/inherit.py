"""What a command takes over from a run that is there: its flags, its state, its data; and what of it does not fit."""

import argparse
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

from gendistil.common.cli import path, say
from gendistil.common.errors import UserError
from gendistil.common.flags import flag_of, with_tuples
from gendistil.common.hub import INHERITED
from gendistil.common.run import CHECKPOINT, CONFIG, check_folder, made_by, read_config, same_moments, training_state

_NAMED = 20  # classes that a message names

_OF_ONE_COMMAND = ("resume", "overwrite", "output_dir", "tag", "push_to_hub", "plugin")  # the last is run before flags are made
_ANYWHERE = {*_OF_ONE_COMMAND, "data_dir", "precision", "compile", "given"}
MAY_CHANGE = {
    "training": {"steps", "epochs", "lr", "lr_critic", "log_interval", "sample_interval", "save_interval", "eval_interval",
                 "auto_stop", "patience", "teacher"},
    # Rows that are there stay, and others and more students are added.
    "validation": {"pretrain_weight", "compare", "ipc", "sampling", "labels", "eval_model", "num_eval", "together", "ranking"},
    "continual": {"memory", "labels", "orders", "together"},
}
"""What --resume may be given anew, by the kind of command, beside what all of them may be: everything else decides what comes
out, and stays."""
_PATHS = ("weight", "control_of", "data", "teacher")
LENGTH = ("steps", "epochs")
"""Flags that say how long a run of stage 1 or 2 is, one in place of the other."""


def parse_flags(parser, argv=None, but=(), exclusive=()):
    """The flags of a command that makes a run, as `parser` reads them. With --resume, those that are left out are what the run
    was given before, but none of the `exclusive` ones, which take each other's place, where one of these is given anew.

    What was given, now or before, is their `given`, for the next time: without the flags of `but`, and without those that
    concern one command alone.
    """
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    named = {action.dest for action in parser._actions for word in words if word.partition("=")[0] in action.option_strings}
    usual = {action.dest: action.default for action in parser._actions}
    kept = _given_before(parser, words, exclusive)
    for action in parser._actions:
        if action.dest in kept and not (action.dest in exclusive and named.intersection(exclusive)):
            value = kept[action.dest]
            texts = isinstance(value, list) and isinstance(action, argparse._StoreAction) and action.type
            parser.set_defaults(**{action.dest: list(map(action.type, map(str, value))) if texts else value})
            action.required = False
    args = parser.parse_args(words)
    args.given = {name: value for name, value in vars(args).items()
                  if name not in (*_OF_ONE_COMMAND, *but) and (name in named or value != usual.get(name))}
    return args


def _given_before(parser, words, exclusive):
    """What the run that --resume continues was given, by the names of the flags; empty without that flag.

    Raises UserError where `words` leave out a --plugin by which the run was started.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
    for flag, kind in (("--tag", str), ("--output-dir", path)):
        first.add_argument(flag, type=kind, default=parser.get_default(flag[2:].replace("-", "_")))
    first.add_argument("--resume", action="store_true", default=False)
    first.add_argument("--plugin", action="append", default=[])
    try:
        known, _ = first.parse_known_args(words)
    except argparse.ArgumentError:  # of which `parser` has more to say
        return {}
    run = known.output_dir / known.tag
    config = made_by(run) if known.resume and (run / CONFIG).exists() else {}
    plugins = config.get("plugin") or []
    if len(known.plugin) < len(plugins):
        flags = " ".join(f"--plugin {path}" for path in plugins)
        raise UserError(f"--resume: the run was started with {flags}: give {'it' if len(plugins) == 1 else 'them'} again")
    length = {name: config[name] for name in exclusive if config.get(name) is not None}  # `given` of earlier versions had none
    return {**length, **config.get("given", {})}


def check_options(options, may_change=MAY_CHANGE["training"]):
    """Raise UserError if a flag, other than those of `may_change` and those that any command may be given anew, is not what
    the run that --resume continues began with."""
    folder = check_folder(options)
    config = read_config(folder)
    now = json.loads(json.dumps(options, default=str))
    for name in (name for name in now if name not in {*_ANYWHERE, *may_change}):
        paths = (config.get(name), now[name])
        moved = name in _PATHS and None not in paths and (same_place(*paths) or _moved(*paths, folder))
        if config.get(name) != now[name] and not moved:
            raise UserError(f"--resume: {flag_of(name)} is not what the run was started with ({config.get(name)}): "
                            "leave it out, or give another --tag")


def _moved(path, now, run):
    """Whether `path` is gone, and `now` is what is called so beside the folder of `run`: all were moved together."""
    path = Path(os.path.expanduser(path))
    return not path.exists() and same_place(run.parent / path.name, now)


def same_place(*paths):
    """Whether they are one folder or file, perhaps spelled otherwise."""
    return len({Path(os.path.expanduser(path)).resolve() for path in paths}) == 1


def as_begun(row, options, key):
    """The dataclass `row` with the values that the run which --resume continues began with, as its config.json has them at
    `key`, but for its length and what the flags, `options`, give anew: what a table's row says may have changed since."""
    saved = made_by(Path(options["output_dir"]) / options["tag"]).get(key) if options["resume"] else None
    anew = {*LENGTH, *(name for name in MAY_CHANGE["training"] if options.get(name) is not None)}
    values = with_tuples({name: value for name, value in (saved or {}).items() if name not in anew})
    return replace(row, **{field.name: values[field.name] for field in fields(row) if field.name in values})


def resume_state(options):
    """The checkpoint from which `--resume` continues, or None without that flag.

    Raises UserError if there is none, or if a flag that decides the weights is not what the run was started with.
    """
    folder = check_folder(options)
    if not options["resume"]:
        return None
    check_options(options)
    if not (folder / CHECKPOINT).exists():
        raise UserError(f"--resume: {folder} was stopped before its first checkpoint: start again with --overwrite")
    return training_state(folder / CHECKPOINT)


def inherit_data(args, weight=None, *others):
    """Fill --data, --data-dir, --image-size, --classes, --mirror, --held-out and --whiten where they were not given, from the
    run of `weight`.

    Raises UserError for a model on a hub that has learned a folder of pictures, for a run that has learned a data set of a
    plugin which is not there, and where no flag says whether images are whitened, or may be mirrored, and the runs of `weight`
    and `others` differ in that.
    """
    config = made_by(weight)
    if args.data is None:
        name = (config.get("dataset") or {}).get("name")
        if name and not config.get("data"):
            raise UserError(f"{weight} learned {name}, a folder of whoever made it: give --data, that of its pictures here")
        args.data = config.get("data") or "digits"
        plugins = " ".join(f"--plugin {file}" for file in config.get("plugin") or [])
        if plugins and os.sep not in args.data and not INHERITED["data"](args.data) and not Path(args.data).exists():
            raise UserError(f"{weight} learned '{args.data}', which is no data set here: its run was given {plugins}: give it "
                            "again")
        if args.image_size is None:
            args.image_size = config.get("image_size")
        if args.classes is None:
            args.classes = config.get("classes")
        if args.data_dir is None and config.get("data_dir"):
            args.data_dir = Path(config["data_dir"])
    if args.mirror is None:
        runs = [run for run in (config, *map(made_by, others)) if run.get("data") and same_place(args.data, run["data"])]
        said = {run.get("mirror") for run in runs} or {None}
        if len(said) > 1:
            raise UserError("--pretrain-weight: some were learned by --mirror or --no-mirror and some were not: give one of "
                            "them, for all")
        args.mirror, = said
    if args.held_out is None:
        args.held_out = config.get("held_out", 0.1)
    if "whiten" in args:
        made = {run.get("whiten") == "zca" for run in (config, *map(made_by, others))}
        if args.whiten is None and len(made) > 1:
            raise UserError("--pretrain-weight: some were learned for whitened images and some were not: give --whiten zca or "
                            "none, for all, or judge them apart")
        whiten = args.whiten or config.get("whiten")
        args.whiten = "zca" if whiten == "zca" else None  # as in the runs from before there was the flag


def check_held_out(path, flag, held_out):
    """Raise UserError if the model at `path`, of `flag`, has learned from images that the fraction `held_out` holds out.

    The smaller of two fractions holds out a part of what the larger one does.
    """
    known = made_by(path).get("held_out", held_out)
    if known < held_out:
        raise UserError(f"{flag} {path} has learned from images that --held-out {held_out:g} holds out: give --held-out "
                        f"{known:g}")


def check_classes(path, flag, spec, remedy):
    """Raise UserError if the run at `path` has learned other classes of the data set than those of `spec`, or in another
    order. `remedy` ends its sentence: how classes of `spec` are used, and what to do."""
    made = made_by(path).get("dataset") or {}
    known, asked = (list(map(str, classes)) for classes in (made.get("classes", ()), spec.classes))
    if known and known != asked and (made.get("name") == spec.name or sorted(known) == sorted(asked)):
        raise UserError(f"{flag} {path} learned the classes {_some(known)}, and {_some(asked)} are {remedy}")


def name_other_data(path, flag, spec, judged):
    """Say so where the run at `path` has learned another data set than that of `spec`, with other classes that it fits, or
    other images of the same classes; and where held-out images judge it, if nobody knows whether it has learned from them."""
    run = made_by(path)
    made = run.get("dataset") or {}
    if judged and run.get("held_out") is None:
        say(f"{flag} {path} does not say which images it has learned from: held-out ones may be among them")
    if [*map(str, made.get("classes", ()))] != [*map(str, spec.classes)]:
        if made.get("name", spec.name) != spec.name:
            say(f"{flag} {path} learned {made['name']}, and this is {spec.name}: give --data if that is not meant")
        return
    if made.get("size") == spec.size and same_moments(made, vars(spec)) is False:  # a stranger's file may not say them
        say(f"{flag} {path} learned other images of these classes than are here, by their mean and std: those that are held "
            "out here may be among them")


def _some(names):
    return " ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
