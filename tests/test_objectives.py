"""The benchmark of matching terms: what it writes is a report that the tables are made from."""

import gen_condense
from benchmarks import objectives
from evaluation.report import read_report


def test_rows_are_a_report_of_held_out_scores(command, monkeypatch, tmp_path):
    command(gen_condense, "--output-dir", tmp_path, "--tag", "gan", "--width", 16, "--steps", 2)
    monkeypatch.setattr(objectives, "JUDGED", ((1, "fixed", 2),))
    monkeypatch.setattr(objectives, "VARIANTS", [{"match": "none"}, {"match": "logit", "per_class": 4}])
    words = ("--weight", tmp_path / "gan", "--seconds", 0.1, "--pool-epochs", 1, "--eval-epochs", 1, "--variants", 0, 1)
    command(objectives, *words, "--output", tmp_path / "rows.json")
    rows = read_report(tmp_path / "rows.json")
    assert [row["source"] for row in rows] == ["control", "logit, weight 1, dream, 2 classes of 4"]
    assert all(row["scored_on"] == "held_out" and row["n"] == 2 for row in rows)
