"""Objectives against the published losses, selectors, and what a matching step sees."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from parity_fixtures import FOLDER, fixture_state, hash_images, load_data
from prototypes import matcher_for
from torch import nn
from torch.nn import functional as F

from gendistil.common.engine import EAGER
from gendistil.common.errors import UserError
from gendistil.common.rng import counter_normal, stream
from gendistil.data import standardise, to_signed
from gendistil.matching import (
    OBJECTIVES,
    SELECTORS,
    SETTINGS,
    GeneratorLearner,
    Objective,
    PixelLearner,
    initial,
    methods,
)
from gendistil.matching.objectives import (
    METRICS,
    Eyes,
    characteristic,
    class_means,
    energy,
    gradient_distance,
    gradients,
    log_probabilities,
    moments,
)
from gendistil.sources import PixelSet
from generators import GAN, RECIPES, load_weights
from pools import RandomPool, build_classifier

LOSSES = json.loads((FOLDER / "losses/losses.json").read_text())
STEPS = load_data("losses/matching_steps")


def wave(shape, t, amp, kind="A"):
    """The fixture's recipes A and B (see losses.json)."""
    j = np.arange(np.prod(shape))
    a = np.sin(0.7 * j + 1.3 * t)
    value = a if kind == "A" else 0.6 * a + 0.8 * np.sin(0.45 * j + 0.9 * t + 0.5)
    return torch.from_numpy((amp * value).astype(np.float32)).reshape(shape)


def case(name):
    return next(c for c in LOSSES["cases"] if c["id"] == name)


@pytest.mark.parametrize("network", ["ConvNet", "ConvNetLN"])
def test_dc_distance_of_gradient_lists(network):
    real, fake = ([wave(e["shape"], e["t"], e["amp"], kind) for e in LOSSES["tensor_lists"][network]] for kind in "AB")
    expected = case(f"vico_match_loss_ours_{network}")
    assert float(gradient_distance(real, fake, "dc")) == pytest.approx(expected["expected_float64"], rel=expected["rtol"])


@pytest.mark.parametrize("metric", ["mse", "l1", "l1_mean", "cos"])
@pytest.mark.parametrize("shape", [(128, 3, 3, 3), (128, 16, 16), (10, 2048), (512,)])
def test_distances(metric, shape):
    expected = case(f"dist_{metric}_{'x'.join(map(str, shape))}")
    got = METRICS[metric].distance(wave(shape, 0, 1, "A"), wave(shape, 0, 1, "B"))
    assert float(got) == pytest.approx(expected["expected_float64"], rel=expected["rtol"])


def test_logit_term():
    j = np.arange(80)
    waves = 3 * np.sin(0.31 * j), 2.5 * np.sin(0.47 * j + 0.6)
    real, fake = (torch.from_numpy(x.astype(np.float32)).view(8, 10) for x in waves)
    expected = case("dim_logit_match")["expected_float64"]
    assert float(OBJECTIVES["logit"].weight * log_probabilities(real, fake)) == pytest.approx(expected, rel=1e-5)


def test_mean_embedding_term_summed_over_classes():
    real = torch.from_numpy(np.sin(0.31 * np.arange(10 * 16 * 64))).view(10, 16, 64)
    fake = torch.from_numpy(np.sin(0.53 * np.arange(10 * 4 * 64) + 0.7)).view(10, 4, 64)
    assert float(class_means(real, fake) * 10) == pytest.approx(case("dm_loss_per_class")["expected_float64"], rel=1e-5)


@pytest.mark.parametrize(("name", "match", "metric"), [
    *((f"idc_grad_{metric}", "grad", metric) for metric in ("mse", "l1", "l1_mean", "cos")), ("vico_dc_ours", "grad", "dc"),
    ("dim_logit_convnet", "logit", None)])
def test_a_whole_step_of_matching(name, match, metric):
    expected = next(c for c in STEPS.json["cases"] if c["id"] == name)
    model = build_classifier("convnet", 3, 32, 10)
    published = "vico_ConvNet_c3" if name.startswith("vico") else "cls_convnet"
    load_weights(model, dict(fixture_state(published, "hash", convs_first=name.startswith("vico"))))
    real = hash_images([6, 3, 32, 32], 1000003)
    fake = hash_images([4, 3, 32, 32], 1000004).requires_grad_()
    options = {"metric": metric} if metric else {}
    loss = OBJECTIVES[match].function(Eyes(model, EAGER), real[None], fake[None], torch.tensor([3]), **options)
    loss = loss * (OBJECTIVES[match].weight if match == "logit" else 1)  # DiM's is in its figure
    assert loss.item() == pytest.approx(expected["expected_float64"], rel=expected["rtol_loss"])
    if expected["grad_npz_key"]:
        wanted = torch.from_numpy(STEPS.arrays[expected["grad_npz_key"]])
        (got,) = torch.autograd.grad(loss, fake)
        assert (got - wanted).abs().max() <= expected["tol_grad_relative_to_max"] * wanted.abs().max()


@pytest.mark.parametrize("differentiable", [True, False])
def test_gradients_are_each_class_by_itself(differentiable):
    model = build_classifier("convnet", 1, 8, 5, width=8)
    images, labels = torch.randn(3, 4, 1, 8, 8, requires_grad=differentiable), torch.tensor([0, 2, 4])
    for index, label in enumerate(labels):
        loss = F.cross_entropy(model(images[index]), label.expand(4))
        for one, every in zip(torch.autograd.grad(loss, model.parameters()), gradients(model, images, labels)):
            torch.testing.assert_close(one, every[index], atol=1e-5, rtol=1e-4)


def characteristic_of_step_0(real, fake):
    return characteristic(real, fake, stream(0, "frequencies"))


@pytest.mark.parametrize("criterion", [moments, energy, class_means, characteristic_of_step_0])
def test_distribution_criteria_vanish_on_equals_and_see_shift_and_spread(criterion):
    x = torch.randn(2, 200, 12, generator=stream(0, "x"))
    alike = torch.randn(2, 200, 12, generator=stream(1, "x"))
    fake = alike.clone().requires_grad_()
    assert criterion(x, fake).item() < 0.3 * criterion(x, fake + 1).item()
    assert criterion is energy or float(criterion(x, x)) < 1e-4
    if criterion is not class_means:
        assert criterion(x, fake).item() < 0.3 * criterion(x, 0.2 * fake).item()
    criterion(x, fake).backward()
    assert fake.grad.isfinite().all()


def test_the_formulas_of_the_distances_of_embeddings():
    real, fake = torch.randn(2, 7, 5), 2 * torch.randn(2, 4, 5) + 1
    own = lambda x: torch.cdist(x, x).sum((1, 2)) / (x.shape[1] * (x.shape[1] - 1))
    expected = ((2 * torch.cdist(real, fake).mean((1, 2)) - own(real) - own(fake)) / own(real)).mean()
    torch.testing.assert_close(energy(real, fake), expected)
    torch.testing.assert_close(class_means(real, fake), (real.mean(1) - fake.mean(1)).square().sum(1).mean())


def test_energy_loses_no_digits_to_the_distance_of_a_point_to_itself():
    real, fake = torch.randn(2, 2, 40, 500, generator=torch.Generator().manual_seed(0)) * 3 + 2

    def gradient(dtype):
        points = fake.to(dtype).requires_grad_()
        return torch.autograd.grad(energy(real.to(dtype), points), points)[0].double()

    exact = gradient(torch.float64)
    assert (gradient(torch.float32) - exact).norm() < 5e-6 * exact.norm()


def test_energy_of_a_single_image_is_its_distance_from_the_real_ones():
    real, fake = torch.randn(2, 6, 5), torch.randn(2, 1, 5, requires_grad=True)
    energy(real, fake).backward()
    assert fake.grad.isfinite().all()
    moved = (fake - 0.1 * fake.grad).detach()
    assert (real - moved).norm(dim=-1).mean() < (real - fake).norm(dim=-1).mean()


def test_energy_has_a_finite_gradient_at_repeated_points():
    fake = torch.zeros(1, 4, 32, requires_grad=True)
    energy(torch.randn(1, 6, 32), fake).backward()
    assert fake.grad.isfinite().all()


class Pool(RandomPool):
    """One untrained classifier."""

    def __init__(self, dataset):
        super().__init__(dataset)
        spec = dataset.spec
        model = build_classifier("convnet", spec.channels, spec.size, spec.num_classes, width=8)
        self.model = model.eval().requires_grad_(False)

    def draw(self, generator):
        return self.model


@pytest.mark.parametrize("select", SELECTORS)
def test_selected_images_are_of_the_class_and_refresh_when_due(digits, select):
    options = {"interval": 5, "candidates": 40} if SELECTORS[select].options else {}
    selector = SELECTORS[select](digits.train, 10, 6, 0, **options)
    selector.pool = Pool(digits)
    classes = torch.tensor([7, 2])
    rows = selector.indices(classes, 0)
    assert rows.shape == (2, 6)
    assert (digits.train.labels[rows] == classes[:, None]).all()
    assert all(len(row.unique()) == 6 for row in rows) or select == "dream"
    assert torch.equal(selector.indices(classes, 0), rows)
    assert torch.equal(selector.indices(classes, 4), rows) == (select == "dream")
    assert not torch.equal(selector.indices(classes, 5), rows)


def test_mean_embeddings_are_matched_beside_gradients_in_the_same_metric(digits):
    network, labels = Pool(digits).model, torch.tensor([3, 5])
    rows = torch.stack([torch.nonzero(digits.train.labels == label)[:8, 0] for label in labels])
    images = standardise(to_signed(digits.train.images[rows.flatten()]), digits.spec).unflatten(0, rows.shape)
    real, fake = images.split(4, 1)
    means = [network.embed(x.flatten(0, 1)).unflatten(0, (2, 4)).mean(1) for x in (real, fake)]
    for metric, apart in (("mse", (means[0] - means[1]).square().sum(-1)), ("l1", (means[0] - means[1]).abs().sum(-1)),
                          ("cos", 1 - torch.cosine_similarity(*means))):
        loss, both = (OBJECTIVES["grad"].function(Eyes(network), real, fake, labels, metric, weight) for weight in (0, 3))
        torch.testing.assert_close(both, loss + 3 * apart.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("match", [name for name, row in OBJECTIVES.items() if row.paired != "real" and row.per != "training"])
def test_every_objective_moves_the_generator_and_nothing_else(digits, match):
    gan = GAN(Accelerator(cpu=True), digits.spec, dataclasses.replace(RECIPES["pyramid"], width=16), 0)
    pool = Pool(digits)
    matcher = matcher_for(GeneratorLearner(gan, digits), digits, pool, match, match_classes=2, match_batch=4,
                          aug_type="color_crop_cutout", aug_setting="image")
    loss = sum(matcher.parts(0))
    loss.backward()
    assert loss.dim() == 0
    assert loss.detach() > 0 or match == "energy"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gan.generator.parameters())
    assert all(p.grad is None for p in [*gan.critic.parameters(), *pool.model.parameters()])


@pytest.fixture
def gan(digits):
    return GAN(Accelerator(cpu=True), digits.spec, dataclasses.replace(RECIPES["pyramid"], width=16), 0)


def matcher_of(gan, digits, **settings):
    pool = settings.pop("pool", None) or Pool(digits)
    return matcher_for(GeneratorLearner(gan, digits), digits, pool, **{
        "match": "energy", "match_classes": 2, "match_batch": 4, "aug_setting": "image", "select_interval": 5, **settings})


@pytest.mark.parametrize("match", [name for name, row in OBJECTIVES.items() if row.embeds])
def test_embeddings_that_a_pool_keeps_stand_for_images(gan, digits, match, monkeypatch):
    matcher = matcher_of(gan, digits, match=match, match_real=10**6)
    asked = []
    embed = matcher.pool.embed
    monkeypatch.setattr(matcher.pool, "embed", lambda network, rows, whole: asked.append(rows) or embed(network, rows, whole))
    sum(matcher.parts(0)).backward()
    smallest = int(torch.bincount(digits.train.labels).min())
    (rows,) = asked
    assert len(rows) == 2 * smallest
    assert len(rows.unique()) == len(rows)
    assert all(p.grad.isfinite().all() for p in gan.generator.parameters())


def test_images_are_selected_before_the_network_of_a_step_is_drawn(gan, digits, monkeypatch):
    """A pool that mixes networks makes one in place of the one that it drew before."""
    matcher, asked = matcher_of(gan, digits, select="dream"), []
    draw = matcher.pool.draw
    monkeypatch.setattr(matcher.pool, "draw", lambda generator: asked.append(generator.initial_seed()) or draw(generator))
    sum(matcher.parts(0))
    assert asked == [each.initial_seed() for each in (stream(0, "dream", 0), gan.stream("member", 0))]


@pytest.mark.parametrize(("settings", "message"), [
    ({"match": "logit"}, "--match mean, moments, energy, cf"), ({"aug_type": "crop"}, "add --no-match-aug"),
    ({"match_real": 1}, "give 2 or more")])
def test_embeddings_that_a_pool_keeps_are_refused_where_images_are_compared(gan, digits, settings, message):
    with pytest.raises(UserError, match=message):
        matcher_of(gan, digits, **{"match_real": 50, **settings})


def test_calibration_adds_the_cross_entropy_of_synthetic_images(gan, digits):
    matcher = matcher_of(gan, digits)
    plain, calibrated = (float(sum(matcher_of(gan, digits, pool=matcher.pool, calibrate=weight).parts(0)).detach())
                         for weight in (0.0, 0.5))
    labels = matcher.shuffle.indices(0)
    fake = matcher.learner.images(labels, torch.arange(2), (2, 4), 0).flatten(0, 1)
    logits = matcher.pool.model(standardise(fake, digits.spec))
    expected = F.cross_entropy(logits, labels.repeat_interleave(4))
    assert calibrated - plain == pytest.approx(0.5 * float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("recipe", ["pyramid", "dim", "biggan"])
def test_norms_and_class_embeddings_alone_are_learned(digits, recipe):
    settings = {"width": 16, "dim_noise": 20, "batch_size": 8, "tune": "norms"}
    gan = GAN(Accelerator(cpu=True), digits.spec, dataclasses.replace(RECIPES[recipe], **settings), 0)
    before = {name: value.clone() for name, value in gan.generator.named_parameters()}
    gan.step(to_signed(digits.train.images[:8]), digits.train.labels[:8], 0)
    moved = {name for name, value in gan.generator.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved == {name for name, value in gan.generator.named_parameters() if value.requires_grad}
    assert all(before[name].dim() < 4 for name in moved)  # no convolution
    assert {name.split(".")[0] for name, value in gan.critic.named_parameters() if not value.requires_grad} == set()
    state = {**gan.state_dict(), "ema": {name: value + 1 for name, value in gan.source.state_dict().items()}}
    gan.load_state_dict(state, "a run")
    averaged = dict(gan.source.named_parameters())
    assert all(torch.equal(value, averaged[name]) != value.requires_grad for name, value in gan.generator.named_parameters())


class Replay:
    """A learner whose images are what `give(labels, step)` returns."""

    accelerator = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"), mixed_precision="no")
    seed, has_pairs, engine = 0, False, EAGER

    def __init__(self, give):
        self.give = give

    def shard(self, rows):
        return rows

    def stream(self, *name):
        return stream(0, *name)

    def images_per_class(self, real):
        return real

    def images(self, labels, positions, shape, step):
        return self.give(labels, step)


@pytest.mark.parametrize("aug_setting", SETTINGS)
def test_siamese_augmentation_is_the_same_for_real_and_synthetic(digits, aug_setting):
    """Where the synthetic images are the selected real ones, a pairwise objective must see no difference at all."""
    learner = Replay(lambda labels, step: to_signed(digits.train.images[matcher.selector.indices(labels, step)]))
    matcher = matcher_for(learner, digits, Pool(digits), "logit", match_classes=3, match_batch=5, aug_type="color_crop_cutout",
                          aug_setting=aug_setting)
    labels = matcher.shuffle.indices(0)
    assert float(sum(matcher.parts(0))) == pytest.approx(0, abs=1e-9)
    assert (digits.train.labels[matcher.selector.indices(labels, 0)] == labels[:, None]).all()


def test_an_objective_of_a_whole_set_is_asked_once_and_gives_one_number(digits, monkeypatch):
    asked, values = [], []

    def together(eyes, real, fake, labels, metric="l1"):
        asked.append((sorted(labels.tolist()), metric))
        means = [eyes.embed(images.flatten(0, 1)).mean(0) for images in (real, fake)]
        values.append((means[0].detach() - means[1]).square().sum())
        return values[-1]

    monkeypatch.setitem(OBJECTIVES, "together", Objective(together, 2.0, "a test", options=("metric",), per="set"))
    accelerator = Accelerator(cpu=True)
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=2)
    initial.start(pixels, digits, "real", 0, None)
    learner = PixelLearner(accelerator, digits.spec, pixels, 0, lr=0.1)
    settings = {"match": "together", "match_weight": None, "match_batch": 3, "metric": "cos"}
    matcher = matcher_for(learner, digits, Pool(digits), **settings)
    report = learner.step(0, matcher)
    assert asked == [(list(range(10)), "cos")]
    assert float(report["matching"]) == pytest.approx(2.0 * float(values[0].detach()))  # at the objective's own weight
    assert float(report["matching"]) == pytest.approx(float(sum(matcher.parts(0)).detach()), rel=0.5)  # no sum over classes
    with pytest.raises(UserError, match="all classes of a step together"):
        matcher_for(learner, digits, Pool(digits), **settings, class_batch=2)


@pytest.mark.parametrize(("classes", "processes", "remedy"), [
    (2, 8, "give --match-classes 8"), (0, 3, "give --match-classes 3 or 6 or 9"), (4, 20, "launch fewer processes")])
def test_classes_that_processes_cannot_share_are_refused_with_numbers_that_work(digits, classes, processes, remedy):
    learner = Replay(lambda labels, step: None)
    learner.accelerator = SimpleNamespace(**{**vars(Replay.accelerator), "num_processes": processes})
    with pytest.raises(UserError, match=remedy):
        matcher_for(learner, digits, Pool(digits), match_classes=classes, match_batch=2)


@pytest.mark.parametrize("recipe", ["dim", "biggan"])
def test_batch_norms_are_matched_as_they_are_sampled_and_learn_from_whole_batches_alone(digits, recipe):
    settings = {"width": 16, "dim_noise": 20, "batch_size": 16, "ema": 0.0}
    gan = GAN(Accelerator(cpu=True), digits.spec, dataclasses.replace(RECIPES[recipe], **settings), 0)
    for step in range(3):
        gan.step(to_signed(digits.train.images[:16]), digits.train.labels[:16], step)
    before = [value.clone() for value in gan.generator.buffers()]
    matcher = matcher_for(GeneratorLearner(gan, digits), digits, Pool(digits), match_classes=2, match_batch=4)
    sum(matcher.parts(0)).backward()
    assert all(torch.equal(*pair) for pair in zip(before, gan.generator.buffers()))
    assert gan.generator.training
    labels = torch.tensor([3, 5])
    gan.source.load_state_dict(gan.generator.state_dict())
    noise = counter_normal(7, labels, torch.zeros(2, dtype=torch.int64), 20)
    torch.testing.assert_close(gan.images(noise, labels), gan.source.sample(labels, 7), atol=1e-5, rtol=1e-4)


def test_dc_and_dsa_have_loops_for_any_ipc():
    assert [methods.loops(ipc) for ipc in (1, 5, 10, 15, 50, 200)] == [(1, 1), (5, 1), (10, 50), (15, 50), (50, 10), (200, 10)]


def test_attention_is_differentiated_twice():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixed, self.classifier = nn.Linear(4, 24), nn.Linear(8, 3)

        def forward(self, images):
            parts = self.mixed(images.flatten(1).unflatten(1, (4, 4))).view(len(images), 1, 4, 24).chunk(3, -1)
            return self.classifier(F.scaled_dot_product_attention(*parts).mean((1, 2)))

    images = torch.randn(2, 5, 1, 4, 4, requires_grad=True)
    network = Attentive()
    sum(x.square().sum() for x in gradients(network, images, torch.tensor([0, 2]))).backward()
    assert images.grad.abs().max() > 0
