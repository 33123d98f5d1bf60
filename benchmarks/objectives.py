"""Which setting of stage 2 beats its control? Each trains on from one stage-1 run for the same seconds, and is scored.

    python benchmarks/objectives.py --weight results/gan --seconds 60 --output objectives.json
    python -m gendistil.evaluation.report objectives.json

The scores are those of students on held-out training images, so that choosing by them leaves the test set untouched. Seconds
are those of the processor on a CPU, so that a busy machine does not shorten a variant's training. Run again, it goes on with the
variants that the file lacks.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gendistil.common.cli import COMPILE, COUNT, POSITIVE, Parser, add_data_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.run import CHECKPOINT, device_name, inherit_data, training_state, write_json
from gendistil.data import load_dataset
from gendistil.data.datasets import Split
from gendistil.evaluation import PROTOCOLS, SAMPLINGS, evaluate
from gendistil.evaluation.report import read_report
from gendistil.matching import METHODS, build
from gendistil.sources import Teacher, draw_set

VARIANTS = {
    "control": {"match": "none"},
    "default": {},
    "weight 10": {"match_weight": 10.0},
    "random batches": {"select": "random"},
    "all classes": {"select": "random", "match_classes": 0, "match_batch": 20},
    "moments": {"match": "moments", "match_weight": 10.0},
    "mean": {"match": "mean", "match_weight": 0.01},
    "logit": {"match": "logit", "match_weight": 1.0},
    "published": {"match": "logit", "select": "random", "lr": 5e-6, "lr_critic": 5e-6},
    "feature": {"match": "feature"},
    "gradients": {"match": "grad", "match_batch": 32},
    "kept": {"match_real": 1000, "select": "random", "match_aug": False},
    "characteristic": {"match": "characteristic"},
    "characteristic, kept": {"match": "characteristic", "match_real": 1000, "select": "random", "match_aug": False},
    "between": {"pool_between": True},
    "calibrated": {"calibration": 0.1},
    "calibrated, 0.3": {"calibration": 0.3},
    "calibrated, 1": {"calibration": 1.0},
    "kept, calibrated": {"match_real": 1000, "select": "random", "match_aug": False, "calibration": 0.3},
    "slow, calibrated": {"calibration": 0.3, "lr": 5e-6},
    "averaged longer, calibrated": {"calibration": 0.3, "ema": 0.9995},
    "norms": {"tune": "norms"},
    "norms, calibrated": {"tune": "norms", "calibration": 0.3},
}
"""Differences from `--method default`; the first is the control."""
JUDGED = ("1:fixed:6", "10:fixed:4", "50:fresh:3")


def train(learner, matcher, seconds):
    """Train for `seconds`; the number of steps taken."""
    clock = time.process_time if learner.accelerator.device.type == "cpu" else time.perf_counter
    began, step = clock(), 0
    while clock() - began < seconds:
        learner.step(step, matcher)
        step += 1
    return step


def judged(text):
    """An argparse type: IPC:SAMPLING:STUDENTS."""
    ipc, sampling, students = text.split(":")
    if sampling not in SAMPLINGS:
        raise ValueError
    return COUNT(ipc), sampling, COUNT(students)


def score(trainer, dataset, protocol, seed, judgements):
    """A `Result` for each judgement: students of the averaged generator, scored on the held-out images."""
    return {judgement: evaluate(trainer.source, dataset, "convnet", judgement[0], judgement[1], num_eval=judgement[2],
                                seed=100 * seed, protocol=protocol, scored_on="held_out", engine=trainer.engine)
            for judgement in judgements}


def rows_of(source, scores, **facts):
    """Rows of a report, from what `score` gave for each repeat."""
    rows = []
    for judgement in scores[0]:
        ipc, sampling, _ = judgement
        results = [repeat[judgement] for repeat in scores]
        together = dataclasses.replace(results[0], accuracies=sum((result.accuracies for result in results), ()),
                                       seconds=sum(result.seconds for result in results))
        rows.append({"source": source, "sampling": sampling, "ipc": ipc, "model": "convnet", "scored_on": "held_out",
                     "protocol": "default", "torch": torch.__version__, **facts, **together.row()})
        print(f"{source}: {sampling} {ipc}: {together.mean:.2f}", flush=True)
    return rows


def student_protocol(epochs):
    """That of the scores: the default one, shorter."""
    return dataclasses.replace(PROTOCOLS["default"], epochs=epochs, min_steps=150)


def add_arguments(parser, variants, seconds):
    """The flags of a comparison at equal seconds."""
    parser.add_argument("--seconds", type=POSITIVE, default=seconds, help="training of each variant, in seconds")
    parser.add_argument("--repeats", type=COUNT, default=1, help="trainings of each variant, each with another seed")
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=variants, help="names in the table")
    parser.add_argument("--scores", type=judged, nargs="+", default=[judged(text) for text in JUDGED],
                        metavar="IPC:SAMPLING:STUDENTS", help=f"how each is scored (default: {' '.join(JUDGED)})")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student")
    parser.add_argument("--compile", choices=COMPILE, default="auto", help="compile the networks")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that the rows are written to")
    add_data_arguments(parser)


def measured(path):
    """The rows that an earlier call has written to --output."""
    return read_report(path) if path.exists() else []


def agreement(source, pool, count=200):
    """Percentage of `count` images of each class that the pool, trained to the end, takes for what they should be."""
    images, labels = draw_set(source, count, 0, pool.device)
    return Teacher.of(pool).accuracy(Split(images, labels))


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--weight", type=Path, required=True, help="the stage-1 run that every variant starts from")
    parser.add_argument("--pool", type=json.loads, default={}, metavar="JSON", help="how --method default's pool differs, e.g. "
                        "'{\"pool_members\": 1}'")
    parser.add_argument("--pools", type=Path, help="the folder that holds pools (default: pools/ beside --weight)")
    parser.add_argument("--models", type=Path, help="also keep the generator of every variant in this folder")
    add_arguments(parser, VARIANTS, 60)
    args = parser.parse_args()
    inherit_data(args, args.weight)
    accelerator = make_accelerator("auto")
    engine = Engine(accelerator)
    engine.choose(args.compile, float("inf"))
    dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out).to(accelerator.device)
    try:
        base = dataclasses.replace(METHODS["default"], **args.pool)
    except TypeError:
        raise UserError(f"--pool {json.dumps(args.pool)} names what a method does not have") from None
    rows = measured(args.output)
    for name in args.variants:
        if any(row["source"] == name for row in rows):
            continue
        method = dataclasses.replace(base, **VARIANTS[name])
        pool = build.make_pool(method, args.pools or args.weight.parent / "pools", 0, dataset, engine)
        steps, scores, agreed = [], [], []
        for seed in range(args.repeats):
            state = training_state(args.weight / CHECKPOINT)
            begin = build.Begin(method, build.Start(), seed, engine, dataset, state, args.weight, state["step"])
            learner = build.make_learner(begin)
            steps.append(train(learner, build.make_matcher(method, learner, dataset, pool), args.seconds))
            agreed.append(agreement(learner.source, pool))
            if args.models:
                learner.source.save_pretrained(args.models / f"{name}-{seed}")
            scores.append(score(learner.trainer, dataset, student_protocol(args.eval_epochs), seed, args.scores))
        rows += rows_of(name, scores, data=dataset.spec.name, device=device_name(accelerator.device),
                        train_seconds=args.seconds, method=dataclasses.asdict(method), generator_steps=steps, agreement=agreed)
        write_json(args.output, rows)


if __name__ == "__main__":
    run_script(main)
