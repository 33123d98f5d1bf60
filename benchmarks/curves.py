"""Held-out accuracy against steps: runs of `pool_match.py`, averaged over their seeds, in one plot, and how much sooner.

    python benchmarks/curves.py --curve uniform results/u0 results/u1 --curve DREAM results/d0 results/d1 --output curves.json

Writes the numbers as JSON and, beside it, the plot as PNG. The first curve is what the others are compared with: for
accuracies that it reaches, how many steps it takes for each step of another.
"""

import json
import sys
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.search import make_folder
from gendistil.common.cli import Parser, run_script
from gendistil.common.errors import UserError
from gendistil.common.files import read_json, write_json
from gendistil.common.run import CONFIG

LEVELS = (0.5, 0.75, 0.9, 1.0)
"""Compared accuracies, as fractions of the way from the first curve's first score to its best."""


def read_curve(run):
    """Steps and held-out accuracies (per cent) of a run: two lists. Raises UserError if it has fewer than two scores."""
    try:
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no readable metrics.jsonl ({type(error).__name__}): name runs of pool_match.py") from None
    scores = [(entry["step"], entry["held_out_accuracy"]) for entry in entries if "held_out_accuracy" in entry]
    if len(scores) < 2:
        raise UserError(f"{run} was scored {len(scores)} times: lower its --eval-interval")
    return [list(values) for values in zip(*scores)]


def flags_of(run):
    """The flags of the command that started a run, less where it was written."""
    argv = read_json(run / CONFIG)["commands"][0][1:]
    at = argv.index("--output-dir") if "--output-dir" in argv else len(argv)
    return argv[:at] + argv[at + 2:]


def average(name, runs):
    """A curve: its name, the runs' commands and their accuracies at the steps that they share."""
    curves = [read_curve(run) for run in runs]
    if any(steps != curves[0][0] for steps, _ in curves):
        raise UserError(f"--curve {name}: its runs were scored at different steps")
    accuracies = [values for _, values in curves]
    return {"name": name, "steps": curves[0][0], "mean": numpy.mean(accuracies, 0).tolist(), "accuracies": accuracies,
            "device": read_json(runs[0] / CONFIG)["device"], "argv": list(map(flags_of, runs))}


def steps_to(curve, accuracy):
    """The first step, interpolated, at which the mean is as high; None if it never is."""
    reached = [place for place, mean in enumerate(curve["mean"]) if mean >= accuracy]
    if not reached:
        return None
    around = slice(max(reached[0] - 1, 0), reached[0] + 1)
    return float(numpy.interp(accuracy, curve["mean"][around], curve["steps"][around]))


def compare(reference, other):
    """For each of LEVELS: the accuracy, the steps of both curves and their ratio."""
    low, high = reference["mean"][0], max(reference["mean"])
    rows = []
    for accuracy in (min(low + level * (high - low), high) for level in LEVELS):
        theirs, own = steps_to(reference, accuracy), steps_to(other, accuracy)
        rows.append({"accuracy": accuracy, reference["name"]: theirs, other["name"]: own,
                     "ratio": theirs / own if own else None})
    return rows


def plot(curves, path):
    """Means as lines, single runs faintly behind them."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for index, curve in enumerate(curves):
        for accuracies in curve["accuracies"]:
            axes.plot(curve["steps"], accuracies, color=f"C{index}", linewidth=0.6, alpha=0.4)
        axes.plot(curve["steps"], curve["mean"], color=f"C{index}", marker="o", markersize=3,
                  label=f"{curve['name']}, mean of {len(curve['accuracies'])}")
    axes.set(xlabel="steps", ylabel="accuracy on held-out images (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--curve", nargs="+", action="append", required=True, metavar=("NAME", "RUN"),
                        help="a name and the folders of runs that differ in their seed; the first is the reference")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the plot lies beside it")
    args = parser.parse_args()
    curves = [average(name, list(map(Path, runs))) for name, *runs in args.curve if runs]
    if len(curves) < len(args.curve):
        parser.error("--curve takes a name and at least one run")
    if args.output.suffix == ".png":
        parser.error(f"--output {args.output}: the plot takes a name that ends so: name a JSON file")
    comparisons = {curve["name"]: compare(curves[0], curve) for curve in curves[1:]}
    make_folder(args.output.parent)
    write_json(args.output, {"curves": curves, "sooner": comparisons})
    plot(curves, args.output.with_suffix(".png"))
    for name, rows in comparisons.items():
        for row in rows:
            sooner = "there from its start" if row[name] == 0 else "never reaches it"
            sooner = sooner if row["ratio"] is None else f"{row['ratio']:.2f} times sooner"
            print(f"{row['accuracy']:.1f} %: {name} {sooner}, beside {curves[0]['name']}")


if __name__ == "__main__":
    run_script(main)
