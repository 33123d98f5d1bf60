"""Stage 2: match what is learned with the real images as a pool of classifiers sees them.

    accelerate launch pool_match.py --tag match --match logit --match-aug --weight results/gan
    accelerate launch pool_match.py --tag dm --method dm --data mnist --ipc 10
"""

import argparse
import dataclasses
import functools
import itertools
import math
import time
from pathlib import Path

from tqdm import tqdm

from common.cli import (
    COUNT,
    NATURAL,
    POSITIVE,
    WEIGHT,
    Parser,
    add_data_arguments,
    add_run_arguments,
    number,
    run_script,
)
from common.device import autocast, make_accelerator
from common.errors import UserError
from common.run import (
    CHECKPOINT,
    CONFIG,
    Interruptible,
    Meter,
    Run,
    any_process,
    check_folder,
    find_run,
    inherit_data,
    load_checkpoint,
    read_json,
    resume_state,
    write_json,
)
from data import Augment, load_dataset
from evaluation import evaluate, load_source
from evaluation.sources import check_fits
from evaluation.students import PROTOCOLS
from generators import GAN, LATENTS, recipe_of
from matching import METHODS, METRICS, OBJECTIVES, SELECTORS, SETTINGS, SPACES, Matcher, initial, methods
from matching.latents import LATENT_SPACES, LatentSet
from matching.learners import GeneratorLearner, LatentLearner, PixelLearner
from matching.pixels import DECODERS, PixelSet
from pools import CLASSIFIERS, ClassifierPool, OnlinePool, RandomPool

SUMMARY = "summary.json"
POOL_TRAININGS = ("pretrained", "random", "synthetic", "real")
DEFAULT_IPC = 10
LEARNS = {"generator": "the weights of a generator", "pixels": "pixels", "latents": "the latents of a frozen generator"}
GIVEN_TO = {  # flags that not every method has a use for
    "generator": ("lr_critic", "batch_size", "control_of", "epochs", "weight"),
    "pixels": ("init", "factor", "space", "ipc", "syn_batch", "class_batch", "momentum"),
    "latents": ("latent_space", "own_weight", "chunk_steps", "weight", "ipc", "syn_batch", "class_batch", "momentum"),
}


class ListMethods(argparse.Action):
    """Print the table of methods and leave."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(methods.table())
        parser.exit()


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "match")
    add_data_arguments(parser)
    what = parser.add_argument_group("method (a flag that is not given takes the method's value)")
    what.add_argument("--method", choices=METHODS, default="dim", help="published method: a named set of what follows")
    what.add_argument("--list-methods", action=ListMethods, nargs=0, help="print the methods and leave")
    what.add_argument("--match", choices=[*OBJECTIVES, "none"],
                      help="what must agree between real and synthetic images; none: train a generator on without matching")
    what.add_argument("--metric", choices=METRICS, help="distance of gradients, for --match grad")
    what.add_argument("--match-weight", type=WEIGHT, help="weight of matching (a generator's default: the objective's)")
    what.add_argument("--match-classes", type=COUNT, help="classes compared in one step (default of pixels: all)")
    what.add_argument("--match-batch", type=number(int, 2), help="real images of each class (and generated ones)")
    what.add_argument("--match-aug", action=argparse.BooleanOptionalAction, default=None,
                      help="compare through siamese augmentation: the same for real and synthetic images")
    what.add_argument("--aug-type", help="augmentations, joined by _, or none")
    what.add_argument("--aug-single", action=argparse.BooleanOptionalAction, default=None,
                      help="apply one of them at a time (DSA, DM), else all but two of crop, scale and rotate")
    what.add_argument("--aug-setting", choices=SETTINGS,
                      help="one setting of them for each pair of a real and a synthetic image, or for each class")
    what.add_argument("--select", choices=SELECTORS,
                      help="real images: nearest to the centroids of a clustering of their class, or drawn uniformly")
    what.add_argument("--select-interval", type=COUNT, help="steps between clusterings")
    what.add_argument("--select-candidates", type=COUNT, default=1000, help="images of each class that are clustered")
    generator = parser.add_argument_group("a generator")
    generator.add_argument("--weight", type=Path, metavar="PATH",
                           help="the generator to start from: a run's folder or a checkpoint file of the published code; for "
                                "latents also a run of --method inversion")
    generator.add_argument("--lr-critic", type=POSITIVE, help="learning rate of the critic (default: the recipe's)")
    generator.add_argument("--batch-size", type=number(int, 2), help="images of the adversarial step (default: the recipe's)")
    generator.add_argument("--control-of", type=Path, metavar="RUN",
                           help="train without matching for as many seconds as this finished run took; sets --match none")
    stored = parser.add_argument_group("pixels and latents")
    stored.add_argument("--ipc", type=COUNT, help=f"stored images per class (default: {DEFAULT_IPC}; of latents, as many as "
                                                  "the smallest class has)")
    stored.add_argument("--syn-batch", type=NATURAL, help="images of a class compared in one step, 0 for all")
    stored.add_argument("--class-batch", type=COUNT, help="classes in memory together (default: all); the result is the same")
    stored.add_argument("--momentum", type=number(float, 0, 0.999), help="of the SGD that learns them")
    pixels = parser.add_argument_group("pixels")
    pixels.add_argument("--init", choices=initial.INITS, help="what they start from: noise, or real images chosen so")
    pixels.add_argument("--factor", type=number(int, 1, 8), help="each holds this number squared of smaller images (IDC)")
    pixels.add_argument("--decoder", choices=DECODERS, default="single",
                        help="cut images by --factor, by all numbers up to it, or as many as make 128 in all")
    pixels.add_argument("--space", choices=SPACES, help="units of --lr: of standardised images, or of images in [0, 1]")
    latents = parser.add_argument_group("latents")
    latents.add_argument("--latent-space", choices=LATENT_SPACES,
                         help="vectors are the generator's noise, or its coarsest grid")
    latents.add_argument("--own-weight", type=WEIGHT,
                         help="of the distance of each image's embedding from that of the real one that its latent was found "
                              "for: keeps a class diverse")
    latents.add_argument("--chunk-steps", type=NATURAL,
                         help="inversion: Adam steps on --syn-batch latents of a class before the next; 0: others each step")
    pool = parser.add_argument_group("pool")
    pool.add_argument("--pool", nargs="+", choices=CLASSIFIERS, default=["convnet"], help="classifiers in the pool")
    pool.add_argument("--pool-training", choices=POOL_TRAININGS,
                      help="pretrained: on the real images, and kept; random: never; synthetic, real: between the steps, on "
                           "what is learned or on real images")
    pool.add_argument("--outer", type=COUNT, help="steps from one new network to the next (synthetic, real)")
    pool.add_argument("--inner", type=COUNT, help="passes of its training between two steps")
    pool.add_argument("--pool-images", type=COUNT, help="real images of such a pass")
    pool.add_argument("--pool-members", type=COUNT, default=4, help="pretrained networks of each classifier")
    pool.add_argument("--pool-epochs", type=COUNT, default=20, help="epochs of their pretraining on the real images")
    pool.add_argument("--pool-snapshots", type=COUNT, default=5, help="snapshots kept of each, from early to late")
    length = parser.add_argument_group("length and reports")
    length.add_argument("--lr", type=POSITIVE, help="learning rate of the generator (default: the recipe's) or of the pixels")
    length.add_argument("--epochs", type=COUNT, help="passes over the real images, instead of --steps, for a generator")
    length.add_argument("--steps", type=NATURAL, help="steps (default: the method's)")
    length.add_argument("--eval-interval", type=COUNT, default=250, help="steps between held-out scores")
    length.add_argument("--eval-model", choices=CLASSIFIERS, default="convnet", help="student that is scored")
    length.add_argument("--eval-ipc", type=COUNT, default=10, help="fresh images of each class in an epoch of that student")
    length.add_argument("--eval-epochs", type=COUNT, default=60, help="epochs of that student")
    length.add_argument("--log-interval", type=COUNT, default=50, help="steps between log entries")
    length.add_argument("--resume", action="store_true", help="continue the run of this tag from its last checkpoint")
    args = parser.parse_args(argv)
    if bool(args.epochs) + bool(args.steps) + bool(args.control_of) > 1:
        parser.error("--epochs, --steps and --control-of exclude each other: give one")
    learns = METHODS[args.method].learn
    misplaced = [name.replace("_", "-") for names in GIVEN_TO.values() for name in names
                 if name not in GIVEN_TO[learns] and getattr(args, name) is not None]
    misplaced += ["match none"] if learns != "generator" and args.match == "none" else []
    if misplaced:
        parser.error(f"--{misplaced[0]} is not for --method {args.method}, which learns {LEARNS[learns]}")
    if learns != "pixels" and not args.weight:
        parser.error(f"--method {args.method} starts from a generator: give --weight, a run of gen_condense.py")
    if args.control_of:
        args.match = "none"
    if learns == "pixels" and args.ipc is None:
        args.ipc = DEFAULT_IPC
    begun = [folder for folder in (args.output_dir / args.tag, inversion_folder(args)) if args.resume and has_begun(folder)]
    inherit_data(args, (begun or [args.weight])[0])
    return args


def inversion_folder(args):
    """Where `--method itgan` keeps the latents that it starts from, unless --weight names some."""
    return args.output_dir / f"{args.tag}-inversion"


def has_begun(folder):
    return (folder / CONFIG).exists()


def read_weight(args):
    """The training state that --weight names: (state, file)."""
    path = args.weight
    for flag, source in (("--weight", path), ("--control-of", args.control_of)):
        if source and (args.output_dir / args.tag).resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"{flag} {source} lies in the folder that --tag {args.tag} writes: choose another --tag")
    run = find_run(path)
    file = path if path.is_file() else (run or path) / CHECKPOINT
    if path.exists() and not file.exists():
        raise UserError(f"--weight {path} holds no {CHECKPOINT}: matching needs the critic too, so name the folder of a run of "
                        "gen_condense.py that has reached its first checkpoint")
    state = load_checkpoint(file)
    parts = ("generator", "discriminator", "optim_g", "optim_d")
    whole = isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in parts)
    if not whole or len(state["generator"]) < 3:
        raise UserError(f"--weight {path}: {file.name} is not a checkpoint of this suite or of the published DiM code")
    return state, file


def steps_taken(state):
    """Steps that led to a training state, over all stages; 0 for a checkpoint of the published code, which keeps no count."""
    return state.get("step", 0) + state.get("summary", {}).get("steps_before", 0)


def read_seconds(path):
    """How long the run that --control-of names has trained."""
    try:
        return float(read_json(path / SUMMARY)["train_seconds"])
    except (UserError, KeyError, TypeError, ValueError):
        raise UserError(f"--control-of {path} holds no readable {SUMMARY}: name the folder of a finished run of pool_match.py")


def make_pool(args, method, dataset, accelerator):
    """The networks that compare the images; pretrained ones are made here, or found where an earlier run left them."""
    if method.pool_training == "pretrained":
        return ClassifierPool(dataset, args.output_dir / "pools", accelerator, names=args.pool, members=args.pool_members,
                              epochs=args.pool_epochs, snapshots=args.pool_snapshots)
    if method.pool_training == "random":
        return RandomPool(dataset, names=args.pool)
    return OnlinePool(dataset, teacher=method.pool_training, outer=method.outer, inner=method.inner, names=args.pool,
                      images=method.pool_images, batch_size=method.pool_batch, momentum=method.pool_momentum,
                      weight_decay=method.pool_decay, aug_type=method.pool_aug, aug_single=method.aug_single,
                      seed=args.seed)


def make_learner(args, method, accelerator, dataset, state, file, steps_before):
    """What is learned: from the training state that was read from `file`, or pixels that `initial.start` has yet to fill."""
    spec = dataset.spec
    if method.learn == "generator":
        given = {name: getattr(args, name) for name in ("lr", "lr_critic", "batch_size") if getattr(args, name) is not None}
        recipe = dataclasses.replace(recipe_of(state, file), **given)
        if recipe.batch_size % accelerator.num_processes:
            raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
        learner = GeneratorLearner(GAN(accelerator, spec, recipe, args.seed), dataset, steps_before)
        learner.load_state_dict(state, file)
        return learner
    settings = {"lr": method.lr, "momentum": method.momentum, "batch": method.syn_batch or None}
    if method.learn == "latents":
        latents, rows = start_latents(args, method, dataset, accelerator.device)
        learner = LatentLearner(accelerator, spec, latents, args.seed, real=dataset.train, rows=rows,
                                chunk_steps=method.chunk_steps, **settings)
    else:
        pixels = PixelSet(size=spec.size, channels=spec.channels, num_classes=spec.num_classes, ipc=args.ipc,
                          factor=method.factor, decoder=args.decoder).to(accelerator.device)
        learner = PixelLearner(accelerator, spec, pixels, args.seed, space=method.space, **settings)
    if state:
        learner.load_state_dict(state, file)
    return learner


def holds_latents(path):
    """Whether `path` is a run that has found the latents of real images."""
    folder = find_run(path)
    return folder is not None and (folder / LATENTS).exists()


def start_latents(args, method, dataset, device):
    """The latents to start from, of the run or for the generator that --weight names, and the rows that they stand for."""
    source = load_source(args.weight, device)
    check_fits(source, dataset.spec, f"--weight {args.weight}")
    if not isinstance(source, LatentSet):
        return initial.latents(source, dataset, args.ipc, method.latent_space, args.seed)
    for flag, given, held in (("--ipc", args.ipc, source.max_ipc), ("--latent-space", args.latent_space, source.space)):
        if given not in (None, held):
            raise UserError(f"{flag} {given}: the latents of --weight {args.weight} were found with {held}")
    state = load_checkpoint(find_run(args.weight) / CHECKPOINT)
    source.load_state_dict(state[LATENTS])  # as they were before rounding
    return source, state["rows"]


def make_matcher(args, method, learner, dataset, pool):
    """What the loss of a step compares, or None."""
    if method.match == "none":
        return None
    return Matcher(learner, dataset, pool, match=method.match, metric=method.metric, weight=method.match_weight,
                   select=method.select, classes=method.match_classes, per_class=method.match_batch,
                   aug_type=method.aug_type if method.match_aug else "none", aug_single=method.aug_single,
                   aug_setting=method.aug_setting, interval=method.select_interval, candidates=args.select_candidates,
                   at_once=args.class_batch, own_weight=method.own_weight)


def keep_best(args, run, learner, dataset, summary, step):
    """Score what is learned on the held-out images, and keep it if it is the best so far."""
    if run.is_main:
        protocol = dataclasses.replace(PROTOCOLS["default"], epochs=args.eval_epochs, min_steps=0)
        ipc = min(args.eval_ipc, getattr(learner.source, "max_ipc", args.eval_ipc))
        score = evaluate(learner.source, dataset, args.eval_model, ipc, "fresh", num_eval=1, seed=args.seed,
                         protocol=protocol, scored_on="held_out",
                         autocast=functools.partial(autocast, run.accelerator)).mean
        run.log({"held_out_accuracy": score}, step)
        if score >= summary["held_out_accuracy"]:
            summary.update(held_out_accuracy=score, best_step=step)
            learner.source.save_pretrained(run.dir / learner.folder)
        run.images(learner.folder, *learner.grid(), step)
    run.accelerator.wait_for_everyone()


def save(run, learner, matching, summary, step):
    """Everything that --resume needs."""
    if run.is_main:
        if not (run.dir / learner.folder).exists():  # interrupted before the first score
            learner.source.save_pretrained(run.dir / learner.folder)
        run.save({"step": step, "summary": summary, "matching": matching.state_dict() if matching else {},
                  **learner.state_dict()})
        write_json(run.dir / SUMMARY, {"steps": step, **summary})


def count_steps(args, method, learner, dataset):
    """How many steps the run takes; a control stops by the clock instead."""
    if args.control_of:
        return math.inf
    if args.epochs:
        return max(1, args.epochs * len(dataset.train) // learner.gan.recipe.batch_size)
    if method.steps is None:
        return method.chunk_steps * -(-learner.source.max_ipc // learner.batch)
    return method.steps


def invert_first(args):
    """Find the latents of real images under a tag of its own, unless --weight holds them already; they are the weight then."""
    if holds_latents(args.weight):
        return
    folder = inversion_folder(args)
    resume = args.resume and has_begun(folder)
    if not resume:
        check_folder(args)  # before hours of work
    answers = {field.name for field in dataclasses.fields(methods.Method)} & vars(args).keys()
    answers -= {"latent_space", "chunk_steps", "syn_batch"}
    match(argparse.Namespace(**{**vars(args), **dict.fromkeys(answers), "method": "inversion", "tag": folder.name,
                                "resume": resume}))
    args.weight, args.ipc, args.latent_space, args.chunk_steps = folder, None, None, None
    args.resume = args.resume and has_begun(args.output_dir / args.tag)  # or it was interrupted before


def main():
    args = parse_args()
    if args.method == "itgan":
        invert_first(args)
    match(args)


def match(args):
    """One run: learn, score, save."""
    accelerator = make_accelerator(args.precision)
    resumed = resume_state(args)
    tunes = METHODS[args.method].learn == "generator"
    state, file = (resumed, args.output_dir / args.tag / CHECKPOINT) if resumed else read_weight(args) if tunes else ({}, None)
    seconds = read_seconds(args.control_of) if args.control_of else math.inf
    with accelerator.local_main_process_first():  # one process downloads and decodes, the others find its cache
        dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    method = methods.override(methods.method_for(args.method, dataset.spec.name, args.ipc or 1), args)
    Augment(method.aug_type, dataset.spec)  # a wrong flag ends here, before a pool is pretrained
    start, summary = 0, {"train_seconds": 0.0, "held_out_accuracy": 0.0, "best_step": 0, "steps_before": steps_taken(state)}
    if resumed:
        start, summary = state["step"], state["summary"]
    if method.learn == "pixels":
        initial.check(dataset, method.init, args.ipc * method.factor**2)
    learner = make_learner(args, method, accelerator, dataset, state, file, summary["steps_before"])
    pool = None if method.match == "none" else make_pool(args, method, dataset, accelerator)
    if method.learn == "pixels" and not resumed:
        initial.start(learner.source, dataset, method.init, args.seed, pool)
    matching = make_matcher(args, method, learner, dataset, pool)
    if resumed and matching:
        matching.load_state_dict(state["matching"])
    run = Run(args, accelerator, method_values=dataclasses.asdict(method), dataset=dataclasses.asdict(dataset.spec),
              **({"recipe_values": dataclasses.asdict(learner.gan.recipe)} if tunes else {}))

    steps = count_steps(args, method, learner, dataset)
    meter = Meter()
    bar = tqdm(itertools.count(start), "pool_match", initial=start, total=None if args.control_of else steps,
               disable=not run.is_main)
    last = start >= steps or summary["train_seconds"] >= seconds
    if last and not resumed:  # a coreset, which learns nothing
        keep_best(args, run, learner, dataset, summary, 0)
        save(run, learner, matching, summary, 0)
    with Interruptible(accelerator) as interrupt:
        for step in bar:
            if last:
                break
            began = time.perf_counter()
            meter.add(step + 1, **learner.step(step, matching))
            done = step + 1
            if done % args.log_interval == 0 or done == steps:
                metrics = meter.read()
                run.log(metrics, done)
                bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()})
            summary["train_seconds"] += time.perf_counter() - began
            last = done == steps or any_process(accelerator, summary["train_seconds"] >= seconds)
            due = last or done % args.eval_interval == 0
            interrupted = interrupt.requested(done)
            if due or interrupted:
                meter.check()
                learner.check(done)
                if last or (due and not method.chunk_steps):  # latents that have not had their turn score nothing
                    keep_best(args, run, learner, dataset, summary, done)
                save(run, learner, matching, summary, done)
            if interrupted:
                raise KeyboardInterrupt
    run.close()
    accelerator.print(f"{learner.folder} of step {summary['best_step']}: {run.dir / learner.folder}")


if __name__ == "__main__":
    run_script(main)
