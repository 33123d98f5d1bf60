"""What only a GPU can show: a step never makes the host wait, and students learn side by side in half precision."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from prototypes import matcher_for

from gendistil.common.engine import Engine
from gendistil.data import HostImages, datasets, load_dataset
from gendistil.evaluation import Protocol, evaluate
from gendistil.matching import GeneratorLearner, PixelLearner, initial
from gendistil.sources import PixelSet, RealImages
from generators import RECIPES, make_trainer
from pools import RandomPool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "0")


@pytest.fixture(scope="module", params=["device", "host"])
def digits(request):
    """The digits on the device, or with images that stay in the host's memory."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "host":
            patch.setattr(datasets, "free_bytes", lambda device: 0)
        digits = load_dataset("digits", device="cuda")
    assert isinstance(digits.train.images, HostImages) == (request.param == "host")
    return digits


def test_host_images_are_pinned_and_arrive_as_they_are():
    pixels = torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8)
    images = HostImages(pixels, "cuda")
    assert images.pixels.is_pinned()
    for rows in (torch.tensor([3, 1]), torch.tensor([3, 1], device="cuda")):
        assert torch.equal(images[rows], pixels[[3, 1]].cuda())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("match", [None, "logit", "energy"])
def test_a_step_of_a_generator_reads_nothing_back(digits, recipe, match):
    engine = Engine(Accelerator(mixed_precision="bf16"))
    small = dataclasses.replace(RECIPES[recipe], width=16, batch_size=16)
    learner = GeneratorLearner(make_trainer(engine.accelerator, digits.spec, small, 0, engine), digits)
    term = match and matcher_for(learner, digits, RandomPool(digits, engine=engine), match, match_classes=2, match_batch=8,
                                 aug_type="color_crop_cutout", aug_setting="image")
    never_waits(lambda step: learner.step(step, term))


@pytest.mark.parametrize("match", ["mean", "grad"])
def test_a_step_of_pixels_reads_nothing_back(digits, match):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=2).to("cuda")
    initial.start(pixels, digits, "real", 0, None)
    learner = PixelLearner(Accelerator(), digits.spec, pixels, 0, lr=0.1)
    term = matcher_for(learner, digits, RandomPool(digits), match, match_batch=8, aug_type="color_crop_cutout")
    never_waits(lambda step: learner.step(step, term))


def never_waits(take_step):
    for step in range(2):
        take_step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["resnet10", "convnet_bn"])
def test_students_side_by_side_in_half_precision(digits, name):
    engine, protocol = Engine(Accelerator(mixed_precision="bf16")), Protocol(epochs=2, min_steps=0, batch_size=16)
    alone, together = (evaluate(RealImages(digits.train, 10), digits, name, 3, "fixed", num_eval=2, together=count,
                                protocol=protocol, engine=engine) for count in (1, 2))
    assert together.accuracies == pytest.approx(alone.accuracies, abs=10)
