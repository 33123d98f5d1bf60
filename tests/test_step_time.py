"""The step timer, on networks too small to say anything about speed."""

import pytest
from accelerate.state import AcceleratorState

from benchmarks import step_time


@pytest.mark.parametrize("stage", step_time.BATCHES)
def test_a_step_of_each_stage(stage):
    AcceleratorState._reset_state(reset_partial_state=True)
    step = step_time.ours(stage, batch_size=4, width=8, per_class=6, candidates=6)
    report = step(0)
    assert (report is not None) == (stage in ("dream", "inversion"))
    if report:
        assert 0 < next(iter(report().values())) < 1e4


def test_every_contestant_steps_in_a_process_of_its_own():
    result = step_time.compare("gen_condense", repeats=2, batch_size=4, width=8)
    assert set(result) == {"batch_size", "seconds", "median_seconds", "published_over"}
    assert {"ours", "another network: pyramid"} < set(result["seconds"])
    assert result["seconds"].keys() == result["median_seconds"].keys()
    assert all(len(values) == 2 and min(values) > 0 for values in result["seconds"].values())
    assert result["published_over"] == {}  # nothing to compare with


def test_a_contestant_that_fails_is_named(capfd):
    with pytest.raises(step_time.UserError, match="'published' ended"):
        step_time.Contestant("published", step_time.published, {"stage": "none", "checkout": "nowhere", "batch_size": 4})
    assert "ModuleNotFoundError" in capfd.readouterr().err


def test_a_folder_without_the_published_code_is_refused(fails, tmp_path):
    assert "gan_model.py" in fails(2, step_time, "--published", tmp_path)
