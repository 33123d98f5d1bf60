"""Bad input ends each script with one line that names what is wrong, exit code 2, and every file as it was."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import gen_condense
import pool_match
import sample
import validate
from gendistil.common.device import make_accelerator
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, save_checkpoint
from gendistil.common.run import find_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def assets(command, tmp_path_factory):
    """A folder with a sound run `runs/gan`, and next to it one broken thing of each kind."""
    folder = tmp_path_factory.mktemp("assets")
    command(gen_condense, "--output-dir", folder / "runs", "--width", 8, "--batch-size", 4, "--steps", 1)
    run = folder / "runs" / "gan"
    (folder / "text.pt").write_text("not weights")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save({"generator": {"w": torch.zeros(2)}, "discriminator": {}, "optim_g": {}, "optim_d": {}}, folder / "foreign.pt")
    torch.save(SimpleNamespace(weights=1), folder / "pickled.pt")
    (folder / "cut.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:2000])
    state = load_checkpoint(run / "checkpoint.pt")
    del state["optim_d"]
    save_checkpoint(folder / "no_optimizer.pt", state)

    def damaged(name, file, content):
        shutil.copytree(run, folder / "runs" / name)
        path = folder / "runs" / name / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content(path.read_bytes()))

    def first_half(data):
        return data[:len(data) // 2]

    weights = "generator/diffusion_pytorch_model.safetensors"
    damaged("cut_config", "config.json", first_half)
    damaged("list_config", "config.json", lambda data: b"[1, 2]")
    damaged("cut_checkpoint", "checkpoint.pt", first_half)
    damaged("no_checkpoint", "checkpoint.pt", None)
    damaged("cut_generator_config", "generator/config.json", first_half)
    damaged("odd_generator_config", "generator/config.json", lambda data: data.replace(b'"width": 8', b'"width": "x"'))
    damaged("other_width", "generator/config.json", lambda data: data.replace(b'"width": 8', b'"width": 16'))
    damaged("cut_weights", weights, first_half)
    damaged("no_weights", weights, None)

    def picture(path, mode="RGB", size=12):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size, size), 90).save(path)

    for name in ("sound", "unreadable", "empty_split", "one_class", "no_test", "single"):
        for split in ("train", "test"):
            for label in ("cat", "dog", "owl"):
                for index in range(3):
                    picture(folder / name / split / label / f"{index}.png")
    (folder / "unreadable" / "train" / "dog" / "1.png").write_bytes(b"\x89PNG but no picture")
    for path in (folder / "empty_split" / "test").rglob("*.png"):
        path.unlink()
    for split in ("train", "test"):
        shutil.rmtree(folder / "one_class" / split / "dog")
        shutil.rmtree(folder / "one_class" / split / "owl")
    shutil.rmtree(folder / "no_test" / "test")
    for index in (1, 2):
        (folder / "single" / "train" / "cat" / f"{index}.png").unlink()
    return folder


def listing(folder):
    """What lies below a folder: the path, size and time of each thing, but for the decoded pictures that data folders keep."""
    return {(path, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".cache")} | {
            (path, 0, 0) for path in folder.rglob("*") if path.is_dir()}


STAGE1 = [
    (["--steps", "0"], "--steps: 0 is out of range"),
    (["--steps", "2147483648"], "--steps: 2147483648 is out of range: it must be at least 1 and at most 2147483647"),
    (["--steps", "many"], "--steps: 'many' is not a whole number"),
    (["--epochs", "1", "--steps", "1"], "--epochs and --steps exclude each other"),
    (["--step", "3"], "unrecognized arguments: --step"),
    (["--lr", "nan"], "--lr"),
    (["--lr", "-0.1"], "--lr"),
    (["--lr-critic", "inf"], "--lr-critic"),
    (["--beta2", "1"], "--beta2"),
    (["--ema", "1.5"], "--ema"),
    (["--gradient-penalty", "-1"], "--gradient-penalty"),
    (["--width", "4"], "--width"),
    (["--batch-size", "1"], "--batch-size"),
    (["--seed", "-1"], "--seed"),
    (["--held-out", "0.9"], "--held-out"),
    (["--image-size", "129"], "at most 128, for which the networks are made"),
    (["--recipe", "dcgan"], "--recipe"),
    (["--generator", "unet"], "--generator"),
    (["--loss", "mse"], "--loss"),
    (["--penalty", "r2"], "--penalty"),
    (["--recipe", "biggan", "--penalty", "r1+r2"], "--penalty does nothing where --gradient-penalty is 0"),
    (["--gradient-penalty", "0", "--penalty-interval", "2"], "--penalty-interval does nothing where --gradient-penalty is 0"),
    (["--plugin", "{assets}/text.pt"], "name a file that ends in .py"),
    (["--lr-decay", "step"], "--lr-decay"),
    (["--patience", "2"], "--patience is for --auto-stop"),
    (["--eval-ipc", "5"], "--eval-ipc is for --auto-stop"),
    (["--auto-stop", "--patience", "0"], "--patience: 0 is out of range"),
    (["--gan-aug", "color_blur"], "--gan-aug: unknown augmentation 'blur'"),
    (["--recipe", "dim", "--dim-noise", "10"], "--dim-noise 10"),
    (["--precision", "int8"], "--precision"),
    (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    (["--tag", "a/b"], "--tag"),
    (["--tag", ".."], "--tag"),
    (["--tag", ""], "--tag"),
    (["--tag", "caf\udce9"], r"--tag: 'caf\udce9' is no text"),
    (["--output-dir", ""], "--output-dir: it is empty"),
    (["--data-dir="], "--data-dir: it is empty"),
    (["--data", ""], "--data/-d: it is empty"),
    (["--data", "~nobody-of-this-name/x"], "--data ~nobody-of-this-name/x: is neither a folder nor"),
    (["--output-dir", "{assets}/text.pt"], "--output-dir"),
    (["--data-dir", "{assets}/text.pt"], "--data-dir"),
    (["--data", "imagenet"], "--data imagenet"),
    (["--data", "{assets}/one_class"], "one_class/train: holds 1 class folders"),
    (["--data", "{assets}/unreadable"], "unreadable/train/dog/1.png: is not a readable image"),
    (["--data", "{assets}/empty_split"], "empty_split/test/cat: holds no images"),
        (["--data", "{assets}/no_test"], "no_test: has neither test/ nor val/"),
    (["--data", "{assets}/single"], "--data single: class 'cat' has fewer than 2 training images"),
    (["--output-dir", "{runs}"], "already holds a run"),
    (["--output-dir", "{assets}", "--tag", "sound", "--overwrite"], "sound holds files, and no run that could be replaced"),
    (["--tag", "pools"], "--tag: 'pools' is the folder that classifiers are kept in"),
    (["--resume"], "--resume: results/gan holds no run"),
    (["--resume", "--output-dir", "{runs}", "--batch-size", "4", "--width", "16"],
     "--width is not what the run was started with (8)"),
    (["--resume", "--output-dir", "{runs}", "--tag", "cut_checkpoint", "--width", "8", "--batch-size", "4"],
     "cut_checkpoint/checkpoint.pt is not a readable checkpoint"),
    (["--resume", "--output-dir", "{runs}", "--tag", "no_checkpoint", "--width", "8", "--batch-size", "4"],
     "no_checkpoint was stopped before its first checkpoint"),
    (["--resume", "--output-dir", "{runs}", "--tag", "cut_config"], "cut_config/config.json cannot be read"),
]

STAGE2 = [
    ([], "--weight"),
    (["--weight", "nowhere"], "nowhere"),
    (["--weight", "{assets}/text.pt"], "text.pt is not a readable checkpoint"),
    (["--weight", "{assets}/cut.pt"], "cut.pt is not a readable checkpoint"),
    (["--weight", "{assets}/pickled.pt"], "pickled.pt is not a readable checkpoint"),
    (["--weight", "{assets}/tensor.pt"], "tensor.pt is not a checkpoint"),
    (["--weight", "{assets}/foreign.pt"], "foreign.pt is not a checkpoint"),
    (["--weight", "{assets}/no_optimizer.pt"], "no_optimizer.pt is not a checkpoint"),
    (["--weight", "{runs}/no_checkpoint"], "no_checkpoint holds no checkpoint.pt"),
    (["--weight", "{runs}/cut_checkpoint"], "cut_checkpoint/checkpoint.pt is not a readable checkpoint"),
    (["--weight", "{runs}/cut_config"], "cut_config/config.json cannot be read"),
    (["--weight", "{runs}/list_config"], "list_config/config.json cannot be read"),
    (["--weight", "{gan}", "--data", "{assets}/sound"], "check --data"),
    (["--weight", "{gan}", "--image-size", "16"], "check --data and --image-size"),
    (["--weight", "{gan}", "--output-dir", "{runs}", "--tag", "gan", "--overwrite"], "choose another --tag"),
    (["--weight", "{gan}", "--match", "everything"], "--match"),
    (["--weight", "{gan}", "--match-weight", "-1"], "--match-weight"),
    (["--weight", "{gan}", "--match-batch", "1"], "--match-batch"),
    (["--weight", "{gan}", "--match-classes", "-1"], "--match-classes"),
    (["--weight", "{gan}", "--metric", "cos"], "--metric is not for --match energy"),
    (["--weight", "{gan}", "--match", "none", "--calibrate", "3"], "--calibrate is not for --match none"),
    (["--weight", "{gan}", "--plugin", "nowhere.py"], "--plugin nowhere.py"),
    (["--weight", "{gan}", "--select", "best"], "--select"),
    (["--weight", "{gan}", "--aug-type", "color_blur"], "--aug-type: unknown augmentation 'blur'"),
    (["--weight", "{gan}", "--pool", "convnet", "vgg"], "--pool"),
    (["--weight", "{gan}", "--pool-epochs", "1", "--pool-snapshots", "1000"], "snapshots"),
    (["--weight", "{gan}", "--eval-model", "vgg"], "--eval-model"),
    (["--weight", "{gan}", "--eval-ipc", "0"], "--eval-ipc"),
    (["--weight", "{gan}", "--control-of", "nowhere"], "--control-of nowhere"),
    (["--weight", "{gan}", "--control-of", "{gan}", "--match", "mean"], "--match mean does nothing beside --control-of"),
    (["--weight", "{gan}", "--method", "inversion", "--select", "dream"], "--select is not for --match paired"),
    (["--weight", "{gan}", "--pool-aug", "color_blur"], "--pool-aug: unknown augmentation 'blur'"),
    (["--control-of", "nowhere"], "--control-of nowhere"),
    (["--weight", "{gan}", "--control-of", "{gan}"], "holds no readable summary.json"),
    (["--weight", "{gan}", "--control-of", "{gan}", "--steps", "3"], "exclude each other"),
    (["--weight", "{gan}", "--epochs", "3", "--steps", "0"], "exclude each other"),
    (["--weight", "{gan}", "--resume"], "--resume: results/match holds no run"),
]

DAMAGED = [
    ("{assets}/text.pt", "text.pt is not a readable checkpoint"),
    ("{assets}/tensor.pt", "tensor.pt is not a checkpoint of the published DiM or IT-GAN code and no published set"),
    ("{assets}/foreign.pt", "foreign.pt is not a checkpoint of the published DiM or IT-GAN code and no published set"),
    ("{gan}/checkpoint.pt", "name its folder"),
    ("{runs}/cut_generator_config", "cut_generator_config holds no saved generator"),
    ("{runs}/odd_generator_config", "odd_generator_config"),
    ("{runs}/other_width", "other_width"),
    ("{runs}/cut_weights", "cut_weights/generator holds a damaged generator"),
    ("{runs}/no_weights", "no_weights/generator holds a damaged generator"),
    ("{runs}/no", "no does not exist"),
    ("{assets}/sound", "sound holds no saved generator and no published set"),
]

STAGE3 = [
    *((["--pretrain-weight", path], message) for path, message in DAMAGED),
    (["--pretrain-weight", "{runs}/cut_config"], "cut_config/config.json cannot be read"),
    (["--pretrain-weight", "{gan}", "--data", "{assets}/sound"], "makes 10 classes of 1x8x8 images, but"),
    (["--pretrain-weight", "{gan}", "--output-dir", "{runs}", "--tag", "gan", "--overwrite"], "choose another --tag"),
    (["--pretrain-weight", "{gan}", "--ipc", "10", "0"], "--ipc"),
    (["--pretrain-weight", "{gan}", "--num-eval", "0"], "--num-eval"),
    ([], "--pretrain-weight"),
]

EXPORT = [
    *((["--pretrain-weight", path], message) for path, message in DAMAGED),
    (["--pretrain-weight", "{runs}/cut_config"], "cut_config/config.json cannot be read"),
    (["--pretrain-weight", "{gan}", "--ipc", "0"], "--ipc"),
    (["--pretrain-weight", "{gan}", "--output-dir", "{assets}/text.pt"], "--output-dir"),
]


def fill(words, assets):
    return [word.format(assets=assets, runs=assets / "runs", gan=assets / "runs" / "gan") for word in words]


@pytest.mark.parametrize(("script", "words", "message"), [
    pytest.param(script, *case, id=f"{script.__name__} {' '.join(case[0])}".translate({ord(c): None for c in "{}"}))
    for script, cases in ((gen_condense, STAGE1), (pool_match, STAGE2), (validate, STAGE3), (sample, EXPORT))
    for case in cases])
def test_one_line_and_nothing_touched(fails, assets, tmp_path, monkeypatch, on_the_cpu, script, words, message):
    monkeypatch.chdir(tmp_path)
    before = listing(assets)
    error = fails(2, script, *fill(words, assets))
    assert message in error
    assert error.count("\n") == 1
    assert ("unrecognized" in error) == ("unrecognized" in message)
    assert error.startswith(f"{script.__name__}.py: error: ")
    assert listing(assets) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("script", "words", "message"), [
    ("gen_condense.py", ["--data", "{assets}/unreadable"], "unreadable/train/dog/1.png"),
    ("pool_match.py", ["--weight", "{assets}/cut.pt"], "cut.pt"),
    ("validate.py", ["--pretrain-weight", "{runs}/cut_weights"], "cut_weights"),
    ("sample.py", ["--pretrain-weight", "{gan}", "--ipc", "none"], "--ipc"),
])
def test_as_a_command_too(assets, tmp_path, script, words, message):
    done = subprocess.run([sys.executable, ROOT / script, *fill(words, assets)], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("script", "words"), [(gen_condense, []), (pool_match, ["--weight", "{gan}"])])
def test_a_batch_that_processes_cannot_share(fails, assets, tmp_path, monkeypatch, script, words):
    three = SimpleNamespace(num_processes=3, device=torch.device("cpu"), local_main_process_first=contextlib.nullcontext)
    monkeypatch.setattr(script, "make_accelerator", lambda precision: three)
    error = fails(2, script, *fill(words, assets), "--output-dir", tmp_path, "--batch-size", 2)
    assert "--batch-size 2 must be a multiple of the 3 processes" in error
    assert not list(tmp_path.iterdir())


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))  # as without ACCELERATE_USE_CPU
    monkeypatch.setattr("gendistil.common.device.PartialState", lambda **settings: alone)
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=1"):
        make_accelerator("fp32")


def test_a_variable_of_accelerate_that_is_no_flag_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "cpu")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU is 'cpu': set it to 1 or 0"):
        make_accelerator("fp32")


def test_a_plugin_that_cannot_be_run_is_named_before_its_traceback(command, capsys, tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    for _ in range(2):
        with pytest.raises(ImportError):
            command(gen_condense, "--plugin", tmp_path / "mine.py")
        assert capsys.readouterr().err == f"--plugin {tmp_path / 'mine.py'} ends in an error:\n"


@pytest.mark.parametrize("name", ["generator", "loss", "penalty", "lr_decay"])
def test_what_a_generator_was_trained_with_is_named_where_it_is_not_here(fails, assets, tmp_path, on_the_cpu, name):
    shutil.copytree(assets / "runs" / "gan", tmp_path / "gan")
    state = load_checkpoint(tmp_path / "gan" / "checkpoint.pt")
    save_checkpoint(tmp_path / "gan" / "checkpoint.pt", {**state, "recipe": {**state["recipe"], name: "mine"}})
    error = fails(2, pool_match, "--weight", tmp_path / "gan", "--output-dir", tmp_path)
    assert f"was trained with --{name.replace('_', '-')} mine, which is not here: name its file by --plugin" in error


@pytest.mark.parametrize(("lines", "code"), [(1, 0), (10**6, 1)])
def test_who_reads_no_further_ends_a_command_without_a_word(lines, code):
    program = ("import sys\nfrom gendistil.common.cli import run_script\n"
               f"run_script(lambda: [sys.stdin.read(), *map(print, range({lines}))])\n")
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=usual) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == code


def test_a_run_is_known_by_its_config(assets, tmp_path):
    gan = assets / "runs" / "gan"
    assert find_run(gan) == find_run(gan / "generator") == find_run(gan / "checkpoint.pt") == gan
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Model"}))
    assert find_run(tmp_path) is None
