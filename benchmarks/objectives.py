"""Which matching term beats its control? Every variant trains on from one stage-1 run for the same seconds, and is scored.

    python benchmarks/objectives.py --weight results/gan --seconds 60 --output objectives.json
    python -m gendistil.evaluation.report objectives.json

The scores are those of students on held-out training images, so that choosing by them leaves the test set untouched. Seconds
are those of the processor on a CPU, so that a busy machine does not shorten a variant's training.
"""

import dataclasses
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gendistil.common.cli import COUNT, POSITIVE, Parser, add_data_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.run import CHECKPOINT, device_name, inherit_data, training_state, write_json
from gendistil.data import load_dataset
from gendistil.evaluation import PROTOCOLS, evaluate
from gendistil.matching import GeneratorLearner, Matcher
from generators import make_trainer, recipe_of
from pools import ClassifierPool

BASE = {"match": "moments", "weight": 1.0, "select": "dream", "classes": 2, "per_class": 96, "aug_type": "color_crop_cutout"}
VARIANTS = [
    {"match": "none"},
    {},
    {"weight": 10.0},
    {"match": "energy"},
    {"match": "energy", "weight": 10.0},
    {"match": "logit", "weight": 0.01},
    {"match": "logit", "weight": 1.0},
    {"match": "energy", "weight": 10.0, "select": "random"},
    {"match": "moments", "weight": 10.0, "select": "random"},
    {"match": "energy", "weight": 10.0, "select": "random", "classes": 10, "per_class": 20},
    {"match": "mean", "weight": 0.01},
    {"match": "feature", "weight": 0.001},
    {"match": "grad", "weight": 0.001, "per_class": 32},
    {"match": "energy", "select": "random"},
]
"""Differences from BASE; the first is the control."""
JUDGED = ((1, "fixed", 6), (10, "fixed", 4), (50, "fresh", 3))
"""IPC, sampling and number of students of each score."""


def name_of(variant):
    """What a table calls a variant."""
    if variant["match"] == "none":
        return "control"
    return "{match}, weight {weight:g}, {select}, {classes} classes of {per_class}".format(**variant)


def train(learner, matcher, seconds, pace=lambda progress: None):
    """Train for `seconds`; the number of steps taken. `pace` is told before each what share of the time is over."""
    clock = time.process_time if learner.accelerator.device.type == "cpu" else time.perf_counter
    began, step = clock(), 0
    while (passed := clock() - began) < seconds:
        pace(passed / seconds)
        learner.step(step, matcher)
        step += 1
    return step


def score(trainer, dataset, protocol, seed, judged=None):
    """A `Result` for each of `judged`, or of JUDGED: students of the averaged generator, scored on the held-out images."""
    return {(ipc, sampling, students): evaluate(trainer.source, dataset, "convnet", ipc, sampling, num_eval=students,
                                                seed=100 * seed, protocol=protocol, scored_on="held_out", engine=trainer.engine)
            for ipc, sampling, students in judged or JUDGED}


def rows_of(source, scores, **facts):
    """Rows of a report, from what `score` gave for each repeat."""
    rows = []
    for ipc, sampling, students in scores[0]:
        results = [repeat[ipc, sampling, students] for repeat in scores]
        together = dataclasses.replace(results[0], accuracies=sum((result.accuracies for result in results), ()),
                                       seconds=sum(result.seconds for result in results))
        rows.append({"source": source, "sampling": sampling, "ipc": ipc, "model": "convnet", "scored_on": "held_out",
                     "protocol": "default", "torch": torch.__version__, **facts, **together.row()})
        print(f"{source}: {sampling} {ipc}: {together.mean:.2f}", flush=True)
    return rows


def student_protocol(epochs):
    """That of the scores: the default one, shorter."""
    return dataclasses.replace(PROTOCOLS["default"], epochs=epochs, min_steps=150)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--weight", type=Path, required=True, help="the stage-1 run that every variant starts from")
    parser.add_argument("--seconds", type=POSITIVE, default=60, help="training of each variant, in seconds")
    parser.add_argument("--repeats", type=COUNT, default=1, help="trainings of each variant, each with another seed")
    parser.add_argument("--variants", type=int, nargs="+", default=range(len(VARIANTS)), help="their numbers in the table")
    parser.add_argument("--pool-epochs", type=COUNT, default=20, help="epochs of the pool's pretraining")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that the rows are written to")
    add_data_arguments(parser)
    args = parser.parse_args()
    inherit_data(args, args.weight)
    accelerator = make_accelerator("auto")
    dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    pool = ClassifierPool(dataset, args.weight.parent / "pools", accelerator, epochs=args.pool_epochs)
    rows = []
    for number in args.variants:
        variant = {**BASE, **VARIANTS[number]}
        steps, scores = [], []
        for seed in range(args.repeats):
            state = training_state(args.weight / CHECKPOINT)
            trainer = make_trainer(accelerator, dataset.spec, recipe_of(state, args.weight), seed)
            trainer.load_state_dict(state, args.weight)
            learner, matcher = GeneratorLearner(trainer, dataset, state["step"]), None
            if variant["match"] != "none":
                matcher = Matcher(learner, dataset, pool, interval=50, candidates=1000, **variant)
            steps.append(train(learner, matcher, args.seconds))
            scores.append(score(trainer, dataset, student_protocol(args.eval_epochs), seed))
        rows += rows_of(name_of(variant), scores, data=dataset.spec.name, device=device_name(accelerator.device),
                        train_seconds=args.seconds, variant=variant, generator_steps=steps)
        write_json(args.output, rows)


if __name__ == "__main__":
    run_script(main)
