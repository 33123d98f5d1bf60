"""Folders of pictures: layouts, kinds of files, the cache, and what bad ones say."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import write_folder
from PIL import Image

from gendistil.common.errors import UserError
from gendistil.data import DATASETS, load_dataset, original
from gendistil.data import folders as folders_module


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder(tmp_path, cache, mode, channels):
    folder = write_folder(tmp_path / "pets", mode=mode)
    data = load_dataset(str(folder), cache, held_out=0.2)
    assert data.spec.name == "pets"
    assert data.spec.classes == ("ant", "bee", "cat")
    assert (data.spec.channels, data.spec.size, data.spec.flip) == (channels, 32, True)
    assert (len(data.train), len(data.held_out), len(data.test)) == (15, 3, 6)
    for part in (data.train, data.held_out, data.test):
        assert part.images.shape[1:] == (channels, 32, 32)
        assert torch.equal(part.images[:, 0, 5, 5].long(), 40 + 60 * part.labels)
        assert mode == "L" or (part.images[:, 1:] == torch.tensor([0, 255])[:, None, None]).all()


@pytest.mark.parametrize(("name", "known"), [("svhn-10k", "svhn"), ("cifar10-jpeg", "cifar10"), ("cifar10jpeg", None)])
def test_a_folder_in_the_name_of_a_data_set_has_its_properties(tmp_path, cache, name, known):
    spec, row = load_dataset(str(write_folder(tmp_path / name)), cache).spec, DATASETS.get(known)
    assert (spec.name, original(name)) == (name, known or name)
    assert (spec.flip, spec.published_std) == ((row.flip, row.published_std) if row else (True, None))


def test_folder_of_many_kinds_of_files(tmp_path, cache):
    folder = write_folder(tmp_path / "mixed", size=(40, 20))
    ant = folder / "train" / "ant"
    Image.fromarray(np.full((9, 9), 200 << 8, np.uint16)).save(ant / "deep.png")  # 16 bits
    Image.new("1", (9, 9), 1).save(ant / "bits.png")
    Image.new("LA", (9, 9), (100, 0)).save(ant / "alpha.png")
    (ant / "below").mkdir()
    Image.new("L", (9, 9), 40).save(ant / "below" / "LOUD.JPG")
    (ant / "notes.txt").write_text("not a picture")
    (ant / "._0.png").write_text("left by another system")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    data = load_dataset(folder, cache, image_size=8)
    levels = data.full_train.images[data.full_train.labels == 0][:, 0, 4, 4].tolist()
    assert sorted(levels) == [40] * 7 + [100, 200, 255]


def test_files_that_are_not_read_are_counted_once(tmp_path, cache, capsys):
    folder = write_folder(tmp_path / "pets", mode="RGB")
    ant = folder / "train" / "ant"
    Image.new("RGB", (9, 9), (40, 0, 255)).save(ant / "old.jfif", "JPEG")
    Image.new("RGB", (9, 9), (40, 0, 255)).save(ant / "moving.GIF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert load_dataset(folder, cache).full_train.labels.bincount().tolist() == [8, 6, 6]
    assert not capsys.readouterr().err
    (folder / "test" / "bee" / "below").mkdir()
    for name in ("train/ant/a.AVIF", "train/ant/.DS_Store", "test/bee/below/b.jp2", "test/bee/notes", "train/ant/b.avif"):
        (folder / name).touch()
    Image.new("RGB", (9, 9), (40, 0, 255)).save(ant / "new.png")
    for said in (f"{folder}: 4 of 31 files are not read (.avif, .jp2, without an extension)\n", ""):
        load_dataset(folder, cache)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_what_hides_behind_transparency_is_shown(tmp_path, cache, recwarn, kind):
    folder = write_folder(tmp_path / "pets", mode="RGB", size=(8, 8))
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([9, 9, 9, 10, 200, 30])
    picture.save(folder / "test" / "ant" / f"a.{kind}", transparency=b"\x00\x00" if kind == "png" else 1)
    data = load_dataset(folder, cache, image_size=8)
    assert data.test.images[2, :, 4, 4].tolist() == [10, 200, 30]
    assert not recwarn.list


def test_a_folder_whose_name_is_no_text_is_kept_elsewhere_too(tmp_path, cache, monkeypatch):
    folder = write_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    load_dataset(folder, cache)
    assert len(list(cache.iterdir())) == 1


def test_pictures_are_turned_upright(tmp_path, cache):
    folder = write_folder(tmp_path / "phone", size=(16, 16))
    picture = np.zeros((16, 16), np.uint8)
    picture[:, :8] = 255  # bright on the left; the tag says that the camera was held so that left is up
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (folder / "test").rglob("*.png"):
        Image.fromarray(picture).save(path, exif=exif)
    image = load_dataset(folder, cache, image_size=16).test.images[0, 0]
    assert (image[:8] == 255).all()
    assert (image[8:] == 0).all()


def test_val_serves_where_test_is_absent_or_unlabelled(tmp_path, cache):
    folder = write_folder(tmp_path / "a", test="val")
    assert len(load_dataset(folder, cache).test) == 6
    (folder / "test" / "images").mkdir(parents=True)
    assert len(load_dataset(folder, cache).test) == 6


def test_cache_is_reused_and_follows_the_files(tmp_path, cache, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    decoded, real = [], folders_module._decode_all
    monkeypatch.setattr(folders_module, "_decode_all", lambda *args: decoded.append(args) or real(*args))

    def load(size=None):
        before = len(decoded)
        return load_dataset(folder, cache, size), len(decoded) > before

    first, fresh = load()
    assert fresh
    assert {path.name for path in folder.iterdir()} == {"train", "test", ".cache-32.npz"}  # no draft is left behind
    second, fresh = load()
    assert not fresh
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert first.spec == second.spec

    assert load(16)[1]  # another size
    Image.new("L", (12, 12), 250).save(folder / "test" / "ant" / "0.png")
    os.utime(folder / "test" / "ant" / "0.png", ns=(1, 1))  # another time
    changed, fresh = load()
    assert fresh
    assert changed.test.images[0, 0, 0, 0] == 250
    (folder / "train" / "bee" / "0.png").rename(folder / "train" / "bee" / "renamed.png")
    assert load()[1]
    assert not load()[1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_cache_is_rebuilt(tmp_path, cache, damage):
    folder = write_folder(tmp_path / "pets")
    expected = load_dataset(folder, cache)
    path = folder / ".cache-32.npz"
    good = path.read_bytes()
    middle = len(good) // 2
    bad = {
        "truncated": good[:middle],
        "flipped": good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
        "foreign": b"something else",
        "empty": b"",
    }[damage]
    path.write_bytes(bad)
    data = load_dataset(folder, cache)
    assert torch.equal(data.train.images, expected.train.images)
    assert path.stat().st_size == len(good)


def test_cache_goes_to_data_dir_where_the_folder_is_read_only(tmp_path, cache, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    load_dataset(folder, cache)
    assert {path.name for path in folder.iterdir()} == {"train", "test"}
    assert [path.name.startswith("pets-") for path in cache.iterdir()] == [True]
    monkeypatch.setattr(folders_module, "_decode_all", None)
    load_dataset(folder, cache)


def remove(folder, *names):
    for name in names:
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / name).rmdir()


def truncate(folder):
    path = folder / "train" / "bee" / "3.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])


def enlarge(folder):
    Image.new("L", (129, 40)).save(folder / "train" / "bee" / "0.png")


BREAKAGES = {
    "larger than the networks": (enlarge, ["bee/0.png: has 129x40 pixels", "128 a side at most", "--image-size"]),
    "no train": (lambda f: remove(f, "train"), ["has no folder train/", "train/<class>/"]),
    "no test": (lambda f: remove(f, "test"), ["neither test/ nor val/"]),
    "class missing from test": (lambda f: remove(f, "test/bee"), ["test: has no folder of class 'bee'"]),
    "class only in test": (lambda f: (f / "test" / "dog").mkdir(), ["test: has, and train/ has not", "'dog'"]),
    "one class": (lambda f: remove(f, "train/bee", "train/cat"), ["train: holds 1 class folders", "at least 2"]),
    "empty class": (lambda f: [p.unlink() for p in (f / "train" / "bee").iterdir()], ["train/bee: holds no images"]),
    "empty split": (lambda f: [p.unlink() for p in (f / "test").rglob("*.png")], ["test/ant: holds no images"]),
    "not an image": (lambda f: (f / "train" / "bee" / "3.png").write_text("no"), ["bee/3.png: is not a readable image"]),
    "truncated image": (truncate, ["bee/3.jpg: is not a readable image", "truncated"]),
    "floating point": (lambda f: Image.new("F", (4, 4)).save(f / "test" / "ant" / "x.tif"), ["ant/x.tif", "floating-point"]),
    "32 bits": (lambda f: Image.new("I", (4, 4)).save(f / "test" / "ant" / "x.tif"), ["ant/x.tif", "32-bit pixels"]),
    "broken link": (lambda f: (f / "train" / "bee" / "x.png").symlink_to("nowhere"), ["bee/x.png: cannot be read"]),
    "single image": (
        lambda f: [p.unlink() for p in list((f / "train" / "cat").iterdir())[1:]],
        ["class 'cat' has fewer than 2 training images"],
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_unusable_folders_say_what_is_wrong_in_one_line(tmp_path, cache, breakage):
    folder = write_folder(tmp_path / "pets")
    breaks, expected = BREAKAGES[breakage]
    breaks(folder)
    with pytest.raises(UserError) as error:
        load_dataset(folder, cache)
    assert "\n" not in str(error.value)
    for words in expected + ["pets"]:
        assert words in str(error.value)


def test_larger_pictures_are_reduced_to_a_size_that_is_given(tmp_path, cache):
    folder = write_folder(tmp_path / "pets", size=(200, 150))
    assert load_dataset(folder, cache, image_size=128).train.images.shape[1:] == (1, 128, 128)
    with pytest.raises(UserError, match="200x150 pixels"):  # though the cache holds them
        load_dataset(folder, cache)
    with pytest.raises(UserError, match="129 pixels a side"):
        load_dataset(folder, cache, image_size=129)


def test_square_pictures_of_one_larger_size_keep_it(tmp_path, cache):
    folder = write_folder(tmp_path / "pets", size=(48, 48))
    assert load_dataset(folder, cache).spec.size == 48
    Image.new("L", (40, 40)).save(folder / "train" / "bee" / "0.png")
    assert load_dataset(folder, cache).spec.size == 32


@pytest.mark.parametrize(("most", "other"), [("RGB", "L"), ("L", "RGB")])
def test_grey_and_colour_pictures_together_are_read_as_colour_and_a_line_says_so(tmp_path, cache, capsys, most, other):
    folder = write_folder(tmp_path / "pets", mode=most)
    Image.new(other, (4, 4), 7 if other == "L" else (7, 8, 9)).save(folder / "test" / "cat" / "x.png")
    dataset = load_dataset(folder, cache)
    assert dataset.spec.channels == 3
    odd = dataset.test.images[dataset.test.labels == 2][-1, :, 0, 0]
    assert odd.tolist() == ([7, 7, 7] if other == "L" else [7, 8, 9])
    said = f"{1 if other == 'L' else 24} of 25 pictures are grey and the others colour: all are read as colour"
    assert said in capsys.readouterr().err
