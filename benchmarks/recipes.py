"""Which recipe reaches better students sooner? Each variant trains a generator for the same seconds, and is scored.

    python benchmarks/recipes.py --data cifar10 --seconds 600 --variants default flips cosine-decay

How a search goes on, scores and counts its seconds: see `benchmarks/search.py`.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.search import add_arguments, begin, search, train
from gendistil.common.cli import Parser, run_script
from gendistil.common.device import synchronise
from gendistil.matching import GeneratorLearner
from gendistil.sources import draw_set
from generators import RECIPES, make_trainer

DEFAULT, DIM, FLOW = RECIPES["pyramid"], RECIPES["dim"], RECIPES["flow"]
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
FLOWS = {
    "flow": {},
    "flow-32": {"width": 32},
    "flow-48": {"width": 48},
    "flow-56": {"width": 56},
    "flow-4-steps": {"sample_steps": 4},
    "flow-guided": {"guidance": 1.5},
    "flow-lr-3e-4": {"lr": 3e-4},
    "flow-lr-3e-3": {"lr": 3e-3},
    "flow-cosine-decay": {"lr_decay": "cosine"},
    "flow-batch-64": {"batch_size": 64},
    "flow-uniform-times": {"times": "uniform"},
}
"""Differences from the recipe of flows; as many bytes as the default has a width of 48 at 8 pixels, 56 at 28 and 32 at 32."""
SHORTCUTS = {"48": {"width": 48}, "unguided": {"guidance": 1.0}, "guided-2": {"guidance": 2.0}, "guided-3": {"guidance": 3.0}}
"""Differences from the recipe of shortcuts, which learn their guidance."""
VARIANTS = {**{name: replace(DEFAULT, **change) for name, change in CHANGES.items()},
            **{name: replace(FLOW, **change) for name, change in FLOWS.items()},
            "dim": DIM, "dim-ema": replace(DIM, ema=DEFAULT.ema),
            "shortcut": RECIPES["shortcut"],
            **{f"shortcut-{name}": replace(RECIPES["shortcut"], **change) for name, change in SHORTCUTS.items()}}
"""Recipes by the name that --variants knows."""


def seconds_to_draw(source, device, count=1000):
    """Seconds that 10,000 images take, by those of about `count`."""
    draw_set(source, 1, 0, device)
    synchronise(device)
    began = time.perf_counter()
    images, _ = draw_set(source, max(1, count // source.num_classes), 0, device)
    synchronise(device)
    return (time.perf_counter() - began) * 10_000 / len(images)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    add_arguments(parser, VARIANTS, 120, ("50:fresh:5",), "recipes.json")
    args = parser.parse_args()
    engine, dataset = begin(args)

    def train_one(name, seed):
        first, trainer = (make_trainer(engine.accelerator, dataset.spec, VARIANTS[name], seed, engine) for _ in range(2))
        for step in range(2):  # what is compiled, and how convolutions are best done, is found out before the clock starts
            GeneratorLearner(first, dataset).step(step, None)
        steps = train(GeneratorLearner(trainer, dataset), None, args.seconds, trainer.pace)
        return trainer.source, {"generator_steps": steps,
                                "draw_seconds": seconds_to_draw(trainer.source, engine.accelerator.device)}

    search(args, VARIANTS, engine, dataset, train_one)


if __name__ == "__main__":
    run_script(main)
