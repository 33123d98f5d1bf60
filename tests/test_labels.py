"""Labels of a teacher: what they are, what they cost, which snapshot answers, and how a report keeps them apart."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from prototypes import Prototypes
from safetensors.torch import load_file
from torch.nn import functional as F

import pool_match
import sample
import validate
from gendistil.common.engine import EAGER
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import load_dataset, standardise, to_signed, to_uint8
from gendistil.evaluation import PROTOCOLS, teachers
from gendistil.evaluation.teachers import Teachers
from gendistil.sources import Taught, Teacher, draw_set
from pools import ClassifierPool, build_classifier, train_classifier

SETTINGS = {"members": 1, "epochs": 2, "snapshots": 2, "options": {"convnet": {"width": 8}}}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def pool(digits, tmp_path_factory):
    return ClassifierPool(digits, tmp_path_factory.mktemp("pools"), Accelerator(cpu=True, mixed_precision="no"), **SETTINGS)


def test_targets_are_softened_mean_logits_of_the_images_themselves(digits, pool):
    teacher, source, labels = Teacher([pool[0], pool[1]], digits.spec, "two"), Prototypes(), torch.arange(10).repeat(3)
    images = to_uint8(source.sample(labels, 5))
    taught = Taught(source, teacher, 3.0, stored=False)
    logits = sum(network(standardise(to_signed(images), digits.spec)) for network in (pool[0], pool[1])) / 2
    assert torch.allclose(taught.targets(labels, 5), (logits / 3).softmax(1), atol=1e-6)
    assert torch.equal(taught.targets(labels, 5, images), taught.targets(labels, 5))
    rows = Taught(source, teacher, 3.0, stored=True).targets(labels, 5)
    assert torch.allclose(rows, (teacher.logits(images).half().float() / 3).softmax(1))
    drawn, targets = draw_set(taught, 3, 5)
    assert torch.equal(targets, taught.targets(torch.arange(10).repeat_interleave(3), 5, drawn))


def test_what_rows_and_teachers_take_is_added(digits, pool):
    source = Prototypes()
    source.stored_bytes = lambda ipc: 1000
    teacher = Teacher([pool[1]], digits.spec, "one")
    weights = sum(value.numel() for value in pool[1].state_dict().values())
    assert Taught(source, teacher, 1.0, stored=True).stored_bytes(3) == 1000 + 2 * 10 * 30
    assert Taught(source, teacher, 1.0, stored=False).stored_bytes(3) == 1000 + 4 * weights


def test_the_loss_has_the_gradient_of_the_divergence_at_a_temperature():
    torch.manual_seed(0)
    images, answers = torch.randn(6, 1, 8, 8), (torch.randn(6, 10) / 4).softmax(1)
    models = [build_classifier("convnet", 1, 8, 10, width=8, generator=stream(0, "weights")) for _ in range(2)]
    train_classifier(models[0], lambda epoch: [(images, answers)], epochs=1, lr=1.0, momentum=0, weight_decay=0,
                     temperature=4.0)
    loss = 16 * F.kl_div((models[1](images) / 4).log_softmax(1), answers, reduction="batchmean")
    loss.backward()
    for learned, weight in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(learned, weight - weight.grad, rtol=1e-4, atol=1e-5)


def test_a_pool_is_opened_where_it_lies(digits, pool):
    opened = ClassifierPool.open(pool.dir)
    assert opened.table() == pool.table()
    assert opened.finished() == [1]
    assert opened.learned_from(digits.train)
    assert not opened.learned_from(digits.full_train)
    for index in range(len(pool)):
        assert all(torch.equal(*pair) for pair in zip(opened[index].parameters(), pool[index].parameters()))


@pytest.mark.parametrize("choice", ["last", "auto"])
def test_the_snapshot_that_answers(digits, pool, monkeypatch, choice):
    tried = []

    def evaluate(taught, dataset, model, ipc, sampling, **options):
        tried.append((taught.source, options["scored_on"], ipc))
        return SimpleNamespace(mean=50.0 if taught.teacher.networks[0] is chosen.pool[0] else 40.0)

    monkeypatch.setattr(teachers, "evaluate", evaluate)
    first, second = Prototypes(), Prototypes()
    chosen = Teachers(pool.dir, [], first, digits, choice=choice, temperature=2.0, engine=EAGER, protocol=PROTOCOLS["default"],
                      seed=0)
    answers = [chosen.teach(source, "rows", 1, "fixed").teacher.networks for source in (first, second)]
    assert answers == [[chosen.pool[0 if choice == "auto" else 1]]] * 2
    assert tried == ([(first, "held_out", 1)] * 2 if choice == "auto" else [])
    assert chosen.teach(first, "hard", 1, "fixed") is first


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    command(pool_match, "--output-dir", folder, "--tag", "pixels", "--method", "herding", "--ipc", 3, "--pool-members", 1,
            "--pool-epochs", 2, "--pool-snapshots", 2, "--eval-epochs", 1)
    return folder / "pixels"


def test_a_report_keeps_kinds_of_labels_apart(command, run):
    shared = ("--output-dir", run.parent, "--tag", "test", "--overwrite", "--ipc", 2, "--epochs", 2, "--min-steps", 2)
    command(validate, *shared, "--pretrain-weight", run, "--labels", "teacher", "hard", "rows", "--sampling", "fixed", "fresh",
            "--compare", "random", "--num-eval", 2, "--temperature", 3)
    rows = json.loads((run.parent / "test" / "report.json").read_text())
    assert [(row["labels"], row["source"], row["sampling"]) for row in rows] == [
        ("hard", "pixels", "fixed"), ("hard", "pixels", "fresh"), ("hard", "random real images", "fixed"),
        ("hard", "random real images", "fresh"), ("rows", "pixels", "fixed"), ("rows", "random real images", "fixed"),
        ("teacher", "pixels", "fresh"), ("teacher", "random real images", "fresh")]
    bytes_ = {(row["labels"], row["source"]): row["bytes"] for row in rows}
    assert bytes_["rows", "pixels"] == bytes_["hard", "pixels"] + 2 * 10 * 20
    assert all(("teacher" in row) == (row["labels"] != "hard") for row in rows)
    text = (run.parent / "test" / "report.md").read_text()
    parts = text.split("**labels of a teacher** (convnet of step ")
    assert len(parts) == 3
    assert "% of the test images, temperature 3; a row is kept with every image)" in parts[1]
    assert "it answers to every image that is drawn" in parts[2]


@pytest.mark.parametrize(("words", "named"), [
    (("--labels", "rows", "--sampling", "fresh"), "--labels rows needs --sampling fixed or representative"),
    (("--labels", "teacher", "--sampling", "fixed"), "--labels teacher needs --sampling fresh"),
    (("--labels", "teacher", "--held-out", "0.2"), "--teacher"),
    (("--labels", "teacher", "--teacher", "nowhere"), "nowhere"),
    (("--teacher", "nowhere"), "--teacher is for labels that it gives"),
    (("--labels", "teacher", "--compare", "random", "--data", "digits", "--pretrain-weight"), "--teacher"),
])
def test_labels_that_nobody_can_give(fails, run, words, named):
    source = () if words[-1] == "--pretrain-weight" else ("--pretrain-weight", run)
    words = words[:-1] if words[-1] == "--pretrain-weight" else words
    error = fails(2, validate, "--output-dir", run.parent, "--tag", "wrong", *source, *words)
    assert named in error
    assert error.count("\n") == 1
    assert not (run.parent / "wrong").exists()


def test_a_set_is_written_with_the_rows_of_a_teacher(command, run, pool, tmp_path):
    command(sample, "--pretrain-weight", run, "--ipc", 2, "--teacher", pool.dir, "--output-dir", tmp_path)
    kept = load_file(tmp_path / "set.safetensors")
    assert kept["logits"].dtype == torch.float16
    assert torch.equal(kept["logits"], Teacher.of(pool).logits(kept["images"]).half())


def test_a_file_that_describes_no_pool_is_named(tmp_path):
    (tmp_path / "pool.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe a pool"):
        ClassifierPool.open(tmp_path)
