"""DD-Ranking's label-robust score of stored sets by its own package, beside that of `validate.py --ranking`.

    python benchmarks/ranking.py --run results/ranking --sets dm=sets/dm idc=sets/idc --output ranking.json

The sets are folders that `sample.py --format ddranking` wrote, under the names that the run has for their sources. The package
is `pip install .[ddranking]`, in an environment of its own, because it wants numpy 1. It trains students on every set, and on
random images of its own at each of five learning rates. What students of all real images reach is taken from the run: the
package would train them for as many epochs as those of the set.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.search import make_folder
from gendistil.common.cli import COUNT, Parser, add_data_arguments, run_script
from gendistil.common.device import device_name
from gendistil.common.errors import UserError
from gendistil.common.files import read_json, write_json
from gendistil.common.flags import markdown_table
from gendistil.common.inherit import inherit_data
from gendistil.common.run import CONFIG
from gendistil.data import load_dataset, standardise, to_signed
from gendistil.evaluation.ranking import package_data, rankings, score
from gendistil.evaluation.rows import REPORT, read_report


def named_set(text):
    """An argparse type: NAME=FOLDER, a set of `sample.py --format ddranking` or the folder that holds it."""
    name, _, folder = text.partition("=")
    found = next((path for path in (Path(folder) / "ddranking", Path(folder)) if (path / "labels.pt").exists()), None)
    if not folder or found is None:
        raise ValueError
    return name, found


@contextlib.contextmanager
def package(dataset, real):
    """The package's module of hard labels, for which the images of `dataset` are those of its data set of that kind, of all of
    which a student has `real` per cent."""
    try:
        from ddranking.metrics import hard_label
    except ImportError as error:
        raise UserError(f"ddranking is not there ({error}): pip install .[ddranking] into another environment") from None
    facts = package_data(dataset.spec.name)

    def pictures(root, train, **_):
        split = dataset.full_train if train else dataset.test
        return hard_label.TensorDataset(standardise(to_signed(split.images.cpu()), facts), split.labels.tolist())

    cache = {f"{facts.dataset}-{facts.model}": real}
    with mock.patch.object(torchvision.datasets, facts.dataset, pictures), \
            mock.patch.dict(hard_label.REAL_DATA_ACC_CACHE, cache), \
            mock.patch.object(hard_label, "save_results"):  # it fails where it writes its table
        yield hard_label


def share_random(metric):
    """Let the score of every set compare with the same random images, on which students are then trained once."""
    draw, train, drawn, trained = metric._get_random_data_helper, metric._compute_hard_label_metrics_helper, [], {}

    def draw_once(eval_iter):
        drawn.append(eval_iter)
        return (None, None, None) if eval_iter in trained else draw(eval_iter)

    def train_once(*, hyper_param_search, **settings):
        if not hyper_param_search:
            return train(hyper_param_search=False, **settings)
        if drawn[-1] not in trained:
            trained[drawn[-1]] = train(hyper_param_search=True, **settings)
        return trained[drawn[-1]]

    metric._get_random_data_helper, metric._compute_hard_label_metrics_helper = draw_once, train_once


def measure(args, dataset, real):
    """What the package says of every set: dicts of hlr, ior, lrs and their standard deviations, by the names of the sets."""
    found = {}
    with package(dataset, real) as hard_label, tempfile.TemporaryDirectory() as scratch:
        config = hard_label.Config.from_file(str(args.sets[0][1] / CONFIG))
        config.update({"device": "cpu", "num_workers": 0, "eval_full_data": False, "num_eval": args.num_eval,
                       "random_data_path": scratch, "save_path": f"{scratch}/scores.csv"})
        metric = hard_label.LabelRobustScoreHard(config)
        metric.test_interval = args.test_interval or metric.test_interval
        share_random(metric)
        for name, folder in args.sets:
            images, labels, rate = (torch.load(folder / f"{part}.pt", weights_only=True) for part in ("images", "labels", "lr"))
            told = metric.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=rate)
            found[name] = {short: {"mean": told[f"{long}_mean"], "std": told[f"{long}_std"]} for short, long in
                           (("hlr", "hard_label_recovery"), ("ior", "improvement_over_random"), ("lrs", "label_robust_score"))}
    return found


def table(path):
    """The markdown table of a file that this script wrote."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    heads = ("source", "HLR, package", "HLR, here", "IOR, package", "IOR, here", "LRS as the package has it",
             "LRS of its HLR and IOR", "LRS, here")
    lines, rows = [], sorted(results["rows"], key=lambda row: -row["here"]["lrs"])
    for row in rows:
        theirs, here = row["package"], row["here"]
        numbers = [number for part in ("hlr", "ior") for number in (theirs[part]["mean"], here[part])]
        scale = score((theirs["ior"]["mean"] - theirs["hlr"]["mean"]) / 2)
        numbers += [100 * theirs["lrs"]["mean"], scale, here["lrs"]]
        lines.append([row["source"], *(f"{number:.2f}" for number in numbers)])
    return (f"{markdown_table(heads, lines)}\n\nStudents of each set: {results['students']} of the package, "
            f"{rows[0]['here']['n']} here. {results['device']}, torch {results['torch']}, the package in float32.")


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER", required=True, help="of validate.py --ranking")
    parser.add_argument("--sets", type=named_set, nargs="+", metavar="NAME=FOLDER", required=True,
                        help="folders of sample.py --format ddranking")
    parser.add_argument("--num-eval", type=COUNT, default=2, help="students of each set")
    parser.add_argument("--test-interval", type=COUNT, help="epochs between the looks at the test set, of which the package "
                        "takes the best (default: 10, its own)")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="JSON file of what was measured")
    add_data_arguments(parser)
    args = parser.parse_args()
    counts = {read_json(folder / CONFIG)["ipc"] for _, folder in args.sets}
    if len(counts) > 1:
        raise UserError("--sets: all are compared with the same random images: name sets of one IPC")
    ours = {row["source"]: row for row in rankings(read_report(args.run / REPORT))
            if (row["sampling"], row["labels"], row["scored_on"], row["model"]) == ("fixed", "hard", "test", "convnet")
            and row["ipc"] in counts}
    for name, _ in args.sets:
        if name not in ours:
            raise UserError(f"--sets {name}: --run {args.run} ranks no fixed set of this name and size by hard labels, by "
                            f"ConvNets on the test set: name one of {', '.join(ours) or 'another run'}")
    make_folder(args.output.parent)
    inherit_data(args, args.run)
    dataset = load_dataset(args.data, args.data_dir, args.image_size, args.held_out, args.classes, torch.device("cpu"),
                           mirror=args.mirror)
    if package_data(dataset.spec.name) is None:
        raise UserError(f"--run {args.run}: the package has no data set like {dataset.spec.name}")
    real = ours[args.sets[0][0]]["real"]
    theirs = measure(args, dataset, real)
    keys = ("hlr", "ior", "lrs", "lrs_std", "real", "hard", "random", "n")
    rows = [{"source": name, "package": theirs[name], "here": {key: ours[name][key] for key in keys}} for name in theirs]
    write_json(args.output, {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "students": args.num_eval,
                             "rows": rows})
    print(table(args.output))


if __name__ == "__main__":
    run_script(main)
