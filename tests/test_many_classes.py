"""200 classes of 64 pixels, class by class: whatever is learned, all classes at once give the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from conftest import SMALL_POOL
from prototypes import matcher_for

import gen_condense
import pool_match
import validate
from gendistil.common.engine import Engine
from gendistil.common.files import load_checkpoint
from gendistil.data import DATASETS, DataRow, load_dataset
from gendistil.evaluation.rows import read_report
from gendistil.matching import GeneratorLearner, initial
from gendistil.matching.selectors import Dream
from generators import RECIPES, make_trainer
from pools import RandomPool

CLASSES = 200


def load_many(data_dir, image_size):
    """Five training images and one test image of each class, noise around a colour of its own."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        labels = torch.arange(CLASSES).repeat(count)
        colours = torch.randint(60, 190, (CLASSES, 3, 1, 1), generator=torch.Generator().manual_seed(1))
        noise = torch.randint(-60, 60, (len(labels), 3, 64, 64), generator=generator)
        return (colours[labels] + noise).to(torch.uint8), labels

    return tuple(map(str, range(CLASSES))), split(5), split(1)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder whose commands know the data set `many`, with a generator of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "many", DataRow(load_many, flip=True))
        patch.setattr("gendistil.matching.initial._CANDIDATES", 4)  # of every latent's start
        patch.chdir(tmp_path_factory.mktemp("many"))
        yield


STUDENT = "convnet4:width=4"
SHORT = ("--data", "many", "--precision", "fp32", "--pool", STUDENT, "--eval-model", STUDENT, "--match-batch", 2, "--steps", 1,
         "--eval-epochs", 1, "--eval-ipc", 1)
STORED = ("--ipc", 1, *SHORT)
COMMANDS = {
    **{name: ("--method", name, *STORED) for name in ("dm", "dsa")},
    "idc": ("--method", "idc", "--factor", 1, *STORED, "--pool-images", 8),
    "inversion": ("--method", "inversion", "--weight", "results/gan", "--chunk-steps", 1, "--ipc", 1, *SHORT[:8], *SHORT[10:]),
    "match": ("--weight", "results/gan", "--match-classes", 0, "--select-candidates", 3, *SMALL_POOL, "--batch-size", 4,
              *SHORT),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_class_by_class(command, many, monkeypatch, name):
    monkeypatch.setattr(initial, "_CANDIDATES", 5)  # in each of which an image looks for its first latent
    if name in ("inversion", "match"):
        command(gen_condense, "--data", "many", "--width", 8, "--batch-size", 4, "--steps", 1, "--overwrite")
    learned = []
    for class_batch in (0, 64):
        tag = f"{name}-{class_batch}"
        command(pool_match, "--tag", tag, *COMMANDS[name], "--class-batch", class_batch)
        learned.append(learned_by(tag))
    for whole, parts in zip(*learned, strict=True):
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, atol=2e-3 * float(value.abs().max()), rtol=1e-3)


def learned_by(tag):
    """What a run has learned, or of a generator its last gradient, which is Adam's first moment: its first beta is 0."""
    state = load_checkpoint(Path("results", tag, "checkpoint.pt"))
    if "optim_g" in state:
        return [{"gradient": torch.cat([moment["exp_avg"].flatten() for moment in state["optim_g"]["state"].values()])}]
    folder = next(path for path in Path("results", tag).iterdir() if list(path.glob("*.safetensors")))
    return [safetensors.torch.load_file(file) for file in sorted(folder.glob("*.safetensors"))]


def test_students_of_many_classes(command, many):
    command(validate, "--data", "many", "--compare", "random", "--ipc", 1, "--sampling", "fixed", "--num-eval", 1,
            "--epochs", 1, "--min-steps", 1, "--eval-model", STUDENT)
    row, = read_report("results/test/report.json")
    assert row["images"] == CLASSES


@pytest.mark.parametrize("recipe", ["pyramid", "dim", "flow"])
def test_a_step_of_stage_2_is_the_same_class_by_class(recipe):
    digits, results = load_dataset("digits"), []
    for at_once in (0, 3, 10):
        engine = Engine(Accelerator(cpu=True, mixed_precision="no"))
        small = replace(RECIPES[recipe], width=16, batch_size=8)
        learner = GeneratorLearner(make_trainer(engine.accelerator, digits.spec, small, 0, engine), digits)
        term = matcher_for(learner, digits, RandomPool(digits, engine=engine), match_batch=4, aug_type="color_crop",
                           aug_setting="image", class_batch=at_once)
        report = learner.step(0, term)
        results.append((report["matching"], [weight.grad for weight in learner.trainer.generator.parameters()]))
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-3, atol=1e-5)


def test_dream_chooses_in_parts_where_candidates_are_many(monkeypatch):
    digits, asked = load_dataset("digits"), []

    class Pool(RandomPool):
        def embed(self, network, rows):
            asked.append(len(rows))
            return super().embed(network, rows)

    monkeypatch.setattr("gendistil.matching.selectors._AT_ONCE", 65)
    selector = Dream(digits.train, 10, 3, 0, interval=1, candidates=20)
    selector.pool = Pool(digits)
    rows = selector.indices(list(range(10)), 0)
    assert asked == [60, 60, 60, 20]
    assert torch.equal(digits.train.labels[rows], torch.arange(10)[:, None].expand(-1, 3))
