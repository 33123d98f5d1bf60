"""Sources, students, statistics and reports."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from scipy import stats
from torch import nn

from common.errors import UserError
from common.rng import counter_normal
from data import Split, load_dataset, to_signed, to_uint8
from evaluation import (
    SAMPLINGS,
    DistilledDataset,
    Protocol,
    RealImages,
    Result,
    balanced_labels,
    draw_set,
    evaluate,
    evaluate_full,
    sources,
    students,
)
from evaluation.report import KEYS, main, markdown, plot, read_report, replace_section
from evaluation.sources import check_fits
from generators.base import index_within_class

QUICK = Protocol(epochs=2, min_steps=0, aug_type="none")


class Prototypes:
    """A source whose classes are told apart easily: a lit row or column per class, in noise. It remembers what was asked."""

    num_classes, channels, size = 10, 1, 8

    def __init__(self):
        self.asked = []

    def sample(self, labels, seed):
        self.asked.append((labels.clone(), seed))
        images = -1 + 0.1 * counter_normal(seed, labels, index_within_class(labels), 64).view(-1, 1, 8, 8)
        for image, label in zip(images, labels.tolist()):
            if label < 5:
                image[:, label] = 1
            else:
                image[..., label - 5] = 1
        return images


class TinyStudent(nn.Module):
    """A linear classifier that notes in which mode it was called."""

    modes: list

    def __init__(self, name, channels, size, num_classes, generator=None):
        super().__init__()
        self.linear = nn.Linear(channels * size * size, num_classes)
        with torch.no_grad():
            self.linear.weight.normal_(std=0.01, generator=generator)
        TinyStudent.modes = []

    def forward(self, images):
        TinyStudent.modes.append((self.training, len(images)))
        return self.linear(images.flatten(1))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(students, "build_classifier", TinyStudent)


@pytest.mark.parametrize("ipc", [1, 3, 137])
def test_a_set_is_exactly_ipc_images_of_every_class(ipc):
    images, labels = draw_set(Prototypes(), ipc, seed=5)
    assert images.shape == (10 * ipc, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(labels, balanced_labels(10, ipc))
    assert torch.bincount(labels).tolist() == [ipc] * 10


def test_a_larger_set_contains_the_smaller_one():
    few, many = (draw_set(Prototypes(), ipc, seed=5)[0].unflatten(0, (10, ipc)) for ipc in (2, 7))
    assert torch.equal(few, many[:, :2])


def test_real_images_are_distinct_images_of_the_class(digits):
    real = RealImages(digits.train, 10)
    images, labels = draw_set(real, real.max_ipc, seed=1)
    known = {(image.numpy().tobytes(), int(label)) for image, label in zip(digits.train.images, digits.train.labels)}
    drawn = [(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels)]
    assert set(drawn) <= known
    assert len(set(drawn)) == len(drawn)
    assert not torch.equal(images, draw_set(real, real.max_ipc, seed=2)[0])


@pytest.mark.parametrize(("ipc", "at_once"), [(1, 4096), (7, 4096), (7, 300), (60, 1)])
def test_a_representative_set_is_chosen_among_the_images_of_its_seed(digits, monkeypatch, ipc, at_once):
    monkeypatch.setattr(sources, "_AT_ONCE", at_once)
    real = RealImages(digits.train, 10)
    images, labels = draw_set(real, ipc, seed=1, choice="representative")
    assert torch.equal(labels, balanced_labels(10, ipc))
    assert torch.equal(images, draw_set(real, ipc, seed=1, choice="representative")[0])
    if ipc > 1:  # one image of each class is the same where the candidates are
        assert not torch.equal(images, draw_set(real, ipc, seed=2, choice="representative")[0])
    candidates = draw_set(real, real.max_ipc, seed=1)[0].unflatten(0, (10, -1)).flatten(2)
    for chosen, among in zip(images.unflatten(0, (10, ipc)).flatten(2), candidates):
        assert (chosen[:, None] == among).all(-1).any(1).all()
        assert len(chosen.unique(dim=0)) == ipc


def test_a_representative_image_is_nearer_to_its_class_mean(digits):
    real = RealImages(digits.train, 10)
    means = torch.stack([digits.train.images[digits.train.labels == label].float().mean(0) for label in range(10)])
    distance = lambda choice: (draw_set(real, 1, 0, choice=choice)[0] - means).square().mean()
    assert distance("representative") < 0.7 * distance("fixed")


def test_real_images_depend_on_seed_label_and_index_alone(digits):
    real = RealImages(digits.train, 10)
    labels = torch.tensor([4, 4, 0, 9, 4])
    images = real.sample(labels, 3)
    torch.testing.assert_close(images[[2, 3]], real.sample(labels[[2, 3]], 3))
    torch.testing.assert_close(images[[0, 1, 4]], real.sample(torch.tensor([4, 4, 4]), 3))


def test_real_images_refuse_more_than_there_are(digits):
    split = Split(digits.train.images[:50], digits.train.labels[:50])
    real = RealImages(split, 10)
    assert real.max_ipc < 20
    with pytest.raises(UserError, match=r"class \d has \d real images, fewer than the 20 asked for: lower --ipc"):
        draw_set(real, 20, seed=0)


def test_a_source_that_does_not_fit_names_both(digits):
    source = Prototypes()
    source.num_classes = 7
    with pytest.raises(UserError, match=r"results/x makes 7 classes of 1x8x8 images, but .* digits has 10 classes of 1x8x8"):
        check_fits(source, digits.spec, "results/x")
    with pytest.raises(UserError, match="the source makes 7 classes"):
        evaluate(source, digits)


def test_distilled_dataset_holds_the_set_of_its_seed():
    items = DistilledDataset(Prototypes(), ipc=3, seed=4)
    images, labels = draw_set(Prototypes(), 3, seed=4)
    assert len(items) == 30
    assert [label for _, label in items] == labels.tolist()
    assert torch.equal(torch.stack([image for image, _ in items]), to_signed(images))
    batch, _ = next(iter(torch.utils.data.DataLoader(items, batch_size=8)))
    assert batch.shape == (8, 1, 8, 8)
    plain = DistilledDataset(Prototypes(), ipc=3, seed=4, transform=lambda image: image)
    assert torch.equal(plain[29][0], images[29])


def test_fixed_sampling_draws_one_set_per_student(digits, tiny):
    source = Prototypes()
    evaluate(source, digits, ipc=3, sampling="fixed", num_eval=2, seed=7, protocol=QUICK)
    assert [seed for _, seed in source.asked] == [7, 8]


def test_fresh_sampling_draws_a_balanced_set_every_epoch(digits, tiny):
    source = Prototypes()
    evaluate(source, digits, ipc=3, sampling="fresh", num_eval=2, protocol=QUICK)
    assert len({seed for _, seed in source.asked}) == 4
    assert all(torch.equal(labels, balanced_labels(10, 3)) for labels, _ in source.asked)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_students_see_the_images_that_are_exported(digits, tiny, monkeypatch, sampling):
    seen = []

    def spy(images, labels, *rest):
        seen.append((images, labels))
        return real_epoch(images, labels, *rest)

    real_epoch = students.epoch_batches
    monkeypatch.setattr(students, "epoch_batches", spy)
    evaluate(Prototypes(), digits, ipc=2, sampling=sampling, num_eval=1, seed=9, protocol=QUICK)
    exported = draw_set(Prototypes(), 2, seed=9, choice="fixed" if sampling == "fresh" else sampling)[0]
    assert [images.dtype for images, _ in seen] == [torch.uint8] * 2
    assert [torch.equal(images, exported) for images, _ in seen] == [sampling != "fresh"] * 2


def test_even_one_image_per_class_is_trained_on(digits, tiny):
    result = evaluate(Prototypes(), digits, ipc=1, num_eval=1, protocol=Protocol(epochs=1, min_steps=0, aug_type="none"))
    assert (result.images, result.epochs, result.steps) == (10, 1, 1)
    assert TinyStudent.modes[0] == (True, 10)
    result = evaluate(Prototypes(), digits, ipc=1, num_eval=1, protocol=Protocol(epochs=1, min_steps=5, aug_type="none"))
    assert (result.epochs, result.steps) == (5, 5)


@pytest.mark.parametrize("protocol", [QUICK, Protocol(epochs=2, min_steps=0, aug_type="none", looks=2, random_labels=True)])
def test_students_are_scored_in_eval_mode(digits, tiny, protocol):
    evaluate(Prototypes(), digits, ipc=7, num_eval=1, protocol=protocol)
    scored = [size for training, size in TinyStudent.modes if not training]
    assert sum(scored) == protocol.looks * 360
    assert all(training for training, size in TinyStudent.modes[:-len(scored)] if size <= 64)


def test_model_selection_never_touches_the_test_set(digits, tiny):
    blind = dataclasses.replace(digits, test=None)
    evaluate(Prototypes(), blind, ipc=1, num_eval=1, protocol=QUICK, scored_on="held_out")
    assert sum(size for training, size in TinyStudent.modes if not training) == len(digits.held_out)
    result = evaluate_full(blind, num_eval=1, protocol=QUICK, scored_on="held_out")
    assert result.images == len(digits.train)


def test_the_same_seed_gives_the_same_accuracy(digits):
    small = dataclasses.replace(digits, test=digits.test[:100])
    run = lambda seed, n: evaluate(RealImages(digits.train, 10), small, ipc=2, num_eval=n, seed=seed, protocol=QUICK).accuracies
    before = torch.get_rng_state()
    first = run(1, 2)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert run(1, 1) + run(2, 1) == first


def test_a_student_learns(digits, tiny):
    easy = dataclasses.replace(digits, test=Split(*draw_set(Prototypes(), 20, seed=99)))
    result = evaluate(Prototypes(), easy, ipc=5, num_eval=1, protocol=Protocol(epochs=30, min_steps=0, aug_type="none"))
    assert result.mean > 90


def test_whole_training_set(digits, tiny):
    result = evaluate_full(digits, num_eval=2, protocol=QUICK)
    assert (result.n, result.images, result.steps) == (2, 1437, 2 * math.ceil(1437 / 64))


def test_published_protocol_takes_the_best_look(digits, tiny, monkeypatch):
    scores = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(students, "accuracy", lambda *_, **__: torch.tensor(next(scores)))
    protocol = Protocol(epochs=3, min_steps=0, looks=3, random_labels=True, batch_size=16, aug_type="none")
    source = Prototypes()
    result = evaluate(source, digits, ipc=5, num_eval=1, protocol=protocol)
    assert result.accuracies == (30.0,)
    assert (result.images, result.steps) == (48, 9)
    assert {len(labels) for labels, _ in source.asked} == {16}


def test_statistics_by_hand():
    values = (90.0, 92.0, 97.0)
    result = Result(values, images=10, epochs=1, steps=1, seconds=1.0)
    assert result.mean == pytest.approx(93)
    assert result.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert result.ci95 == pytest.approx(4.302652729911275 * math.sqrt(13) / math.sqrt(3))  # t of 2 degrees of freedom
    low, high = stats.t.interval(0.95, 2, loc=93, scale=stats.sem(values))
    assert (93 - result.ci95, 93 + result.ci95) == (pytest.approx(low), pytest.approx(high))
    single = Result((90.0,), images=10, epochs=1, steps=1, seconds=1.0)
    assert (single.mean, single.std, single.ci95) == (90, None, None)


def make_row(**changes):
    row = {"source": "gan", "data": "digits", "sampling": "fresh", "ipc": 10, "model": "convnet"}
    return row | Result((90.0, 92.0), images=100, epochs=1, steps=1, seconds=1.0).row() | changes


def test_rows_have_the_keys_of_a_report():
    assert set(KEYS) <= set(make_row())


def test_a_table_has_one_line_per_source_and_one_column_per_ipc(tmp_path):
    rows = [make_row(), make_row(ipc=1, mean=50.0, n=1, std=None, ci95=None), make_row(source="match", mean=95.0),
            make_row(source="all", sampling="all", ipc=None), make_row(model="resnet18"), make_row(protocol="dim")]
    text = markdown(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["source", "sampling", "students", "IPC 1", "IPC 10", "all images"]
    assert lines[2] == ["gan", "fresh", "1-2", "50.00", "91.00 ± 1.41 (±12.71)", ""]
    assert lines[3][:5] == ["match", "fresh", "2", "", "95.00 ± 1.41 (±12.71)"]
    assert "**resnet18 on digits**, accuracy on the test set in per cent, scored once" in text
    assert text.count("best accuracy seen in five looks at the test set") == 1
    plot(rows, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_reports_are_merged(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([make_row(source=name)]))
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output",
                                      str(tmp_path / "table.md")])
    main()
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out in text
    assert all(f"| {name} " in text for name in "ab")
    assert "`python -m evaluation.report " in text


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '[{"source": "gan"}]', "[1]"])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"report\.json"):
        read_report(path)


def test_quantisation_is_what_a_student_sees():
    images, _ = draw_set(Prototypes(), 2, seed=0)
    assert torch.equal(to_uint8(to_signed(images)), images)


def test_a_table_replaces_only_its_section():
    document = "# Title\n<!-- a -->\nold\n<!-- /a -->\ntext\n<!-- b -->\nkept\n<!-- /b -->\n"
    assert replace_section(document, "a", "new\n") == document.replace("old", "new")
    with pytest.raises(UserError, match="--section c"):
        replace_section(document, "c", "new\n")
