"""The scripts one after another, on images that train in seconds: what they leave, and that no run is lost or changed."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import assert_same_weights, contents
from conftest import SMALL_CLASSIFIER, SMALL_POOL
from picture_folders import write_folder
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

import continual
import gen_condense
import pool_match
import sample
import validate
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, read_json
from gendistil.common.flags import override
from gendistil.common.loop import Interruptible
from gendistil.data import load_dataset
from gendistil.matching import origin
from gendistil.sources import load_source
from generators import GAN, NETWORKS, RECIPES

ROOT = Path(__file__).parent.parent
STAGE1 = ("--width", 16, "--batch-size", 16, "--log-interval", 2, "--sample-interval", 3, "--save-interval", 3)
UNMATCHED = ("--eval-model", SMALL_CLASSIFIER, "--batch-size", 16, "--match-batch", 4, "--eval-epochs", 1, "--eval-ipc", 1,
             "--log-interval", 2)
STAGE2 = ("--pool", SMALL_CLASSIFIER, "--pool-members", 1, "--pool-epochs", 1, "--pool-snapshots", 2, *UNMATCHED)
SELECTED = {"dream": ("--select-candidates", 20, "--select-interval", 2), "random": ()}
STAGE3 = ("--epochs", 2, "--min-steps", 1, "--num-eval", 1, "--ipc", 2)


@pytest.fixture(scope="module")
def results(command, tmp_path_factory):
    """A folder with the runs of all stages: gan, match, control, test."""
    folder = tmp_path_factory.mktemp("results")
    shared = ("--output-dir", folder)
    command(gen_condense, *shared, "--tag", "gan", *STAGE1, "--steps", 6)
    command(pool_match, *shared, "--tag", "match", "--weight", folder / "gan", *STAGE2, "--steps", 4, "--eval-interval", 2)
    command(pool_match, *shared, "--tag", "control", "--control-of", folder / "match", "--eval-epochs", 1, "--eval-ipc", 1)
    command(validate, *shared, "--tag", "test", *STAGE3, "--pretrain-weight",
            *(f"{name}={folder / name}" for name in ("gan", "match", "control")))
    return folder


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tag", ["gan", "match", "control"])
def test_a_run_holds_everything(results, tag):
    run = results / tag
    config = read_json(run / "config.json")
    script = {"gan": gen_condense}.get(tag, pool_match)
    required = [] if tag == "gan" else ["--weight", str(results / "gan")]
    assert vars(script.parse_args(required)).keys() <= config.keys()
    assert config.get("recipe", "pyramid") == "pyramid"
    assert config["commands"][0][0] == f"{script.__name__}.py"
    assert {"torch", "diffusers", "accelerate", "python"} <= config["versions"].keys()
    assert {"commit", "device", "mixed_precision", "processes", "started", "commands"} <= config.keys()
    assert config["dataset"]["classes"] == list("0123456789")
    assert list(run.glob("events.out.tfevents.*"))
    assert load_source(run).size == 8
    steps = load_checkpoint(run / "checkpoint.pt")["step"]
    assert (run / "samples" / f"generator-{steps:06d}.png").stat().st_size > 100
    assert not list(run.rglob("*.partial*"))


def test_metrics(results):
    assert [record["step"] for record in records(results / "gan")] == [2, 4, 6]
    assert {"generator", "critic", "score_gap"} <= records(results / "gan")[0].keys()
    assert all(record["steps_per_second"] > 0 for record in records(results / "gan"))
    losses = [record for record in records(results / "match") if "matching" in record]
    scores = [record for record in records(results / "match") if "held_out_accuracy" in record]
    assert [record["step"] for record in losses] == [2, 4]
    assert [record["step"] for record in scores] == [0, 2, 4]
    summary = read_json(results / "match" / "summary.json")
    assert (summary["held_out_accuracy"], summary["best_step"]) == (scores[-1]["held_out_accuracy"], 4)
    assert summary["held_out_accuracy_before"] == scores[0]["held_out_accuracy"]
    assert summary["steps"] == 4


def test_the_control_takes_as_long_and_matches_nothing(results):
    match, control = (read_json(results / tag / "summary.json") for tag in ("match", "control"))
    assert control["train_seconds"] >= match["train_seconds"] > 0
    matched, alone = (read_json(results / tag / "config.json") for tag in ("match", "control"))
    assert alone["match"] == "none"
    assert alone["weight"] == matched["weight"]  # which its command line left out
    assert alone["recipe_values"] == matched["recipe_values"]
    assert alone["recipe_values"]["batch_size"] == 16
    assert not any("matching" in record for record in records(results / "control"))


def test_the_report_has_a_row_for_each(results):
    rows = json.loads((results / "test" / "report.json").read_text())
    assert [(row["source"], row["ipc"], row["n"]) for row in rows] == [("gan", 2, 1), ("match", 2, 1), ("control", 2, 1)]
    text = (results / "test" / "report.md").read_text()
    assert text.count("Points above control (") == text.count("Points above") == 1  # which is known by its run


def test_export(command, fails, results, tmp_path):
    command(sample, "--pretrain-weight", results / "match", "--ipc", 2, "--output-dir", tmp_path / "set")
    assert load_file(tmp_path / "set" / "set.safetensors")["images"].shape == (20, 1, 8, 8)
    assert len(ImageFolder(tmp_path / "set" / "images")) == 20
    (tmp_path / "sheet.png").write_text("mine")  # and of no earlier set
    assert "holds sheet.png" in fails(2, sample, "--pretrain-weight", results / "match", "--ipc", 1, "--output-dir", tmp_path)
    assert (tmp_path / "sheet.png").read_text() == "mine"


@pytest.mark.parametrize(("match", "select"), [("none", "dream"), ("moments", "random")])
def test_a_run_reports_what_it_matches(command, results, match, select):
    compared = UNMATCHED if match == "none" else (*STAGE2, "--select", select, *SELECTED[select])
    command(pool_match, "--output-dir", results, "--tag", f"{match}-{select}", "--weight", results / "gan", *compared,
            "--match", match, "--steps", 2)
    record = next(record for record in records(results / f"{match}-{select}") if record["step"])
    assert record["step"] == 2
    assert ("matching" in record) == (match != "none")
    assert record.get("matching", 1) > 0


@pytest.mark.parametrize("recipe", ["pyramid", "dim"])
def test_stage_1_resumes_exactly(command, tmp_path, on_the_cpu, recipe):
    words = (*STAGE1, "--output-dir", tmp_path, "--recipe", recipe)
    command(gen_condense, *words, "--tag", "whole", "--steps", 5)
    command(gen_condense, *words, "--tag", "cut", "--steps", 2)
    command(gen_condense, *words, "--tag", "cut", "--steps", 5, "--resume")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    before = contents(tmp_path / "cut" / "generator")
    command(gen_condense, *words, "--tag", "cut", "--steps", 5, "--resume")  # nothing left to do
    assert contents(tmp_path / "cut" / "generator") == before


@pytest.mark.parametrize("select", ["dream", "random"])
def test_stage_2_resumes_exactly(command, fails, results, monkeypatch, on_the_cpu, select):
    words = (*STAGE2, "--output-dir", results, "--weight", results / "gan", "--select", select, *SELECTED[select], "--steps", 5,
             "--eval-interval", 2, "--tag")
    whole, cut = f"whole-{select}", f"cut-{select}"
    command(pool_match, *words, whole)
    with monkeypatch.context() as patch:
        patch.setattr(Interruptible, "requested", lambda self, step: step == 3)
        assert "interrupted" in fails(130, pool_match, *words, cut)
    assert load_checkpoint(results / cut / "checkpoint.pt")["step"] == 3
    command(pool_match, *words[:-3], words[-1], cut, "--resume")  # scored as often as it was started
    assert len({tuple(sorted(path.name for path in (results / tag / "samples").iterdir())) for tag in (whole, cut)}) == 1
    assert_same_weights(results / whole, results / cut)
    before = contents(results / cut / "generator")
    command(pool_match, *words, cut, "--resume")  # nothing left to do
    assert contents(results / cut / "generator") == before
    assert read_json(results / cut / "summary.json")["steps"] == 5


def test_a_control_resumes_too_and_says_what_matching_gained(command, results, capsys):
    words = ("--output-dir", results, "--tag", "control", "--eval-epochs", 1, "--eval-ipc", 1)
    steps = read_json(results / "control" / "summary.json")["steps"]
    capsys.readouterr()
    command(pool_match, *words, "--control-of", results / "match", "--resume")
    assert read_json(results / "control" / "summary.json")["steps"] == steps
    match, control = (read_json(results / tag / "summary.json")["held_out_accuracy"] for tag in ("match", "control"))
    said = f"matching is {match - control:.1f} points above" if match > control else "matching has gained nothing beside"
    assert f"By this one student each {said} its control" in capsys.readouterr().out


def test_a_second_run_of_stage_2_wants_another_seed(command, results, capsys):
    for seed, told in ((3407, True), (1, False)):
        command(pool_match, *STAGE2, "--output-dir", results, "--tag", f"again{seed}", "--weight", results / "match", "--seed",
                seed, "--steps", 1)
        assert ("come again: give another --seed" in capsys.readouterr().err) == told


def test_a_student_that_cannot_have_as_many_images_as_asked_is_named_once(command, tmp_path, capsys):
    command(pool_match, "--output-dir", tmp_path, "--method", "dm", "--ipc", 2, "--match-batch", 4, "--steps", 2,
            "--eval-interval", 1, "--eval-epochs", 1, "--eval-ipc", 5)
    assert capsys.readouterr().err.count("--eval-ipc 5: 2 images of a class are stored") == 1


def test_stage_2_stopped_before_its_first_score_leaves_a_generator(fails, results, monkeypatch):
    monkeypatch.setattr(Interruptible, "requested", lambda self, step: step == 1)
    fails(130, pool_match, "--output-dir", results, "--tag", "early", "--weight", results / "gan", *STAGE2)
    assert load_source(results / "early").num_classes == 10


def test_an_earlier_run_is_kept_unless_told_otherwise(command, fails, tmp_path):
    words = ("--output-dir", tmp_path, "--tag", "gan", *STAGE1)
    command(gen_condense, *words, "--steps", 4)
    before = contents(tmp_path)
    assert "--overwrite" in fails(2, gen_condense, *words, "--steps", 1)
    assert contents(tmp_path) == before
    command(gen_condense, *words, "--steps", 1, "--overwrite")
    assert load_checkpoint(tmp_path / "gan" / "checkpoint.pt")["step"] == 1
    assert [path.name for path in (tmp_path / "gan" / "samples").iterdir()] == ["generator-000001.png"]
    assert len(list((tmp_path / "gan").glob("events.*"))) == 1


def test_resuming_with_other_flags_is_refused(command, fails, tmp_path):
    words = ("--output-dir", tmp_path, "--steps", 1, *STAGE1)
    command(gen_condense, *words)
    before = contents(tmp_path)
    for flag, value in (("--width", 24), ("--recipe", "dim"), ("--seed", 1), ("--ema", 0.5), ("--held-out", 0.2)):
        assert f"{flag} is not what the run was started with" in fails(2, gen_condense, *words, "--resume", flag, value)
    assert contents(tmp_path) == before


def test_ctrl_c_saves_and_resume_goes_on(command, tmp_path):
    words = [*map(str, STAGE1), "--output-dir", str(tmp_path), "--log-interval", "1", "--compile", "off"]  # at once
    process = subprocess.Popen([sys.executable, ROOT / "gen_condense.py", *words, "--steps", "1000000"],
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "gan" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "gen_condense.py: interrupted"
    assert "Traceback" not in error
    step = load_checkpoint(tmp_path / "gan" / "checkpoint.pt")["step"]
    command(gen_condense, *words, "--resume", "--steps", step + 1)
    assert load_checkpoint(tmp_path / "gan" / "checkpoint.pt")["step"] == step + 1
    assert [record["step"] for record in records(tmp_path / "gan")] == list(range(1, step + 2))


def stage_words(script, results, folder):
    stage = STAGE1 if script is gen_condense else ("--weight", results / "gan", *UNMATCHED, "--match", "none")
    return ("--output-dir", folder, "--tag", "nan", *stage)


@pytest.mark.parametrize("script", [gen_condense, pool_match])
def test_a_loss_that_is_not_finite_names_the_step_and_spares_the_checkpoint(command, fails, results, tmp_path, script):
    words = stage_words(script, results, tmp_path)
    command(script, *words, "--steps", 2)
    before = contents(tmp_path / "nan")
    late = [word for name in ("log", "sample", "save") for word in (f"--{name}-interval", 40)]
    late = late if script is gen_condense else late[:2]  # stage 2 has one interval for all three
    error = fails(2, script, *words, *late, "--resume", "--steps", 40, "--lr-critic", 1e6)
    assert re.search(r"a loss was NaN or infinite at step \d+:", error.splitlines()[-1])
    after = contents(tmp_path / "nan")
    for name in before.keys() - {"config.json", "summary.json"}:
        assert after[name] == before[name], name
    if "summary.json" in before:  # which now says that more steps are to come
        assert json.loads(after["summary.json"]) == {**json.loads(before["summary.json"]), "ended": False}


def test_a_weight_that_is_not_finite_is_never_saved(command, fails, tmp_path, monkeypatch):
    words = stage_words(gen_condense, None, tmp_path)
    command(gen_condense, *words, "--steps", 2)
    before = contents(tmp_path / "nan" / "generator")

    def poisoned(self, *args, step=GAN.critic_step):
        report = step(self, *args)
        next(self.critic.parameters()).data.view(-1)[0] = torch.nan
        return report

    monkeypatch.setattr(GAN, "critic_step", poisoned)
    assert "after step 3" in fails(2, gen_condense, *words, "--resume", "--steps", 3)
    assert contents(tmp_path / "nan" / "generator") == before
    assert load_checkpoint(tmp_path / "nan" / "checkpoint.pt")["step"] == 2


def test_the_published_commands_need_no_further_flag(results):
    args = gen_condense.parse_args(["--tag", "gan"])
    assert (args.data, args.output_dir) == ("digits", Path("results"))
    assert override(RECIPES[args.recipe], args).epochs > 0
    best = str(results / "gan")
    args = pool_match.parse_args(["--tag", "match", "--match", "logit", "--match-aug", "--weight", best])
    assert (args.match, args.match_aug, args.data, args.method) == ("logit", True, "digits", "default")
    assert origin.read_weight(args.weight)[0]["step"] == 6
    args = validate.parse_args(["--tag", "test", "--pretrain-weight", str(results / "match")])
    path, = validate.named_paths(args).values()
    assert (load_source(path).num_classes, args.ipc) == (10, [1, 10, 50])


def test_paths_and_names_may_hold_equals_signs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("a/lr=0.1", "b/lr=0.1"):
        Path(folder).mkdir(parents=True)
    for words, found in ((["a/lr=0.1"], {"lr=0.1": "a/lr=0.1"}), (["x=hub:a/b"], {"x": "hub:a/b"}), (["x=y=z"], {"x=y": "z"}),
                         (["x=~/a"], {"x": tmp_path / "a"}),
                         (["x=a/lr=0.1", "y=1=b/lr=0.1"], {"x": "a/lr=0.1", "y=1": "b/lr=0.1"})):
        args = validate.parse_args(["--pretrain-weight", *words])
        assert validate.named_paths(args) == {name: Path(path) for name, path in found.items()}
    with pytest.raises(UserError, match="names no path"):
        validate.named_paths(validate.parse_args(["--pretrain-weight", ""]))


@pytest.fixture
def published(tmp_path):
    """A checkpoint file of digits as the published code saves one: its own names of tensors, four state dicts."""
    state = {}
    for name, optim, network in zip(("generator", "discriminator"), ("optim_g", "optim_d"), NETWORKS["dim"]):
        options = {"size": 8, "channels": 1, "num_classes": 10, "width": 16}
        model = network(**options, dim_noise=20) if name == "generator" else network(**options)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.0, 0.9))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        state[name] = {f"main.{i}": tensor.contiguous() for i, tensor in enumerate(model.state_dict().values())}
        state[optim] = optimizer.state_dict()
        for memory in state[optim]["state"].values():  # which knows no other format either
            memory |= {key: memory[key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
    torch.save(state, tmp_path / "model_dict_best.pth")
    return tmp_path / "model_dict_best.pth"


def test_a_checkpoint_of_the_published_code_goes_through_stages_2_and_3(command, published, results):
    shared = ("--output-dir", results)
    command(pool_match, *shared, "--tag", "theirs", "--weight", published, *STAGE2, "--match", "logit", "--steps", 2)
    state = load_checkpoint(results / "theirs" / "checkpoint.pt")
    assert state["optim_g"]["state"][0]["step"] == 3  # the published optimizer's step, and two more
    assert state["recipe"]["gradient_penalty"] == 10
    command(validate, *shared, "--tag", "test-theirs", *STAGE3, "--pretrain-weight", published, results / "theirs")
    assert [row["source"] for row in json.loads((results / "test-theirs" / "report.json").read_text())] == [
        published.name, "theirs"]


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures: three classes, each a colour with noise, 12x12."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for channel, name in enumerate(("red", "green", "blue")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 100, (12, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{index}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures_goes_through_all_stages(command, pictures, tmp_path):
    shared = ("--output-dir", tmp_path / "results")
    run = tmp_path / "results"
    command(gen_condense, *shared, "--data", pictures, "--image-size", 12, *STAGE1, "--steps", 2)
    command(pool_match, *shared, "--weight", run / "gan", *STAGE2, "--pool-snapshots", 1, "--steps", 2)
    command(validate, *shared, "--pretrain-weight", run / "match", *STAGE3, "--compare", "--full-epochs", 1)
    command(sample, "--pretrain-weight", run / "match", "--ipc", 3, "--output-dir", tmp_path / "set")
    assert read_json(run / "test" / "config.json")["image_size"] == 12
    rows = json.loads((run / "test" / "report.json").read_text())
    assert {row["data"] for row in rows} == {"pictures, 12 pixels"}
    assert len(rows) == 3
    exported = ImageFolder(tmp_path / "set" / "images")
    assert (exported.classes, exported[0][0].size) == (["blue", "green", "red"], (12, 12))


@pytest.mark.parametrize("recipe", ["pyramid", "dim", "biggan", "flow"])
def test_a_folder_of_the_largest_pictures(command, tmp_path, recipe):
    folder, results = write_folder(tmp_path / "pets", mode="RGB", size=(128, 128)), tmp_path / "results"
    shared = ("--output-dir", results, "--compile", "off")
    command(gen_condense, *shared, "--data", folder, "--image-size", 128, "--recipe", recipe, "--width", 8, "--batch-size", 2,
            "--steps", 1)
    if recipe == "pyramid":
        small = ("--eval-model", "convnet:width=8", "--eval-ipc", 1, "--eval-epochs", 1)
        command(pool_match, *shared, "--weight", results / "gan", "--pool", "convnet:width=8", *SMALL_POOL,
                "--match-batch", 2, "--batch-size", 2, "--steps", 1, *small)
        command(validate, *shared, "--pretrain-weight", results / "match", "--ipc", 1, "--num-eval", 1, "--epochs", 1,
                "--min-steps", 1, "--eval-model", "convnet:width=8", "resnet10:width=8")
        assert len(json.loads((results / "test" / "report.json").read_text())) == 2
    assert load_source(results / "gan").size == 128


@pytest.mark.skipif(not os.environ.get("DATA_DIR"), reason="needs DATA_DIR with MNIST")
def test_mnist_starts_with_one_flag(command, tmp_path):
    if not (Path(os.environ["DATA_DIR"]) / "MNIST").is_dir():
        pytest.skip("no MNIST in DATA_DIR")
    command(gen_condense, "-d", "mnist", "--output-dir", tmp_path, "--width", 8, "--batch-size", 8, "--steps", 1)
    source = load_source(tmp_path / "gan")
    spec = load_dataset("mnist").spec
    assert (source.num_classes, source.channels, source.size) == (spec.num_classes, spec.channels, spec.size) == (10, 1, 28)


@pytest.mark.parametrize("script", [gen_condense, pool_match, validate, continual, sample])
def test_help_names_every_flag_with_a_text(script, capsys, monkeypatch):
    seen = []
    add = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, argv: seen.append(self) or add(self, argv))
    with pytest.raises(SystemExit) as leaving:
        script.parse_args(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for action in seen[0]._actions:
        assert action.help
        assert action.option_strings[0] in text
