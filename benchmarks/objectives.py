"""Which setting of stage 2 beats its control? Each trains on from one stage-1 run for the same seconds, and is scored.

    python benchmarks/objectives.py --weight results/gan --seconds 600 --variants control default calibrated

How a search goes on, scores and counts its seconds: see `benchmarks/search.py`.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.search import add_arguments, begin, make_folder, search, train
from gendistil.common.cli import Parser, run_script
from gendistil.common.errors import UserError
from gendistil.common.flags import add_flags, flag_fields, override
from gendistil.data.datasets import Split
from gendistil.matching import METHODS, Method, build, choices, origin
from gendistil.matching.networks import make_pool
from gendistil.sources import Teacher, draw_set, weights_digest

KEPT = {"match_real": 1000, "select": "random", "match_aug": False}
TRAINED = {"select": "random", "match_aug": False, "match_batch": 10, "unroll": 20, "step_size": 0.02}
TRAJECTORY = {**TRAINED, "match": "trajectory", "pool_training": "expert", "pool_epochs": 6, "pool_lr": 0.02,
              "expert_epochs": 1, "max_start": 5}
OUTCOME = {**TRAINED, "match": "outcome", "pool_training": "random"}
UNCALIBRATED = {
    "uncalibrated": {},
    "weight-10": {"match_weight": 10.0},
    "random-batches": {"select": "random"},
    "all-classes": {"select": "random", "match_classes": 0, "match_batch": 20},
    "moments": {"match": "moments", "match_weight": 10.0},
    "mean": {"match": "mean", "match_weight": 0.01},
    "logit": {"match": "logit", "match_weight": 1.0},
    "published": {"match": "logit", "select": "random", "lr": 5e-6, "lr_critic": 5e-6},
    "feature": {"match": "feature"},
    "gradients": {"match": "grad", "match_batch": 32},
    "trajectory": TRAJECTORY,
    "trajectory-10": {**TRAJECTORY, "match_weight": 10.0},
    "outcome": OUTCOME,
    "outcome-10": {**OUTCOME, "match_weight": 10.0},
    "kept": KEPT,
    "cf": {"match": "cf"},
    "cf-kept": {"match": "cf", **KEPT},
    "mixed": {"pool_mix": True},
    "norms": {"tune": "norms"},
}
CALIBRATED = {
    "default": {},  # at a weight of 3
    "calibrated-0.1": {"calibrate": 0.1},
    "calibrated": {"calibrate": 0.3},
    "calibrated-1": {"calibrate": 1.0},
    "calibrated-10": {"calibrate": 10.0},
    "calibrated-3-kept": {"calibrate": 3.0, **KEPT},
    "calibrated-3-cf": {"calibrate": 3.0, "match": "cf"},
    "calibrated-3-mixed": {"calibrate": 3.0, "pool_mix": True},
    "calibrated-3-several": {"calibrate": 3.0, "pool": ("convnet", "resnet10", "vgg11")},
    "calibration": {"calibrate": 1000.0, "match_weight": 0.003},  # next to nothing else
    "calibrated-kept": {"calibrate": 0.3, **KEPT},
    "calibrated-mixed": {"calibrate": 0.3, "pool_mix": True},
    "calibrated-slow": {"calibrate": 0.3, "lr": 5e-6},
    "calibrated-averaged": {"calibrate": 0.3, "ema": 0.9995},
    "calibrated-norms": {"calibrate": 0.3, "tune": "norms"},
}
VARIANTS = {"control": {"match": "none"}, **CALIBRATED,
            **{name: {"calibrate": 0.0, **change} for name, change in UNCALIBRATED.items()}}
"""Differences from `--method default`; the first is the control."""
JUDGED = ("1:fixed:6", "10:fixed:5", "50:fresh:5")


def agreement(source, pool, count=200):
    """Percentage of `count` images of each class that the pool, trained to the end, takes for what they should be."""
    return Teacher.of(pool).accuracy(Split(*draw_set(source, count, 0, pool.device)))


def read_pool(values):
    """What --pool says, as the flags of pool_match.py are read: a namespace."""
    known = {field.name for field in flag_fields(Method)}
    if not isinstance(values, dict) or not known.issuperset(values):
        raise UserError(f"--pool {json.dumps(values)} names what a method does not have: name flags of pool_match.py, as "
                        "'{\"pool_members\": 1}'")
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    parser = Parser(prog=f"{Path(sys.argv[0]).name}: --pool")
    add_flags(parser, Method)
    return parser.parse_args(words)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--weight", type=Path, required=True, help="the stage-1 run that every variant starts from")
    parser.add_argument("--pool", type=json.loads, default={}, metavar="JSON",
                        help="how the pool differs from that of --method default, e.g. '{\"pool_members\": 1}'")
    parser.add_argument("--pools", type=Path, help="the folder that holds pools (default: pools/ beside --weight); the "
                        "embeddings that they keep are removed, because every variant makes its own in its seconds")
    parser.add_argument("--models", type=Path, help="also keep the generator of every variant in this folder")
    add_arguments(parser, VARIANTS, 60, JUDGED, "objectives.json")
    args = parser.parse_args()
    shared = override(METHODS["default"], read_pool(args.pool))
    engine, dataset = begin(args, args.weight)
    if args.models:
        make_folder(args.models, "--models")
    first, file = origin.read_weight(args.weight)
    methods = {name: choices.calibrated_if_possible(dataclasses.replace(shared, **change)) for name, change in VARIANTS.items()}
    pools = args.pools or args.weight.parent / "pools"

    def train_one(name, seed):
        method = methods[name]
        begun = build.Begin(method, origin.Start(), seed, engine, dataset, first, file, origin.steps_taken(first))
        learner = build.make_learner(begun)

        def make_matcher():
            matcher = build.make_matcher(method, learner, dataset)
            return matcher and matcher.begin(make_pool(method, pools, 0, dataset, engine))

        warm = make_matcher()
        for step in range(2):  # what is compiled is compiled before the clock starts
            learner.step(step, warm)
        for kept in (file for pool in pools.glob("*/pool.json") for file in pool.parent.glob("*.npy")):
            kept.unlink()  # embeddings that are there: each training makes its own, in its seconds
        learner.load_state_dict(first, file)
        matcher = make_matcher()
        steps = train(learner, matcher, args.seconds)
        if args.models:
            learner.source.save_pretrained(args.models / f"{name}-{seed}")
        judges = make_pool(shared, pools, 0, dataset, engine)
        return learner.source, {"generator_steps": steps, "agreement": agreement(learner.source, judges)}

    search(args, methods, engine, dataset, train_one, generator=weights_digest(args.weight))


if __name__ == "__main__":
    run_script(main)
