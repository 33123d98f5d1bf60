"""Accuracy against images per class, against the bytes that are kept and by the students' architecture, as pictures."""

import math
import textwrap

from gendistil.data import original
from gendistil.evaluation.published import published
from gendistil.evaluation.rows import DEFAULT, TABLE, across_students, line_of, students_of, table_of, unique

PLOTS = {"ipc": ("accuracy.png", "images per class"), "bytes": ("bytes.png", "bytes that are kept"),
         "classes": ("classes.png", "classes seen")}
"""Accuracy is plotted against each of these: the file, and the name of its axis."""

ACROSS = "students.png"
"""The file of the plot by the students' architecture."""

_DASHES = {"fresh": "-", "fixed": "--"}
_COLOURS = [number for number in (*range(0, 20, 2), *range(1, 20, 2)) if number not in (14, 15)]
"""Of matplotlib's tab20: the dark ones, then the light ones, without its greys."""
_LEGEND = 105
"""Characters in a line of a legend that is as wide as its plot."""

_TOLD = {"protocol": "protocol {}", "scored_on": "scored on {}", "labels": "labels: {}",
         "augmentation": "augmentation: {}", "flags": "students by {}"}
"""How a legend tells what is not the same for all lines, or not as usual."""


def _line_name(row, kinds):
    """What a legend calls the line of a row: its source, what `kinds`, those of all rows, do not share, and its sampling."""
    usual = {**dict.fromkeys(_TOLD), **DEFAULT}
    told = [_TOLD.get(key, "{}").format(value) for key, value, values in zip(TABLE, table_of(row), zip(*kinds))
            if value is not None and (len({*values} - {None}) > 1 or value != usual.get(key, value))]
    name = ", ".join([line_of(row)[0], *told, *([row["sampling"]] if row["sampling"] != "all" else [])])
    return name.replace("$", r"\$")  # no formula


def _beside(rows):
    """What others published on the test sets of the rows with the same students, and how a legend and a caption call it."""
    rows = [row for row in rows if row.get("scored_on", DEFAULT["scored_on"]) == "test"]
    found, title = [], "published by others, not measured here"
    for data in unique(row["data"] for row in rows):
        points = published(data, {row["model"] for row in rows if row["data"] == data})
        found += points
        if points and original(data) != data:
            title += f", for the original images of {original(data)}"
    return found, title


def plotted(rows, over):
    """The rows that a plot against a key of `PLOTS` shows, a list; empty where there is nothing to show. Those of continual
    learning are shown against classes alone."""
    shown = [row for row in rows if ("classes" in row) == (over == "classes")]
    return shown if over == "ipc" or any(row.get(over) for row in shown) else []


def caption(rows, over):
    """What a reader of the plot needs to know besides, as markdown."""
    words = f"Accuracy against {PLOTS[over][1]}. Bars are 95 % intervals."
    if over == "bytes":
        words += " A number beside a point is its IPC."
        others, title = _beside(rows)
        if others:
            words += f" Hollow: {title}: {', '.join(unique(f'{entry.method} ({entry.source})' for entry in others))}."
    return words


def plot(rows, path, over="ipc"):
    """Accuracy against a key of `PLOTS` as a PNG, with bars for the 95 % interval.

    Colours tell source, labels and protocol apart, markers students, dashes samplings. Against bytes, a number beside a point
    is its IPC, and hollow grey points are what others published.
    """
    figure, axes = _figure()
    kinds, lines, column = unique(map(table_of, rows)), {}, "classes" if over == "classes" else "ipc"
    for row in rows:
        if row["sampling"] == "all" or row.get(over):  # a later row replaces an earlier one of the same name
            lines.setdefault((*line_of(row), table_of(row)), {})[row[column]] = row
    markers = dict(zip(unique(row["model"] for row in rows), "osD^vP*X" * len(rows)))
    colours, handles = {}, []
    for (source, sampling, (data, model, *how)), line in lines.items():
        colour = colours.setdefault((source, data, *how), _colour(len(colours)))
        line = sorted(line.values(), key=lambda row: row[column] or 0)
        name = _line_name(line[0], kinds)
        if sampling == "all":
            handles.append(axes.axhline(line[0]["mean"], color=colour, marker=markers[model], markersize=4, linestyle=":",
                                        label=name))
            continue
        handles.append(axes.errorbar([row[over] for row in line], [row["mean"] for row in line],
                                     [row["ci95"] or 0 for row in line], color=colour, marker=markers[model], markersize=4,
                                     capsize=3, linewidth=1.2, linestyle=_DASHES.get(sampling, "-."),
                                     label=name))
        for row in line if over == "bytes" else ():
            axes.annotate(row["ipc"], (row[over], row["mean"]), (4, 4), textcoords="offset points", fontsize=6, color=colour)
    others, title = _beside(rows) if over == "bytes" else ([], "")
    if others:
        handles += axes.plot([], [], linestyle="none", label=f"{title}:")
    for entry, marker in zip(others, "osD^vP*Xph<>d8" * len(others)):
        handles += axes.plot(*zip(*entry.points), color="0.45", marker=marker, markersize=6, markerfacecolor="none",
                             linestyle=":", linewidth=0.6, zorder=3, label=entry.name)
    _scale(axes, over, sorted({row[over] for line in lines.values() for row in line.values() if row.get(over)}), others)
    _finish(figure, axes, rows, handles, path)


def _scale(axes, over, values, others):
    """Name the horizontal axis of a plot against `over` and scale it for its sorted `values` and those that `others` published.

    Each value has a mark of its own, but of bytes the powers of ten have.
    """
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(PLOTS[over][1])
    if not values:
        return
    if over != "classes":
        axes.set_xscale("log")
    if over == "bytes":
        sizes = [*values, *(size for entry in others for size, _ in entry.points)]
        axes.set_xlim(10 ** math.floor(math.log10(min(sizes))), 10 ** (math.floor(math.log10(max(sizes))) + 1))
        axes.xaxis.set_major_formatter(EngFormatter("B"))
    else:
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()


def plot_across(rows, path):
    """Accuracy by the student's architecture as a PNG: a line for each source, sampling and IPC that several students have.

    Colours tell lines apart, dashes samplings, and a ring marks the architectures that a source was learned with.
    """
    figure, axes = _figure()
    found = across_students(rows)
    lines = [item for lines in found.values() for item in lines.items()]
    students = unique(name for lines in found.values() for name in students_of(lines))
    kinds, handles = [(data, None, *how) for data, *how in found], []
    for number, ((_, sampling, ipc), line) in enumerate(lines):
        colour, shift = _colour(number), 0.5 * ((number + 0.5) / len(lines) - 0.5)
        line = sorted(line.values(), key=lambda row: students.index(row["model"]))
        places = [students.index(row["model"]) + shift for row in line]
        name = _line_name(line[0], kinds) + (f", IPC {ipc}" if ipc else "")
        handles.append(axes.errorbar(places, [row["mean"] for row in line], [row["ci95"] or 0 for row in line], color=colour,
                                     marker="o", markersize=4, capsize=3, linewidth=0.6, label=name,
                                     linestyle=_DASHES.get(sampling, "-.")))
        rings = [(place, row["mean"]) for place, row in zip(places, line) if row["model"] in row.get("learned_with", ())]
        axes.plot(*zip(*rings) if rings else ([], []), linestyle="none", marker="o", markersize=10, markerfacecolor="none",
                  color=colour)
    axes.set_xticks(range(len(students)), students, rotation=30, ha="right")
    _finish(figure, axes, [row for _, line in lines for row in line.values()], handles, path)


def _colour(number):
    from matplotlib import colormaps

    return colormaps["tab20"](_COLOURS[number % len(_COLOURS)])


def _figure():
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")


def _finish(figure, axes, rows, handles, path):
    """Name the axes of a plot of `rows`, put its legend below, and write it."""
    from matplotlib import pyplot

    axes.set(ylabel="accuracy (%)", title=", ".join(unique(row["data"] for row in rows)).replace("$", r"\$"))
    axes.grid(alpha=0.3)
    names = [textwrap.fill(handle.get_label(), _LEGEND, subsequent_indent="    ", break_on_hyphens=False) for handle in handles]
    columns = 2 if max(map(len, names)) < _LEGEND // 2 else 1
    lines = sum(name.count("\n") + 1 for name in names)
    figure.set_size_inches(7, 4.5 + 0.17 * math.ceil(lines / columns))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, fontsize=8, handlelength=3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
