"""What a command with --resume need not be told again."""

import dataclasses

import pytest
from checkpoints import assert_same_weights
from conftest import SMALL_POOL
from picture_folders import write_folder

import continual
import gen_condense
import pool_match
import validate
from gendistil.common.files import read_json, write_json
from gendistil.common.inherit import name_other_data
from gendistil.common.loop import Interruptible
from gendistil.data import DATASETS
from gendistil.evaluation.rows import read_report
from gendistil.matching import METHODS

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


@pytest.fixture
def gan(call, tmp_path):
    """The folder of runs, in which gan is a generator of digits."""
    call(gen_condense, "--tag", "gan", "--width", 8, "--batch-size", 4, "--steps", 1)
    return tmp_path / "results"


MATCHED = ("--match", "mean", "--select", "random", "--match-batch", 4, *SMALL_POOL)
SCORED = ("--eval-interval", 7, "--eval-model", "mlp", "--eval-ipc", 1, "--eval-epochs", 1)


def test_a_control_is_made_and_scored_as_its_run_and_goes_on_so(call, fails, gan, capsys):
    call(pool_match, "--weight", gan / "gan", *MATCHED, *SCORED, "--steps", 1, "--seed", 5, "--precision", "fp32", "--lr", 1e-4)
    call(pool_match, "--tag", "control", "--control-of", gan / "match")
    assert "its control" in capsys.readouterr().out
    made = read_json(gan / "control" / "config.json")
    names = ("seed", "precision", "eval_interval", "eval_model", "eval_ipc", "eval_epochs", "lr")
    assert [made[name] for name in names] == [5, "fp32", 7, "mlp", 1, 1, 1e-4]
    assert made["given"] == {"control_of": str(gan / "match")}
    for flag, said in (("--match-batch", "does nothing beside --control-of"), ("--pool-members", "is not for --match none")):
        assert f"{flag} {said}" in fails(2, pool_match, "--tag", "other", "--control-of", gan / "match", flag, 4)
    call(pool_match, "--overwrite", "--weight", gan / "gan", *MATCHED, *SCORED, "--steps", 1, "--seed", 6, "--lr", 1e-6)
    call(pool_match, "--tag", "control", "--resume")  # by what it was begun with
    resumed = read_json(gan / "control" / "config.json")
    assert [resumed[name] for name in names] == [made[name] for name in names]
    assert resumed["method_values"] == made["method_values"]
    captured = capsys.readouterr()
    assert "which had another --seed" in captured.err
    call(pool_match, "--tag", "other", "--control-of", gan / "match", "--seed", 3407, "--eval-ipc", 2)
    assert "which had another --eval-ipc, --seed" in capsys.readouterr().err
    assert read_json(gan / "other" / "config.json")["seed"] == 3407


def test_a_run_has_a_control_once_it_has_ended(call, fails, gan, monkeypatch):
    words = ("--weight", gan / "gan", *MATCHED, *SCORED, "--tag")
    ended = lambda tag: read_json(gan / tag / "summary.json")["ended"]
    with monkeypatch.context() as patch:
        patch.setattr(Interruptible, "requested", lambda self, step: step == 1)
        fails(130, pool_match, *words, "cut", "--steps", 2)
    assert not ended("cut")
    error = fails(2, pool_match, "--tag", "control", "--control-of", gan / "cut")
    assert "cut is not finished: continue it with --resume" in error
    call(pool_match, "--tag", "cut", "--resume")
    assert ended("cut")
    with monkeypatch.context() as patch:
        patch.setattr(Interruptible, "requested", lambda self, step: step == 3)
        fails(130, pool_match, "--tag", "cut", "--resume", "--steps", 4)
    assert not ended("cut")
    call(pool_match, *words[:2], *SMALL_POOL, "--tag", "none", "--steps", 0, "--eval-epochs", 1)
    assert ended("none")
    assert "has taken no step" in fails(2, pool_match, "--tag", "control", "--control-of", gan / "none")
    old = {"steps": 1, "held_out_accuracy": 1.0}  # of an earlier version, which did not say whether it had ended
    write_json(gan / "none" / "summary.json", {**old, "train_seconds": 0.0})
    assert "is not finished" in fails(2, pool_match, "--tag", "control", "--control-of", gan / "none")
    write_json(gan / "none" / "summary.json", {**old, "train_seconds": 1e-3})
    call(pool_match, "--tag", "control", "--control-of", gan / "none")


def test_a_rate_of_a_critic_is_not_for_a_flow_that_goes_on(call, fails, tmp_path):
    call(gen_condense, "--tag", "flow", "--recipe", "flow", "--width", 8, "--batch-size", 4, "--steps", 1)
    call(pool_match, "--weight", tmp_path / "results/flow", "--sample-steps", 1, *MATCHED, *SCORED, "--steps", 1)
    assert "--lr-critic is for a GAN" in fails(2, pool_match, "--resume", "--steps", 2, "--lr-critic", 0.1)


def test_one_length_takes_the_place_of_the_other(call, gan):
    call(pool_match, "--weight", gan / "gan", *MATCHED, *SCORED, "--steps", 1)
    for words, length in (((), (1, None)), (("--epochs", 1, "--batch-size", 4), (None, 1)), (("--steps", 2), (2, None))):
        args = pool_match.parse_args([*map(str, words), "--resume"])
        assert (args.steps, args.epochs) == length


def test_a_plugin_has_to_be_given_again_in_any_spelling(call, fails, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", None)  # so that it is gone afterwards
    (tmp_path / "mine.py").write_text("from gendistil.matching import METHODS\nMETHODS['mine'] = METHODS['random']\n")
    call(pool_match, "--plugin", "mine.py", "--method", "mine", "--ipc", 1, "--eval-epochs", 1)
    assert "started with --plugin mine.py: give it again" in fails(2, pool_match, "--resume")
    call(pool_match, "--plugin", tmp_path / "mine.py", "--resume")


def test_the_plugin_of_a_data_set_is_asked_for(call, fails, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", DATASETS["digits"])
    (tmp_path / "mine.py").write_text("from gendistil.data import DATASETS\nDATASETS['mine'] = DATASETS['digits']\n")
    call(pool_match, "--plugin", "mine.py", "--data", "mine", "--method", "random", "--ipc", 1, "--eval-epochs", 1)
    monkeypatch.delitem(DATASETS, "mine")
    assert "results/match learned 'mine', which is no data set here: its run was given --plugin mine.py: give it" in fails(
        2, validate, "--pretrain-weight", "results/match")
    monkeypatch.setitem(DATASETS, "mine", DATASETS["digits"])  # as the plugin does
    call(validate, "--pretrain-weight", "results/match", "--ipc", 1, *QUICK[:-1])


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


def test_images_that_may_have_been_learned_from_are_told(digits, tmp_path, capsys):
    for mean, said in ((digits.spec.mean, False), ([digits.spec.mean[0] + 0.01], True)):
        made = {**dataclasses.asdict(digits.spec), "mean": mean}
        write_json(tmp_path / "config.json", {"commands": [], "held_out": 0.1, "dataset": made})
        name_other_data(tmp_path, "--weight", digits.spec, judged=True)
        assert ("learned other images of these classes than are here" in capsys.readouterr().err) == said
    name_other_data(tmp_path / "elsewhere" / "published.pt", "--weight", digits.spec, judged=True)
    assert "does not say which images it has learned from" in capsys.readouterr().err


def test_whether_images_may_be_mirrored_is_known_to_all_stages(call, fails, tmp_path):
    results, letters = tmp_path / "results", write_folder(tmp_path / "letters", size=(8, 8))
    data = ("--data", letters, "--image-size", 8)
    call(gen_condense, "--tag", "gan", *data, "--no-mirror", "--width", 8, "--batch-size", 4, "--steps", 1)
    call(pool_match, "--tag", "match", "--weight", results / "gan", *MATCHED, "--steps", 1, *SCORED[2:])
    call(validate, "--pretrain-weight", results / "match", "--ipc", 1, *QUICK[:-1])
    for tag in ("gan", "match", "test"):
        config = read_json(results / tag / "config.json")
        assert (config["mirror"], config["dataset"]["flip"]) == (False, False)
    assert {row["data"] for row in read_report(results / "test" / "report.json")} == {"letters, 8 pixels, not mirrored"}
    assert "--resume: --mirror is not what the run was started with (False)" in fails(
        2, gen_condense, "--output-dir", results, "--tag", "gan", "--mirror", "--resume")
    call(validate, "--tag", "usual", *data, "--compare", "random", "--ipc", 1, *QUICK[:-1])
    assert read_report(results / "usual" / "report.json")[0]["data"] == "letters, 8 pixels"
    call(pool_match, "--tag", "mirrored", *data, "--method", "random", "--ipc", 1, "--eval-epochs", 1)
    pairs = (results / "gan", results / "mirrored"), (results / "mirrored", results / "gan")
    for pair in pairs:
        assert "some were learned by --mirror or --no-mirror and some were not: give one" in fails(
            2, validate, "--tag", "both", "--pretrain-weight", *pair)
    args = validate.parse_args(["--pretrain-weight", str(results / "gan"), "--data", "digits"])
    assert args.mirror is None  # what is said of letters is not said of other data
