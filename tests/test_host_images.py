"""Images that stay in the host's memory because a device has no room for them: what is learned from them is the same."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL_POOL

import gen_condense
import pool_match
import validate
from gendistil.data import HostImages, datasets, load_dataset, take
from gendistil.evaluation.rows import read_report

GAN = ("--recipe", "pyramid", "--width", 8, "--batch-size", 8, "--steps", 2)
SHORT = ("--pool", "convnet:width=8", "--match-batch", 4, "--eval-model", "convnet:width=8", "--eval-epochs", 1,
         "--eval-ipc", 1)
PIXELS = ("--ipc", 1, *SHORT)
STEPS = ("--steps", 2)
COMMANDS = {
    "match": (pool_match, "--weight", "results/gan", "--select-candidates", 20, *SMALL_POOL, *SHORT, *STEPS),
    "dm": (pool_match, "--method", "dm", "--ipc", 1, *SHORT[2:], *STEPS, "--pool", "convnet:norm=batch,width=8"),
    "dsa": (pool_match, "--method", "dsa", *PIXELS, *STEPS),
    "idc": (pool_match, "--method", "idc", *PIXELS, *STEPS, "--pool-images", 16, "--pool-batch", 8),
    "dream": (pool_match, "--method", "dream", *PIXELS, *STEPS, "--select-candidates", 20, "--pool-images", 16, "--pool-batch",
              8),
    "herding": (pool_match, "--method", "herding", *SMALL_POOL, "--ipc", 1, *SHORT[:2], *SHORT[4:]),
    "itgan": (pool_match, "--method", "itgan", "--weight", "results/gan", "--chunk-steps", 1, *PIXELS, *STEPS),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for runs on images that lie on the device, and one for images that lie in the host's memory."""
    return {where: tmp_path_factory.mktemp(where) for where in ("device", "host")}


@pytest.fixture
def everywhere(command, folders, monkeypatch):
    """Run a command in both folders, on images that lie there, and then `found()`: `everywhere(found, script, *words)` gives
    what that has found in each."""

    def run(found, script, *words):
        results = []
        for where, folder in folders.items():
            with monkeypatch.context() as patch:
                if where == "host":
                    patch.setattr(datasets, "free_bytes", lambda device: 0)
                patch.chdir(folder)
                if not Path("results/gan").exists():
                    command(gen_condense, *GAN)
                command(script, *words)
                results.append(found())
        return results

    return run


def test_a_data_set_is_too_large_by_what_is_free(monkeypatch):
    size = 1797 * 64
    for free, fits in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(datasets, "free_bytes", lambda device, free=free: free)
        assert isinstance(load_dataset().train.images, torch.Tensor) == fits


def test_what_is_taken_is_what_a_tensor_gives():
    pixels = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    images, rows = HostImages(pixels, "cpu"), torch.tensor([[3, 1], [7, 7]])
    assert (images.shape, len(images), images.device) == (pixels.shape, 10, torch.device("cpu"))
    assert torch.equal(take(images, rows), take(pixels, rows))
    assert torch.equal(images[2:5], pixels[2:5])
    assert torch.equal(torch.cat(list(images.split(3))), pixels)
    split = datasets.Split(images, torch.arange(10))
    part = split[split.labels > 6]
    assert isinstance(part.images, HostImages)
    assert torch.equal(part.images.cpu(), pixels[7:])
    assert torch.equal(datasets.join([images, part.images]).cpu(), torch.cat([pixels, pixels[7:]]))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_learned_is_the_same(everywhere, name):
    def models():
        return {str(file): file.read_bytes() for file in Path("results", name).glob("*/*.safetensors")}

    script, *words = COMMANDS[name]
    device, host = everywhere(models, script, "--tag", name, *words)
    assert device
    assert device == host


def test_students_are_the_same(everywhere):
    words = ("--compare", "--ipc", 2, "--sampling", "fixed", "fresh", "--num-eval", 1, "--epochs", 1, "--min-steps", 2,
             "--full-epochs", 1, "--eval-model", "convnet:width=8", "--keep-students")
    device, host = everywhere(lambda: [row["accuracies"] for row in read_report("results/test/report.json")], validate, *words)
    assert len(device) == 3
    assert device == host
