"""Images that networks see whitened, and distilled sets that stay pictures."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_POOL
from PIL import Image

import pool_match
import sample
import validate
from gendistil.common.errors import UserError
from gendistil.data import Spec, Whitened, load_dataset, restandardise, spec_of, standardise, to_signed
from gendistil.matching.learners import PixelLearner
from gendistil.sources import PixelSet

QUICK = ("--data", "digits", "--ipc", 2, "--steps", 2, "--match-batch", 4, "--eval-epochs", 1)
JUDGED = ("--ipc", 2, "--sampling", "fixed", "--epochs", 1, "--min-steps", 0, "--num-eval", 2)


@pytest.fixture(scope="module")
def whitened():
    return load_dataset("digits", whiten="zca")


def learned(folder):
    return json.loads((folder / "config.json").read_text())


def test_whitened_images_are_those_of_the_formula(whitened):
    images = whitened.full_train.images
    pixels = (images.flatten(1).double() / 255).numpy()
    centred = pixels - pixels.mean(0)
    left, values, _ = np.linalg.svd(np.cov(centred.T))
    expected = centred @ (left / np.sqrt(values + 0.1)) @ left.T
    seen = standardise(to_signed(images), whitened.spec)
    assert seen.shape == images.shape
    assert seen.dtype == torch.float32
    assert seen.flatten(1).numpy() == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(standardise(to_signed(images), whitened.spec), seen)


def test_whitened_images_are_those_that_were_whitened(whitened):
    plain, signed = load_dataset("digits", whiten="none").spec, to_signed(whitened.test.images[:9])
    assert type(plain) is Spec
    other = replace(plain, mean=(0.1,), std=(0.2,))
    seen, bare, odd = (standardise(signed, spec) for spec in (whitened.spec, plain, other))
    for batch, spec, wanted, to in ((seen, whitened.spec, bare, plain), (bare, plain, seen, whitened.spec),
                                    (seen, whitened.spec, odd, other), (odd, other, seen, whitened.spec)):
        torch.testing.assert_close(restandardise(batch, spec, to), wanted, rtol=1e-4, atol=1e-4)
    assert restandardise(seen, whitened.spec, whitened.spec) is seen
    with pytest.raises(UserError, match="give one of None, 'none', 'zca'"):
        load_dataset("digits", whiten="pca")


def test_a_data_set_is_described_as_before_unless_it_is_whitened(whitened):
    plain = load_dataset("digits").spec
    assert type(plain) is Spec
    assert asdict(whitened.spec) == {**asdict(plain), "whitening": "zca"}
    assert (plain.title, whitened.spec.title) == ("digits", "digits, whitened")
    for spec in (plain, whitened.spec):
        again = spec_of(json.loads(json.dumps(asdict(spec))))
        assert (type(again), again) == (type(spec), spec)
    with pytest.raises(UserError, match="--whiten zca"):
        standardise(torch.zeros(1, 1, 8, 8), again)


def test_images_too_large_to_be_whitened_are_refused():
    with pytest.raises(UserError, match="--image-size"):
        Whitened.of(Spec("photos", ("a", "b"), 3, 128, (0.5,) * 3, (0.5,) * 3, True), torch.zeros(2, 3, 128, 128).byte())


def test_pixels_descend_as_whitened_images_do(whitened):
    images = torch.randn(10, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 4
    target = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    pixels.pixels.data.copy_(images)
    learner = PixelLearner(Accelerator(cpu=True), whitened.spec, pixels, 0, lr=0.1, momentum=0.0)
    standardise(pixels.pixels.flatten(0, 1), whitened.spec).sub(target).square().sum().div(2).backward()
    pixels.pixels.grad = learner.rescale(pixels.pixels.grad)
    learner.optimizer.step()
    before = standardise(images.flatten(0, 1), whitened.spec)
    expected = before - 0.1 * (before - target)
    assert torch.allclose(standardise(pixels.pixels.detach().flatten(0, 1), whitened.spec), expected, atol=1e-4)
    units = {"unit": {"space": "unit"}, "adam": {"optimizer": "adam"}}  # whose rates are those of pixels, whatever is seen
    for settings in units.values():
        learner = PixelLearner(Accelerator(cpu=True), whitened.spec, pixels, 0, lr=0.1, **settings)
        assert not learner.whitened


def test_a_run_learns_and_is_judged_whitened_and_keeps_pictures(command, fails, tmp_path):
    out = ("--output-dir", tmp_path)
    command(pool_match, *out, "--tag", "dm", "--method", "dm", *QUICK, "--whiten", "zca")
    command(pool_match, *out, "--tag", "plain", "--method", "dm", *QUICK)
    assert (learned(tmp_path / "dm")["whiten"], learned(tmp_path / "plain")["whiten"]) == ("zca", None)
    command(pool_match, *out, "--tag", "dm", "--method", "dm", *QUICK, "--steps", 3, "--resume")
    again = (*out, "--tag", "dm", "--method", "dm", *QUICK, "--whiten", "none", "--resume")
    assert "--whiten is not what the run was started with" in fails(2, pool_match, *again)
    command(validate, *out, *JUDGED, "--pretrain-weight", tmp_path / "dm", "--compare", "random")
    rows = json.loads((tmp_path / "test" / "report.json").read_text())
    assert [(row["source"], row["data"]) for row in rows] == [("dm", "digits, whitened"),
                                                               ("random real images", "digits, whitened")]
    mixed = (*out, "--tag", "mixed", *JUDGED, "--pretrain-weight", tmp_path / "dm", tmp_path / "plain")
    assert "some were learned for whitened images and some were not" in fails(2, validate, *mixed)
    assert not (tmp_path / "mixed").exists()
    command(validate, *mixed, "--whiten", "none")
    command(validate, *out, "--tag", "plainly", *JUDGED, "--pretrain-weight", tmp_path / "dm", "--whiten", "none")
    row, = json.loads((tmp_path / "plainly" / "report.json").read_text())
    assert row["data"] == "digits"
    command(sample, "--pretrain-weight", tmp_path / "dm", "--ipc", 2, "--output-dir", tmp_path / "set")
    picture = next((tmp_path / "set" / "images").rglob("*.png"))
    assert Image.open(picture).size == (8, 8)


def test_a_classifier_of_whitened_images_is_shown_no_others(command, fails, tmp_path):
    out = ("--output-dir", tmp_path)
    command(pool_match, *out, "--tag", "plain", "--method", "herding", *QUICK[:4], *SMALL_POOL, "--eval-epochs", 1)
    command(pool_match, *out, "--tag", "white", "--method", "herding", *QUICK[:4], *SMALL_POOL, "--eval-epochs", 1, "--whiten",
            "zca")
    plain, white = (learned(tmp_path / tag)["pool_folder"] for tag in ("plain", "white"))
    assert plain != white
    judged = (*out, "--tag", "rows", "--overwrite", *JUDGED, "--labels", "rows", "--pretrain-weight", tmp_path / "white")
    command(validate, *judged)
    assert "images that are not whitened: give the same --whiten" in fails(2, validate, *judged, "--teacher", plain)
    assert "has learned from whitened images: give the same --whiten" in fails(2, validate, *judged, "--whiten", "none")
    drawn = ("--pretrain-weight", tmp_path / "white", "--ipc", 2, "--teacher", white, "--output-dir", tmp_path / "set")
    assert "a classifier of whitened images" in fails(2, sample, *drawn)
    assert not (tmp_path / "set").exists()
