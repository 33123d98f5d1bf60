"""Writes every marked table of documents anew: those of reports, and those of what the benchmarks beside this one measured.

    python benchmarks/document.py README.md docs/speed.md docs/results.md docs/results/*.md

A line `<!-- memory: FILE -->`, `<!-- steps: FILE -->` or `<!-- ranking: FILE -->` marks the place of what memory.py,
step_time.py or ranking.py wrote to FILE, and `<!-- /memory -->` its end; gendistil/evaluation/report.py says how the others
are marked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import memory, ranking, step_table
from gendistil.common.cli import Parser, run_script
from gendistil.evaluation import report


def measured(table):
    """What writes a section by `table(path)`, markdown of a benchmark's file."""
    return lambda file, root: f"{table(root / file)} Measured: `{file}`\n"


SECTIONS = {**report.SECTIONS, "memory": measured(memory.table), "steps": measured(step_table.table),
            "ranking": measured(ranking.table)}
"""What writes the section of a marker, by the marker's name."""


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("documents", type=Path, nargs="+", metavar="FILE", help="markdown files with marked tables")
    args = parser.parse_args()
    # All are read before the first is changed.
    for path, text in {path: report.rewrite_document(path, SECTIONS) for path in args.documents}.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
