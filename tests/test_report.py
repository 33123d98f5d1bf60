"""Tables of measured rows, alone and in documents."""

import json
import re
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_ind, ttest_rel

from benchmarks import document
from gendistil.common.errors import UserError
from gendistil.evaluation import PROTOCOLS, Result
from gendistil.evaluation.plots import plot, plot_across
from gendistil.evaluation.report import main, rewrite, rewrite_document
from gendistil.evaluation.rows import KEYS, difference, read_report
from gendistil.evaluation.tables import LEGEND, markdown, tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "docs/results.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/results/*.md")))]


def make_row(**changes):
    return {"source": "gan", "data": "digits", "sampling": "fresh", "ipc": 10, "model": "convnet", "mean": 91.0, "std": 1.5,
            "ci95": 3.7, "n": 3, "seconds": 1.0, **changes}


@pytest.fixture
def project(tmp_path):
    """A folder with a pyproject.toml, the reports a.json and b.json of one source each, and a document that marks both."""
    (tmp_path / "pyproject.toml").touch()
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps([make_row(source=f"source-{name}")]))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "# Title\n\n<!-- legend -->\n<!-- /legend -->\n\n<!-- table: a.json b.json -->\nold\n<!-- /table -->\nkept\n\n"
        "<!-- table: b.json -->\n<!-- /table -->\n")
    return tmp_path


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    main()


def test_a_report_is_its_tables_and_the_legend():
    rows = [make_row(), make_row(data="mnist")]
    assert markdown(rows) == f"{tables(rows)}\n{LEGEND}"
    assert LEGEND not in tables(rows)
    assert tables(rows).count("\n\n**") == 1


def test_rows_have_the_keys_of_a_report():
    result = Result((90.0, 92.0), images=100, epochs=1, steps=1, seconds=1.0).row()
    assert {"mean", "std", "ci95", "n", "seconds"} <= set(result)
    assert set(KEYS) == set(make_row())


def test_a_table_has_one_line_per_source_and_one_column_per_ipc(tmp_path):
    rows = [make_row(), make_row(ipc=1, mean=50.0, n=1, std=None, ci95=None), make_row(source="match", mean=95.0),
            make_row(source="all", sampling="all", ipc=None), make_row(model="resnet18"), make_row(protocol="dim")]
    text = markdown(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["source", "sampling", "students", "IPC 1", "IPC 10", "all images"]
    assert lines[2] == ["gan", "fresh", "1-3", "50.00", "91.00 ± 1.50 (±3.70)", ""]
    assert lines[3][:5] == ["match", "fresh", "3", "", "95.00 ± 1.50 (±3.70)"]
    assert "**resnet18 on digits**, accuracy on the test set in per cent, scored once" in text
    assert text.count("best accuracy seen in five looks at the test set") == 1
    plot(rows, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_says_how_many_steps_its_students_took_where_they_differ():
    rows = [make_row(steps=600), make_row(ipc=50, steps=2400), make_row(source="longer", ipc=50, steps=9600)]
    header, _, gan, longer = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables(rows).splitlines()[2:]]
    assert header == ["source", "sampling", "students", "steps", "IPC 10", "IPC 50"]
    assert (gan[3], longer[3]) == ("600-2,400", "9,600")
    assert "steps" not in tables(rows[:2])
    assert "steps |" not in tables(rows, ("gan",)).split("Points above gan")[1]


def test_what_sources_keep_and_how_fast_they_draw():
    rows = [make_row(bytes=1234), make_row(source="flow", bytes=99, draw_seconds=[3.0, 4.0], diversity=0.5)]
    *_, header, _, gan, flow = tables(rows).strip().splitlines()
    assert header.split(" | ")[-1].strip(" |") == "seconds for 10,000 images"
    assert [cell.strip() for cell in flow.strip("|").split("|")] == ["flow", "10", "99", "0.500", "3.5"]
    assert gan.startswith("| gan    | 10  | 1,234 |")
    assert "seconds" not in tables(rows[:1])
    alike = tables([rows[0], make_row(ipc=50, bytes=1234), rows[1]])  # a generator's bytes are those of every IPC
    assert "| gan    | 10, 50 | 1,234 |" in alike
    assert "far apart" in alike
    assert "far apart" not in tables(rows[:1])


def test_a_difference_has_the_interval_of_welch():
    scores = [(90.0, 92.0, 91.0, 94.0), (88.0, 89.5, 86.0)]
    rows = [Result(each, images=100, epochs=1, steps=1, seconds=1.0).row() for each in scores]
    interval = ttest_ind(*scores, equal_var=False).confidence_interval()
    assert difference(*rows) == pytest.approx((rows[0]["mean"] - rows[1]["mean"], *interval))
    assert difference(rows[0], make_row(n=1, std=None)) is None
    assert difference(make_row(mean=92.0, std=0.0), make_row(std=0.0)) == (1.0, 1.0, 1.0)


def test_students_of_one_seed_are_pairs_where_their_sources_are_kin():
    scores = [(90.0, 92.0, 91.0, 94.0), (88.0, 90.5, 89.0, 91.0), (88.0, 89.5, 86.0)]
    one, other, fewer = [Result(each, images=100, epochs=1, steps=1, seconds=1.0).row() | {"kin": "stage 1"} for each in scores]
    assert difference(one, other) == pytest.approx((2.125, *ttest_rel(*scores[:2]).confidence_interval()))
    for unlike in (other | {"kin": "another"}, other | {"kin": None}, other | {"seed": 4}):
        interval = ttest_ind(*scores[:2], equal_var=False).confidence_interval()
        assert difference(one, unlike) == pytest.approx((2.125, *interval))
    interval = ttest_ind(scores[0], scores[2], equal_var=False).confidence_interval()
    assert difference(one, fewer)[1:] == pytest.approx(interval)
    assert difference(one, one) == (0.0, 0.0, 0.0)


def test_sources_are_compared_with_a_reference(project, monkeypatch, capsys):
    rows = [make_row(source="control"), make_row(mean=95.0), make_row(ipc=1, mean=50.0), make_row(sampling="fixed"),
            make_row(source="one", mean=90.0, n=1, std=None, ci95=None), make_row(source="control", labels="rows", teacher="x")]
    assert tables(rows, ["nobody"]) == tables(rows)
    text = tables(rows, ["control"])
    heading, _, header, _, *lines = text[text.index("Points above control"):].splitlines()
    assert "95 % interval" in heading
    assert header.split() == ["|", "source", "|", "sampling", "|", "IPC", "1", "|", "IPC", "10", "|"]
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][:2] == ["gan", "one"]
    assert "| +4.0 (+0.6 to +7.4) |" in lines[0]
    assert "| -1.0 " in lines[1]
    assert text.count("Points above") == 1
    (project / "a.json").write_text(json.dumps(rows))
    run_main(monkeypatch, project / "a.json", "--against", "control", "--output-dir", project / "both")
    assert "Points above control" in capsys.readouterr().out
    assert all("Points above control" in (project / "both" / name).read_text() for name in ("report.md", "report.html"))
    text = "<!-- table: a.json b.json against control, source-b -->\n<!-- /table -->\n"
    assert rewrite(text, project).count("Points above") == 2
    with pytest.raises(UserError, match=r"--against gans: .*control, gan"):
        run_main(monkeypatch, project / "a.json", "--against", "gans")
    with pytest.raises(UserError, match="against gans"):
        rewrite(text.replace("control", "gans"), project)


def test_a_table_says_at_which_rates_its_students_learned_where_they_differ():
    assert "learning rate" not in tables([make_row(lr=0.05), make_row(ipc=50, lr=0.05)]).lower()
    rows = [make_row(lr=0.05), make_row(source="mtt", lr=0.02134), make_row(ipc=50, lr=0.01)]
    header, _, gan, mtt = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables(rows).splitlines()[2:]]
    assert header == ["source", "sampling", "students", "learning rate", "IPC 10", "IPC 50"]
    assert (gan[3], mtt[3]) == ("0.01-0.05", "0.021")
    across = tables([make_row(lr=0.05), make_row(model="mlp", lr=0.01)])
    assert "scored once at the last step. Learning rates: convnet 0.05, mlp 0.01. Mean drop" in across


def test_several_students_are_compared_line_by_line(tmp_path):
    seen = {"learned_with": ["convnet"]}
    rows = [make_row(mean=80.0, **seen), make_row(mean=70.0, model="resnet18", **seen),
            make_row(mean=60.0, model="mlp", **seen),
            make_row(source="other", mean=50.0, std=None, ci95=None), make_row(source="other", model="mlp", mean=52.5),
            make_row(source="third", model="mlp"), make_row(source="third", model="resnet18"),
            make_row(source="third", ipc=1, model="mlp"), make_row(labels="rows", teacher="t"), make_row(data="mnist")]
    text = tables(rows).split("**Students of several architectures on digits**")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0] == ["source", "sampling", "IPC", "convnet", "resnet18", "mlp", "mean drop"]
    assert lines[2:] == [["gan", "fresh", "10", "80.00 ± 1.50 (3) †", "70.00 ± 1.50 (3)", "60.00 ± 1.50 (3)", "15.00"],
                         ["other", "fresh", "10", "50.00", "", "52.50 ± 1.50 (3)", ""],
                         ["third", "fresh", "10", "", "91.00 ± 1.50 (3)", "91.00 ± 1.50 (3)", ""]]
    assert tables(rows).count("Students of several") == 1
    (tmp_path / "a.json").write_text(json.dumps(rows))
    alone = rewrite("<!-- students: a.json -->\n<!-- /students -->\n", tmp_path)
    assert text in alone
    assert alone.count("| source") == 1
    assert "Measured: `a.json`" in alone
    assert "†" not in tables(rows[3:])
    assert "Students of several" not in tables([make_row(), make_row(model="mlp", protocol="dc")])
    plot_across(rows, tmp_path / "students.png")
    assert (tmp_path / "students.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '[{"source": "gan"}]', "[1]"])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"report\.json"):
        read_report(path)


HEADINGS = {
    "default": "accuracy on the test set in per cent, scored once at the last step",
    "dim": "published DiM protocol: best accuracy seen in five looks at the test set, in per cent",
    **{name: f"accuracy on the test set in per cent, students trained {how}, scored once at the last step" for name, how in {
        "dc": "as DC published (`--protocol dc`)", "dsa": "as DSA and DM published (`--protocol dsa`)",
        "idc": "as IDC and DREAM published (`--protocol idc`)", "ncfm": "as NCFM published (`--protocol ncfm`)",
        "bptt": "as RaT-BPTT published (`--protocol bptt`)", "mine": "by `--protocol mine`"}.items()},
}


@pytest.mark.parametrize("protocol", HEADINGS)
def test_a_heading_names_the_protocol(protocol):
    assert protocol in PROTOCOLS or protocol == "mine"
    assert tables([make_row(protocol=protocol)]).splitlines()[0] == f"**convnet on digits**, {HEADINGS[protocol]}"
    if protocol == "default":
        assert tables([make_row()]) == tables([make_row(protocol=protocol)])
    assert "the held-out images" in tables([make_row(protocol=protocol, scored_on="held_out")]).splitlines()[0]


def test_reports_are_merged(project, monkeypatch, capsys):
    run_main(monkeypatch, project / "a.json", project / "b.json")
    text = capsys.readouterr().out
    assert text.count(LEGEND) == 1
    assert all(f"| source-{name} " in text for name in "ab")


def test_a_document_is_written_anew(project, monkeypatch, capsys):
    page = project / "docs" / "page.md"
    run_main(monkeypatch, "--document", page)
    text = page.read_text()
    assert capsys.readouterr().out == ""
    assert text.count(LEGEND) == 1
    assert text.count("| source-a ") == 1
    assert text.count("| source-b ") == 2
    assert "Measured: `a.json`, `b.json`\n<!-- /table -->\nkept\n" in text
    assert "old" not in text
    assert text.startswith("# Title\n\n<!-- legend -->\nMean ±")
    run_main(monkeypatch, "--document", page)
    assert page.read_text() == text


def test_data_sets_stand_in_one_table(tmp_path):
    for data, sources in (("digits", ("gan", "control")), ("mnist", ("gan",))):
        counts = (1, 10) if data == "mnist" else (1,)
        rows = [make_row(source=source, data=data, ipc=ipc) for source in sources for ipc in counts]
        (tmp_path / f"{data}.json").write_text(json.dumps(rows))
    text = rewrite("<!-- sets: digits.json mnist.json of gan -->\n<!-- /sets -->\n", tmp_path)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert cells[0] == ["data set", "source", "sampling", "students", "IPC 1", "IPC 10"]
    score = "91.00 ± 1.50 (±3.70)"
    assert cells[2:] == [["digits", "gan", "fresh", "3", score, ""], ["mnist", "gan", "fresh", "3", score, score]]
    assert "**convnet on several data sets**, accuracy on the test set" in text
    assert "Measured: `digits.json`, `mnist.json`" in text
    with pytest.raises(UserError, match="of stage2: no row has this source; there are gan"):
        rewrite("<!-- sets: mnist.json of stage2 -->\n<!-- /sets -->\n", tmp_path)


BROKEN = {
    "nothing": ("# Title\n", "marks no table"),
    "no end": ("<!-- table: a.json -->\n", "line 1"),
    "no beginning": ("text\n<!-- /table -->\n", "line 2"),
    "another's end": ("<!-- table: a.json -->\n<!-- /legend -->\n", "no partner"),
    "nested": ("<!-- table: a.json -->\n<!-- legend -->\n<!-- /legend -->\n<!-- /table -->\n", "no partner"),
    "no file": ("<!-- table -->\n<!-- /table -->\n", "names no file"),
    "lost file": ("<!-- table: c.json -->\n<!-- /table -->\n", "c.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_document_is_named_and_left_alone(project, monkeypatch, case):
    text, message = BROKEN[case]
    page, whole = project / "broken.md", project / "docs" / "page.md"
    page.write_text(text)
    before = whole.read_text()
    with pytest.raises(UserError, match=rf"--document .*broken\.md.*{message}"):
        run_main(monkeypatch, "--document", whole, page)
    assert (page.read_text(), whole.read_text()) == (text, before)


def test_a_document_has_a_project(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.md"):
        run_main(monkeypatch, "--document", ROOT / "nowhere.md")
    with pytest.raises(UserError, match=r"page\.md.*pyproject\.toml"):
        run_main(monkeypatch, "--document", tmp_path / "page.md")


@pytest.mark.parametrize("words", [[], ["a.json", "--document", "b.md"]])
def test_reports_or_documents(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as leaving:
        run_main(monkeypatch, *words)
    assert leaving.value.code == 2
    assert "either reports, or documents" in capsys.readouterr().err


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_tables_of_our_documents_are_those_of_their_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert ("<!-- table" in text) == (name != "docs/results.md")
    assert rewrite_document(ROOT / name, document.SECTIONS) == text
    assert text.count(LEGEND) == (name in ("docs/results.md", "README.md"))
    unmarked = re.sub(r"<!-- (table|students|sets): .*?<!-- /\1 -->", "", text, flags=re.S)
    assert not re.findall(r"^\|.* ± .*\|$", unmarked, re.M)


def test_the_speeds_of_our_document_are_those_of_their_files():
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name}: " in text for name in ("steps", "memory"))
    assert rewrite_document(ROOT / "docs/speed.md", document.SECTIONS) == text


def test_results_lead_to_all_their_pages():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert all(f"]({Path(name).relative_to('docs')})" in text for name in DOCUMENTS if name.startswith("docs/results/"))


@pytest.mark.parametrize("name", [*DOCUMENTS, *(f"docs/{name}.md" for name in ("methods", "design", "extending", "speed"))])
def test_pictures_and_files_of_our_documents_are_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, place = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert link.startswith("http") or target.exists(), link
        if place:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert place in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_text_between_tables_is_not_touched():
    text = "Write `<!-- table: a.json -->` there.\n<!-- legend -->\nx\n<!-- /legend -->\n end"
    assert rewrite(text, ROOT) == text.replace("x\n", LEGEND)
