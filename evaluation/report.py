"""Rows of measured accuracy as a table, a plot and files.

`python -m evaluation.report results/a/report.json results/b/report.json` prints one table of several reports.
"""

import json
import shlex
import sys
from pathlib import Path

from common.cli import Parser, run_script
from common.errors import UserError
from common.run import write_json

KEYS = ("source", "data", "sampling", "ipc", "model", "mean", "std", "ci95", "n", "seconds")
"""What every row has at least. Accuracies are in per cent, seconds those of all n students together. Rows may also say how many
bytes their source keeps, and its `diversity`."""


def _unique(values):
    return list(dict.fromkeys(values))


def _cell(row):
    if row["std"] is None:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ± {row['std']:.2f} (±{row['ci95']:.2f})"


def _grid(header, lines):
    """A markdown table whose columns line up in a terminal too."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    form = lambda line: "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |"
    return "\n".join([form(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(form, lines)])


def markdown(rows):
    """The rows (dicts with `KEYS`) as markdown: one table per data set, student and protocol, one column per IPC."""
    tables = []
    kind = lambda row: (row["data"], row["model"], row.get("protocol", "default"), row.get("scored_on", "test"))
    for data, model, protocol, scored_on in _unique(map(kind, rows)):
        chosen = [row for row in rows if kind(row) == (data, model, protocol, scored_on)]
        budgets = sorted({row["ipc"] for row in chosen}, key=lambda ipc: (ipc is None, ipc))
        lines = []
        for source, sampling in _unique((row["source"], row["sampling"]) for row in chosen):
            # A later row replaces an earlier one of the same name.
            cells = {row["ipc"]: row for row in chosen if (row["source"], row["sampling"]) == (source, sampling)}
            counts = "-".join(str(n) for n in sorted({row["n"] for row in cells.values()}))
            lines.append([source, sampling, counts, *(_cell(cells[ipc]) if ipc in cells else "" for ipc in budgets)])
        header = ["source", "sampling", "students", *("all images" if ipc is None else f"IPC {ipc}" for ipc in budgets)]
        scored = {"test": "test set", "held_out": "held-out images"}[scored_on]
        how = f"accuracy on the {scored} in per cent, scored once at the last step"
        if protocol == "dim":
            how = f"published DiM protocol: best accuracy seen in five looks at the {scored}, in per cent"
        tables.append(f"**{model} on {data}**, {how}\n\n{_grid(header, lines)}")
    for data in _unique(row["data"] for row in rows if row.get("bytes") is not None):
        kept = {(row["source"], row["ipc"]): row for row in rows if row["data"] == data and row.get("bytes") is not None}
        lines = [[source, str(ipc), f"{row['bytes']:,}", "" if row["diversity"] is None else f"{row['diversity']:.3f}"]
                 for (source, ipc), row in kept.items()]
        tables.append(f"What the sources of {data} keep, and how far apart two images of a class are\n\n"
                      f"{_grid(['source', 'IPC', 'bytes', 'diversity'], lines)}")
    note = ("Mean ± standard deviation over students with different seeds (± half the width of the mean's 95 % interval, "
            "Student's t).\nIPC: images per class. Sampling fixed: one set per student; representative: one chosen among 20 or "
            "more times as many;\nfresh: a new set of that size every epoch; all: every training image.")
    return "\n\n".join([*tables, note]) + "\n"


def plot(rows, path):
    """Accuracy against images per class as a PNG: a line per source, student and sampling, bars for the 95 % interval."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colours = {source: f"C{i}" for i, source in enumerate(_unique(row["source"] for row in rows))}
    markers = dict(zip(_unique(row["model"] for row in rows), "osD^vP*X" * len(rows)))
    budgets = sorted({row["ipc"] for row in rows if row["ipc"] is not None})
    for source, model, sampling in _unique((row["source"], row["model"], row["sampling"]) for row in rows):
        line = [row for row in rows if (row["source"], row["model"], row["sampling"]) == (source, model, sampling)]
        name = ", ".join([source, *([model] if len(markers) > 1 else [])])
        if sampling == "all":
            axes.axhline(line[0]["mean"], color=colours[source], linestyle=":", label=name)
            continue
        line.sort(key=lambda row: row["ipc"])
        axes.errorbar([row["ipc"] for row in line], [row["mean"] for row in line], [row["ci95"] or 0 for row in line],
                      color=colours[source], marker=markers[model], markersize=4, capsize=3, linewidth=1.2,
                      linestyle="-" if sampling == "fresh" else "--", label=f"{name}, {sampling}")
    if budgets:
        axes.set_xscale("log")
        axes.set_xticks(budgets, [str(ipc) for ipc in budgets])
        axes.minorticks_off()
    axes.set(xlabel="images per class", ylabel="accuracy (%)", title=", ".join(_unique(row["data"] for row in rows)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_report(rows, folder, command):
    """report.json, report.md and accuracy.png in `folder`, of the rows so far; `command` is a list of words."""
    write_json(folder / "report.json", rows)
    (folder / "report.md").write_text(f"{markdown(rows)}\n`{shlex.join(command)}`\n", encoding="utf-8")
    plot(rows, folder / "accuracy.png")


def read_report(path):
    """The rows of a report.json. Raises UserError if it is missing or is something else."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a report.json of validate.py: {error}")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and set(KEYS) <= set(row) for row in rows):
        raise UserError(f"{path} is not a report.json of validate.py: it must be a list of rows with {', '.join(KEYS)}")
    return rows


def replace_section(document, name, text):
    """`document` with `text` between the markers of this name. Raises UserError unless both are there, once each."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if document.count(opening) != 1 or document.count(closing) != 1:
        raise UserError(f"--section {name}: --output must hold the lines {opening.strip()} and {closing.strip()}, once each")
    before, rest = document.split(opening)
    return f"{before}{opening}{text}{closing}{rest.split(closing)[1]}"


def main():
    parser = Parser(prog="python -m evaluation.report", description="One table of several reports.")
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT", help="report.json files, in the table's order")
    parser.add_argument("--output", type=Path, default=None, help="also write the table to this file")
    parser.add_argument("--section", help="replace only what stands between <!-- SECTION --> and <!-- /SECTION --> in --output")
    args = parser.parse_args()
    table = markdown([row for path in args.reports for row in read_report(path)])
    print(table, end="")
    if args.section and not args.output:
        parser.error("--section needs --output, the file that it stands in")
    if args.output:
        text = f"{table}\n`{shlex.join(['python', '-m', 'evaluation.report', *sys.argv[1:]])}`\n"
        try:
            if args.section:
                text = replace_section(args.output.read_text(encoding="utf-8"), args.section, text)
            args.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {args.output} cannot be written: {error.strerror}")


if __name__ == "__main__":
    run_script(main)
