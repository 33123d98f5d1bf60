"""Which recipe reaches better students sooner? Each variant trains a generator for the same seconds, and is scored.

    python benchmarks/recipes.py --data cifar10 --seconds 600 --variants default flips cosine-decay

Rows are written as they come. A variant whose row is in the file is not trained again: a search that was stopped goes on, and
one that is over can be given more variants. `python -m gendistil.evaluation.report recipes.json` prints the table again.
Scores and seconds are those of `benchmarks/objectives.py`.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.objectives import rows_of, score, student_protocol, train
from gendistil.common.cli import COUNT, POSITIVE, Parser, add_data_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.run import device_name, inherit_data, write_json
from gendistil.data import load_dataset
from gendistil.evaluation.report import read_report, tables
from gendistil.matching import GeneratorLearner
from generators import RECIPES, make_trainer

DEFAULT, DIM = RECIPES["pyramid"], RECIPES["dim"]
CHANGES = {
    "default": {},
    "width-64": {"width": 64},
    "width-192": {"width": 192},
    "width-256": {"width": 256},
    "batch-128": {"batch_size": 128},
    "linear-decay": {"lr_decay": "linear"},
    "cosine-decay": {"lr_decay": "cosine"},
    "flips": {"flip": True},
    "r1-0.1": {"gradient_penalty": 0.1},
    "r1-2": {"gradient_penalty": 2.0},
    "r1-every-step": {"penalty_interval": 1},
    "r1-every-16": {"penalty_interval": 16},
    "relativistic": {"loss": "relativistic", "penalty": "r1+r2"},
    "no-augmentation": {"gan_aug": "none"},
    "strong-augmentation": {"gan_aug": "color_crop_cutout"},
    "ema-0.9995": {"ema": 0.9995},
    "no-ema": {"ema": 0.0},
    "wgan-gp": {"loss": "wgan", "penalty": "wgan-gp", "gradient_penalty": 10.0, "penalty_interval": 1},
    "dim-rates": {"lr": DIM.lr, "lr_critic": DIM.lr_critic, "beta2": DIM.beta2},
}
"""Differences from the default recipe."""
VARIANTS = {**{name: replace(DEFAULT, **change) for name, change in CHANGES.items()},
            "dim": DIM, "dim-ema": replace(DIM, ema=DEFAULT.ema)}
"""Recipes by the name that --variants knows."""


def kept_rows(path, settings):
    """The rows of an earlier part of this search. UserError for a file of another one, or of something else."""
    rows = read_report(path) if path.exists() else []
    for row in rows:
        own = {**settings, "recipe": asdict(VARIANTS[row["source"]]) if row["source"] in VARIANTS else None}
        for name in own:
            if row.get(name) != own[name]:
                raise UserError(f"--output {path} holds rows of another search: {name} of {row['source']} is {row.get(name)}; "
                                "give another --output")
    return rows


def trained(recipe, dataset, engine, seed, seconds):
    """(trainer, steps): one that has taken as many steps as fit into `seconds`."""
    first, trainer = (make_trainer(engine.accelerator, dataset.spec, recipe, seed, engine) for _ in range(2))
    for step in range(2):  # what is compiled, and how convolutions are best done, is found out before the clock starts
        GeneratorLearner(first, dataset).step(step, None)
    return trainer, train(GeneratorLearner(trainer, dataset), None, seconds, trainer.pace)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=POSITIVE, default=120, help="training of each variant, in seconds")
    parser.add_argument("--repeats", type=COUNT, default=1, help="trainings of each variant, each with another seed")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="names in the table")
    parser.add_argument("--num-eval", type=COUNT, default=5, help="students of each training")
    parser.add_argument("--eval-ipc", type=COUNT, default=50, help="fresh images of each class in an epoch of a student")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="compile the networks, before the clock starts")
    parser.add_argument("--output", type=Path, default=Path("recipes.json"), help="JSON file that the rows are written to")
    add_data_arguments(parser)
    args = parser.parse_args()
    inherit_data(args, None)
    engine = Engine(make_accelerator("auto"))
    engine.choose(args.compile)
    device = engine.accelerator.device
    dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(device)
    settings = {"data": dataset.spec.name, "image_size": dataset.spec.size, "held_out": args.held_out,
                "train_seconds": args.seconds, "repeats": args.repeats, "num_eval": args.num_eval, "ipc": args.eval_ipc,
                "eval_epochs": args.eval_epochs, "compile": args.compile, "device": device_name(device)}
    rows = kept_rows(args.output, settings)
    for name in args.variants:
        if any(row["source"] == name for row in rows):
            continue
        steps, scores = [], []
        for seed in range(args.repeats):
            trainer, taken = trained(VARIANTS[name], dataset, engine, seed, args.seconds)
            steps.append(taken)
            scores.append(score(trainer, dataset, student_protocol(args.eval_epochs), seed,
                                [(args.eval_ipc, "fresh", args.num_eval)]))
        rows += rows_of(name, scores, **settings, recipe=asdict(VARIANTS[name]), generator_steps=steps)
        write_json(args.output, rows)
    print(tables(sorted(rows, key=lambda row: -row["mean"])))


if __name__ == "__main__":
    run_script(main)
