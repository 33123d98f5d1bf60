"""The benchmarks of matching terms and of recipes: what they write is a report that the tables are made from."""

from dataclasses import replace

import gen_condense
from benchmarks import objectives, recipes
from evaluation.report import read_report
from generators import RECIPES


def test_rows_are_a_report_of_held_out_scores(command, monkeypatch, tmp_path):
    command(gen_condense, "--output-dir", tmp_path, "--tag", "gan", "--width", 16, "--steps", 2)
    monkeypatch.setattr(objectives, "JUDGED", ((1, "fixed", 2),))
    monkeypatch.setattr(objectives, "VARIANTS", [{"match": "none"}, {"match": "logit", "per_class": 4}])
    words = ("--weight", tmp_path / "gan", "--seconds", 0.1, "--pool-epochs", 1, "--eval-epochs", 1, "--variants", 0, 1)
    command(objectives, *words, "--output", tmp_path / "rows.json")
    rows = read_report(tmp_path / "rows.json")
    assert [row["source"] for row in rows] == ["control", "logit, weight 1, dream, 2 classes of 4"]
    assert all(row["scored_on"] == "held_out" and row["n"] == 2 for row in rows)


def test_recipes_are_scored_alike(command, monkeypatch, tmp_path):
    monkeypatch.setattr(objectives, "JUDGED", ((1, "fixed", 2),))
    monkeypatch.setattr(recipes, "VARIANTS", {name: replace(recipe, width=16) for name, recipe in RECIPES.items()})
    command(recipes, "--seconds", 0.1, "--eval-epochs", 1, "--variants", "dim", "pyramid", "--output", tmp_path / "rows.json")
    rows = read_report(tmp_path / "rows.json")
    assert [(row["source"], row["ipc"], row["scored_on"], row["n"]) for row in rows] == [
        ("dim", 1, "held_out", 2), ("pyramid", 1, "held_out", 2)]
    assert all(row["recipe"]["width"] == 16 and row["generator_steps"][0] > 0 for row in rows)
