"""From rows to objects: what a run of `pool_match.py` learns, compares and by whose eyes."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gendistil.common.device import process_first
from gendistil.common.errors import UserError
from gendistil.common.inherit import check_classes, name_other_data
from gendistil.common.run import CHECKPOINT, find_run, read_config, training_state
from gendistil.matching import initial
from gendistil.matching.drawing import DrawingLearner, modes_of
from gendistil.matching.learners import GeneratorLearner, LatentLearner, PixelLearner
from gendistil.matching.matcher import Matcher
from gendistil.matching.methods import DRAWN, GENERATOR, LATENTS, PIXELS, Method
from gendistil.matching.objectives import OBJECTIVES
from gendistil.matching.trained import TrainingMatcher
from gendistil.sources import LATENTS_FOLDER, LatentSet, PixelSet, check_fits, load_source, weights_digest
from generators import make_trainer, recipe_of
from generators.unet import FlowGenerator
from pools import check_classifiers

_STEPS = 4  # of a flow that are matched through, at most, unless --sample-steps asks for more


def check_pool(method, spec):
    """Raise UserError unless the networks of --pool suit the images of a `Spec`, and what the method compares of them."""
    row = OBJECTIVES.get(method.match)
    if row:
        check_classifiers(method.pool, spec, "--pool", row.suits and functools.partial(row.suits, method))


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
    start: object
    seed: int
    engine: object
    dataset: object
    state: dict
    file: Path
    steps_before: int = 0

    @property
    def accelerator(self):
        return self.engine.accelerator


def _kept_recipe(method, state, file):
    """The recipe that stays with the generator of a training state, read from `file`: a flow's, with the steps through which it
    is matched."""
    recipe = recipe_of(state, file)
    if hasattr(recipe, "sample_steps"):
        return dataclasses.replace(recipe, sample_steps=method.sample_steps or min(recipe.sample_steps, _STEPS))
    if method.sample_steps:
        raise UserError(f"--sample-steps is for a flow, and {file} was trained by '{recipe.trainer}': leave it out")
    return recipe


def _generator(begin):
    method, state, file, accelerator = begin.method, begin.state, begin.file, begin.accelerator
    kept = _kept_recipe(method, state, file)
    asked = {name: getattr(method, name) for name in ("lr", "lr_critic", "batch_size", "ema", "tune") if hasattr(kept, name)}
    recipe = dataclasses.replace(kept, **{name: value for name, value in asked.items() if value is not None})
    if recipe.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
    trainer = make_trainer(accelerator, begin.dataset.spec, recipe, begin.seed, begin.engine)
    trainer.load_state_dict(state, file)
    return GeneratorLearner(trainer, begin.dataset, begin.steps_before, kept)


def stored_settings(begin):
    """What a `Method` says of how stored values are learned: keywords of a `StoredLearner`. Raises UserError for a --teacher
    beside labels that are learned."""
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
    return PixelLearner(accelerator, spec, pixels, begin.seed, space=method.space, **stored_settings(begin))


def _latents(begin):
    device = begin.accelerator.device
    if "rows" in begin.state:  # of the run that is resumed, which needs nothing but its own folder
        latents, partners = load_source(begin.file.parent / LATENTS_FOLDER, device), begin.state["rows"]
        latents.rows = latents.step_size = None
    else:
        latents, partners = start_latents(begin.method, begin.start, begin.seed, begin.dataset, device)
    return LatentLearner(begin.accelerator, begin.dataset.spec, latents, begin.seed, real=begin.dataset.train,
                         partners=partners, chunk_steps=begin.method.chunk_steps, **stored_settings(begin))


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
    flow.check_sampling(method.steps, method.guidance, flag="--steps")
    pixels = PixelSet(size=spec.size, channels=spec.channels, num_classes=spec.num_classes, ipc=ipc).to(device)
    modes = None
    if method.pull:
        initial.check_count(begin.dataset, ipc, "--pull asks for: lower --ipc, or give --pull 0")
        modes = process_first(modes_of(begin.dataset.train, spec.num_classes, ipc, begin.seed))
    return DrawingLearner(begin.accelerator, spec, pixels, begin.seed, flow=flow, steps=method.steps, guidance=method.guidance,
                          modes=modes, pull=method.pull, until=method.pull_until, steer=method.steer, engine=begin.engine,
                          digest=weights_digest(weight))


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
        name_other_data(begin.start.weight, "--weight", begin.dataset.spec, judged=True)
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


def make_matcher(method, learner, dataset):
    """What the loss of a step compares, or None; its `begin` takes the pool, which may take hours to make.

    Raises UserError for values of the method that do not go together.
    """
    if method.match == "none":
        return None
    row, last = OBJECTIVES[method.match], method.max_start - 1 + method.expert_epochs
    if row.expert and method.steps != 0 and last > method.pool_epochs:
        raise UserError(f"--max-start {method.max_start} and --expert-epochs {method.expert_epochs} need experts of {last} "
                        f"epochs: raise --pool-epochs, now {method.pool_epochs}")
    if row.per == "training" and dataset.spec.num_classes == 1 and method.steps != 0:
        raise UserError(f"--match {method.match}: networks learn nothing of one class alone: give more --classes")
    if method.steps != 0 and row.spreads and _only_single_images(row, method, dataset, learner.accelerator.num_processes):
        raise UserError(f"--match {method.match}: a class has one training image, which has no distribution: give --match "
                        "mean, or more images")
    kind = TrainingMatcher if row.per == "training" else Matcher
    return kind(learner, dataset, method)


def _only_single_images(row, method, dataset, processes):
    """Whether the unit of an objective may be the spread of one real image of each class that is compared, always the same."""
    if method.match_aug and method.aug_setting == "image":
        return False
    classes = dataset.spec.num_classes
    own = min(method.match_classes or classes, classes) // processes
    batch = min(method.class_batch or own, own)
    together = {"class": 1, "all": (own % batch or batch) * processes}  # the fewest classes that are compared at once
    return int((dataset.train.labels.bincount(minlength=classes) == 1).sum()) >= together[row.spreads]


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
        return math.inf if read_config(control_of).get("compiled") else 0
    images = (method.match_classes or dataset.spec.num_classes) * method.match_batch
    return count_steps(method, learner, dataset) * images * dataset.spec.size**2
