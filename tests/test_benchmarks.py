"""The benchmarks of matching terms and of recipes: what they write is a report that the tables are made from."""

import json
import os
from dataclasses import replace

import pytest

import gen_condense
from benchmarks import curves, memory, objectives, recipes, refine, search
from gendistil.evaluation.rows import read_report
from gendistil.sources import load_source
from generators import RECIPES


def test_settings_of_stage_2_are_scored_on_held_out_images(command, monkeypatch, tmp_path):
    command(gen_condense, "--output-dir", tmp_path, "--tag", "gan", "--width", 16, "--steps", 2)
    monkeypatch.setattr(objectives, "VARIANTS", {
        "control": {"match": "none"}, "logit": {"match": "logit", "match_batch": 4},
        **{name: {**objectives.VARIANTS[name], "match_batch": 2, "unroll": 2} for name in ("trajectory", "outcome")}})
    mine = tmp_path / "pools" / "mine" / "embeddings.npy"
    mine.parent.mkdir(parents=True)
    mine.touch()
    words = ("--weight", tmp_path / "gan", "--seconds", 0.1, "--scores", "1:fixed:2", "--eval-epochs", 1,
             "--pool", '{"pool_epochs": 1, "pool_members": 1, "pool_snapshots": 2}', "--models", tmp_path / "models")
    command(objectives, *words, "--output", tmp_path / "rows.json")
    rows = read_report(tmp_path / "rows.json")
    assert [row["source"] for row in rows] == ["control", "logit", "trajectory", "outcome"]
    assert all(row["scored_on"] == "held_out" and row["n"] == 2 and 0 <= row["agreement"][0] <= 100 for row in rows)
    assert load_source(tmp_path / "models" / "logit-0").num_classes == 10
    assert mine.exists()  # which no pool has kept there


def test_a_search_starts_from_what_its_data_can_judge(command, fails, tmp_path):
    command(gen_condense, "--output-dir", tmp_path, "--tag", "gan", "--width", 8, "--classes", 3, 1, "--steps", 1)
    flow = ("--output-dir", tmp_path, "--tag", "flow", "--recipe", "flow", "--width", 8, "--batch-size", 8)
    command(gen_condense, *flow, "--classes", 3, 1, "--steps", 1)
    for script, flag, run in ((objectives, "--weight", tmp_path / "gan"), (refine, "--pretrain-weight", tmp_path / "flow")):
        error = fails(2, script, flag, run, "--held-out", 0.3)
        assert f"{flag} {run} has learned from images that --held-out 0.3 holds out: give --held-out 0.1" in error
        error = fails(2, script, flag, run, "--data", "digits", "--classes", 1, 3)
        assert f"{flag} {run} learned the classes 3 1, and 1 3 are" in error


@pytest.mark.parametrize(("values", "said"), [
    ('{"pool_members": "x"}', "--pool-members: 'x' is not a whole number"),
    ('{"pool_epochs": 0}', "--pool-epochs: 0 is out of range"),
    ('{"pool": "vgg"}', "--pool: "), ('{"pool_lr": true}', "--pool-lr"),
    ('{"pool_mix": 3}', "--pool: error: unrecognized arguments: 3"),
    ('{"members": 3}', "names what a method does not have"), ('{"help": true}', "names what"), ("[1]", "names what"),
])
def test_how_a_pool_differs_is_read_as_the_flags_are(fails, values, said):
    error = fails(2, objectives, "--weight", "gan", "--pool", values)
    assert "--pool" in error
    assert said in error
    assert error.count("\n") == 1


def test_lists_and_switches_of_a_pool_are_read_too():
    read = objectives.read_pool({"pool": ["mlp", "P"], "pool_mix": True, "match_aug": False, "pool_lr": 0.5})
    assert (read.pool[0], read.pool_mix, read.match_aug, read.pool_lr) == ("mlp", True, False, 0.5)


def test_what_cannot_be_written_or_measured_is_said_at_once(fails, monkeypatch, tmp_path):
    error = fails(2, memory, "--unroll", 10, "--precision", "bf16", "--output", tmp_path / "memory.json")
    assert "--precision bf16: trainings of --unroll are measured in fp32" in error
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and may(path, mode))
    for script, words in ((memory, ()), (recipes, ("--variants", "dim"))):
        monkeypatch.setattr(script, "measure" if script is memory else "train", lambda *_: pytest.fail("it was begun"))
        error = fails(2, script, *words, "--output", tmp_path / "rows.json")
        assert f"--output: the folder {tmp_path} cannot be written: name another" in error


def test_recipes_are_scored_alike_and_a_search_goes_on(command, fails, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "usual_classifier", lambda size: "convnet:width=8")
    monkeypatch.setattr(recipes, "VARIANTS", {name: replace(recipe, width=16) for name, recipe in RECIPES.items()})
    words = ("--eval-epochs", 1, "--scores", "1:fresh:2", "--output", tmp_path / "rows.json")
    command(recipes, *words, "--seconds", 0.1, "--variants", "dim")
    first, = read_report(tmp_path / "rows.json")
    command(recipes, *words, "--seconds", 0.1, "--variants", "pyramid", "dim")  # goes on with what is missing
    rows = read_report(tmp_path / "rows.json")
    assert [(row["source"], row["ipc"], row["scored_on"], row["n"]) for row in rows] == [
        ("dim", 1, "held_out", 2), ("pyramid", 1, "held_out", 2)]
    assert rows[0] == first
    assert {row["model"] for row in rows} == {"convnet:width=8"}
    assert all(row["variant"]["width"] == 16 and row["generator_steps"][0] > 0 for row in rows)
    assert all(row["bytes"] > 0 and row["draw_seconds"][0] > 0 for row in rows)
    table = capsys.readouterr().out.strip().splitlines()[-2:]
    assert {line.split()[1] for line in table} == {"dim", "pyramid"}
    error = fails(2, recipes, *words, "--seconds", 0.2, "--variants", "pyramid")
    assert "rows of another search: train_seconds of dim is 0.1" in error
    assert read_report(tmp_path / "rows.json") == rows


def test_every_variant_differs_from_the_others():
    values = [tuple(vars(recipe).items()) for recipe in recipes.VARIANTS.values()]
    assert len(set(values)) == len(values)


def save_scores(folder, accuracies):
    """A run's folder with these held-out scores, one every 10 steps."""
    folder.mkdir()
    lines = [{"step": 10 * place, "held_out_accuracy": value} for place, value in enumerate(accuracies, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"step": 1, "matching": 2.0}, *lines])))
    (folder / "config.json").write_text(json.dumps({"device": "abacus", "commands": [
        ["pool_match.py", "--output-dir", "/home/me", "--seed", "1"], ["pool_match.py", "--tag", "a", "--resume"]]}))
    return folder


def test_curves_say_how_much_sooner(command, fails, tmp_path):
    slow = [save_scores(tmp_path / f"slow{seed}", [50 + seed, 60 + seed, 70 + seed, 90 + seed]) for seed in (-1, 1)]
    fast = save_scores(tmp_path / "fast", [70, 100, 80, 100])
    out = tmp_path / "out.json"
    command(curves, "--curve", "slow", *slow, "--curve", "fast", fast, "--output", out)
    written = json.loads(out.read_text())
    assert written["curves"][0]["mean"] == [50, 60, 70, 90]
    assert written["curves"][0]["argv"] == [["--seed", "1"]] * 2
    half, *_, last = written["sooner"]["fast"]
    assert half == {"accuracy": 70, "slow": 30, "fast": 10, "ratio": 3}
    assert last == {"accuracy": 90, "slow": 40, "fast": pytest.approx(50 / 3), "ratio": pytest.approx(2.4)}
    assert out.with_suffix(".png").stat().st_size > 0
    late = save_scores(tmp_path / "late", [40, 80, 60, 70])  # its best comes before its end
    command(curves, "--curve", "late", late, "--curve", "fast", fast, "--output", out)
    assert json.loads(out.read_text())["sooner"]["fast"][-1]["late"] == 20
    short = save_scores(tmp_path / "short", [50])
    assert "--eval-interval" in fails(2, curves, "--curve", "short", short, "--output", out)
    assert "metrics.jsonl" in fails(2, curves, "--curve", "none", tmp_path / "none", "--output", out)
    assert "name a JSON file" in fails(2, curves, "--curve", "fast", fast, "--output", tmp_path / "c.png")
