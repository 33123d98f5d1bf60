"""Rows of measured accuracy as tables, plots and files, and the tables of documents.

    python -m gendistil.evaluation.report results/a/report.json results/b/report.json    # prints one table of several reports
    python -m gendistil.evaluation.report results/*/report.json --output-dir both        # also as a page, with plots
    python -m gendistil.evaluation.report results/a/report.json --against control        # also how far others are above it
    python -m gendistil.evaluation.report --document docs/results.md                     # rewrites every table of a document

A document marks the place of a table, and the files that it is made from, by the lines `<!-- table: a.json b.json -->` and
`<!-- /table -->`, and that of the legend by `<!-- legend -->` and `<!-- /legend -->`. Paths start at the root of the project,
the document's nearest parent with a pyproject.toml. `<!-- table: a.json against control, random real images -->` is the same
as `--against control "random real images"`. `<!-- students: a.json -->` and `<!-- /students -->` mark the place of those tables
alone that have a column for each student.
"""

import functools
import re
import shlex
import sys
from pathlib import Path
from statistics import fmean

from gendistil.common.cli import Parser, run_script
from gendistil.common.errors import UserError
from gendistil.common.run import CONFIG, made_by, write_json
from gendistil.evaluation.page import Picture, find_sheets, page
from gendistil.evaluation.plots import ACROSS, PLOTS, caption, plot, plot_across, plotted
from gendistil.evaluation.ranking import ranking_grids, rankings
from gendistil.evaluation.rows import (
    LEARNED,
    REPORT,
    SCORED,
    across_students,
    difference,
    kind_of,
    line_of,
    read_report,
    students_of,
    unique,
)
from gendistil.evaluation.students import PROTOCOLS

LEGEND = """\
Mean ± standard deviation over students with different seeds (± half the width of the mean's 95 % interval, Student's t).
IPC: images per class. Sampling fixed: one set per student; representative: one chosen among 20 or more times as many,
where there are so many; fresh: a new set every epoch; all: every training image. A heading names the protocol by which
students were trained where it is not the default of `validate.py`; what flags changed of it, the command or the text says.
Students of one seed are compared in pairs where their images are alike, as a generator's and its control's are, and memories
in pairs of one order of the classes; the intervals of other differences are by Welch's t.
"""
"""What the words and numbers of a table mean, as markdown: once for all tables of a document."""

_FACTS = {"data set": "data", "students": "model", "protocol": "protocol", "scored on": "scored_on", "device": "device",
          "torch": "torch"}
"""What a page says below its tables, by the row's key for it."""

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_PUBLISHED = {"dc": "DC", "dsa": "DSA and DM", "idc": "IDC and DREAM"}
RANKING = "ranking.json"
"""The file of a report's folder that holds the scores of DD-Ranking."""

_KEPT = {"rows": "; a row is kept with every image", "teacher": "; it is kept with the images"}
_COLUMNS = {"ipc": ("students", "IPC {}"), "classes": ("orders", "{} classes")}  # what a cell counts, and a column's name


def _cell(row):
    if row["std"] is None:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ± {row['std']:.2f} (±{row['ci95']:.2f})"


def _span(numbers):
    """The smallest and the largest of them as text, once where they are equal; empty for none."""
    numbers = sorted(numbers)
    return "-".join(f"{number:,}" for number in unique([*numbers[:1], *numbers[-1:]]))


def _grid(header, lines):
    """A markdown table whose columns line up in a terminal too."""
    header, *lines = ([text.replace("|", r"\|") for text in line] for line in (header, *lines))
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    form = lambda line: "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |"
    return "\n".join([form(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(form, lines)])


def _how(protocol, scored_on, labels="hard", teacher=None, augmentation=None):
    """What the numbers of a table are, in words."""
    if augmentation:
        return f"**without augmentation**, {_how(protocol, scored_on, labels, teacher)}"
    if labels == LEARNED:
        return f"**labels learned with the images**, {_how(protocol, scored_on)}"
    if labels != "hard":
        return f"**labels of a teacher** ({teacher}{_KEPT.get(labels, '')}), {_how(protocol, scored_on)}"
    scored = SCORED[scored_on]
    looks = PROTOCOLS[protocol].looks if protocol in PROTOCOLS else 1
    if looks > 1:
        name = "published DiM protocol" if protocol == "dim" else f"`--protocol {protocol}`"
        return f"{name}: best accuracy seen in {_NUMBERS.get(looks, looks)} looks at the {scored}, in per cent"
    how = f"accuracy on the {scored} in per cent, "
    if protocol in _PUBLISHED:
        how += f"students trained as {_PUBLISHED[protocol]} published (`--protocol {protocol}`), "
    elif protocol != "default":
        how += f"students trained by `--protocol {protocol}`, "
    return how + "scored once at the last step"


def grids(rows, against=()):
    """The rows (dicts with `KEYS`) as tables, each a tuple of its heading, its header and its lines of text.

    One table per data set, student and protocol, one column per IPC, or of continual learning per number of classes seen; a
    column of the students' steps where those of one column differ; and one more table for each source in `against` that is in
    it, of how far the others are above that one; then, where there are several students, one column for each of them; then the
    scores of DD-Ranking, where there are all that they need; then one table per data set of what its sources keep.
    """
    for group in sorted(unique(map(kind_of, rows)), key=lambda group: group[4] != "hard"):  # hard labels first
        data, model, *how, task = group
        chosen = [row for row in rows if kind_of(row) == group]
        over = "classes" if task else "ipc"
        counted, column = _COLUMNS[over]
        values = sorted({row[over] for row in chosen}, key=lambda value: (value is None, value))
        taken = [{row["steps"] for row in chosen if row[over] == value and "steps" in row} for value in values]
        facts = {counted: "n", **({"steps": "steps"} if max(map(len, taken)) > 1 else {})}
        lines = []
        for name in unique(map(line_of, chosen)):
            # A later row replaces an earlier one of the same name.
            cells = {row[over]: row for row in chosen if line_of(row) == name}
            numbers = [_span(row[fact] for row in cells.values() if fact in row) for fact in facts.values()]
            lines.append([*name, *numbers, *(_cell(cells[value]) if value in cells else "" for value in values)])
        columns = ["all images" if value is None else column.format(value) for value in values]
        heading = f"**{model} on {data}**, {'; '.join(filter(None, [_how(*how), task]))}"
        yield heading, ["source", "sampling", *facts, *columns], lines
        yield from _differences(chosen, against, over, ["source", "sampling", *columns], values)
    yield from students_grids(rows)
    yield from ranking_grids(rows)
    known = [row for row in rows if row.get("bytes") is not None]
    for data in unique(row["data"] for row in known):
        yield _storage([row for row in known if row["data"] == data], data)


def _storage(rows, data):
    """The table of what the sources of a data set keep, by their rows, as `grids` yields it."""
    kept = {(row["source"], row["ipc"], row.get("labels", "hard"), row.get("teacher")): row for row in rows}
    sizes = {}  # of which a source with several teachers may have several
    for (*name, _), row in kept.items():
        sizes.setdefault(tuple(name), set()).add(row["bytes"])
    lines = {}  # of one source, with every IPC for which they are the same
    for (source, ipc, labels, teacher), row in kept.items():
        facts = (f"{row['bytes']:,}", "" if row.get("diversity") is None else f"{row['diversity']:.3f}",
                 f"{fmean(row['draw_seconds']):.1f}" if "draw_seconds" in row else "")
        name = source if labels == "hard" else f"{source}, labels: {labels}"
        name += f" ({teacher})" if len(sizes[source, ipc, labels]) > 1 else ""
        lines.setdefault((name, *facts), []).append(str(ipc))
    lines = [[name, ", ".join(unique(ipcs)), *facts] for (name, *facts), ipcs in lines.items()]
    header = ["source", "IPC", "bytes", "diversity", "seconds for 10,000 images"]
    columns = [place for place in range(len(header)) if place < 3 or any(line[place] for line in lines)]
    apart = ", and how far apart two images of a class are" if 3 in columns else ""
    return (f"What the sources of {data} keep{apart}",
            [header[place] for place in columns], [[line[place] for place in columns] for line in lines])


def _differences(rows, against, over, header, values):
    """Tables of how far the rows of one table are above those of the sources `against`, as `grids` yields them."""
    place = lambda row: (row["sampling"], row["ipc"], row.get("classes"))
    for name in against:
        others = {place(row): row for row in rows if row["source"] == name}
        lines = {}
        for row in rows:
            if row["source"] != name and place(row) in others:
                lines.setdefault(line_of(row), {})[row[over]] = _difference_cell(row, others[place(row)])
        if lines:
            yield (f"Points above {name} (95 % interval of the difference)", header,
                   [[*line, *(cells.get(value, "") for value in values)] for line, cells in lines.items()])


def _difference_cell(row, other):
    points = difference(row, other)
    return f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f})" if points else f"{row['mean'] - other['mean']:+.1f}"


def students_grids(rows):
    """The tables of `grids` that have a column for each of several students."""
    return [_across(data, how, found) for (data, *how), found in across_students(rows).items()]


def _across(data, how, found):
    """A table of `across_students` as `grids` yields it."""
    students, lines = students_of(found), []
    for (source, sampling, ipc), row in found.items():
        cells = [_student_cell(row[name]) if name in row else "" for name in students]
        drops = [row[students[0]]["mean"] - row[name]["mean"] for name in students[1:] if name in row and students[0] in row]
        lines.append([source, sampling, "all" if ipc is None else str(ipc), *cells, f"{fmean(drops):.2f}" if drops else ""])
    mark = " †: the images were learned with this one." if any("†" in cell for line in lines for cell in line[3:]) else ""
    heading = (f"**Students of several architectures on {data}**, {_how(*how)}.{mark} Mean drop: by how many points the others "
               f"are below {students[0]}, on average")
    return heading, ["source", "sampling", "IPC", *students, "mean drop"], lines


def _student_cell(row):
    """Mean ± standard deviation, marked where the source was learned with such a network."""
    text = f"{row['mean']:.2f}" if row["std"] is None else f"{row['mean']:.2f} ± {row['std']:.2f}"
    return f"{text} †" if row["model"] in row.get("learned_with", ()) else text


def controls(paths):
    """Of the paths of sources by their names, the names of those that are controls of stage 2: a list."""
    return [name for name, path in paths.items() if made_by(Path(path)).get("control_of")]


def tables(rows, against=()):
    """The tables of the rows as markdown; `against` as `grids` has it."""
    return _text(grids(rows, against))


def _text(found):
    """Tables as `grids` yields them as markdown."""
    return "\n\n".join(f"{heading}\n\n{_grid(header, lines)}" for heading, header, lines in found) + "\n"


def markdown(rows, against=()):
    """The tables of the rows, and the legend below."""
    return f"{tables(rows, against)}\n{LEGEND}"


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

    `sections` maps the name in a marker to what writes it, called with the rest of the marker and `root` (default: the tables
    and legends of reports).

    Raises UserError where a marker lacks its partner, none is there, or a file cannot be read.
    """
    sections = sections or {"table": _section, "students": functools.partial(_section, choose=students_grids),
                            "legend": lambda rest, root: LEGEND}
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
    files, _, against = (rest or "").partition(" against ")
    files, against = files.split(), [name.strip() for name in against.split(",") if name.strip()]
    if not files:
        raise UserError("a table names no file: write <!-- table: FILE ... -->")
    rows = [row for part in told_apart({root / file: read_report(root / file) for file in files}).values() for row in part]
    _check_against(rows, against, "against")
    chosen = choose(rows) if choose else grids(rows, against)
    return f"{_text(chosen)}\nMeasured: {', '.join(f'`{file}`' for file in files)}\n"


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
    two reports have a row of the same place with other accuracies; `origin` and `report` say what they were."""
    place = lambda row: (kind_of(row), line_of(row), row["ipc"], row.get("classes"))
    seen = {}
    for rows in reports.values():
        for row in rows:
            seen.setdefault(place(row), []).append(row["mean"])
    lost = {row["source"] for rows in reports.values() for row in rows if len(set(seen[place(row)])) > 1}
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
