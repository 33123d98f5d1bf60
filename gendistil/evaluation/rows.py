"""Rows of measured accuracy, as `validate.py` writes them: one for each source, student, sampling and number of images."""

import json
import math
import operator
from pathlib import Path
from statistics import stdev

from scipy.special import stdtrit

from gendistil.common.errors import UserError

KEYS = ("source", "data", "sampling", "ipc", "model", "mean", "std", "ci95", "n", "seconds")
"""What every row has at least. Accuracies are in per cent, seconds those of all n students together. Rows may also say how many
bytes their source keeps, its `diversity`, the classifiers that it was `learned_with`, a name of its `weights`, and its `kin`: a
name that sources share which give a seed images that are alike, as a generator, what stage 2 made of it, and its control; or
memories, whose classes come in the same orders."""

_VALUES = {"ipc": int | None, "mean": int | float, "std": int | float | None, "ci95": int | float | None, "n": int,
           "seconds": int | float}
"""What the values of `KEYS` are where they are no text."""

TABLE = ("data", "model", "protocol", "scored_on", "labels", "teacher", "augmentation", "flags", "task")
"""What tells one table from another; rows of one table differ in source, sampling and IPC. Rows of continual learning have a
`task`, and differ in how many `classes` have been seen too; the `augmentation` of others may be `PLAIN`; `flags` are those that
changed how the protocol trains, but for its length and its learning rate, which have columns where they differ."""

PLAIN = "none"
"""What a row says of students that were trained without the augmentation and the CutMix of their protocol."""

DEFAULT = {"protocol": "default", "scored_on": "test", "labels": "hard"}
"""What a row means that does not say so."""

REAL, WHOLE, TRAIN = "random real images", "whole training set", "training set without its held-out images"
"""What rows call the real images that stand beside what was distilled."""

OWN_LABELS = "learned"
"""What a row calls the labels of a source that were learned with its images."""

SCORED = {"test": "test set", "held_out": "held-out images"}
"""The real images that students are scored on, by the values of `scored_on`, as a report calls them."""

REPORT = "report.json"
"""The file of an evaluation's folder that holds its rows."""


def row_key(row):
    """What tells a row of one evaluation from its others: a tuple."""
    return tuple(row.get(key, DEFAULT.get(key)) for key in ("source", "sampling", "ipc", "model", "labels", "classes",
                                                                "augmentation"))


def curve_of(row):
    """What the curve of a row over IPC is called in a log."""
    how = ["" if row["labels"] == "hard" else f"labels: {row['labels']}", "unaugmented" if row.get("augmentation") else ""]
    return ", ".join(filter(None, (row["source"], row["model"], row["sampling"], *how)))


def unique(values):
    """The different ones among hashable values, in order: a list."""
    return list(dict.fromkeys(values))


def table_of(row):
    """The values of `TABLE` in a row: a tuple."""
    return tuple(row.get(key, DEFAULT.get(key)) for key in TABLE)


def across_students(rows):
    """The rows in the published form of cross-architecture tables: {what a table shares: {what a line is: {student: row}}}.

    A table shares the values of `TABLE` without the student, and a line is (source, sampling, IPC); one is there if it has
    several students. Of several rows of one cell the last counts.
    """
    found = {}
    for row in rows:
        if row.get("task"):
            continue
        data, model, *how, _ = table_of(row)
        lines = found.setdefault((data, *how), {})
        lines.setdefault((row["source"], row["sampling"], row["ipc"]), {})[model] = row
    several = {shared: {key: line for key, line in lines.items() if len(line) > 1} for shared, lines in found.items()}
    return {shared: lines for shared, lines in several.items() if lines}


def students_of(lines):
    """The students of a table of `across_students`, in order: a list."""
    return unique(model for line in lines.values() for model in line)


def line_of(row):
    """What a row's line of a table is called: its source, with the IPC where columns do not tell it, and its sampling."""
    return (f"{row['source']}, IPC {row['ipc']}" if row.get("task") else row["source"]), row["sampling"]


def difference(row, other):
    """By how much the mean of `row` is above that of `other`: (points, low, high), or None where either has a single student.

    The ends are those of the 95 % interval of the difference. Students of one seed are pairs where their rows are of one `kin`,
    because then their images of a seed are alike, and of one `seed`, the first student's; else it is by Welch's t, which lets
    the two spread differently.
    """
    if row["std"] is None or other["std"] is None:
        return None
    points = row["mean"] - other["mean"]
    if row.get("kin") and all(row.get(key) == other.get(key) for key in ("kin", "seed", "n")):
        spread = stdev(map(operator.sub, row["accuracies"], other["accuracies"]))
        variance, freedom = spread**2 / row["n"], row["n"] - 1
    else:
        a, b = [each["std"] ** 2 / each["n"] for each in (row, other)]
        variance = a + b
        freedom = variance**2 / (a**2 / (row["n"] - 1) + b**2 / (other["n"] - 1)) if variance else 1
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return points, points - half, points + half


def read_report(path):
    """The rows of a report.json. Raises UserError if it is missing or is something else."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a report.json of validate.py: {error}")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and set(KEYS) <= set(row) for row in rows):
        raise UserError(f"{path} is not a report.json of validate.py: it must be a list of rows with {', '.join(KEYS)}")
    for place, row in enumerate(rows):
        for key in KEYS:
            if not isinstance(row[key], _VALUES.get(key, str)):
                raise UserError(f"{path} is not a report.json of validate.py: {key} of row {place} is {row[key]!r}")
    return rows
