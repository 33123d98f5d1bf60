"""What a run of `pool_match.py` starts from: a generator, latents, the run that it is the control of, or itself."""

import math
from dataclasses import dataclass
from pathlib import Path

from gendistil.common.cli import COUNT, say
from gendistil.common.errors import UserError
from gendistil.common.files import read_json
from gendistil.common.flags import flag_of, option
from gendistil.common.inherit import check_held_out
from gendistil.common.run import CHECKPOINT, CONFIG, check_outside, find_run, made_by, training_state
from gendistil.matching.build import kind_of
from gendistil.matching.methods import DRAWN, GENERATOR, LATENTS, METHODS, STORED
from gendistil.sources import LATENTS_FOLDER, weights_digest
from generators import TRAINERS

SUMMARY = "summary.json"
_CONTROLLED = ("lr", "lr_critic", "batch_size", "ema", "tune", "sample_steps", "keep")
_SCORED = ("seed", "precision", "eval_interval", "eval_model", "eval_ipc", "eval_epochs")


@dataclass(frozen=True)
class Start:
    """What a run starts from: flags that are not part of a method."""

    weight: Path | None = option("the generator to start from: a run's folder or a checkpoint file of the published code; for "
                                 "latents also a run of --method inversion", None, type=Path, metavar="PATH",
                                 group="a generator", learns=(GENERATOR, LATENTS, DRAWN))
    control_of: Path | None = option("train without matching for as many seconds as this finished run took, from the same "
                                     "--weight and --seed, by the same values and with the same scores, unless flags say "
                                     "others; sets --match none", None, type=Path, metavar="RUN", group="a generator",
                                     learns=(GENERATOR,))
    ipc: int | None = option("stored images per class (default: 10; of latents, as many as the smallest class has)", None,
                             type=COUNT, group="pixels and latents", learns=(*STORED, DRAWN))
    teacher: Path | None = option("the folder of a pool of pretrained classifiers, or of a student that validate.py kept: the "
                                  "mean logits for every stored image are kept with it, for validate.py --labels rows", None,
                                  type=Path, metavar="FOLDER", group="pixels and latents", learns=(*STORED, DRAWN))


def train_alike(args):
    """Fill what decides how a control is trained, scored and kept, where no flag says it, from the run that it is the control
    of, or from what it was begun with itself.

    Raises UserError for a run that has learned no generator.
    """
    begun = args.output_dir / args.tag if args.resume and (args.output_dir / args.tag / CONFIG).exists() else None
    config = made_by(begun or args.control_of)
    values = config if begun else config.get("method_values") or {}
    if values.get("learn", GENERATOR) != GENERATOR:
        raise UserError(f"--control-of {args.control_of} has learned {values['learn']}, which need no control: name a run of a "
                        "method that learns a generator")
    used = config.get("recipe_values") or {}  # a method may name a rate that the generator's recipe has not
    for name in _CONTROLLED:
        if getattr(args, name) is None and (name in used or name == "keep" or not used):
            setattr(args, name, values.get(name))
    for name in _SCORED:
        if name not in args.given and config.get(name) is not None:
            setattr(args, name, config[name])
    if args.weight is None and config.get("weight"):
        args.weight = Path(config["weight"])


def check_given(args):
    """Raise UserError where --resume is to go on with the first of two runs, which does not keep the flags of the second."""
    firsts = {f"{args.tag}-{row.first}" for row in METHODS.values() if row.first and METHODS[args.method].first is None}
    begun = [tag for tag in firsts if (args.output_dir / tag / CONFIG).exists()]
    if args.resume and begun and not (args.output_dir / args.tag / CONFIG).exists():
        raise UserError(f"--resume: {args.tag} was stopped in {begun[0]}: repeat the flags that it was started with")


def check_runs(args, runs):
    """Raise UserError where `runs`, methods and tags, cannot go on with what is there, or would replace a run of another kind.

    One method is checked by the run itself. Says so where a run would repeat the draws of the one that it starts from.
    """
    folders = {args.output_dir / tag: name for name, tag in runs}
    for folder, name in folders.items() if len(runs) > 1 else ():
        made = made_by(folder)
        if made and made.get("method") != name and (args.resume or folder.name != args.tag):
            raise UserError(f"{folder} is another run than the --method {name} that would stand there: choose another --tag")
    if args.resume and len(runs) > 1 and not any((folder / CHECKPOINT).exists() for folder in folders):
        raise UserError(f"--resume: {' and '.join(map(str, folders))} hold no checkpoint: check --tag and --output-dir, or "
                        "start again with --overwrite")
    before = made_by(args.weight)
    if kind_of(METHODS[args.method]) == GENERATOR and "method_values" in before and before.get("seed") == args.seed:
        say(f"--weight {args.weight} is a run of this stage with the same --seed, whose classes, noise and real images come "
            "again: give another --seed")


def under_way(args, runs):
    """Whether the last of `runs`, methods and tags, has come to a checkpoint since the first was begun: an older one is of a
    run that --overwrite was replacing."""
    first, *_, last = [args.output_dir / tag for _, tag in runs]
    begun = [made.get("begun") or made.get("started") or "" for made in map(made_by, (first, last))]
    there = (last / CHECKPOINT).exists()
    if there and begun[0] > begun[1]:
        say(f"{last} was begun before {first}, from which it starts, so it begins anew")
    return there and begun[0] <= begun[1]


def check_paths(args):
    """Raise UserError for a path to start from that the run would overwrite, or whose images held-out ones cannot judge."""
    for flag, path in (("--weight", args.weight), ("--control-of", args.control_of), ("--teacher", args.teacher)):
        if path:
            check_outside(args, flag, path)
    if args.weight:
        check_held_out(args.weight, "--weight", args.held_out)
    if not args.resume and holds_latents(args.weight) and read_json(find_run(args.weight) / SUMMARY).get("ended") is False:
        raise UserError(f"--weight {args.weight} is not finished: continue it with --resume")


def read_weight(path):
    """The training state of the generator at `path`, that of --weight: (state, file)."""
    run = find_run(path)
    file = path if path.is_file() else (run or path) / CHECKPOINT
    if path.exists() and not file.exists():
        raise UserError(f"--weight {path} holds no {CHECKPOINT}: matching needs the critic too, so name the folder of a run of "
                        "gen_condense.py that has reached its first checkpoint")
    state = training_state(file)
    trainer = state.get("trainer", "gan") if isinstance(state, dict) else "gan"
    if trainer not in TRAINERS:
        raise UserError(f"--weight {path} was trained by '{trainer}', which is not here: name its file by --plugin")
    parts = TRAINERS[trainer].parts
    whole = isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in (*parts, *parts.values()))
    if not whole or len(state["generator"]) < 3:
        raise UserError(f"--weight {path}: {file.name} is not a checkpoint of this suite or of the published DiM code")
    return state, file


def check_critic(args, state):
    """Raise UserError for a rate of the critic where the training of `state` has none."""
    trainer = state.get("trainer", "gan")
    if args.lr_critic is not None and "discriminator" not in TRAINERS[trainer].parts:
        raise UserError(f"--lr-critic is for a GAN, and the generator was trained by '{trainer}': leave it out")


def kin_of(weight, earlier=None):
    """The name that the generator of --weight shares with all that stage 2 makes of it: they draw the same noise for a seed.

    That of `earlier`, the folder of a run which goes on, stays: another generator may lie at --weight by now.
    """
    return made_by(earlier).get("kin") or made_by(weight).get("kin") or weights_digest(find_run(weight) or weight)


def steps_taken(state):
    """Steps that led to a training state, over all stages; 0 for a checkpoint of the published code, which keeps no count."""
    return state.get("step", 0) + state.get("summary", {}).get("steps_before", 0)


def read_seconds(path):
    """How long the run that --control-of names has trained; infinite where there is none."""
    if path is None:
        return math.inf
    try:
        summary = read_json(path / SUMMARY)
        seconds, ended = float(summary["train_seconds"]), summary.get("ended")
    except (UserError, KeyError, TypeError, ValueError):
        raise UserError(f"--control-of {path} holds no readable {SUMMARY}: name the folder of a finished run of pool_match.py")
    if ended and not seconds:
        raise UserError(f"--control-of {path} has taken no step, and so would its control: name a run that has")
    if not seconds or ended is False:  # the first runs do not say whether they have ended
        raise UserError(f"--control-of {path} is not finished: continue it with --resume")
    return seconds


def read_matched(args):
    """The summary of the run that --control-of names, if that was scored as its control is; else an empty dict."""
    if args.control_of is None:
        return {}
    config = made_by(args.control_of)
    unlike = [flag_of(name) for name in (
        "eval_model", "eval_ipc", "eval_epochs", "seed", "data", "image_size", "classes", "mirror", "held_out", "whiten")
        if config.get(name) != getattr(args, name)]
    if unlike:
        say(f"this run is not compared with --control-of {args.control_of}, which had another {', '.join(unlike)}")
    return {} if unlike else read_json(args.control_of / SUMMARY)


def holds_latents(path):
    """Whether `path`, or None, is a run that has found the latents of real images."""
    folder = find_run(path) if path else None
    return folder is not None and (folder / LATENTS_FOLDER).exists()
