"""Data sets: conversions, splits, and what bad input says."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import write_folder
from PIL import Image

import pool_match
from gendistil.common.errors import UserError
from gendistil.data import DATASETS, Spec, load_dataset, standardise, to_signed, to_uint8
from gendistil.data.datasets import default_data_dir
from gendistil.data.images import moments, resize

LEVELS = torch.arange(256, dtype=torch.uint8)


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


@pytest.mark.parametrize(("mirror", "flip"), [(None, False), (True, True), (False, False)])
def test_whether_images_may_be_mirrored_can_be_said(mirror, flip):
    assert load_dataset(mirror=mirror).spec.flip is flip


# --- the held-out split


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_split_is_stratified_and_the_same_every_time(fraction):
    data, again = load_dataset(held_out=fraction), load_dataset(held_out=fraction)
    assert torch.equal(data.held_out.images, again.held_out.images)
    whole, part = data.full_train.labels.bincount(), data.held_out.labels.bincount(minlength=10)
    assert torch.equal(part, (whole * fraction).round().long().clamp(min=1))
    assert len(data.full_train) == 1437


def test_the_smaller_of_two_splits_holds_out_a_part_of_the_larger():
    """So what has learned beside the larger has seen nothing of the smaller."""
    splits = [load_dataset(held_out=fraction).held_out.images for fraction in (0.05, 0.1, 0.3)]
    small, middle, large = ({*map(bytes, images.numpy())} for images in splits)
    assert small < middle < large


def test_held_out_split_does_not_depend_on_the_global_seed():
    torch.manual_seed(1)
    first = load_dataset().held_out
    torch.manual_seed(2)
    assert torch.equal(first.images, load_dataset().held_out.images)


def test_held_out_split_leaves_an_image_of_each_class_in_both_parts(tmp_path, cache):
    data = load_dataset(write_folder(tmp_path / "few", count=2), cache, held_out=0.5)
    assert data.train.labels.tolist() == data.held_out.labels.tolist() == [0, 1, 2]


# --- TinyImageNet


def test_tinyimagenet_is_a_folder_in_data_dir_whose_grey_images_become_colour(tmp_path):
    folder = write_folder(tmp_path / "tiny-imagenet-200", mode="RGB", test="val")
    Image.new("L", (12, 12), 9).save(folder / "train" / "ant" / "0.png")
    data = load_dataset("tinyimagenet", tmp_path)
    assert (data.spec.name, data.spec.size, data.spec.channels, data.spec.flip) == ("tinyimagenet", 64, 3, True)


def as_published(folder):
    """Put the pictures of `folder`/val into one folder, as TinyImageNet's are; the lines of the list of their classes."""
    pictures = sorted((folder / "val").glob("*/*"))
    (folder / "val" / "images").mkdir()
    for i, path in enumerate(reversed(pictures)):  # not in the order of their classes
        path.rename(folder / "val" / "images" / f"val_{i}.png")
    for place in {path.parent for path in pictures}:
        place.rmdir()
    return [f"val_{i}.png\t{path.parent.name}\t0\t0\t5\t5\n" for i, path in enumerate(reversed(pictures))]


def test_tinyimagenet_as_it_is_published_is_the_same_data_set(tmp_path):
    folder = write_folder(tmp_path / "tiny-imagenet-200", mode="RGB", test="val")
    listing = folder / "val" / "val_annotations.txt"
    listing.write_text("val_0.png\tant\t0\t0\t5\t5\n")  # which who sorts them leaves there
    sorted_by_hand = load_dataset("tinyimagenet", tmp_path)
    listing.write_text("".join(as_published(folder)))
    assert load_dataset("tinyimagenet", tmp_path).test.labels.tolist() == sorted_by_hand.test.labels.tolist()
    images = load_dataset("tinyimagenet", tmp_path).test
    assert torch.equal(images.images[:, 0, 5, 5].long(), 40 + 60 * images.labels)
    listing.write_text(listing.read_text().replace("val_0.png", "another.png"))
    with pytest.raises(UserError, match=r"val_annotations\.txt: does not say the class of every picture .*'val_0\.png'"):
        load_dataset("tinyimagenet", tmp_path)


# --- bad input


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


def test_data_lies_where_the_environment_says_or_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    assert default_data_dir() == tmp_path / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "~/pictures")
    assert default_data_dir() == tmp_path / "pictures"
    monkeypatch.delenv("DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir() == tmp_path / "cache" / "dataset-distillation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home
    assert default_data_dir() == Path(tempfile.gettempdir()) / "dataset-distillation"


def test_a_home_is_found_in_every_flag_that_takes_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "pets")
    words = ["--output-dir=~/runs", "--data-dir=~/data", "--data=~/pets", "--plugin=~/mine.py", "--teacher=~/t"]
    args = pool_match.parse_args([*words, "--method", "dm"])
    paths = [args.output_dir, args.data_dir, *args.plugin, args.teacher]
    assert paths == [tmp_path / name for name in ("runs", "data", "mine.py", "t")]
    assert args.data == str(tmp_path / "pets")
    assert len(load_dataset("~/pets").test) == 6
    assert pool_match.parse_args(["--method", "dm", "--data", "./digits"]).data == "./digits"  # and no data set's name
