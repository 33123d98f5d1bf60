"""Rows of measured accuracy as tables, a plot and files, and the tables of documents.

    python -m gendistil.evaluation.report results/a/report.json results/b/report.json    # prints one table of several reports
    python -m gendistil.evaluation.report --document docs/results.md                     # rewrites every table of a document

A document marks the place of a table, and the files that it is made from, by the lines `<!-- table: a.json b.json -->` and
`<!-- /table -->`, and that of the legend by `<!-- legend -->` and `<!-- /legend -->`. Paths start at the root of the project,
the document's nearest parent with a pyproject.toml.
"""

import json
import re
import shlex
from pathlib import Path

from gendistil.common.cli import Parser, run_script
from gendistil.common.errors import UserError
from gendistil.common.run import write_json

KEYS = ("source", "data", "sampling", "ipc", "model", "mean", "std", "ci95", "n", "seconds")
"""What every row has at least. Accuracies are in per cent, seconds those of all n students together. Rows may also say how many
bytes their source keeps, and its `diversity`."""

LEGEND = """\
Mean ± standard deviation over students with different seeds (± half the width of the mean's 95 % interval, Student's t).
IPC: images per class. Sampling fixed: one set per student; representative: one chosen among 20 or more times as many;
fresh: a new set of that size every epoch; all: every training image. A heading names the protocol by which students were
trained where it is not the default of `validate.py`.
"""
"""What the words and numbers of a table mean, as markdown: once for all tables of a document."""

_PUBLISHED = {"dc": "DC", "dsa": "DSA and DM", "idc": "IDC and DREAM"}
_SCORED = {"test": "test set", "held_out": "held-out images"}


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


def _how(protocol, scored_on, labels="hard", teacher=None):
    """What the numbers of a table are, in words."""
    if labels != "hard":
        kept = "a row is kept with every image" if labels == "rows" else "it answers to every image that is drawn"
        return f"**labels of a teacher** ({teacher}; {kept}), {_how(protocol, scored_on)}"
    scored = _SCORED[scored_on]
    if protocol == "dim":  # the only one whose scores are not those of the last step
        return f"published DiM protocol: best accuracy seen in five looks at the {scored}, in per cent"
    how = f"accuracy on the {scored} in per cent, "
    if protocol in _PUBLISHED:
        how += f"students trained as {_PUBLISHED[protocol]} published (`--protocol {protocol}`), "
    elif protocol != "default":
        how += f"students trained by `--protocol {protocol}`, "
    return how + "scored once at the last step"


def tables(rows):
    """The rows (dicts with `KEYS`) as markdown: one table per data set, student and protocol, one column per IPC."""
    parts = []
    kind = lambda row: (row["data"], row["model"], row.get("protocol", "default"), row.get("scored_on", "test"),
                        row.get("labels", "hard"), row.get("teacher"))
    for group in sorted(_unique(map(kind, rows)), key=lambda group: group[4] != "hard"):  # hard labels first
        data, model, protocol, scored_on, labels, teacher = group
        chosen = [row for row in rows if kind(row) == group]
        budgets = sorted({row["ipc"] for row in chosen}, key=lambda ipc: (ipc is None, ipc))
        lines = []
        for source, sampling in _unique((row["source"], row["sampling"]) for row in chosen):
            # A later row replaces an earlier one of the same name.
            cells = {row["ipc"]: row for row in chosen if (row["source"], row["sampling"]) == (source, sampling)}
            counts = "-".join(str(n) for n in sorted({row["n"] for row in cells.values()}))
            lines.append([source, sampling, counts, *(_cell(cells[ipc]) if ipc in cells else "" for ipc in budgets)])
        header = ["source", "sampling", "students", *("all images" if ipc is None else f"IPC {ipc}" for ipc in budgets)]
        parts.append(f"**{model} on {data}**, {_how(protocol, scored_on, labels, teacher)}\n\n{_grid(header, lines)}")
    for data in _unique(row["data"] for row in rows if row.get("bytes") is not None):
        kept = {(row["source"], row["ipc"]): row for row in rows if row["data"] == data and row.get("bytes") is not None}
        lines = [[source, str(ipc), f"{row['bytes']:,}", "" if row.get("diversity") is None else f"{row['diversity']:.3f}"]
                 for (source, ipc), row in kept.items()]
        parts.append(f"What the sources of {data} keep, and how far apart two images of a class are\n\n"
                     f"{_grid(['source', 'IPC', 'bytes', 'diversity'], lines)}")
    return "\n\n".join(parts) + "\n"


def markdown(rows):
    """The tables of the rows, and the legend below."""
    return f"{tables(rows)}\n{LEGEND}"


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
                      linestyle={"fresh": "-", "fixed": "--"}.get(sampling, "-."), label=f"{name}, {sampling}")
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


def rewrite(text, root, sections=None):
    """A document's text with every marked section written anew; the paths of files start at the folder `root`.

    `sections` maps the name in a marker to what writes it, called with the rest of the marker and `root` (default: the tables
    and legends of reports).

    Raises UserError where a marker lacks its partner, none is there, or a file cannot be read.
    """
    sections = sections or {"table": _section, "legend": lambda rest, root: LEGEND}
    names = "|".join(sections)
    markers = list(re.finditer(rf"^<!-- (/?)({names})(?:: ?(.*?))? -->$", text, re.MULTILINE))
    if not markers:
        raise UserError("marks no table: put the lines <!-- table: FILE ... --> and <!-- /table --> where one should stand")
    parts, end = [], 0
    for opening, closing in zip(markers[::2], [*markers[1::2], None]):
        if closing is None or opening[1] or not closing[1] or opening[2] != closing[2]:
            line = text.count("\n", 0, opening.start()) + 1
            raise UserError(f"{opening[0]} (line {line}) has no partner: every table and legend has a line where it begins and "
                            "one where it ends")
        parts += [text[end:opening.end()], "\n", sections[opening[2]](opening[3], root)]
        end = closing.start()
    return "".join([*parts, text[end:]])


def _section(files, root):
    files = (files or "").split()
    if not files:
        raise UserError("a table names no file: write <!-- table: FILE ... -->")
    rows = [row for file in files for row in read_report(root / file)]
    return f"{tables(rows)}\nMeasured: {', '.join(f'`{file}`' for file in files)}\n"


def rewrite_document(path, sections=None):
    """The text of the document at `path` as `rewrite` makes it. Raises UserError, which names it, where that cannot be said."""
    root = next((folder for folder in path.resolve().parents if (folder / "pyproject.toml").exists()), None)
    if root is None:
        raise UserError(f"--document {path}: no folder above it holds a pyproject.toml, where the paths of its tables start")
    try:
        return rewrite(path.read_text(encoding="utf-8"), root, sections)
    except (OSError, ValueError) as error:
        raise UserError(f"--document {path} cannot be read ({type(error).__name__}): name a markdown file")
    except UserError as error:
        raise UserError(f"--document {path}: {error}")


def main():
    parser = Parser(prog="python -m gendistil.evaluation.report", description="One table of several reports, or all tables "
                    "of documents.")
    parser.add_argument("reports", type=Path, nargs="*", metavar="REPORT", help="report.json files, in the table's order")
    parser.add_argument("--document", type=Path, nargs="+", metavar="FILE", default=[],
                        help="markdown files in which every marked table and legend is written anew")
    args = parser.parse_args()
    if bool(args.reports) == bool(args.document):
        parser.error("name either reports, or documents by --document")
    if args.reports:
        print(markdown([row for path in args.reports for row in read_report(path)]), end="")
    written = {path: rewrite_document(path) for path in args.document}  # all are read before the first is changed
    for path, text in written.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--document {path} cannot be written: {error.strerror}")


if __name__ == "__main__":
    run_script(main)
