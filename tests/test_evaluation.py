"""Students, protocols and statistics."""

import dataclasses
import functools
import math

import pytest
import torch
from accelerate import Accelerator
from prototypes import Prototypes, SoftPrototypes
from scipy import stats
from torch import nn
from torch.nn import functional as F

from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import Augment, Split
from gendistil.evaluation import (
    PROTOCOLS,
    SAMPLINGS,
    Protocol,
    Result,
    evaluate,
    evaluate_full,
    long_enough,
    protocol_for,
    student_batches,
    students,
    train_student,
    train_students,
)
from gendistil.sources import (
    RealImages,
    balanced_labels,
    check_fits,
    draw_set,
)
from pools import SCHEDULES, build_classifier, epoch_batches, train_classifier

QUICK = Protocol(epochs=2, min_steps=0, aug_type="none")


class TinyStudent(nn.Module):
    """A linear classifier that notes in which mode it was called."""

    modes: list

    def __init__(self, name, channels, size, num_classes, generator=None):
        super().__init__()
        self.classifier = nn.Linear(channels * size * size, num_classes)
        with torch.no_grad():
            self.classifier.weight.normal_(std=0.01, generator=generator)
            self.classifier.bias.zero_()
        TinyStudent.modes = []

    def embed(self, images):
        TinyStudent.modes.append((self.training, len(images)))
        return images.flatten(1)

    def forward(self, images):
        return self.classifier(self.embed(images))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(students, "build_classifier", TinyStudent)


def test_a_source_that_does_not_fit_names_both(digits):
    source = Prototypes()
    source.num_classes = 7
    with pytest.raises(UserError, match=r"results/x makes 7 classes of 1x8x8 images, but .* digits has 10 classes of 1x8x8"):
        check_fits(source, digits.spec, "results/x")
    with pytest.raises(UserError, match="the source makes 7 classes"):
        evaluate(source, digits)


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


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_fresh_images_are_drawn_in_the_precision_of_the_run_and_kept_ones_as_exported(digits, tiny, sampling):
    class Watched(Prototypes):
        def sample(self, labels, seed):
            self.half = torch.is_autocast_enabled("cpu")
            return super().sample(labels, seed)

    source, engine = Watched(), Engine(Accelerator(cpu=True, mixed_precision="bf16"))
    evaluate(source, digits, ipc=2, sampling=sampling, num_eval=1, protocol=QUICK, engine=engine)
    assert source.half == (sampling == "fresh")


def test_even_one_image_per_class_is_trained_on(digits, tiny):
    result = evaluate(Prototypes(), digits, ipc=1, num_eval=1, protocol=Protocol(epochs=1, min_steps=0, aug_type="none"))
    assert (result.images, result.epochs, result.steps) == (10, 1, 1)
    assert TinyStudent.modes[0] == (True, 10)
    result = evaluate(Prototypes(), digits, ipc=1, num_eval=1, protocol=Protocol(epochs=1, min_steps=5, aug_type="none"))
    assert (result.epochs, result.steps) == (5, 5)


@pytest.mark.parametrize("protocol", [QUICK, Protocol(epochs=2, min_steps=0, aug_type="none", looks=2, lessons="random")])
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
    protocol = Protocol(epochs=3, min_steps=0, looks=3, lessons="random", batch_size=16, aug_type="none")
    source = Prototypes()
    result = evaluate(source, digits, ipc=5, num_eval=1, protocol=protocol)
    assert result.accuracies == (30.0,)
    assert (result.images, result.steps) == (48, 9)
    assert {len(labels) for labels, _ in source.asked} == {16}


PUBLISHED = {
    "dc": Protocol(epochs=301, min_steps=0, batch_size=256, optimizer="sgd", lr=0.01, schedule="half", momentum=0.9,
                   weight_decay=5e-4, aug_type="none", aug_single=False, cutmix=0.0, looks=1, source="DC"),
    "dsa": Protocol(epochs=1001, min_steps=0, batch_size=256, optimizer="sgd", lr=0.01, schedule="half", momentum=0.9,
                    weight_decay=5e-4, aug_type="color_crop_cutout_flip_scale_rotate", aug_single=True, cutmix=0.0, looks=1,
                    source="DSA and DM"),
    "idc": Protocol(epochs=1000, min_steps=0, batch_size=64, optimizer="sgd", lr=0.01, schedule="step", momentum=0.9,
                    weight_decay=5e-4, aug_type="color_crop_flip_scale_rotate", aug_single=False, cutmix=0.5, looks=1,
                    source="IDC and DREAM"),
    "dim": Protocol(epochs=1000, min_steps=0, batch_size=128, optimizer="sgd", lr=0.01, schedule="constant", momentum=0.9,
                    weight_decay=5e-4, aug_type="color_crop", aug_single=False, cutmix=0.0, looks=5, lessons="random",
                    source="DiM"),
    "ncfm": Protocol(epochs=2000, min_steps=0, batch_size=128, optimizer="adamw", lr=0.001, schedule="fifths", momentum=0.0,
                     weight_decay=0.01, aug_type="color_crop_flip_scale_rotate", aug_single=False, cutmix=0.5, looks=1,
                     source="NCFM"),
    "bptt": Protocol(epochs=1, min_steps=3000, batch_size=100, optimizer="adam", lr=0.001, schedule="constant", momentum=0.0,
                     weight_decay=0.0, aug_type="flip_rotate", aug_single=True, cutmix=0.0, looks=1,
                     source="RaT-BPTT"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_protocols(name):
    assert PROTOCOLS[name] == protocol_for(name, "cifar10") == PUBLISHED[name]


def test_what_a_protocol_sets_otherwise_for_a_data_set():
    mnist = dataclasses.replace(PUBLISHED["dc"], epochs=1001, aug_type="crop_scale_rotate", aug_single=True)
    assert protocol_for("dc", "mnist") == mnist
    assert protocol_for("idc", "mnist") == dataclasses.replace(PUBLISHED["idc"], cutmix=0.0)
    assert protocol_for("dsa", "mnist") == PUBLISHED["dsa"]
    assert protocol_for("default", "mnist") == Protocol()


@pytest.mark.parametrize(("schedule", "epochs", "runs"), [
    ("half", 301, {1: 152, 0.1: 149}),                # utils.py of DC: a rate of 0.1 after epoch 151, counted from 0
    ("half", 1001, {1: 502, 0.1: 499}),
    ("step", 1000, {1: 666, 0.2: 167, 0.04: 167}),    # train.py of IDC: milestones at 666 and 833
    ("fifths", 2001, {1: 400, 0.5: 400, 0.25: 400, 0.125: 400, 0.0625: 401}),  # evaluate.py of NCFM: 400, 800, 1200, 1600
])
def test_the_rate_falls_where_the_published_code_lets_it_fall(schedule, epochs, runs):
    factors = [round(SCHEDULES[schedule](epoch, epochs), 9) for epoch in range(epochs)]
    assert {factor: factors.count(factor) for factor in dict.fromkeys(factors)} == runs
    assert factors == sorted(factors, reverse=True)


def test_without_cutmix_nothing_is_drawn_for_it(digits):
    some, augment = digits.train[:50], Augment("color_crop", digits.spec)

    def epoch(*cutmix):
        generator = stream(0)
        batches = list(epoch_batches(some.images, some.labels, digits.spec, augment, 20, generator, *cutmix))
        return batches, generator.get_state()

    (plain, before), (none, after), (mixed, _) = epoch(), epoch(0.0), epoch(1.0)
    assert torch.equal(before, after)
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(plain, none))
    assert [targets.dtype for _, targets in plain] == [torch.int64] * 3
    assert [targets.shape for _, targets in mixed] == [(20, 10), (20, 10), (10, 10)]


def test_soft_labels_stay_with_their_images(digits):
    some = digits.train[:50]
    soft = F.one_hot(some.labels, 10).float()
    hard_rows, soft_rows = (list(epoch_batches(some.images, targets, digits.spec, None, 20, stream(0)))
                            for targets in (some.labels, soft))
    for (images, labels), (same, targets) in zip(hard_rows, soft_rows):
        assert torch.equal(images, same)
        assert torch.equal(F.one_hot(labels, 10).float(), targets)
    losses = []
    for targets in (some.labels, soft):
        torch.manual_seed(0)
        model = TinyStudent("tiny", 1, 8, 10, generator=stream(0))
        losses.append(train_classifier(model, lambda epoch, targets=targets: epoch_batches(
            some.images, targets, digits.spec, None, 20, stream(0, epoch)), epochs=3))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_students_learn_from_the_soft_labels_of_a_source(digits, tiny, monkeypatch, sampling, cutmix):
    seen = []
    real_training = students.train_classifier
    monkeypatch.setattr(students, "train_classifier", lambda model, batches, **options: (
        seen.extend(targets for epoch in range(2) for _, targets in batches(epoch)),
        real_training(model, batches, **options)))
    easy = dataclasses.replace(digits, test=Split(*draw_set(Prototypes(), 20, seed=99)))
    protocol = Protocol(epochs=30, min_steps=0, aug_type="none", cutmix=cutmix)
    result = evaluate(SoftPrototypes(), easy, ipc=5, sampling=sampling, num_eval=1, protocol=protocol)
    assert result.mean > 80
    assert all(targets.shape[1] == 10 and targets.is_floating_point() for targets in seen)
    torch.testing.assert_close(torch.cat(seen).sum(1), torch.ones(100))
    if not cutmix:
        assert all(0.89 < float(value) < 0.91 for targets in seen for value in targets.amax(1))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_random_labels_have_the_targets_of_their_images(digits, tiny, monkeypatch, cutmix):
    seen, source = [], SoftPrototypes()
    real_batch = students.prepare_batch
    monkeypatch.setattr(students, "prepare_batch", lambda images, targets, *rest: (
        seen.append(targets), real_batch(images, targets, *rest))[1])
    protocol = Protocol(epochs=2, min_steps=0, lessons="random", batch_size=16, aug_type="none", cutmix=cutmix)
    evaluate(source, digits, ipc=5, num_eval=1, protocol=protocol)
    assert len(seen) == len(source.asked) == 6
    assert all(torch.equal(targets, source.targets(*asked)) for targets, asked in zip(seen, source.asked))


def test_one_operation_at_a_time(digits, tiny, monkeypatch):
    made = []
    monkeypatch.setattr(students, "Augment", lambda *args: made.append(args) or Augment(*args))
    for lessons in ("set", "random"):
        protocol = Protocol(epochs=1, min_steps=0, aug_type="crop_scale_rotate", aug_single=True, lessons=lessons)
        evaluate(Prototypes(), digits, ipc=2, num_eval=1, protocol=protocol)
    evaluate_full(digits, num_eval=1, protocol=protocol)
    assert made == [("crop_scale_rotate", digits.spec, True)] * 3


def test_the_rate_of_an_epoch_is_that_of_the_schedule(digits):
    protocol = Protocol(epochs=5, min_steps=0, batch_size=60, aug_type="none", schedule="fifths", lr=0.1, momentum=0.0,
                        weight_decay=0.0)
    student, by_hand = (build_classifier("mlp", 1, 8, 10, generator=stream(0)) for _ in range(2))
    some = digits.train[:60]
    batches = lambda epoch: epoch_batches(some.images, some.labels, digits.spec, None, 60, stream(1, epoch))
    students.train_student(student, batches, digits.test, digits.spec, protocol)
    for epoch in range(5):
        for images, labels in batches(epoch):
            found = torch.autograd.grad(F.cross_entropy(by_hand(images), labels), list(by_hand.parameters()))
            for weight, gradient in zip(by_hand.parameters(), found):
                weight.data -= 0.1 * 0.5**epoch * gradient
    for one, other in zip(student.parameters(), by_hand.parameters()):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "make"), [
    ("sgd", functools.partial(torch.optim.SGD, lr=0.01, momentum=0.5, weight_decay=0.1)),
    ("adam", functools.partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)),
    ("adamw", functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1))])
def test_a_protocols_optimizer_takes_the_steps(digits, name, make):
    protocol = Protocol(epochs=1, min_steps=0, batch_size=20, aug_type="none", schedule="constant", optimizer=name, lr=0.01,
                        momentum=0.5, weight_decay=0.1)
    student, expected = (TinyStudent("tiny", 1, 8, 10, generator=stream(0, "weights")) for _ in range(2))
    batches = student_batches(lambda epoch: (digits.train.images[:60], digits.train.labels[:60]), digits.spec, protocol, seed=0)
    train_student(student, batches, digits.test, digits.spec, protocol)
    optimizer = make(expected.parameters())
    for images, labels in batches(0):
        optimizer.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        optimizer.step()
    for value, same in zip(student.parameters(), expected.parameters()):
        torch.testing.assert_close(value, same)


def test_a_student_by_itself_is_the_one_of_an_evaluation(digits, tiny):
    images, labels = draw_set(Prototypes(), 3, seed=4)
    protocol = long_enough(Protocol(epochs=1, min_steps=5, batch_size=16, aug_type="none"), len(images))
    assert protocol.epochs == 3  # of two steps each
    model = TinyStudent("tiny", 1, 8, 10, generator=stream(4, "student's weights"))
    batches = student_batches(lambda epoch: (images, labels), digits.spec, protocol, seed=4)
    alone = train_student(model, batches, digits.test, digits.spec, protocol)
    assert alone.dim() == 0
    result = evaluate(Prototypes(), digits, ipc=3, sampling="fixed", num_eval=1, seed=4, protocol=protocol)
    assert result.accuracies == (alone.item(),)


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
@pytest.mark.parametrize("soft", [False, True])
def test_students_side_by_side_learn_what_each_learns_alone(digits, name, soft):
    source, protocol = SoftPrototypes() if soft else Prototypes(), Protocol(epochs=2, min_steps=0, batch_size=20, cutmix=0.5)

    def parts():
        models = [build_classifier(name, 1, 8, 10, width=8, generator=stream(seed, "weights")) for seed in range(3)]
        sets = [draw_set(source, 3, seed=seed) for seed in range(3)]  # 30 images: the second batch is short
        return models, [student_batches(lambda epoch, drawn=drawn: drawn, digits.spec, protocol, seed=seed)
                        for seed, drawn in enumerate(sets)]

    alone, batches = parts()
    scores = torch.stack([train_student(*pair, digits.test, digits.spec, protocol) for pair in zip(alone, batches)])
    together, batches = parts()
    assert torch.allclose(train_students(together, batches, digits.test, digits.spec, protocol), scores, atol=1)
    for one, other in zip(alone, together):
        for (key, value), same in zip(one.state_dict().items(), other.state_dict().values()):
            torch.testing.assert_close(value, same, rtol=1e-3, atol=1e-4, msg=key)


def test_an_evaluation_of_students_side_by_side(digits):
    settings = {"ipc": 2, "model_name": "lenet", "num_eval": 3, "protocol": QUICK}
    alone, together = (evaluate(Prototypes(), digits, together=count, **settings) for count in (1, 2))
    assert together.accuracies == pytest.approx(alone.accuracies, abs=1)


def test_models_are_trained_one_after_the_other_on_growing_sets(digits):
    """Class after class, as an evaluation of one's own may want it: its caller holds no loop of a training."""
    images, labels = draw_set(Prototypes(), 5, seed=0)
    real, truth = draw_set(Prototypes(), 20, seed=1)
    protocol, scores = Protocol(epochs=30, min_steps=0, aug_type="none"), []
    for known in (2, 6, 10):
        memory, seen = labels < known, truth < known
        batches = student_batches(lambda epoch, rows=memory: (images[rows], labels[rows]), digits.spec, protocol, seed=0)
        model = TinyStudent("tiny", 1, 8, 10, generator=stream(0, known))
        split = Split(real[seen], truth[seen])
        scores.append(float(train_student(model, batches, split, digits.spec, protocol)))
        assert TinyStudent.modes[0] == (True, min(5 * known, 64))
    assert min(scores) > 80


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
