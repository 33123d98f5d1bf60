"""From rows and flags to objects: what a run of `pool_match.py` starts from, learns, compares and by whose eyes."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gendistil.common.cli import COUNT, say
from gendistil.common.device import process_first
from gendistil.common.errors import UserError
from gendistil.common.flags import option
from gendistil.common.inherit import check_classes, check_held_out, name_other_data
from gendistil.common.run import CHECKPOINT, CONFIG, beside, check_outside, find_run, made_by, read_json, training_state
from gendistil.matching import initial
from gendistil.matching.drawing import DrawingLearner, modes_of
from gendistil.matching.learners import GeneratorLearner, LatentLearner, PixelLearner
from gendistil.matching.matcher import Matcher
from gendistil.matching.methods import DRAWN, GENERATOR, LATENTS, METHODS, PIXELS, STORED, Method
from gendistil.matching.objectives import METRICS, OBJECTIVES
from gendistil.matching.trained import TrainingMatcher
from gendistil.sources import LATENTS_FOLDER, LatentSet, PixelSet, check_fits, load_source, weights_digest
from generators import TRAINERS, make_trainer, recipe_of
from generators.unet import FlowGenerator
from pools import ClassifierPool, OnlinePool, RandomPool, check_classifiers

SUMMARY = "summary.json"
_CONTROLLED = ("lr", "lr_critic", "batch_size", "ema", "tune", "sample_steps", "keep")
_SCORED = ("seed", "precision", "eval_interval", "eval_model", "eval_ipc", "eval_epochs")
_STEPS = 4  # of a flow that are matched through, at most, unless --sample-steps asks for more


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


def check_paths(args):
    """Raise UserError for a path to start from that the run would overwrite, or whose images held-out ones cannot judge."""
    for flag, path in (("--weight", args.weight), ("--control-of", args.control_of), ("--teacher", args.teacher)):
        if path:
            check_outside(args, flag, path)
    if args.weight:
        check_held_out(args.weight, "--weight", args.held_out)


def read_weight(args):
    """The training state of a generator that `--weight` names: (state, file)."""
    path, run = args.weight, find_run(args.weight)
    file = path if path.is_file() else (run or path) / CHECKPOINT
    if path.exists() and not file.exists():
        raise UserError(f"--weight {path} holds no {CHECKPOINT}: matching needs the critic too, so name the folder of a run of "
                        "gen_condense.py that has reached its first checkpoint")
    state = training_state(file)
    trainer = state.get("trainer", "gan") if isinstance(state, dict) else "gan"
    if trainer not in TRAINERS:
        raise UserError(f"--weight {path} was trained by '{trainer}', which is not here: name its file by --plugin")
    whole = isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in TRAINERS[trainer].parts)
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
    unlike = [f"--{name.replace('_', '-')}" for name in (
        "eval_model", "eval_ipc", "eval_epochs", "seed", "data", "image_size", "classes", "held_out", "whiten")
        if config.get(name) != getattr(args, name)]
    if unlike:
        say(f"this run is not compared with --control-of {args.control_of}, which had another {', '.join(unlike)}")
    return {} if unlike else read_json(args.control_of / SUMMARY)


def holds_latents(path):
    """Whether `path` is a run that has found the latents of real images."""
    folder = find_run(path)
    return folder is not None and (folder / LATENTS_FOLDER).exists()


def make_pool(method, folder, seed, dataset, engine, run=None):
    """The networks that compare the images; pretrained ones are made in `folder`, or found there. Of a `run` that goes on, by
    its folder, they are those that it began with, though it may go on in another precision."""
    known = beside(made_by(run).get("pool_folder"), run) if run else None
    given = {"batch_size": method.pool_batch, "lr": method.pool_lr, "aug_type": method.pool_aug}
    given = {name: value for name, value in given.items() if value is not None}
    if method.pool_training == "pretrained":
        return ClassifierPool(dataset, folder, engine.accelerator, names=method.pool, members=method.pool_members,
                              epochs=method.pool_epochs, snapshots=method.pool_snapshots, mix=method.pool_mix,
                              initial=method.pool_initial, engine=engine, known=known, **given)
    if method.pool_training == "expert":
        return ClassifierPool(dataset, folder, engine.accelerator, names=method.pool, members=method.pool_members,
                              epochs=method.pool_epochs, snapshots="epochs", engine=engine, momentum=method.pool_momentum,
                              weight_decay=method.pool_decay, schedule="constant", aug_single=method.aug_single, known=known,
                              **given)
    if method.pool_training == "random":
        return RandomPool(dataset, names=method.pool, engine=engine)
    return OnlinePool(dataset, teacher=method.pool_training, outer=method.outer, inner=method.inner, names=method.pool,
                      images=method.pool_images, warmup=method.pool_warmup, momentum=method.pool_momentum,
                      weight_decay=method.pool_decay, aug_single=method.aug_single, cutmix=method.pool_cutmix, seed=seed,
                      engine=engine, **given)


def check_pool(method, spec):
    """Raise UserError unless the networks of --pool suit the images of a `Spec`, and what the method compares of them."""
    row = OBJECTIVES.get(method.match)
    if row:
        kernels = "metric" in row.options and not METRICS[method.metric].every_layer
        check_classifiers(method.pool, spec, "--pool", maps=row.maps, kernels=kernels, alone=row.expert)


@dataclass(frozen=True)
class Learned:
    """What is learned: in words; what builds its learner, called as `build(begin)` with a `Begin`; its kind, one of GENERATOR,
    PIXELS, LATENTS and DRAWN, whose flags it takes; and whether it starts from the generator that --weight names."""

    words: str
    build: Callable
    kind: str
    needs_weight: bool = False


def kind_of(method):
    """Of which kind is what a `Method` learns: GENERATOR, PIXELS, LATENTS or DRAWN."""
    return LEARNED[method.learn].kind


@dataclass(frozen=True)
class Begin:
    """What a learner is built from: method, a `Method`; start, a `Start`; engine, an `Engine`; state, that of the run that is
    resumed, or of a generator's --weight, or {}, read from file; steps_before, steps of a generator's earlier stages."""

    method: Method
    start: Start
    seed: int
    engine: object
    dataset: object
    state: dict
    file: Path
    steps_before: int = 0

    @property
    def accelerator(self):
        return self.engine.accelerator


def _generator(begin):
    method, state, file, accelerator = begin.method, begin.state, begin.file, begin.accelerator
    recipe = recipe_of(state, file)
    values = {name: getattr(method, name) for name in ("lr", "lr_critic", "batch_size", "ema", "tune")}
    known = {field.name for field in dataclasses.fields(recipe)}
    if "sample_steps" in known:
        values["sample_steps"] = method.sample_steps or min(recipe.sample_steps, _STEPS)
    elif method.sample_steps:
        raise UserError(f"--sample-steps is for a flow, and {file} was trained by '{recipe.trainer}': leave it out")
    values = {name: value for name, value in values.items() if value is not None and name in known}
    first, recipe = recipe, dataclasses.replace(recipe, **values)
    kept = dataclasses.replace(first, **{name: value for name, value in values.items() if name == "sample_steps"})
    if recipe.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
    trainer = make_trainer(accelerator, begin.dataset.spec, recipe, begin.seed, begin.engine)
    trainer.load_state_dict(state, file)
    return GeneratorLearner(trainer, begin.dataset, begin.steps_before, kept)


def _stored_settings(begin):
    method = begin.method
    if begin.start.teacher and method.label_lr:
        raise UserError("--teacher is not for labels that are learned: leave it out, or give --label-lr 0")
    return {"lr": method.lr, "momentum": method.momentum, "optimizer": method.optimizer, "batch": method.syn_batch or None,
            "engine": begin.engine}


def _pixels(begin):
    method, spec, accelerator = begin.method, begin.dataset.spec, begin.accelerator
    initial.check(begin.dataset, method.init, begin.start.ipc * method.factor**2)
    pixels = PixelSet(size=spec.size, channels=spec.channels, num_classes=spec.num_classes, ipc=begin.start.ipc,
                      factor=method.factor, decoder=method.decoder).to(accelerator.device)
    return PixelLearner(accelerator, spec, pixels, begin.seed, space=method.space, **_stored_settings(begin))


def _latents(begin):
    device = begin.accelerator.device
    if "rows" in begin.state:  # of the run that is resumed, which needs nothing but its own folder
        latents, partners = load_source(begin.file.parent / LATENTS_FOLDER, device), begin.state["rows"]
        latents.rows = latents.step_size = None
    else:
        latents, partners = start_latents(begin.method, begin.start, begin.seed, begin.dataset, device)
    return LatentLearner(begin.accelerator, begin.dataset.spec, latents, begin.seed, real=begin.dataset.train,
                         partners=partners, chunk_steps=begin.method.chunk_steps, **_stored_settings(begin))


def _drawn(begin):
    method, spec, device, weight = begin.method, begin.dataset.spec, begin.accelerator.device, begin.start.weight
    if method.steps == 0:
        raise UserError("--steps 0 draws no image: a flow takes one step at least")
    flow, ipc = load_source(weight, device), begin.start.ipc
    check_fits(flow, spec, f"--weight {weight}")
    if not isinstance(flow, FlowGenerator):
        raise UserError(f"--weight {weight} is no flow, whose images could be drawn under guidance: name a run of "
                        "gen_condense.py --recipe flow or shortcut")
    if (method.match == "none") == (method.steer > 0):
        raise UserError("--steer says how far an objective moves the images, and --match which: give both or neither")
    try:
        flow.check_sampling(sample_steps=method.steps, guidance=method.guidance)
    except UserError as error:
        raise UserError(str(error).replace("--sample-steps", "--steps")) from None
    pixels = PixelSet(size=spec.size, channels=spec.channels, num_classes=spec.num_classes, ipc=ipc).to(device)
    modes = None
    if method.pull:
        initial.check_count(begin.dataset, ipc, "--pull asks for: lower --ipc, or give --pull 0")
        modes = process_first(modes_of(begin.dataset.train, spec.num_classes, ipc, begin.seed))
    return DrawingLearner(begin.accelerator, spec, pixels, begin.seed, flow=flow, steps=method.steps, guidance=method.guidance,
                          modes=modes, pull=method.pull, until=method.pull_until, steer=method.steer, engine=begin.engine)


LEARNED = {
    GENERATOR: Learned("the weights of a generator", _generator, GENERATOR, needs_weight=True),
    PIXELS: Learned("pixels", _pixels, PIXELS),
    LATENTS: Learned("the latents of a frozen generator", _latents, LATENTS, needs_weight=True),
    DRAWN: Learned("nothing: images drawn by a flow", _drawn, DRAWN, needs_weight=True),
}
"""What a method can learn, by the name in its row."""


def make_learner(begin):
    """What is learned, as it is before the first step, or as the run that is resumed left it.

    Raises UserError for a --weight that has learned other classes of the data set.
    """
    if begin.start.weight:
        check_classes(begin.start.weight, "--weight", begin.dataset.spec, "learned: give the same --classes")
    learner = LEARNED[begin.method.learn].build(begin)
    if begin.state and kind_of(begin.method) != GENERATOR:
        learner.load_state_dict(begin.state, begin.file)
    if begin.start.weight:
        name_other_data(begin.start.weight, "--weight", begin.dataset.spec)
    return learner


def start_latents(method, start, seed, dataset, device):
    """The latents to start from, of the run or for the generator that --weight names, and the rows that they stand for."""
    source = load_source(start.weight, device)
    check_fits(source, dataset.spec, f"--weight {start.weight}")
    if not isinstance(source, LatentSet):
        return initial.latents(source, dataset, start.ipc, method.latent_space or "noise", seed)
    for flag, given, held in (("--ipc", start.ipc, source.max_ipc), ("--latent-space", method.latent_space, source.space)):
        if given not in (None, held):
            raise UserError(f"{flag} {given}: the latents of --weight {start.weight} were found with {held}")
    run = find_run(start.weight)
    if run is None:
        raise UserError(f"--weight {start.weight} holds latents without the images that they stand for: name the run of "
                        "--method inversion that found them")
    state = training_state(run / CHECKPOINT)
    source.load_state_dict(state[LATENTS_FOLDER])  # as they were before rounding
    source.rows = source.step_size = None  # learned with other images, if at all
    return source, state["rows"]


def make_matcher(method, learner, dataset, pool=None):
    """What the loss of a step compares, or None. Without a pool, which may take hours, it says whether that can be made.

    Raises UserError for values of the method that do not go together.
    """
    if method.match == "none":
        return None
    row, last = OBJECTIVES[method.match], method.max_start - 1 + method.expert_epochs
    if row.expert and last > method.pool_epochs:
        raise UserError(f"--max-start {method.max_start} and --expert-epochs {method.expert_epochs} need experts of {last} "
                        f"epochs: raise --pool-epochs, now {method.pool_epochs}")
    alone = method.steps != 0 and dataset.fewest == 1 and not (method.match_aug and method.aug_setting == "image")
    if row.spreads and alone:
        raise UserError(f"--match {method.match}: a class has one training image, which has no distribution: give --match "
                        "mean, or more images")
    kind = TrainingMatcher if row.per == "training" else Matcher
    return kind(learner, dataset, pool, method)


def count_steps(method, learner, dataset):
    """How many steps the run takes."""
    if method.epochs:
        return max(1, method.epochs * len(dataset.train) // learner.trainer.recipe.batch_size)
    if not method.chunk_steps:
        if method.steps is None:
            raise UserError("--chunk-steps 0 compares other latents in every step, and has no end of its own: give --steps")
        return method.steps
    turns = method.chunk_steps * -(-learner.source.max_ipc // learner.batch)
    if (method.steps or 0) > turns:
        raise UserError(f"--steps {method.steps}: every latent has had its turn after {turns} steps: leave --steps out, or "
                        "raise --chunk-steps")
    return turns if method.steps is None else method.steps


def count_pixels(control_of, method, learner, dataset):
    """About how many pixels of real images the run shows to networks, the training of a pool left out: a control's are as many
    as make it run as the one does whose control it is."""
    if control_of:
        return math.inf if read_json(control_of / CONFIG).get("compiled") else 0
    images = (method.match_classes or dataset.spec.num_classes) * method.match_batch
    return count_steps(method, learner, dataset) * images * dataset.spec.size**2
