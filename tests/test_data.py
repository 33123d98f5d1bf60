"""Data sets: conversions, splits, folders of pictures, the cache, and what bad input says."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendistil.common.errors import UserError
from gendistil.data import DATASETS, Spec, load_dataset, standardise, to_signed, to_uint8
from gendistil.data import folders as folders_module
from gendistil.data.images import moments, resize

LEVELS = torch.arange(256, dtype=torch.uint8)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def write_folder(root, classes=("ant", "bee", "cat"), mode="L", size=(12, 12), count=6, test="test"):
    """A folder in ImageFolder layout; the pictures of class k are flat, of level 40 + 60 k (colour: that, 0 and 255)."""
    for part, number in (("train", count), (test, 2)):
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                level = 40 + 60 * k
                colour = level if mode == "L" else (level, 0, 255)
                Image.new(mode, size, colour).save(root / part / name / f"{i}.png")
    return root


# --- conversions


def test_stored_images_survive_the_round_trip():
    signed = to_signed(LEVELS)
    assert (signed.min(), signed.max()) == (-1, 1)
    assert torch.equal(to_uint8(signed), LEVELS)
    assert torch.equal(to_uint8(signed.double()), LEVELS)


def test_to_uint8_rounds_and_clamps():
    assert to_uint8(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.tensor([-1 + 0.49 / 127.5, -1 + 0.51 / 127.5])).tolist() == [0, 1]


def test_training_images_are_standardised_to_zero_mean_and_unit_variance():
    data = load_dataset("digits")
    images = standardise(to_signed(data.full_train.images), data.spec)
    assert images.mean().abs() < 1e-4
    assert (images.std() - 1).abs() < 1e-3


def test_standardise_is_the_textbook_formula_per_channel_and_differentiable():
    spec = Spec("x", ("a", "b"), 3, 4, (0.2, 0.5, 0.7), (0.1, 0.2, 0.4), True)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    with torch.inference_mode():
        standardise(to_signed(images), spec)  # what this keeps must still serve a backward pass
    signed = to_signed(images).requires_grad_()
    result = standardise(signed, spec)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    torch.testing.assert_close(signed.grad[0, :, 0, 0], 0.5 / torch.tensor(spec.std))


def test_moments_agree_with_numpy_and_a_constant_channel_has_a_std():
    images = torch.randint(0, 256, (300, 2, 5, 5), dtype=torch.uint8)
    images[:, 1] = 7
    mean, std = moments(images)
    array = images.numpy() / 255
    np.testing.assert_allclose(mean, array.mean((0, 2, 3)))
    np.testing.assert_allclose(std, [array[:, 0].std(), 1 / 255])


def test_resize_averages_over_the_pixels_that_it_merges():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255
    small = resize(board.to(torch.uint8)[None, None], 4)
    assert small.shape == (1, 1, 4, 4)
    assert (small.float() - 127.5).abs().max() < 20  # without antialiasing: 0 or 255


# --- the embedded digits


def test_digits():
    data = load_dataset()
    assert (len(data.train) + len(data.held_out), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.spec.classes == tuple("0123456789")
    assert (data.spec.num_classes, data.spec.channels, data.spec.size, data.spec.flip) == (10, 1, 8, False)
    first_test = (data.test.images[0, 0].float() * 16 / 255).round().int()
    assert first_test[0].tolist() == [0, 4, 16, 15, 2, 0, 0, 0]
    assert data.test.images.max() == 255


def test_digits_are_scikit_learns():
    reference = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    data = load_dataset()
    expected = np.rint(reference.images * 255 / 16)
    assert (data.test.images[:, 0].numpy() == expected[-360:]).all()
    assert (data.test.labels.numpy() == reference.target[-360:]).all()
    assert sorted(map(bytes, data.full_train.images.numpy())) == sorted(map(bytes, expected[:-360].astype(np.uint8)))


def test_image_size_resizes_every_split():
    data = load_dataset(image_size=16)
    assert data.spec.size == 16
    assert {part.images.shape[1:] for part in (data.train, data.held_out, data.test)} == {(1, 16, 16)}


# --- the held-out split


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_split_is_stratified_and_the_same_every_time(fraction):
    data, again = load_dataset(held_out=fraction), load_dataset(held_out=fraction)
    assert torch.equal(data.held_out.images, again.held_out.images)
    whole, part = data.full_train.labels.bincount(), data.held_out.labels.bincount(minlength=10)
    assert torch.equal(part, (whole * fraction).round().long().clamp(min=1))
    assert len(data.full_train) == 1437


def test_held_out_split_does_not_depend_on_the_global_seed():
    torch.manual_seed(1)
    first = load_dataset().held_out
    torch.manual_seed(2)
    assert torch.equal(first.images, load_dataset().held_out.images)


def test_held_out_split_leaves_an_image_of_each_class_in_both_parts(tmp_path, cache):
    data = load_dataset(write_folder(tmp_path / "few", count=2), cache, held_out=0.5)
    assert data.train.labels.tolist() == data.held_out.labels.tolist() == [0, 1, 2]


# --- folders


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


def test_tinyimagenet_is_a_folder_in_data_dir_whose_grey_images_become_colour(tmp_path):
    folder = write_folder(tmp_path / "tiny-imagenet-200", mode="RGB", test="val")
    Image.new("L", (12, 12), 9).save(folder / "train" / "ant" / "0.png")
    data = load_dataset("tinyimagenet", tmp_path)
    assert (data.spec.name, data.spec.size, data.spec.channels, data.spec.flip) == ("tinyimagenet", 64, 3, True)


# --- the cache


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


# --- bad input


def remove(folder, *names):
    for name in names:
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / name).rmdir()


def truncate(folder):
    path = folder / "train" / "bee" / "3.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])


BREAKAGES = {
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


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError) as error:
        load_dataset("mnits", tmp_path)
    assert all(name in str(error.value) for name in ("mnits", *DATASETS))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="neither a folder"):
        load_dataset(tmp_path / "file", tmp_path)


def test_missing_tinyimagenet_names_its_folder(tmp_path):
    with pytest.raises(UserError, match=r"tiny-imagenet-200.*--data-dir"):
        load_dataset("tinyimagenet", tmp_path)


def test_data_dir_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--data-dir .*file: is a file"):
        load_dataset("mnist", tmp_path / "file")
    with pytest.raises(UserError, match=r"--data-dir .*cannot be created \(Not a directory\)"):
        load_dataset("mnist", tmp_path / "file" / "below")


def test_data_dir_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"--data-dir .*cannot be written to"):
        load_dataset("svhn", tmp_path)


# --- torchvision's data sets


def test_failed_download_names_the_remedy(tmp_path, monkeypatch):
    import torchvision.datasets.svhn as module

    def fail(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(module, "download_url", fail)
    with pytest.raises(UserError, match=r"--data-dir .*SVHN.*no route to host.*check the network"):
        load_dataset("svhn", tmp_path)


def test_torchvision_layouts(tmp_path, monkeypatch):
    """CIFAR's arrays are [N, H, W, C] with a list of targets, SVHN's [N, C, H, W] with labels."""
    import torchvision.datasets

    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    labels = np.arange(40) % 10

    class Cifar:
        data, targets, classes = images, labels.tolist(), [f"a/{i}" for i in range(10)]

        def __init__(self, root, train, download=False):
            pass

    class Svhn:
        data, labels = images.transpose(0, 3, 1, 2), np.arange(40) % 10

        def __init__(self, root, split, download=False):
            assert split in ("train", "test")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    monkeypatch.setattr(torchvision.datasets, "SVHN", Svhn)
    cifar, svhn = load_dataset("cifar10", tmp_path), load_dataset("svhn", tmp_path)
    for data in (cifar, svhn):
        assert (data.test.images.numpy() == images.transpose(0, 3, 1, 2)).all()
        assert data.test.labels.tolist() == labels.tolist()
    assert (cifar.spec.flip, svhn.spec.flip) == (True, False)
    assert cifar.spec.classes[0] == "a-0"
    assert svhn.spec.classes == tuple("0123456789")


def test_real_mnist_loads_offline():
    root = Path(os.environ.get("DATA_DIR", ""))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("DATA_DIR holds no MNIST")
    data = load_dataset("mnist")
    assert (len(data.full_train), len(data.test)) == (60000, 10000)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.spec.mean == pytest.approx((0.1307,), abs=1e-4)  # as published everywhere
    assert data.spec.std == pytest.approx((0.3081,), abs=1e-4)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
