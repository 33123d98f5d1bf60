"""The step timer, on networks too small to say anything about speed."""

import json

import pytest
from accelerate.state import AcceleratorState

from benchmarks import document, step_time


@pytest.mark.parametrize("stage", step_time.BATCHES)
def test_a_step_of_each_stage(stage):
    AcceleratorState._reset_state(reset_partial_state=True)
    step = step_time.ours(stage, batch_size=4, width=8, per_class=6, candidates=6)
    report = step(0)
    assert (report is not None) == (stage in ("student", "embedding", "dream", "inversion"))
    if report:
        assert 0 < next(iter(report().values())) < 1e4


def test_every_contestant_steps_in_a_process_of_its_own():
    result = step_time.compare("dm", repeats=2, batch_size=4)
    assert set(result) == {"batch_size", "seconds", "reports", "median_seconds", "published_over"}
    assert {"ours", "ours, not compiled"} == set(result["seconds"])
    assert all(report["mib"] > 50 for reports in result["reports"].values() for report in reports)
    assert result["seconds"].keys() == result["median_seconds"].keys()
    assert all(len(values) == 2 and min(values) > 0 for values in result["seconds"].values())
    assert result["published_over"] == {}  # nothing to compare with


def test_a_contestant_that_fails_is_named(capfd):
    with pytest.raises(step_time.UserError, match="'published' ended"):
        step_time.Contestant("published", step_time.published, {"stage": "none", "checkout": "nowhere", "batch_size": 4})
    assert "ModuleNotFoundError" in capfd.readouterr().err


def test_a_folder_without_the_published_code_is_refused(fails, tmp_path):
    assert "gan_model.py" in fails(2, step_time, "--published", tmp_path)


def test_the_table_of_a_document_is_written_from_what_was_measured(tmp_path, command):
    row = {"batch_size": 4, "seconds": {"ours": [1.0, 2.0], "ours, not compiled": [1.5, 3.0], "peak": [1.0, 1.0]},
           "median_seconds": {"ours": 1.5, "ours, not compiled": 2.25, "peak": 1.0},
           "reports": {"ours": [{"mib": 100.0, "gflop": 150.0}] * 2, "ours, not compiled": [{"mib": 90.0, "gflop": 150.0}] * 2,
                       "peak": [{"mib": 9.0, "convolution_gflops": 200.0}] * 2}}
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "times.json").write_text(json.dumps({"device": "a chip", "torch": "2.0", "precision": "fp32", "student": row}))
    page = tmp_path / "speed.md"
    page.write_text("Before\n<!-- steps: times.json -->\nold\n<!-- /steps -->\nafter\n")
    command(document, page)
    text = page.read_text()
    assert "old" not in text
    assert "| a ConvNet-3 student's step, 4 | – | 2.25 s | 1.5 s | 1.50 (1.50 to 1.50) | – / 90 / 100 |" in text
    assert "100 GFLOPS, 67 not compiled. That is 50 % of the 200" in text
