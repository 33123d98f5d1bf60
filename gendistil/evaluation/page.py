"""The report as one HTML page that needs nothing else, and the sheets of images that it shows."""

import base64
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

from gendistil.common.run import made_by, sample_path
from gendistil.sources import balanced_labels

_ACROSS, _DOWN = 10, 20  # images of a class, and classes, that a sheet shows at most

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #f3f4f6; --line: #d5d9de; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #d8dee4; --paper: #14171b; --soft: #20252b; --line: #3a424b; }} }}
body {{ margin: 0 auto; max-width: 84rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }}
h2 {{ margin: 2.5rem 0 1rem; font-size: 1.2rem; }}
p, pre, figure, dl {{ max-width: 64rem; }}
pre, code {{ font-family: ui-monospace, monospace; font-size: .875em; background: var(--soft); border-radius: 4px; }}
code {{ padding: .1em .25em; }}
pre {{ padding: .75rem; white-space: pre-wrap; }}
pre code {{ padding: 0; font-size: 1em; }}
.scroll {{ overflow-x: auto; margin: 0 0 2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }}
thead th {{ background: var(--soft); }}
th[scope=row] {{ font-weight: inherit; }}
.number {{ text-align: right; }}
figure {{ margin: 0 0 2rem; }}
figcaption {{ font-size: .875rem; }}
img {{ display: block; border-radius: 4px; }}
.plot {{ min-width: 36rem; max-width: 100%; height: auto; }}
figure .scroll {{ margin: 0 0 .5rem; }}
.sheets {{ display: flex; flex-wrap: wrap; gap: 0 1.5rem; }}
.sheets figure {{ max-width: 100%; }}
.sheets figcaption {{ max-width: 24rem; }}
.sheets img {{ image-rendering: pixelated; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; }}
dd {{ margin: 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file, what it shows (for those who do not see it) and what stands below it."""

    path: Path
    words: str
    caption: str


@torch.no_grad()
def draw_sheets(run, sources, device):
    """Write a sheet of every source to the samples of `run`: the first images of seed 0, a row for each class.

    Args: run, a `Run`, whose main process works; sources, a dict of them by name; device, where they draw.
    """
    if run.is_main:
        for name, source in sources.items():
            count = _ACROSS if source.max_ipc is None else min(_ACROSS, source.decoded(source.max_ipc))
            labels = balanced_labels(min(_DOWN, source.num_classes), count, device)
            run.images(name, source.sample(labels, 0), count, 0)


def find_sheets(rows, folder):
    """The sheets that `draw_sheets` left in a run's folder, as a dict of `Picture` by (data set, source) of its rows."""
    classes = made_by(folder).get("dataset", {}).get("classes", [])
    which = f"the first {_DOWN} of {len(classes)} classes" if len(classes) > _DOWN else "the classes"
    shown = f": {', '.join(map(str, classes[:_DOWN]))}" if classes else ""
    sheets = {}
    for data, source, drawn in dict.fromkeys((row["data"], row["source"], row.get("origin", row["source"])) for row in rows):
        path = sample_path(folder, drawn, 0)
        if path.exists():
            words = f"Images of {source}, a row for each of {which} of {data}"
            sheets[data, source] = Picture(path, words, f"**{source}**, a row for each of {which} of {data}{shown}")
    return sheets


def page(title, commands, grids, legend, plots, sheets, facts):
    """The page as text.

    Args: title; commands, text of a line each; grids, the tables as (heading, header, lines) with cells of text; legend, what
    their words mean; plots and sheets, lists of `Picture`; facts, a dict of text by what it is about. In headings, captions and
    the legend `code` and **strong** words are marked as in markdown; nothing else is markup.
    """
    parts = [f"<pre><code>{escape(commands)}</code></pre>", "<h2>Accuracy</h2>"]
    parts += [f"<p>{_inline(heading)}</p>\n{_table(header, lines)}" for heading, header, lines in grids]
    parts += [f"<p>{_inline(legend)}</p>", *(_figure(picture, "plot") for picture in plots)]
    if sheets:
        parts += ["<h2>Images</h2>", '<div class="sheets">', *(_figure(picture) for picture in sheets), "</div>"]
    parts += ["<h2>Facts</h2>", "<dl>",
              *(f"<dt>{escape(words)}</dt><dd>{escape(text)}</dd>" for words, text in facts.items() if text), "</dl>"]
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def _inline(text):
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.strip()))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def _table(header, lines):
    """The first cell of a line is its name; columns of nothing but numbers are set flush right."""
    numeric = [all(re.fullmatch(r"[\d,.-]*", line[i]) for line in lines) for i in range(len(header))]
    classes = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(header, classes))
    body = []
    for name, *cells in lines:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, classes[1:]))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return "\n".join(['<div class="scroll" tabindex="0"><table>', f"<thead><tr>{head}</tr></thead>", "<tbody>", *body,
                      "</tbody>", "</table></div>"])


def _figure(picture, kind=None):
    """A picture with its caption. A plot shrinks with the window as long as it can be read; a sheet keeps its pixels,
    larger where it is small. What is too wide then scrolls."""
    data = picture.path.read_bytes()
    width, height = (int.from_bytes(data[start:start + 4], "big") for start in (16, 20))  # of a PNG's header
    zoom = max(1, 360 // width)
    image = (f'<img{f" class={kind}" if kind else ""} src="data:image/png;base64,{base64.b64encode(data).decode()}" '
             f'width="{zoom * width}" height="{zoom * height}" alt="{escape(picture.words)}">')
    return f'<figure><div class="scroll">{image}</div><figcaption>{_inline(picture.caption)}</figcaption></figure>'
