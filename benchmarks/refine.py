"""Which steps, guidance, noise and threshold draw the best images? A greedy search on held-out images, kept by the run.

    python benchmarks/refine.py --pretrain-weight results/match --output refine.json
    python -m gendistil.evaluation.report refine.json

Of a flow first the number of steps, then the guidance at the best of them. Where there is a classifier, then as GaFi searches
(arXiv 2305.10118), but on images held out of the training set: the noise, with every image kept that the classifier assigns to
its class, and the threshold at the best noise. The best goes into the run's config.json, from where validate.py and sample.py
take it, if the 95 % interval of its difference from the generator as it is lies above 0, of new students: those by which it was
the best of several favour it. Run again, it goes on with what the file lacks.
"""

import itertools
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.search import kept_rows, make_folder, student_protocol
from gendistil.common.cli import COUNT, FRACTION, POSITIVE, SEED, WEIGHT, Parser, add_data_arguments, number, run_script
from gendistil.common.device import device_name, make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import write_json
from gendistil.common.inherit import check_classes, check_held_out, inherit_data
from gendistil.common.run import CONFIG, amend, beside, find_run, made_by
from gendistil.data import load_asked
from gendistil.evaluation import SAMPLINGS, evaluate
from gendistil.evaluation.rows import difference
from gendistil.evaluation.tables import tables
from gendistil.evaluation.teachers import open_pool
from gendistil.sources import Refined, Refinement, Teacher, TooFewAccepted, check_fits, load_source, weights_digest
from generators.unet import FlowGenerator
from pools import usual_classifier

_AGAIN = ", new students"


def search(measure, axes):
    """The best `Refinement` of a greedy search: its held-out score is the highest, and the first of equals.

    Args: measure, gives that score of a refinement, or None where too few images are accepted; axes, lists of changes, dicts
    of fields: those of one axis are tried on the best of the axis before.
    """
    scores, best = {}, Refinement()

    def best_of(refinements):
        scores.update({refinement: measure(refinement) for refinement in refinements if refinement not in scores})
        return max((each for each in refinements if scores[each] is not None), key=scores.get, default=best)

    for changes in ([{}], *filter(None, axes)):
        best = best_of([replace(best, **change) for change in changes])
    return best_of(list(scores))


def axes_of(args, source, teacher):
    """The axes of `search`: what the flags name, else what a source of this kind and its classifier let one choose."""
    flow = isinstance(source, FlowGenerator)
    steps = args.sample_steps or ((1, 2, 4, 8, 16) if flow else ())
    guidance = args.guidance or ((1.0, 1.5, 2.0, 3.0) if flow and source.guidable and not source.shortcut else ())
    noises = args.noise_std or ((0.7, 0.85, 1.0, 1.15, 1.3) if teacher else ())
    thresholds = args.keep_above or ((0.1, 0.3, 0.5, 0.7, 0.9) if teacher else ())
    of_flow = [[{name: value} for value in values] for name, values in (("sample_steps", steps), ("guidance", guidance))]
    for change in itertools.chain(*of_flow):
        source.check_sampling(**change)
    own = lambda change: {name: None if getattr(source, name) == value else value for name, value in change.items()}
    return (*([own(change) for change in changes] for changes in of_flow),
            [{"noise_std": noise, "keep_above": 0.0} for noise in noises], [{"keep_above": above} for above in thresholds])


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--pretrain-weight", type=Path, required=True, metavar="RUN", help="folder of a generator's run")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER", help="the pool of pretrained classifiers, or the student "
                        "that validate.py kept, which accepts images (default: the pool that the run was matched with)")
    parser.add_argument("--sample-steps", type=number(int, 1, 1000), nargs="+",
                        help="steps of a flow to try (default: 1 to 16)")
    parser.add_argument("--guidance", type=WEIGHT, nargs="+", help="guidance of a flow to try (default: 1 to 3)")
    parser.add_argument("--noise-std", type=POSITIVE, nargs="+", help="standard deviations of the noise to try, where there is "
                        "a classifier (default: 0.7 to 1.3)")
    parser.add_argument("--keep-above", type=FRACTION, nargs="+", help="thresholds to try, where there is a classifier "
                        "(default: 0.1 to 0.9)")
    parser.add_argument("--ipc", type=COUNT, default=50, help="images per class")
    parser.add_argument("--sampling", choices=SAMPLINGS, default="fresh", help="as validate.py has it")
    parser.add_argument("--students", type=number(int, 2), default=5, help="students of each score, which differ in their seed")
    parser.add_argument("--eval-epochs", type=COUNT, default=40, help="epochs of a student: give as many as "
                        "those will have that are judged in the end, because short ones do not see what long ones gain")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the first student")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="compile the networks")
    parser.add_argument("--output", type=Path, help="JSON file of the rows (default: benchmarks/results/refine-RUN.json)")
    add_data_arguments(parser, whiten=True)
    args = parser.parse_args()
    run = find_run(args.pretrain_weight)
    if run is None:
        raise UserError(f"--pretrain-weight {args.pretrain_weight} is no run's folder, and only a run can keep what is found: "
                        "name one")
    output = args.output or Path(__file__).parent / "results" / f"refine-{run.resolve().name}.json"
    folder = args.teacher or beside(made_by(run).get("pool_folder"), run)
    inherit_data(args, run)
    check_held_out(run, "--pretrain-weight", args.held_out)
    accelerator = make_accelerator("auto")
    dataset = load_asked(args, accelerator)
    source = load_source(run, accelerator.device)
    check_fits(source, dataset.spec, f"--pretrain-weight {run}")
    check_classes(run, "--pretrain-weight", dataset.spec, "judged: give the same --classes")
    if not hasattr(source, "images_at"):
        raise UserError(f"--pretrain-weight {run} holds images that are stored: name the run of a generator")
    if not folder and (args.noise_std or args.keep_above or not isinstance(source, FlowGenerator)):
        raise UserError(f"--pretrain-weight {run} names no pool of pretrained classifiers: give --teacher, the folder of one")
    teacher, engine = Teacher.of(open_pool(folder, dataset)) if folder else None, Engine(accelerator)
    settings = {"data": dataset.spec.name, "sampling": args.sampling, "ipc": args.ipc,
                "refined_by": teacher.name if teacher else None, "model": usual_classifier(dataset.spec.size),
                "students": args.students, "eval_epochs": args.eval_epochs, "seed": args.seed,
                "image_size": dataset.spec.size, "held_out": args.held_out, "classes": args.classes,
                "mirror": args.mirror,
                "whiten": args.whiten, "generator": weights_digest(run),
                "classifiers": [*teacher.weights] if teacher else []}
    axes = axes_of(args, source, teacher)
    engine.choose(args.compile)
    make_folder(output.parent)
    make_folder(run, "--pretrain-weight")  # whose config.json keeps what is found
    rows = kept_rows(output, lambda row: settings)

    def measure(refinement, again=""):
        known = next((row for row in rows if row["source"] == refinement.words + again), None)
        if known:
            return known["mean"]
        refined = source
        if refinement != Refinement():
            refined = Refined(source, refinement, None if refinement.keep_above is None else teacher)
        try:
            seed = args.seed + (args.students if again else 0)
            result = evaluate(refined, dataset, settings["model"], args.ipc, args.sampling, num_eval=args.students, seed=seed,
                              protocol=student_protocol(args.eval_epochs), scored_on="held_out", engine=engine)
        except TooFewAccepted as refusal:
            print(f"{refinement.words}: left out, {refusal}", flush=True)
            return None
        rows.append({"source": refinement.words + again, "scored_on": "held_out", "protocol": "default",
                     **settings, "torch": torch.__version__, "device": device_name(accelerator.device),
                     "refinement": asdict(refinement), "kin": settings["generator"] + again,
                     **result.row()})
        print(f"{refinement.words}{again}: {result.mean:.2f}", flush=True)
        write_json(output, rows)
        return result.mean

    best, asis = search(measure, axes), Refinement()
    if best != asis:
        for each in (best, asis):
            measure(each, _AGAIN)
    print(tables(rows, [asis.words]))
    if best != asis:
        measured = {row["source"]: row for row in rows}
        again = [measured.get(each.words + _AGAIN) for each in (best, asis)]
        gain = difference(*again) if all(again) else None  # too few images were accepted for new students
        if gain is None or gain[1] <= 0:
            words = "{:+.2f} points ({:+.2f} to {:+.2f}), ".format(*gain) if gain else ""
            print(f"{best.words}: {words}no clear gain, so nothing is refined")
            best = asis
    amend(run, refinement={**asdict(best), "teacher": str(folder) if folder else None, "weights": weights_digest(run)})
    print(f"{run / CONFIG} keeps: {best.words}")


if __name__ == "__main__":
    run_script(main)
