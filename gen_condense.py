"""Stage 1: train a conditional generator on the real images.

    accelerate launch gen_condense.py --tag gan
"""

import argparse
import dataclasses

from tqdm import tqdm

from common.cli import (
    COUNT,
    FRACTION,
    POSITIVE,
    WEIGHT,
    Parser,
    add_data_arguments,
    add_run_arguments,
    number,
    run_script,
)
from common.device import make_accelerator
from common.errors import UserError
from common.rng import Shuffle
from common.run import CHECKPOINT, Interruptible, Meter, Run, inherit_data, resume_state
from data import AUGMENTATIONS, load_dataset, to_signed
from generators import GAN, MODEL, NETWORKS, RECIPES
from generators.losses import CRITIC_LOSSES, PENALTIES


def augmentations(text):
    """An argparse type: names of augmentations joined by _, or none."""
    unknown = set() if text == "none" else set(text.lower().split("_")).difference(AUGMENTATIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown augmentation '{min(unknown)}': join some of {', '.join(AUGMENTATIONS)} "
                                         "by _, or give none")
    return text


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "gan")
    add_data_arguments(parser)
    recipe = parser.add_argument_group("recipe (a flag that is not given takes the recipe's value)")
    recipe.add_argument("--recipe", choices=RECIPES, default="pyramid", help="named set of everything below; dim: as published")
    recipe.add_argument("--generator", choices=NETWORKS, help="networks of the generator and its critic")
    recipe.add_argument("--loss", choices=CRITIC_LOSSES, help="the critic's loss")
    recipe.add_argument("--penalty", choices=PENALTIES, help="penalty on the critic's gradient")
    recipe.add_argument("--gradient-penalty", type=WEIGHT, help="its weight, 0 for none")
    recipe.add_argument("--penalty-interval", type=COUNT, help="steps between penalties; each counts for all of them")
    recipe.add_argument("--lr", type=POSITIVE, help="learning rate of the generator (Adam)")
    recipe.add_argument("--lr-critic", type=POSITIVE, help="learning rate of the critic (Adam)")
    recipe.add_argument("--beta2", type=number(float, 0, 0.999999), help="Adam's second beta; the first is 0")
    recipe.add_argument("--batch-size", type=number(int, 2), help="images a step, over all processes")
    recipe.add_argument("--width", type=number(int, 8, 2048), help="channels of the widest layer")
    recipe.add_argument("--dim-noise", type=COUNT, help="entries of the noise vector")
    recipe.add_argument("--ema", type=FRACTION, help="decay of the averaged weights, 0 for none")
    recipe.add_argument("--gan-aug", type=augmentations, help="augmentation of what the critic sees, joined by _, or none")
    length = parser.add_argument_group("length and reports")
    length.add_argument("--epochs", type=COUNT, help="passes over the real images (default: the recipe's)")
    length.add_argument("--steps", type=COUNT, help="steps, instead of --epochs")
    length.add_argument("--log-interval", type=COUNT, default=50, help="steps between log entries")
    length.add_argument("--sample-interval", type=COUNT, default=500, help="steps between image grids")
    length.add_argument("--save-interval", type=COUNT, default=500, help="steps between checkpoints")
    length.add_argument("--resume", action="store_true", help="continue the run of this tag from its last checkpoint")
    args = parser.parse_args(argv)
    if args.epochs and args.steps:
        parser.error("--epochs and --steps exclude each other: give one")
    inherit_data(args, args.output_dir / args.tag if args.resume else None)
    return args


def choose_recipe(args):
    """The named recipe with the flags that were given in place of its values."""
    recipe = RECIPES[args.recipe]
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(recipe)}
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def save(run, gan, recipe, step):
    """The averaged generator as a model folder, and everything that --resume needs."""
    if run.is_main:
        gan.ema.save_pretrained(run.dir / MODEL)
    run.save({"step": step, "recipe": dataclasses.asdict(recipe), **gan.state_dict()})


def main():
    args = parse_args()
    accelerator = make_accelerator(args.precision)
    state, recipe = resume_state(args), choose_recipe(args)
    if recipe.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
    with accelerator.local_main_process_first():  # one process downloads and decodes, the others find its cache
        dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    spec, real = dataset.spec, dataset.train
    gan = GAN(accelerator, spec, recipe, args.seed)
    if state:
        gan.load_state_dict(state, args.output_dir / args.tag / CHECKPOINT)
    run = Run(args, accelerator, recipe_values=dataclasses.asdict(recipe), dataset=dataclasses.asdict(spec))

    steps = args.steps or max(1, recipe.epochs * len(real.labels) // recipe.batch_size)
    start = state["step"] if state else 0
    shuffle = Shuffle(len(real.labels), recipe.batch_size, args.seed, "real")
    meter = Meter()
    bar = tqdm(range(start, steps), "gen_condense", initial=start, total=steps, disable=not run.is_main)
    with Interruptible(accelerator) as interrupt:
        for step in bar:
            rows = gan.mine(shuffle.indices(step))
            images, labels = to_signed(real.images[rows]), real.labels[rows]
            report = gan.generator_step(labels, step) | gan.critic_step(images, labels, step)
            meter.add(step + 1, **report)
            done = step + 1
            if done % args.log_interval == 0 or done == steps:
                metrics = meter.read()
                run.log(metrics, done)
                bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()})
            if done % args.sample_interval == 0 or done == steps:
                run.images("generator", *gan.grid(), done)
            interrupted = interrupt.requested(done)
            if done % args.save_interval == 0 or done == steps or interrupted:
                meter.check()
                gan.check(done)
                save(run, gan, recipe, done)
            if interrupted:
                raise KeyboardInterrupt
    run.close()
    accelerator.print(f"generator: {run.dir / MODEL}")


if __name__ == "__main__":
    run_script(main)
