"""What a command with --resume need not be told again."""

import pytest
from checkpoints import assert_same_weights

import continual
import gen_condense
import pool_match
import validate
from gendistil.common.run import read_json
from gendistil.evaluation.rows import read_report

POOL = ("--pool", "convnet:depth=1,width=8", "--pool-members", 1, "--pool-epochs", 1, "--pool-snapshots", 2)
QUICK = ("--epochs", 1, "--min-steps", 2, "--aug-type", "color_crop", "--eval-model", "convnet:depth=1,width=8", "mlp")


def test_all_stages_go_on_by_their_tags(call, tmp_path):
    results = tmp_path / "results"
    words = ("--width", 8, "--batch-size", 4, "--recipe", "pyramid", "--seed", 5, "--classes", 3, 1, 4)
    call(gen_condense, "--tag", "whole", *words, "--steps", 3)
    call(gen_condense, "--tag", "gan", *words, "--steps", 2)
    call(gen_condense, "--tag", "gan", "--steps", 3, "--resume")
    assert_same_weights(results / "whole", results / "gan")
    assert read_json(results / "gan" / "config.json")["given"]["width"] == 8

    words = ("--weight", results / "gan", "--match", "mean", "--select", "random", "--match-batch", 4, "--seed", 6, *POOL,
             "--eval-epochs", 1, "--eval-ipc", 1)
    call(pool_match, "--tag", "match-whole", *words, "--steps", 3)
    call(pool_match, "--tag", "match", *words, "--steps", 2)
    for _ in range(2):  # what the first resumption was not told, the second is not told either
        call(pool_match, "--tag", "match", "--steps", 3, "--resume")
    assert_same_weights(results / "match-whole", results / "match")
    call(pool_match, "--tag", "control", "--control-of", results / "match", "--eval-epochs", 1, "--eval-ipc", 1)
    call(pool_match, "--tag", "control", "--resume")

    words = ("--pretrain-weight", f"a={results / 'gan'}", f"b={results / 'match'}", "--ipc", 1, 2, *QUICK,
             "--sampling", "fixed", "fresh", "--compare", "random")
    call(validate, "--tag", "test-whole", *words, "--num-eval", 3)
    call(validate, *words, "--num-eval", 2)
    call(validate, "--num-eval", 3, "--resume")
    one, other = (read_report(results / tag / "report.json") for tag in ("test-whole", "test"))
    assert [(row["source"], row["accuracies"]) for row in one] == [(row["source"], row["accuracies"]) for row in other]


def test_memories_go_on_too(call, tmp_path):
    call(continual, "--memory", "a=pool_match.py --method random --eval-epochs 1", "--steps", 2, "--orders", 1, "--ipc", 1,
         "--num-eval", 1, "--epochs", 1, "--min-steps", 1)
    call(continual, "--resume", "--orders", 2)
    rows = read_report(tmp_path / "results/continual/report.json")
    assert {row["n"] for row in rows} == {2}


def test_what_the_flags_say_goes_first_and_what_decides_is_still_checked(call, tmp_path, capsys):
    call(gen_condense, "--tag", "gan", "--width", 8, "--batch-size", 4, "--steps", 1, "--log-interval", 3)
    call(gen_condense, "--tag", "gan", "--steps", 2, "--log-interval", 1, "--resume")
    config = read_json(tmp_path / "results/gan/config.json")
    assert (config["log_interval"], config["width"], config["steps"]) == (1, 8, 2)
    with pytest.raises(SystemExit):
        call(gen_condense, "--tag", "gan", "--width", 16, "--resume")
    assert "--width is not what the run was started with (8)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(gen_condense, "--tag", "new", "--steps", 2, "--resume")
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(gen_condense, "--resume", "--tag")
    assert "--tag: expected one argument" in capsys.readouterr().err
