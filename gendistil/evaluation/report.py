"""Rows of measured accuracy as files with tables and plots, and the tables of documents.

    python -m gendistil.evaluation.report results/a/report.json results/b/report.json    # prints one table of several reports
    python -m gendistil.evaluation.report results/*/report.json --output-dir both        # also as a page, with plots
    python -m gendistil.evaluation.report results/a/report.json --against control        # also how far others are above it
    python -m gendistil.evaluation.report --document docs/results/*.md                     # rewrites every table of a document

A document marks the place of a table, and the files that it is made from, by the lines `<!-- table: a.json b.json -->` and
`<!-- /table -->`, and that of the legend by `<!-- legend -->` and `<!-- /legend -->`. Paths start at the root of the project,
the document's nearest parent with a pyproject.toml. `<!-- table: a.json against control, random real images -->` is the same
as `--against control "random real images"`. `<!-- students: a.json -->` and `<!-- /students -->` mark the place of those tables
alone that have a column for each student, `<!-- sets: a.json b.json of stage2, control -->` and `<!-- /sets -->` that of a
table of these sources on all data sets.
"""

import functools
import re
import shlex
import sys
from pathlib import Path

from gendistil.common.cli import Parser, run_script
from gendistil.common.errors import UserError
from gendistil.common.files import write_json
from gendistil.common.run import CONFIG, made_by
from gendistil.evaluation.page import Picture, find_sheets, page
from gendistil.evaluation.plots import ACROSS, PLOTS, caption, plot, plot_across, plotted
from gendistil.evaluation.ranking import rankings
from gendistil.evaluation.rows import REPORT, across_students, line_of, read_report, table_of, unique
from gendistil.evaluation.tables import LEGEND, grids, markdown, sets_grids, students_grids, text_of

_FACTS = {"data set": "data", "students": "model", "protocol": "protocol", "scored on": "scored_on", "device": "device",
          "torch": "torch"}
"""What a page says below its tables, by the row's key for it."""

RANKING = "ranking.json"
"""The file of a report's folder that holds the scores of DD-Ranking."""


def controls(paths):
    """Of the paths of sources by their names, the names of those that are controls of stage 2: a list."""
    return [name for name, path in paths.items() if made_by(Path(path)).get("control_of")]


def write_report(rows, folder, commands, sheets, against=()):
    """report.json, report.md, report.html and the plots in `folder`, of the rows so far.

    Args: commands, which have measured them, lists of words; sheets, those of `find_sheets`; against, as `grids` has it.
    Without a row that says its bytes there is no bytes.png, without several kinds of students no students.png, and without what
    DD-Ranking's scores need no ranking.json.
    """
    write_json(folder / REPORT, rows)
    scores = rankings(rows)
    if scores:
        write_json(folder / RANKING, scores)
    commands = "\n".join(map(shlex.join, commands))
    (folder / "report.md").write_text(f"{markdown(rows, against)}\n```\n{commands}\n```\n", encoding="utf-8",
                                     errors="backslashreplace")
    plots = []
    for over, (name, axis) in PLOTS.items():
        shown = plotted(rows, over)
        if shown:
            plot(shown, folder / name, over)
            plots.append(Picture(folder / name, f"Accuracy against {axis}, as the tables have it", caption(shown, over)))
    if across_students(rows):
        plot_across(rows, folder / ACROSS)
        plots.append(Picture(folder / ACROSS, "Accuracy by the student's architecture, as the tables have it",
                             "Accuracy by the student's architecture. Bars are 95 % intervals. A ring: the images were learned "
                             "with this one."))
    made = {picture.path.name for picture in plots} | ({RANKING} if scores else set())
    for name in {RANKING, ACROSS, *(name for name, _ in PLOTS.values())} - made:
        (folder / name).unlink(missing_ok=True)  # of earlier rows
    data = ", ".join(unique(row["data"] for row in rows))
    facts = {words: "; ".join(unique(str(row[key]) for row in rows if key in row)) for words, key in _FACTS.items()}
    text = page(f"Accuracy of students on {data}", commands, grids(rows, against), LEGEND, plots, sheets.values(),
                facts)
    (folder / "report.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def rewrite(text, root, sections=None):
    """A document's text with every marked section written anew; the paths of files start at the folder `root`.

    `sections` maps the name in a marker to what writes it, called with the rest of the marker and `root` (default: `SECTIONS`).

    Raises UserError where a marker lacks its partner, none is there, or a file cannot be read.
    """
    sections = sections or SECTIONS
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


def _section(rest, root, choose=None):
    files, rows, against = _read(rest, root, "against")
    return f"{text_of(choose(rows) if choose else grids(rows, against))}\n{files}"


def _sets(rest, root):
    files, rows, sources = _read(rest, root, "of")
    return f"{text_of(sets_grids(rows, sources))}\n{files}"


SECTIONS = {"table": _section, "students": functools.partial(_section, choose=students_grids), "sets": _sets,
            "legend": lambda rest, root: LEGEND}
"""The tables and legends of reports, by the names of their markers."""


def _read(rest, root, word):
    """Of a marker, the files and behind `word` the sources that it names: a line of the files, their rows, and the sources."""
    files, _, sources = (rest or "").partition(f" {word} ")
    files, sources = files.split(), [name.strip() for name in sources.split(",") if name.strip()]
    if not files:
        raise UserError("a table names no file: write <!-- table: FILE ... -->")
    rows = [row for part in told_apart({root / file: read_report(root / file) for file in files}).values() for row in part]
    _check_against(rows, sources, word)
    return f"Measured: {', '.join(f'`{file}`' for file in files)}\n", rows, sources


def _check_against(rows, against, flag):
    """Raise UserError, which names `flag`, for a source in `against` that no row is of."""
    sources = unique(row["source"] for row in rows)
    for name in against:
        if name not in sources:
            raise UserError(f"{flag} {name}: no row has this source; there are {', '.join(sources)}")


def rewrite_document(path, sections=None):
    """The text of the document at `path` as `rewrite` makes it. Raises UserError, which names it, where that cannot be said."""
    root = next((folder for folder in path.resolve().parents if (folder / "pyproject.toml").exists()), None)
    if root is None:
        raise UserError(f"--document {path}: no folder above it holds a pyproject.toml, where the paths of its tables start")
    if not path.is_file():
        raise UserError(f"--document {path} is not there: name a markdown file")
    try:
        return rewrite(path.read_text(encoding="utf-8"), root, sections)
    except (OSError, ValueError) as error:
        raise UserError(f"--document {path} cannot be read ({type(error).__name__}): name a markdown file")
    except UserError as error:
        raise UserError(f"--document {path}: {error}")


def _join(reports, rows, folder, commands, against):
    """Write the report of several in a folder that is no run's, with the sheets that lie beside each of them."""
    if (folder / CONFIG).exists() or folder.resolve() in [path.resolve().parent for path in reports]:
        raise UserError(f"--output-dir {folder} holds a run or one of the reports: name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT).exists():
        raise UserError(f"--output-dir {folder} holds files, and no report that could be replaced: name another folder")
    sheets = {}
    for path, part in reports.items():
        sheets |= find_sheets(part, path.parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(rows, folder, commands, sheets, against)
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written ({error.strerror}): name another folder")
    print(f"\nreport: {folder / 'report.html'}")


def told_apart(reports):
    """The rows of several reports, a dict of lists by their paths, whose sources have their run's name, or the file's, where
    two reports have a row of the same place with other accuracies, or rows of other weights; `origin` and `report` say what
    they were."""
    place = lambda row: (table_of(row), line_of(row), row["ipc"], row.get("classes"))
    seen, weights = {}, {}
    for row in (row for rows in reports.values() for row in rows):
        seen.setdefault(place(row), set()).add(row["mean"])
        weights.setdefault((row["data"], row["source"]), set()).update({row["weights"]} if row.get("weights") else ())
    lost = {row["source"] for rows in reports.values() for row in rows
            if len(seen[place(row)]) > 1 or len(weights[row["data"], row["source"]]) > 1}
    names = [path.resolve().parent.name if path.name == REPORT else path.stem for path in reports]
    names = dict(zip(reports, names if len({*names}) == len(names) else map(str, reports)))
    facts = lambda row, path: {"origin": row["source"], "report": names[path], **row}
    rename = lambda row, path: {**facts(row, path), "source": f"{row['source']} of {names[path]}"}
    return {path: [rename(row, path) if row["source"] in lost else row for row in rows] for path, rows in reports.items()}


def main():
    parser = Parser(prog="python -m gendistil.evaluation.report", description="One report of several, or all tables of "
                    "documents.")
    parser.add_argument("reports", type=Path, nargs="*", metavar="REPORT", help="report.json files, in the table's order")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also write their report there: report.html, report.md, "
                        "report.json and plots: accuracy.png, bytes.png if the rows say their bytes, students.png if the "
                        "students are of several kinds")
    parser.add_argument("--against", nargs="+", metavar="SOURCE", default=[], help="also say how many points the other sources "
                        "are above these, with the interval of the difference")
    parser.add_argument("--document", type=Path, nargs="+", metavar="FILE", default=[],
                        help="markdown files in which every marked table and legend is written anew")
    args = parser.parse_args()
    if bool(args.reports) == bool(args.document):
        parser.error("name either reports, or documents by --document")
    if args.output_dir and args.document:
        parser.error("--output-dir is for the report of several: name reports")
    if args.against and args.document:
        parser.error("--against is for the report of several: in a document, a table's own marker says it")
    if args.reports:
        reports = told_apart({path: read_report(path) for path in args.reports})
        rows = [row for part in reports.values() for row in part]
        _check_against(rows, args.against, "--against")
        print(markdown(rows, args.against), end="")
        if args.output_dir:
            _join(reports, rows, args.output_dir, [[*shlex.split(parser.prog), *sys.argv[1:]]], args.against)
    written = {path: rewrite_document(path) for path in args.document}  # all are read before the first is changed
    for path, text in written.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--document {path} cannot be written: {error.strerror}")


if __name__ == "__main__":
    run_script(main)
