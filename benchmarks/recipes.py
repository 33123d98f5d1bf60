"""Which recipe reaches better students sooner? Each trains a generator for the same seconds, and is scored.

    python benchmarks/recipes.py --seconds 120 --output recipes.json
    python -m gendistil.evaluation.report recipes.json

Scores and seconds are those of `benchmarks/objectives.py`.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.objectives import rows_of, score, student_protocol, train
from gendistil.common.cli import COUNT, POSITIVE, Parser, add_data_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.run import device_name, inherit_data, write_json
from gendistil.data import load_dataset
from gendistil.matching import GeneratorLearner
from generators import RECIPES, make_trainer

PYRAMID, DIM = RECIPES["pyramid"], RECIPES["dim"]
VARIANTS = {
    "dim": DIM,
    "dim, averaged weights": replace(DIM, ema=PYRAMID.ema),
    "pyramid": PYRAMID,
    "pyramid, WGAN-GP": replace(PYRAMID, loss="wgan", penalty="wgan-gp", gradient_penalty=10.0, penalty_interval=1),
    "pyramid, dim's learning rates": replace(PYRAMID, lr=DIM.lr, lr_critic=DIM.lr_critic, beta2=DIM.beta2),
    "pyramid, no augmentation": replace(PYRAMID, gan_aug="none"),
    "pyramid, strong augmentation": replace(PYRAMID, gan_aug="color_crop_cutout"),
    "pyramid, weights not averaged": replace(PYRAMID, ema=0.0),
    "pyramid, width 64": replace(PYRAMID, width=64),
}
"""The named recipes, and the default with one choice changed."""


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=POSITIVE, default=120, help="training of each variant, in seconds")
    parser.add_argument("--repeats", type=COUNT, default=1, help="trainings of each variant, each with another seed")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="names in the table")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that the rows are written to")
    add_data_arguments(parser)
    args = parser.parse_args()
    inherit_data(args, None)
    accelerator = make_accelerator("auto")
    dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    rows = []
    for name in args.variants:
        steps, scores = [], []
        for seed in range(args.repeats):
            trainer = make_trainer(accelerator, dataset.spec, VARIANTS[name], seed)
            steps.append(train(GeneratorLearner(trainer, dataset), None, args.seconds))
            scores.append(score(trainer, dataset, student_protocol(args.eval_epochs), seed))
        rows += rows_of(name, scores, data=dataset.spec.name, device=device_name(accelerator.device),
                        train_seconds=args.seconds, recipe=asdict(VARIANTS[name]), generator_steps=steps)
        write_json(args.output, rows)


if __name__ == "__main__":
    run_script(main)
