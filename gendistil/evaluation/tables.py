"""Rows of measured accuracy as tables, and tables as text."""

from statistics import fmean

from gendistil.evaluation.protocols import PROTOCOLS
from gendistil.evaluation.ranking import ranking_grids
from gendistil.evaluation.rows import OWN_LABELS, SCORED, across_students, difference, line_of, students_of, table_of, unique

LEGEND = """\
Mean ± standard deviation over students with different seeds (± half the width of the mean's 95 % interval, Student's t).
IPC: images per class. Sampling fixed: one set per student, of stored images the same for all of them; representative: one
chosen among 20 or more times as many, where there are so many; fresh: a new set every epoch; all: every training image. A
heading names the protocol by which students were trained where it is not the default of `validate.py`; what flags changed of
it, the heading or the text says.
Students of one seed are compared in pairs where their images are alike, as a generator's and its control's are, and memories
in pairs of one order of the classes; the intervals of other differences are by Welch's t.
"""
"""What the words and numbers of a table mean, as markdown: once for all tables of a document."""

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_KEPT = {"rows": "; a row is kept with every image", "teacher": "; it is kept with the images"}
_FACTS = {"steps": "steps", "lr": "learning rate"}  # of students, by their keys, that are told where they differ
_COLUMNS = {"ipc": ("students", "IPC {}"), "classes": ("orders", "{} classes")}  # what a cell counts, and a column's name


def _cell(row):
    if row["std"] is None:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ± {row['std']:.2f} (±{row['ci95']:.2f})"


def _span(numbers):
    """The smallest and the largest of them as text, once where they are equal; empty for none."""
    numbers = sorted(numbers)
    words = [f"{number:,}" if isinstance(number, int) else f"{number:.2g}" for number in (*numbers[:1], *numbers[-1:])]
    return "-".join(unique(words))


def _grid(header, lines):
    """A markdown table whose columns line up in a terminal too."""
    header, *lines = ([text.replace("|", r"\|") for text in line] for line in (header, *lines))
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    form = lambda line: "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |"
    return "\n".join([form(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(form, lines)])


def _how(protocol, scored_on, labels="hard", teacher=None, augmentation=None, flags=None):
    """What the numbers of a table are, in words."""
    if flags:
        return f"{_how(protocol, scored_on, labels, teacher, augmentation)}, students by `{flags}`"
    if augmentation:
        return f"**without augmentation**, {_how(protocol, scored_on, labels, teacher)}"
    if labels == OWN_LABELS:
        return f"**labels learned with the images**, {_how(protocol, scored_on)}"
    if labels != "hard":
        return f"**labels of a teacher** ({teacher}{_KEPT.get(labels, '')}), {_how(protocol, scored_on)}"
    scored = SCORED[scored_on]
    row = PROTOCOLS.get(protocol, PROTOCOLS["default"])  # of a plugin that is not here: nothing is known
    if row.looks > 1:
        name = f"published {row.source} protocol" if row.source else f"`--protocol {protocol}`"
        return f"{name}: best accuracy seen in {_NUMBERS.get(row.looks, row.looks)} looks at the {scored}, in per cent"
    how = f"accuracy on the {scored} in per cent, "
    if row.source:
        how += f"students trained as {row.source} published (`--protocol {protocol}`), "
    elif protocol != "default":
        how += f"students trained by `--protocol {protocol}`, "
    return how + "scored once at the last step"


def grids(rows, against=()):
    """The rows (dicts with `KEYS`) as tables, each a tuple of its heading, its header and its lines of text.

    One table per data set, student and protocol, one column per IPC, or of continual learning per number of classes seen; a
    column of the students' steps, and one of their learning rates, where those of one column differ; and one more table for
    each source in `against` that is in it, of how far the others are above that one; then, where there are several students,
    one column for each of them; then the scores of DD-Ranking, where there are all that they need; then one table per data set
    of what its sources keep.
    """
    for group in sorted(unique(map(table_of, rows)), key=lambda group: group[4] != "hard"):  # hard labels first
        data, model, *how, task = group
        chosen = [row for row in rows if table_of(row) == group]
        over = "classes" if task else "ipc"
        facts, columns, lines = _lines(chosen, line_of, over)
        heading = f"**{model} on {data}**, {'; '.join(filter(None, [_how(*how), task]))}"
        yield heading, ["source", "sampling", *facts, *columns.values()], lines
        yield from _differences(chosen, against, over, ["source", "sampling", *columns.values()], columns)
    yield from students_grids(rows)
    yield from ranking_grids(rows)
    known = [row for row in rows if row.get("bytes") is not None]
    for data in unique(row["data"] for row in known):
        yield _storage([row for row in known if row["data"] == data], data)


def sets_grids(rows, sources):
    """The rows of `sources`, names, as tables like those of `grids` that hold all data sets."""
    rows = [row for row in rows if row["source"] in sources]
    for group in unique(table_of(row)[1:] for row in rows):
        model, *how, _ = group
        facts, columns, lines = _lines([row for row in rows if table_of(row)[1:] == group],
                                       lambda row: (row["data"], *line_of(row)), "ipc")
        yield (f"**{model} on several data sets**, {_how(*how)}", ["data set", "source", "sampling", *facts, *columns.values()],
               lines)


def _lines(rows, name_of, over):
    """The rows of one table: the facts that it has columns of, the names of its columns of accuracy by their values of `over`,
    and its lines, one for each value of `name_of(row)`, a tuple of words."""
    counted, column = _COLUMNS[over]
    values = sorted({row[over] for row in rows}, key=lambda value: (value is None, value))
    differ = lambda fact: any(len({row[fact] for row in rows if row[over] == value and fact in row}) > 1 for value in values)
    facts, lines = {counted: "n", **{name: fact for fact, name in _FACTS.items() if differ(fact)}}, []
    for name in unique(map(name_of, rows)):
        # A later row replaces an earlier one of the same name.
        cells = {row[over]: row for row in rows if name_of(row) == name}
        numbers = [_span(row[fact] for row in cells.values() if fact in row) for fact in facts.values()]
        trainings = max(row.get("repeats", 1) for row in cells.values())
        numbers[0] += f" of {trainings} trainings" if trainings > 1 else ""  # students of one are more alike than others
        lines.append([*name, *numbers, *(_cell(cells[value]) if value in cells else "" for value in values)])
    return facts, {value: "all images" if value is None else column.format(value) for value in values}, lines


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
        drop = fmean(row[students[0]]["mean"] - row[name]["mean"] for name in students[1:]) if all(cells) else None
        lines.append([source, sampling, "all" if ipc is None else str(ipc), *cells, "" if drop is None else f"{drop:.2f}"])
    rates = {name: {line[name]["lr"] for line in found.values() if "lr" in line.get(name, ())} for name in students}
    apart = len(set().union(*rates.values())) > 1
    said = f" Learning rates: {', '.join(f'{name} {_span(rate)}' for name, rate in rates.items() if rate)}." if apart else ""
    mark = " †: the images were learned with this one." if any("†" in cell for line in lines for cell in line[3:]) else ""
    heading = (f"**Students of several architectures on {data}**, {_how(*how)}.{said}{mark} Mean drop: by how many points the "
               f"others are below {students[0]}, on average, where all are there")
    if any("±" in cell for line in lines for cell in line[3:]):
        heading += ". In brackets: how many students, where they are several"
    return heading, ["source", "sampling", "IPC", *students, "mean drop"], lines


def _student_cell(row):
    """Mean ± standard deviation and how many students, marked where the source was learned with such a network."""
    text = f"{row['mean']:.2f}" if row["std"] is None else f"{row['mean']:.2f} ± {row['std']:.2f} ({row['n']})"
    return f"{text} †" if row["model"] in row.get("learned_with", ()) else text


def tables(rows, against=()):
    """The tables of the rows as markdown; `against` as `grids` has it."""
    return text_of(grids(rows, against))


def text_of(found):
    """Tables as `grids` yields them as markdown."""
    return "\n\n".join(f"{heading}\n\n{_grid(header, lines)}" for heading, header, lines in found) + "\n"


def markdown(rows, against=()):
    """The tables of the rows, and the legend below."""
    return f"{tables(rows, against)}\n{LEGEND}"
