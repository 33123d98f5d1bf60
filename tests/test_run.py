"""Run folders: what a kill leaves, what resuming forgets, what is replaced, and errors of files in one line."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

import gen_condense
from gendistil.common import lock
from gendistil.common import run as runs
from gendistil.common.cli import run_script
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, replacing, save_checkpoint, save_model
from gendistil.common.inherit import check_options, inherit_data
from gendistil.common.run import CHECKPOINT, FORMAT, METRICS, SAMPLES, Run, find_run, made_by, same_moments, training_state
from generators.pyramid import PyramidGenerator

ROOT = Path(__file__).parent.parent


def options(folder, **more):
    return {"output_dir": folder, "tag": "run", "overwrite": False, "resume": False, **more}


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "run" / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', "\n"])
def test_resuming_forgets_what_was_written_after_the_checkpoint(tmp_path, torn):
    run = Run(options(tmp_path), Accelerator(cpu=True))
    for step in (2, 4, 6, 8):
        run.log({"loss": 1.0}, step)
    run.close()
    with open(tmp_path / "run" / METRICS, "a") as file:
        file.write(torn)
    again = Run(options(tmp_path, resume=True), Accelerator(cpu=True), 4)
    assert steps_of(tmp_path) == [2, 4]
    again.log({"loss": 1.0}, 6)
    again.close()
    assert steps_of(tmp_path) == [2, 4, 6]


def test_a_folder_may_be_spelled_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gan").mkdir()
    Run(options(tmp_path, weight="gan", data="digits"), Accelerator(cpu=True)).close()
    check_options(options(tmp_path, resume=True, weight=tmp_path / "gan", data="digits"))
    for change in ({"weight": tmp_path / "other"}, {"weight": None}, {"data": "mnist"}):
        with pytest.raises(UserError, match="is not what the run was started with"):
            check_options({**options(tmp_path, resume=True, weight="gan", data="digits"), **change})


def test_a_model_is_replaced_whole(tmp_path, monkeypatch):
    """A kill while the new one is written leaves the old one; after it, nothing but the new one is left."""
    old, new = (PyramidGenerator(8, 1, 10, 12, width=8) for _ in range(2))
    save_model(old, tmp_path / "generator")
    before = {path.name: path.read_bytes() for path in (tmp_path / "generator").iterdir()}

    class Killed(PyramidGenerator):
        def save_pretrained(self, folder, **settings):
            Path(folder).mkdir()
            (Path(folder) / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(Killed(8, 1, 10, 12, width=8), tmp_path / "generator")
    assert {path.name: path.read_bytes() for path in (tmp_path / "generator").iterdir()} == before
    save_model(new, tmp_path / "generator")
    weights = load_file(tmp_path / "generator" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in new.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]


def test_a_file_takes_the_place_of_another_once_it_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "pool.json"
    path.write_text("old")

    def fail():
        with replacing(path) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("os.getpid", lambda: -1)
        with replacing(path) as theirs:  # of another process, at the same time
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("disk") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: order.append("place") or replace(*paths))
    save_checkpoint(tmp_path / "checkpoint.pt", {})
    assert order == ["disk", "place"]
    for _ in range(2):
        save_model(PyramidGenerator(8, 1, 10, 12, width=8), tmp_path / "generator")
    assert order[2:] == ["disk", "disk", "disk", "disk", "place", "place"]


def test_the_first_images_are_among_the_events(tmp_path):
    run = Run(options(tmp_path), Accelerator(cpu=True))
    run.images("generator", torch.zeros(2, 1, 8, 8), 2, 1)
    run.close()
    events, = (tmp_path / "run").glob("events.out.tfevents.*")
    assert b"generator" in events.read_bytes()


def test_a_checkpoint_of_another_format_is_refused(tmp_path, command, fails):
    words = ("--output-dir", tmp_path, "--width", 8, "--batch-size", 4)
    command(gen_condense, *words, "--steps", 1)
    file = tmp_path / "gan" / CHECKPOINT
    state = load_checkpoint(file)
    assert state["format"] == FORMAT
    save_checkpoint(file, {**state, "format": 99})
    error = fails(2, gen_condense, *words, "--steps", 2, "--resume")
    assert f"has format 99 and this version reads format {FORMAT}" in error
    with pytest.raises(UserError, match="format 99"):
        training_state(file)


def test_a_run_keeps_the_commit_that_it_was_made_by(tmp_path):
    Run(options(tmp_path, steps=7), Accelerator(cpu=True)).close()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    assert (config["commit"], config["steps"]) == (here or None, 7)


def test_a_run_keeps_every_command_that_made_it(tmp_path, monkeypatch):
    for words in (["--steps", "5"], ["--resume"], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["/home/me/pool_match.py", *words])
        Run(options(tmp_path, resume=words == ["--resume"]), Accelerator(cpu=True)).close()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["commands"] == [["pool_match.py", "--steps", "5"], ["pool_match.py", "--resume"]]
    assert not {"command", "argv"} & config.keys()
    (tmp_path / "config.json").write_text(json.dumps({"command": "gen_condense.py", "argv": []}))  # of an older version
    assert find_run(tmp_path) == tmp_path


def test_a_run_without_its_pictures_goes_on_or_is_replaced(tmp_path):
    for again in ({"resume": True}, {"overwrite": True}):
        Run(options(tmp_path), Accelerator(cpu=True)).close()
        (tmp_path / "run" / SAMPLES).rmdir()
        Run(options(tmp_path, **again), Accelerator(cpu=True)).close()
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.7.partial.json").touch()  # of a run that was killed at once
    Run(options(tmp_path), Accelerator(cpu=True)).close()


@pytest.mark.parametrize("name", ["samples/drums.wav", "samples", "book.partial.txt", "kept/.config.7.partial.json"])
def test_files_that_are_called_like_those_of_a_run_are_not_removed(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for again in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds files, and no run"):
            Run(options(tmp_path, **again), Accelerator(cpu=True))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("flag", ["data", "data_dir", "plugin"])
def test_a_run_is_not_replaced_where_what_it_is_given_lies_in_its_folder(tmp_path, flag):
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    path = tmp_path / "run" / "pets"
    path.mkdir()
    given = {flag: [path] if flag == "plugin" else path}
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} .* lies in the folder that --tag run writes"):
        Run(options(tmp_path, overwrite=True, **given), Accelerator(cpu=True))
    assert path.exists()
    Run(options(tmp_path, resume=True, **given), Accelerator(cpu=True)).close()


WRITER = """
import sys
from pathlib import Path
from accelerate import Accelerator
from gendistil.common.run import Run
run = Run({"output_dir": Path(sys.argv[1]), "tag": "run", "overwrite": False, "resume": False}, Accelerator(cpu=True))
run.log({"loss": 1.0}, 1)
print("writing", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no folder is locked there")
def test_one_command_at_a_time_writes_a_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:
        assert other.stdout.readline() == "writing\n"
        for again in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=r"another command is writing .*run: wait for it, or choose another --tag"):
                Run(options(tmp_path, **again), Accelerator(cpu=True))
        Run(options(tmp_path, tag="other"), Accelerator(cpu=True)).close()
        assert steps_of(tmp_path) == [1]
        other.kill()
    first = Run(options(tmp_path, resume=True), Accelerator(cpu=True))
    Run(options(tmp_path, overwrite=True), Accelerator(cpu=True)).close()  # of the same process
    first.close()
    assert not [*(tmp_path / "run").glob(".*")]


def test_where_nothing_can_be_locked_runs_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    Run(options(tmp_path, resume=True), Accelerator(cpu=True)).close()


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path):
    facts = {"name": "pets", "classes": ("cat", "dog"), "channels": 1, "size": 8, "mean": (0.5,), "std": (0.2,)}
    Run(options(tmp_path), Accelerator(cpu=True), dataset=facts).close()
    Run(options(tmp_path, resume=True), Accelerator(cpu=True), dataset={**facts, "mean": (0.5 + 1e-7,)}).close()
    for change in ({"mean": (0.501,)}, {"classes": ("cat", "dog", "eel")}, {"size": 9}):
        with pytest.raises(UserError, match="the images of pets are no longer those that the run was started with"):
            Run(options(tmp_path, resume=True), Accelerator(cpu=True), dataset={**facts, **change})


@pytest.mark.parametrize(("change", "same"), [
    ({}, True), ({"mean": (0.5, 0.4 + 1e-7)}, True), ({"mean": [0.5, 0.4001]}, False), ({"std": [0.3]}, False),
    ({"std": None}, None)])
def test_two_data_sets_have_one_mean_and_std(change, same):
    facts = {"mean": [0.5, 0.4], "std": [0.2, 0.3]}
    assert same_moments(facts, {**facts, **change}) is same
    assert same_moments({}, facts) is None


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamWriter failed writing file data/0"), SafetensorError("No space")])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, capsys, error):
    def full(state, path):
        path.write_bytes(b"half")
        raise error

    save_checkpoint(tmp_path / "checkpoint.pt", {"step": 1})
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(sys, "argv", ["gen_condense.py"])
    with pytest.raises(SystemExit) as leaving:
        run_script(lambda: save_checkpoint(tmp_path / "checkpoint.pt", {"step": 2}))
    assert leaving.value.code == 2
    assert f"gen_condense.py: error: {tmp_path / 'checkpoint.pt'}: " in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_is_no_run_is_not_replaced(tmp_path):
    """A folder of pictures, a saved model or anything else that happens to lie where a run of this tag would."""
    (tmp_path / "run" / "train").mkdir(parents=True)
    for files in ((), ("config.json",)):
        for name in files:
            (tmp_path / "run" / name).write_text("{}")
        with pytest.raises(UserError, match="holds files, and no run that could be replaced"):
            Run(options(tmp_path, overwrite=True), Accelerator(cpu=True))
    assert (tmp_path / "run" / "train").is_dir()
    (tmp_path / "half" / SAMPLES).mkdir(parents=True)  # a run that was killed before its config.json
    Run(options(tmp_path, tag="half"), Accelerator(cpu=True)).close()


def test_a_run_that_is_killed_while_it_replaces_another_can_be_replaced(tmp_path, monkeypatch):
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    (tmp_path / "run" / "report.json").write_text("{}")

    def killed(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            Run(options(tmp_path, overwrite=True), Accelerator(cpu=True))
    Run(options(tmp_path, overwrite=True), Accelerator(cpu=True)).close()
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_run_knows_when_it_was_begun(tmp_path, monkeypatch):
    found = []
    for hour, resume in ((1, False), (2, True), (3, True)):
        monkeypatch.setattr(runs.time, "strftime", lambda *words, hour=hour: f"hour {hour}")
        Run(options(tmp_path, resume=resume), Accelerator(cpu=True)).close()
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        found.append((config["begun"], config["started"]))
    assert found == [("hour 1", "hour 1"), ("hour 1", "hour 2"), ("hour 1", "hour 3")]


def test_what_is_replaced_loses_its_checkpoint_first(tmp_path, monkeypatch):
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    for name in ("a.json", CHECKPOINT, "z.json"):
        (tmp_path / "run" / name).write_text("{}")
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (removed.append(path.name), unlink(path, **options)))
    Run(options(tmp_path, overwrite=True), Accelerator(cpu=True)).close()
    assert removed[0] == CHECKPOINT
    assert {"a.json", "z.json"} < {*removed}


def test_resuming_removes_what_a_kill_left_half_written(tmp_path):
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    (tmp_path / "run" / ".checkpoint.7.partial.pt").write_bytes(b"half")
    (tmp_path / "run" / ".generator.partial").mkdir()
    (tmp_path / "run" / "pixels").mkdir()
    (tmp_path / "run" / "pixels" / ".rows.7.partial.safetensors").write_bytes(b"half")
    Run(options(tmp_path, resume=True), Accelerator(cpu=True)).close()
    assert not [*(tmp_path / "run").rglob(".*")]


def test_a_config_that_cannot_be_read_is_an_error_of_its_own_folder_alone(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "gan.pt").touch()
    assert find_run(tmp_path / "gan.pt") is None
    assert made_by(tmp_path / "gan.pt") == {}
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        find_run(tmp_path)
    Run(options(tmp_path), Accelerator(cpu=True)).close()
    Run(options(tmp_path, resume=True), Accelerator(cpu=True)).close()
    assert find_run(tmp_path / "run" / CHECKPOINT) == tmp_path / "run"


@pytest.mark.parametrize(("name", "value"), [
    ("held_out", "0.1"), ("held_out", None), ("given", None), ("dataset", "digits"), ("dataset", {"classes": 3}),
    ("classes", ["a"]), ("commands", ["a"]), ("data", 3), ("image_size", "8"), ("mirror", "no"), ("plugin", "a.py")])
def test_a_value_that_no_run_writes_is_named(command, fails, tmp_path, name, value):
    (tmp_path / "gan").mkdir()
    config = {"commands": [], "data": "digits", "held_out": 0.1, "given": {}, "dataset": {"classes": ["0"]}, "data_dir": None}
    (tmp_path / "gan" / "config.json").write_text(json.dumps(config | {name: value}))
    error = fails(2, gen_condense, "--output-dir", tmp_path, "--resume")
    assert f"config.json: '{name}' is " in error
    assert error.count("\n") == 1
    args = argparse.Namespace(data=None, held_out=None, classes=None, image_size=None, data_dir=None, mirror=None)
    with pytest.raises(UserError, match=f"'{name}' is "):
        inherit_data(args, tmp_path / "gan")


def test_a_data_set_that_no_run_writes_is_another(tmp_path):
    Run(options(tmp_path), Accelerator(cpu=True), dataset={"name": "pets", "mean": None}).close()
    facts = {"name": "pets", "classes": ("cat", "dog"), "channels": 1, "size": 8, "mean": (0.5,), "std": (0.2,)}
    with pytest.raises(UserError, match="the images of pets are no longer those"):
        Run(options(tmp_path, resume=True), Accelerator(cpu=True), dataset=facts)


def test_a_file_that_cannot_be_used_is_one_line(capsys, monkeypatch):
    def main():
        raise PermissionError(13, "Permission denied", "/data/pictures")

    monkeypatch.setattr(sys, "argv", ["validate.py"])
    with pytest.raises(SystemExit) as leaving:
        run_script(main)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("validate.py: error: /data/pictures: Permission denied: check the path")


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory:\nyou tried"),
])
def test_too_little_memory_is_one_line(capsys, monkeypatch, error):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["validate.py"])
    with pytest.raises(SystemExit) as leaving:
        run_script(main)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("validate.py: error: out of memory: ")
    assert all(flag in said for flag in ("--batch-size", "--match-batch", "--class-batch", "--ipc", "--together"))
    assert said.count("\n") == 1


def test_other_errors_of_torch_are_not_about_memory():
    def main():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_script(main)
