"""Sets that are pictures, a folder for each class: which class is which, what is done to them, and what bad ones say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CLASSIFIER
from PIL import Image

import sample
import validate
from gendistil.common.errors import UserError
from gendistil.data import Spec
from gendistil.sources import PixelSet, Reading, draw_set, load_source, weights_digest

SHORT = ("--eval-model", SMALL_CLASSIFIER, "--sampling", "fixed", "--epochs", 1, "--min-steps", 1, "--num-eval", 1,
         "--compile", "off")
SPEC = Spec("some", ("cat", "ant"), 3, 8, (0.4,) * 3, (0.3,) * 3, True)


def write(folder, levels, count=2, size=8, mode="RGB", kind="png"):
    """A set in which picture i of the class called `name` has the level `levels[name] + i` everywhere."""
    for name, level in levels.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            value = level + index
            picture = Image.new(mode, (size, size), value if mode == "L" else (value, value, value))
            picture.save(folder / name / f"{index:05d}.{kind}")
    return folder


def levels_of(folder, spec=None, ipc=2):
    source = load_source(folder, reading=Reading(), spec=spec)
    images, labels = draw_set(source, ipc, seed=3)
    assert torch.equal(labels, torch.arange(source.num_classes).repeat_interleave(ipc))
    return images[:, 0, 4, 4].tolist()


@pytest.mark.parametrize(("levels", "classes", "found", "words"), [
    ({"ant": 10, "cat": 200}, ("cat", "ant"), [200, 201, 10, 11], " with the names of the classes; its class i"),
    ({"n1": 10, "n2": 200}, ("cat", "ant"), [10, 11, 200, 201], ", by the order of their names; its class i is"),
    ({str(i): i for i in (0, 2, 10, 1, *range(3, 10))}, tuple("abcdefghijk"), None, ", by the order of their names"),
    ({"a_b": 10, "c": 90}, ("c", "a/b"), [90, 91, 10, 11], " with the names of the classes"),
    ({"Ankle boot": 10, "bag": 90}, ("Bag", "Ankle boot"), [90, 91, 10, 11], " with the names of the classes"),
    ({"A": 10, "a": 90}, ("a", "A"), [90, 91, 10, 11], " with the names of the classes"),
], ids=["names", "order", "numbers", "spelled", "spaces", "cases"])
def test_folders_are_classes(tmp_path, capsys, levels, classes, found, words):
    folder = write(tmp_path / "set", levels)
    assert levels_of(folder, replace(SPEC, classes=classes)) == (found or [i + j for i in range(11) for j in (0, 1)])
    assert f"set is read as pictures in folders{words}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["png", "JPEG", "bmp"])
def test_pictures_are_brought_to_the_shape_of_the_data(tmp_path, capsys, kind):
    folder = write(tmp_path / "set", {"ant": 10, "cat": 200}, size=20, mode="L", kind=kind)
    (folder / ".DS_Store").mkdir()
    (folder / "ant" / "notes.txt").write_text("of the set")
    (folder / "sheet.png").write_bytes(b"no picture of a class")
    assert levels_of(folder, SPEC) == [200, 201, 10, 11]
    said = capsys.readouterr().err
    assert "set is read as pictures in folders with the names of the classes, brought to 8 pixels a side; " in said
    assert "set: 2 of 6 files are not read (.txt, pictures elsewhere)" in said
    assert load_source(folder, reading=Reading(), spec=replace(SPEC, channels=1)).channels == 1
    source = load_source(folder, reading=Reading())  # without a data set as they are
    assert (source.size, source.channels, source.max_ipc) == (20, 1, 2)


def test_what_sample_writes_is_read_again(call, tmp_path):
    source = PixelSet(8, 1, 10, ipc=3)
    torch.nn.init.uniform_(source.pixels, -1, 1)
    source.save_pretrained("model")
    call(sample, "--pretrain-weight", "model", "--ipc", 2, "--output-dir", "set")
    images, again = (draw_set(load_source(path, reading=Reading()), 2, 0)[0] for path in ("model", "set/images"))
    assert torch.equal(images, again)
    call(sample, "--pretrain-weight", "set/images", "--ipc", 1, "--output-dir", "part")
    assert Path("part/images/9/00000.png").read_bytes() == Path("set/images/9/00000.png").read_bytes()
    call(validate, "--pretrain-weight", "pictures=set/images", "--ipc", 2, *SHORT)
    row, = json.loads(Path("results/test/report.json").read_text())
    assert (row["source"], row["bytes"], row["weights"]) == ("pictures", 10 * 2 * 64, weights_digest("set/images"))


def test_a_set_is_known_by_all_its_pictures(tmp_path):
    folder = write(tmp_path / "set", {"ant": 10, "cat": 200})
    before = weights_digest(folder)
    Image.new("RGB", (8, 8)).save(folder / "cat" / "00001.png")
    changed = weights_digest(folder)
    (folder / "cat").rename(folder / "dog")
    assert len({before, changed, weights_digest(folder)}) == 3


def test_grey_pictures_in_colour_are_of_grey_data(tmp_path):
    folder = write(tmp_path / "set", {"ant": 10, "cat": 200})
    source = load_source(folder, reading=Reading(), spec=replace(SPEC, channels=1))
    assert draw_set(source, 2, 0)[0][:, :, 4, 4].tolist() == [[200], [201], [10], [11]]


def test_an_export_of_folders_keeps_their_names(call, fails, tmp_path):
    write(tmp_path / "set", {"ant": 10, "cat": 200})
    call(sample, "--pretrain-weight", "set", "--ipc", 2, "--output-dir", "again")
    source = load_source("again", reading=Reading(), spec=SPEC)
    assert draw_set(source, 2, 0)[0][:, 0, 4, 4].tolist() == [200, 201, 10, 11]
    assert source.facts["classes"] == ["cat", "ant"]


def test_a_draft_is_no_part_of_a_model(tmp_path):
    PixelSet(8, 1, 10, ipc=1).save_pretrained(tmp_path / "model")
    before = weights_digest(tmp_path / "model")
    (tmp_path / "model" / ".rows.7.partial.safetensors").write_bytes(b"half")
    assert weights_digest(tmp_path / "model") == before


def uneven(folder):
    write(folder, dict.fromkeys("0123456789", 5), mode="L")
    (folder / "3" / "00001.png").unlink()


def damaged(folder):
    write(folder, dict.fromkeys("0123456789", 5), mode="L")
    (folder / "3" / "00001.png").write_bytes(b"nothing")


def coloured(folder):
    write(folder, dict.fromkeys("0123456789", 5))
    Image.new("RGB", (8, 8), (5, 6, 7)).save(folder / "3" / "00001.png")


def empty(folder):
    write(folder, dict.fromkeys("0123456789", 5), mode="L")
    (folder / "10").mkdir()


@pytest.mark.parametrize(("make", "message"), [
    (uneven, "set holds 1 to 2 images of a class: only sets with as many of each are taken"),
    (damaged, "3/00001.png: is not a readable image ("),
    (empty, "set holds no saved generator and no published set: name"),
    (coloured, "set makes 10 classes of 3x8x8 images, but the data set digits"),
    (lambda path: write(path, dict.fromkeys("abc", 5), mode="L"), "set makes 3 classes of 1x8x8 images, but the data set "),
    (lambda path: write(path, dict.fromkeys("a3c", 5), mode="L"), "set has a folder of class '3' of digits, and not "),
], ids=["uneven", "damaged", "empty", "colours", "classes", "some"])
def test_what_is_wrong_is_said_in_a_line(fails, tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "set")
    error = fails(2, validate, "--pretrain-weight", "set", "--ipc", 1)
    assert message in error
    assert error.count("\n") == 1 + error.count("is read as")
    assert not Path("results").exists()


def test_sample_takes_pictures_of_one_size(fails, tmp_path):
    folder = write(tmp_path / "set", {"ant": 10, "cat": 200})
    Image.new("RGB", (8, 9)).save(folder / "cat" / "00001.png")
    error = fails(2, sample, "--pretrain-weight", folder, "--ipc", 1, "--output-dir", tmp_path / "out")
    assert "set holds pictures of several sizes, or some that are no squares: only validate.py, whose --data says" in error


def test_pictures_are_no_run(tmp_path):
    folder = write(tmp_path / "set", {"ant": 10, "cat": 200})
    with pytest.raises(UserError, match="holds no saved generator: name a run"):
        load_source(folder)
