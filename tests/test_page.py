"""The report as a page and as plots, of one run or of several, and what others published beside it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from test_report import make_row

from gendistil.common.run import Run, sample_path
from gendistil.data import DATASETS
from gendistil.evaluation import plots, report
from gendistil.evaluation.page import draw_sheets, find_sheets
from gendistil.evaluation.published import PAPERS, STUDENTS, published
from gendistil.evaluation.report import read_report, told_apart, write_report
from gendistil.evaluation.tables import tables
from gendistil.sources import PixelSet
from generators import NETWORKS
from pools import CLASSIFIERS

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """A page's text, its images and whatever it would fetch; an element that is not closed as it should be is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images, self.fetched = [], "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        self.fetched += [value for key, value in attributes.items() if key in ("src", "href") and not value.startswith("data:")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def legends(monkeypatch):
    """The names in the legends of all plots that are made, which fit into their pictures."""
    names = []
    close = pyplot.close

    def read(figure):
        [legend] = figure.legends
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        names.append([" ".join(text.get_text().split()) for text in legend.get_texts()])
        close(figure)

    monkeypatch.setattr(pyplot, "close", read)
    return names


def make_run(folder):
    run = object.__new__(Run)
    run.is_main, run.dir, run.step = True, folder, 0
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"commands": [["validate.py"]], "dataset": {"classes": ["cat", "<dog>"]}}))
    return run


def test_a_page_needs_nothing_else(tmp_path):
    name = "<b>a & b</b>"
    rows = [make_row(source=name, bytes=1000, device="a CPU", torch="2"), make_row(bytes=2000, protocol="dc")]
    run = make_run(tmp_path / "run")
    draw_sheets(run, {name: PixelSet(num_classes=2, ipc=3, channels=1, size=8)}, torch.device("cpu"))
    write_report(rows, run.dir, [["validate.py", "--tag", "<x> y"]], find_sheets(rows, run.dir))
    text = (run.dir / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert "<script" not in text
    assert "http" not in text
    assert len(page.images) == 3
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(words in page.text for words in (
        name, "validate.py --tag '<x> y'", "91.00 ± 1.50 (±3.70)", "students trained as DC published (--protocol dc)",
        "a row for each of the classes of digits: cat, <dog>", "a CPU", "Student's t"))
    assert "@media (prefers-color-scheme: dark)" in text


def test_a_sheet_shows_some_images_of_some_classes(tmp_path):
    run = make_run(tmp_path)
    draw_sheets(run, {"few": PixelSet(num_classes=2, ipc=3, channels=1, size=8),
                      "a/lot": PixelSet(num_classes=30, ipc=12, channels=3, size=8)}, torch.device("cpu"))
    assert len(sample_path(tmp_path, "é" * 240, 0).name.encode()) < 200
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "samples").iterdir()}
    assert sizes == {"few-000000.png": (1 + 3 * 9, 1 + 2 * 9), "a-lot-000000.png": (1 + 10 * 9, 1 + 20 * 9)}
    assert set(find_sheets([make_row(source="a/lot"), make_row(source="none")], tmp_path)) == {("digits", "a/lot")}
    draw_sheets(SimpleNamespace(is_main=False), {"none": None}, torch.device("cpu"))


@pytest.mark.parametrize("over", ["ipc", "bytes"])
def test_lines_tell_labels_and_protocols_apart(tmp_path, legends, over):
    rows = [make_row(bytes=1000, ipc=ipc) for ipc in (1, 10)]
    rows += [make_row(bytes=9000, labels="teacher", teacher="convnet of step 9"),
             make_row(bytes=1020, labels="rows", teacher="convnet of step 9", sampling="fixed"),
             make_row(bytes=1000, protocol="dc"), make_row(source="all", sampling="all", ipc=None)]
    plots.plot(rows, tmp_path / "plot.png", over)
    assert legends == [[
        "gan, protocol default, labels: hard, fresh", "gan, protocol default, labels: teacher, fresh",
        "gan, protocol default, labels: rows, fixed", "gan, protocol dc, labels: hard, fresh",
        "all, protocol default, labels: hard"]]
    lines = [line.split("|")[1].strip() for line in tables(rows).splitlines() if line.startswith("| gan, labels")]
    assert lines == ["gan, labels: teacher", "gan, labels: rows"]


def test_lines_tell_flags_and_augmentation_apart(tmp_path, legends):
    rows = [make_row(), make_row(flags="--cutmix 0.5"), make_row(augmentation="none")]
    plots.plot(rows, tmp_path / "plot.png")
    assert legends == [["gan, fresh", "gan, students by --cutmix 0.5, fresh", "gan, augmentation: none, fresh"]]


def test_many_lines_with_long_names(tmp_path, legends, monkeypatch):
    teacher = "convnet of step 16896, a student of training set without its held-out images, 83.0 % of the held-out images"
    rows = [make_row(source=f"source {number}", labels="teacher", teacher=f"{teacher} {number}") for number in range(18)]
    colours = []
    monkeypatch.setattr(plots, "_colour", lambda number, known=plots._colour: colours.append(known(number)) or colours[-1])
    plots.plot(rows, tmp_path / "plot.png")
    assert legends == [[f"source {number}, labels: teacher, {teacher} {number}, fresh" for number in range(18)]]
    assert len(set(colours)) == 18


def test_labels_are_told_where_all_are_soft(tmp_path, legends):
    plots.plot([make_row(labels="rows", teacher="convnet of step 9")], tmp_path / "plot.png")
    plots.plot([make_row(source="a $x$ of $")], tmp_path / "plot.png")
    assert legends == [["gan, labels: rows, fresh"], [r"a \$x\$ of \$, fresh"]]


def test_published_points_stand_beside_ours(tmp_path, legends):
    rows = [make_row(data="cifar10-jpeg", bytes=10_000_000)]
    plots.plot(rows, tmp_path / "accuracy.png")
    plots.plot(rows, tmp_path / "bytes.png", "bytes")
    ours, both = legends
    assert ours == both[:1] == ["gan, fresh"]
    assert both[1] == "published by others, not measured here, for the original images of cifar10:"
    assert "DC on cifar10, ConvNet-3, hard labels, 300 epochs, scored at the last" in both
    assert not any("ResNet-18" in name for name in both)
    caption = plots.caption(rows, "bytes")
    assert all(PAPERS[name].source in caption for name in ("DC", "DSA", "DM", "IDC", "NCFM", "DiM"))
    assert "original images" not in plots.caption([make_row(data="cifar10")], "bytes")
    assert "Hollow" not in plots.caption([make_row(bytes=1)], "bytes") + plots.caption(rows, "ipc")
    assert "Hollow" not in plots.caption([{**rows[0], "scored_on": "held_out"}], "bytes")


def test_bytes_of_published_sets_and_generators():
    found = {entry.method: entry for entry in published("cifar10", {"convnet"})}
    assert found["DC"].points == ((30_720, 28.3), (307_200, 44.9), (1_536_000, 53.9))
    assert found["IDC"].points == ((30_720, 50.6), (307_200, 67.5), (1_536_000, 74.5))
    assert found["DiM"].points == ((NETWORKS["dim"][0](size=32, channels=3, num_classes=10).stored_bytes(None), 72.6),)
    assert published("cifar10-jpeg", {"convnet"}) == list(found.values())
    assert published("digits", {"convnet"}) == published("cifar10", {"vgg"}) == []
    assert published("cifar10-jpeg, classes 3 5", {"convnet"}) == published("cifar10, 16 pixels", {"convnet"}) == []
    assert set(STUDENTS) <= set(CLASSIFIERS)
    for entry in (entry for data in DATASETS for entry in published(data, STUDENTS)):
        assert list(entry.points) == sorted(entry.points)
        assert all(0 < accuracy < 100 for _, accuracy in entry.points)
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}", entry.source)


@pytest.fixture
def reports(tmp_path):
    """The reports of two runs, one of which has a sheet of its source."""
    run = make_run(tmp_path / "a")
    draw_sheets(run, {"gan": PixelSet(num_classes=2, ipc=3, channels=1, size=8)}, torch.device("cpu"))
    run.close()  # else TensorBoard's thread writes its file some time later
    (tmp_path / "b").mkdir()
    for name, row in {"a": make_row(), "b": make_row(source="other")}.items():
        (tmp_path / name / "report.json").write_text(json.dumps([row]))
    return [tmp_path / name / "report.json" for name in "ab"]


def test_rows_of_one_place_in_several_reports_are_told_apart(reports):
    reports[0].write_text(json.dumps([make_row(mean=90.0), make_row(source="same")]))
    reports[1].write_text(json.dumps([make_row(mean=80.0), make_row(source="same")]))
    found = told_apart({path: read_report(path) for path in reports})
    assert [row["source"] for rows in found.values() for row in rows] == ["gan of a", "same", "gan of b", "same"]
    found = told_apart({Path("x/a/report.json"): [make_row(mean=90.0)], Path("y/a/report.json"): [make_row(mean=80.0)]})
    assert [row["source"] for rows in found.values() for row in rows] == ["gan of x/a/report.json", "gan of y/a/report.json"]
    one, other = ([make_row(ipc=ipc, weights=weights)] for ipc, weights in ((1, "x"), (10, "y")))
    found = told_apart({Path("a/report.json"): one, Path("b/report.json"): other})  # which no cell shows
    assert [row["source"] for rows in found.values() for row in rows] == ["gan of a", "gan of b"]


def test_names_that_are_no_text_are_written(tmp_path):
    write_report([make_row(data="a$_$b", bytes=9)], tmp_path, [["validate.py", "caf\udce9"]], {})
    assert "caf\\udce9" in (tmp_path / "report.html").read_text()


def test_several_runs_have_one_report(command, fails, reports, tmp_path, capsys):
    both = tmp_path / "new" / "both"
    command(report, *reports, "--output-dir", both)
    assert capsys.readouterr().out.endswith(f"report: {both / 'report.html'}\n")
    page = Page((both / "report.html").read_text())
    assert len(page.images) == 2  # accuracy.png and the sheet: no row says its bytes
    assert "gan" in page.text
    assert "other" in page.text
    assert "python -m gendistil.evaluation.report" in page.text
    assert sorted(path.name for path in both.iterdir()) == ["accuracy.png", "report.html", "report.json", "report.md"]
    command(report, both / "report.json", "--output-dir", tmp_path / "again")
    command(report, *reports, "--output-dir", both)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "classes.png").touch()
    error = fails(2, report, *reports, "--output-dir", tmp_path / "pictures")
    assert "holds files, and no report that could be replaced" in error


@pytest.mark.parametrize(("words", "message"), [
    (["{a}", "--output-dir", "{b}/.."], "holds a run or one of the reports: name another folder"),
    (["{b}", "--output-dir", "{b}/.."], "holds a run or one of the reports: name another folder"),
    (["{a}", "--output-dir", "{b}"], "cannot be written"),
    (["--document", "{a}", "--output-dir", "x"], "--output-dir is for the report of several"),
    (["--document", "{a}", "--against", "gan"], "--against is for the report of several"),
])
def test_a_joined_report_replaces_no_run(fails, reports, words, message):
    reports = dict(zip("ba", reports))  # b is the run
    before = {path: path.read_bytes() for path in reports["b"].parent.parent.rglob("*") if path.is_file()}
    words = [str(reports[word[1]].parent) if word.endswith("/..") else word.format(**reports) for word in words]
    error = fails(2, report, *words)
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
