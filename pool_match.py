"""Stage 2: tune a generator until a pool of classifiers answers its images as it answers real ones.

    accelerate launch pool_match.py --tag match --match logit --match-aug --weight results/gan
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
from common.rng import Shuffle
from common.run import (
    CHECKPOINT,
    Interruptible,
    Meter,
    Run,
    any_process,
    find_run,
    inherit_data,
    load_checkpoint,
    read_json,
    resume_state,
    write_json,
)
from data import Augment, load_dataset, to_signed
from evaluation import evaluate
from evaluation.students import PROTOCOLS
from generators import GAN, MODEL, recipe_of
from matching import OBJECTIVES, SELECTORS, Matcher
from pools import CLASSIFIERS, ClassifierPool

SUMMARY = "summary.json"
DEFAULT_STEPS = 1000


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "match")
    add_data_arguments(parser)
    what = parser.add_argument_group("what is matched")
    what.add_argument("--weight", type=Path, required=True, metavar="PATH",
                      help="the generator to start from: a run's folder or a checkpoint file of the published DiM code")
    what.add_argument("--match", choices=[*OBJECTIVES, "none"], default="energy",
                      help="what must agree between real and generated images; none: train on without matching")
    what.add_argument("--match-weight", type=WEIGHT, help="weight beside the adversarial loss (default: the objective's)")
    what.add_argument("--match-classes", type=COUNT, default=2, help="classes compared in one step")
    what.add_argument("--match-batch", type=number(int, 2), default=96,
                      help="images of each of those classes, real and generated")
    what.add_argument("--match-aug", action=argparse.BooleanOptionalAction, default=True,
                      help="compare through siamese augmentation: the same for a real image and a generated one")
    what.add_argument("--aug-type", default="color_crop_cutout", help="augmentations, joined by _, or none")
    what.add_argument("--select", choices=SELECTORS, default="dream",
                      help="real images: nearest to the centroids of a clustering of their class, or drawn uniformly")
    what.add_argument("--select-interval", type=COUNT, default=50, help="steps between clusterings")
    what.add_argument("--select-candidates", type=COUNT, default=1000, help="images of each class that are clustered")
    pool = parser.add_argument_group("pool")
    pool.add_argument("--pool", nargs="+", choices=CLASSIFIERS, default=["convnet"], help="classifiers in the pool")
    pool.add_argument("--pool-members", type=COUNT, default=4, help="networks of each classifier")
    pool.add_argument("--pool-epochs", type=COUNT, default=20, help="epochs of their pretraining on the real images")
    pool.add_argument("--pool-snapshots", type=COUNT, default=5, help="snapshots kept of each, from early to late")
    length = parser.add_argument_group("length and reports")
    length.add_argument("--lr", type=POSITIVE, help="learning rate of the generator (default: the recipe's)")
    length.add_argument("--lr-critic", type=POSITIVE, help="learning rate of the critic (default: the recipe's)")
    length.add_argument("--batch-size", type=number(int, 2), help="images of the adversarial step (default: the recipe's)")
    length.add_argument("--epochs", type=COUNT, help="passes over the real images, instead of --steps")
    length.add_argument("--steps", type=COUNT, help=f"steps (default: {DEFAULT_STEPS})")
    length.add_argument("--control-of", type=Path, metavar="RUN",
                        help="train without matching for as many seconds as this finished run took; sets --match none")
    length.add_argument("--eval-interval", type=COUNT, default=250, help="steps between held-out scores")
    length.add_argument("--eval-model", choices=CLASSIFIERS, default="convnet", help="student that is scored")
    length.add_argument("--eval-ipc", type=COUNT, default=10, help="fresh images of each class in an epoch of that student")
    length.add_argument("--eval-epochs", type=COUNT, default=60, help="epochs of that student")
    length.add_argument("--log-interval", type=COUNT, default=50, help="steps between log entries")
    length.add_argument("--resume", action="store_true", help="continue the run of this tag from its last checkpoint")
    args = parser.parse_args(argv)
    if bool(args.epochs) + bool(args.steps) + bool(args.control_of) > 1:
        parser.error("--epochs, --steps and --control-of exclude each other: give one")
    if args.control_of:
        args.match = "none"
    inherit_data(args, args.output_dir / args.tag if args.resume else args.weight)
    return args


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


def make_matcher(args, gan, dataset):
    """What the generator's loss gains, or None: the pool is pretrained here, or found where an earlier run left it."""
    if args.match == "none":
        return None
    pool = ClassifierPool(dataset, args.output_dir / "pools", gan.accelerator, names=args.pool, members=args.pool_members,
                          epochs=args.pool_epochs, snapshots=args.pool_snapshots)
    return Matcher(gan, dataset, pool, match=args.match, weight=args.match_weight, select=args.select,
                   classes=args.match_classes, per_class=args.match_batch, aug_type=args.aug_type if args.match_aug else "none",
                   interval=args.select_interval, candidates=args.select_candidates)


def keep_best(args, run, gan, dataset, summary, step):
    """Score the averaged generator on the held-out images, and keep it if it is the best so far."""
    if run.is_main:
        protocol = dataclasses.replace(PROTOCOLS["default"], epochs=args.eval_epochs, min_steps=0)
        score = evaluate(gan.ema, dataset, args.eval_model, args.eval_ipc, "fresh", num_eval=1, seed=args.seed,
                         protocol=protocol, scored_on="held_out",
                         autocast=functools.partial(autocast, run.accelerator)).mean
        run.log({"held_out_accuracy": score}, step)
        if score >= summary["held_out_accuracy"]:
            summary.update(held_out_accuracy=score, best_step=step)
            gan.ema.save_pretrained(run.dir / MODEL)
        run.images("generator", *gan.grid(), step)
    run.accelerator.wait_for_everyone()


def save(run, gan, summary, step):
    """Everything that --resume needs."""
    if run.is_main:
        if not (run.dir / MODEL).exists():  # interrupted before the first score
            gan.ema.save_pretrained(run.dir / MODEL)
        run.save({"step": step, "summary": summary, "recipe": dataclasses.asdict(gan.recipe), **gan.state_dict()})
        write_json(run.dir / SUMMARY, {"steps": step, **summary})


def main():
    args = parse_args()
    accelerator = make_accelerator(args.precision)
    resumed = resume_state(args)
    state, file = (resumed, args.output_dir / args.tag / CHECKPOINT) if resumed else read_weight(args)
    seconds = read_seconds(args.control_of) if args.control_of else math.inf
    with accelerator.local_main_process_first():  # one process downloads and decodes, the others find its cache
        dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    spec, real = dataset.spec, dataset.train
    given = {name: getattr(args, name) for name in ("lr", "lr_critic", "batch_size") if getattr(args, name) is not None}
    recipe = dataclasses.replace(recipe_of(state, file), **given)
    if recipe.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
    Augment(args.aug_type, spec)  # a wrong name ends here, before the pool is pretrained
    gan = GAN(accelerator, spec, recipe, args.seed)
    gan.load_state_dict(state, file)
    matching = make_matcher(args, gan, dataset)
    run = Run(args, accelerator, recipe_values=dataclasses.asdict(recipe), dataset=dataclasses.asdict(spec))

    start, summary = 0, {"train_seconds": 0.0, "held_out_accuracy": 0.0, "best_step": 0, "steps_before": steps_taken(state)}
    if resumed:
        start, summary = state["step"], state["summary"]
    steps = args.steps or (args.epochs * len(real.labels) // recipe.batch_size if args.epochs else DEFAULT_STEPS)
    steps = math.inf if args.control_of else max(1, steps)
    shuffle = Shuffle(len(real.labels), recipe.batch_size, args.seed, "real of stage 2")
    meter = Meter()
    bar = tqdm(itertools.count(start), "pool_match", initial=start, total=None if args.control_of else steps,
               disable=not run.is_main)
    last = start >= steps or summary["train_seconds"] >= seconds
    with Interruptible(accelerator) as interrupt:
        for step in bar:
            if last:
                break
            began = time.perf_counter()
            rows = gan.mine(shuffle.indices(step))
            images, labels = to_signed(real.images[rows]), real.labels[rows]
            turn = summary["steps_before"] + step  # averaging and random streams go on where the earlier stage stopped
            meter.add(step + 1, **gan.generator_step(labels, turn, matching), **gan.critic_step(images, labels, turn))
            done = step + 1
            if done % args.log_interval == 0 or done == steps:
                metrics = meter.read()
                run.log(metrics, done)
                bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()})
            summary["train_seconds"] += time.perf_counter() - began
            last = done == steps or any_process(accelerator, summary["train_seconds"] >= seconds)
            scored = last or done % args.eval_interval == 0
            interrupted = interrupt.requested(done)
            if scored or interrupted:
                meter.check()
                gan.check(done)
                if scored:
                    keep_best(args, run, gan, dataset, summary, done)
                save(run, gan, summary, done)
            if interrupted:
                raise KeyboardInterrupt
    run.close()
    accelerator.print(f"generator of step {summary['best_step']}: {run.dir / MODEL}")


if __name__ == "__main__":
    run_script(main)
