"""Pixels as what is learned: multi-formation against the published decodings, starts, steps, networks that learn meanwhile."""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_CLASSIFIER
from parity_fixtures import load_data
from prototypes import matcher_for

import pool_match
from gendistil.common.clustering import herding, k_center
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import Dataset, Spec, Split, standardise, to_signed, to_uint8
from gendistil.evaluation import Protocol, evaluate, students
from gendistil.matching import METHODS, PixelLearner, build, initial
from gendistil.matching.trained import TrainingMatcher
from gendistil.sources import DistilledDataset, draw_set, load_source
from gendistil.sources.pixels import PixelSet, decode, mosaic, scales, zoom
from pools import OnlinePool, RandomPool, accuracy

FORMATIONS = load_data("multiformation/multiformation")


@pytest.mark.parametrize("case", FORMATIONS.json["cases"], ids=lambda case: case["id"])
def test_published_decodings(case):
    _, channels, size, _ = case["input_shape"]
    values = torch.sin(0.31 * torch.arange(2 * channels * size * size, dtype=torch.float64)).float()
    images = values.view(1, 2, channels, size, size)  # signed: the published 0.5 + 0.5 sin
    decoder = {"decode_zoom": "single", "decode_zoom_multi": "multi", "decode_zoom_bound": "bound"}[case["function"]]
    chosen = scales(2, case["factor"], decoder, case["kwargs"].get("bound"))
    decoded = decode(images, chosen)[0]
    if decoder != "bound":  # the published order: factor by factor, part by part, image by image
        cuts = decoded.unflatten(0, (2, -1)).split([f * f for f in chosen[0]], dim=1)
        decoded = torch.cat([cut.transpose(0, 1).flatten(0, 1) for cut in cuts])
    expected = torch.from_numpy(FORMATIONS.arrays[case["id"]]) * 2 - 1
    assert (decoded - expected).abs().max() <= 2 * case["tol_abs"]


def test_parts_of_an_image_follow_each_other():
    images = torch.randn(2, 3, 1, 8, 8)
    alone = torch.cat([zoom(images[:, i : i + 1], 2) for i in range(3)], 1)
    assert torch.equal(zoom(images, 2), alone)


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (28, 3), (32, 3)])
def test_a_mosaic_is_decoded_into_its_parts(size, factor):
    images = torch.linspace(-1, 1, 2 * 2 * factor**2).view(2, -1, 1, 1, 1).expand(-1, -1, 3, size, size)
    stored = mosaic(images, factor)
    assert stored.shape == (2, 2, 3, size, size)
    centres = zoom(stored, factor)[..., size // 2, size // 2]
    torch.testing.assert_close(centres, images[..., 0, 0])


def filled(**options):
    pixels = PixelSet(size=8, channels=1, num_classes=3, ipc=4, **options)
    torch.nn.init.uniform_(pixels.pixels, -1.2, 1.2)
    return pixels


@pytest.mark.parametrize(("options", "ipc", "count"), [({}, 4, 4), ({}, 2, 2), ({"factor": 2}, 2, 8), ({"factor": 3}, 4, 36),
                                                       ({"factor": 2, "decoder": "multi"}, 3, 15),
                                                       ({"factor": 2, "decoder": "bound", "bound": 10}, 4, 7)])
def test_a_set_is_a_source_whose_ipc_is_what_is_stored(tmp_path, options, ipc, count):
    pixels = filled(**options)
    pixels.save_pretrained(tmp_path / "pixels")
    source = load_source(tmp_path)
    images, labels = draw_set(source, ipc, seed=5)
    assert images.shape == (3 * count, 1, 8, 8)
    assert torch.bincount(labels).tolist() == [count] * 3
    assert torch.equal(images, draw_set(pixels, ipc, seed=6)[0])
    assert len(DistilledDataset(tmp_path, ipc)) == 3 * count


def test_a_smaller_set_is_the_start_of_a_larger_one():
    pixels = filled(factor=2)
    few, many = (draw_set(pixels, ipc, 0)[0].unflatten(0, (3, -1)) for ipc in (1, 3))
    assert torch.equal(few, many[:, :4])


def test_more_than_is_stored_is_refused():
    with pytest.raises(UserError, match="4 images of every class are stored: lower --ipc, now 5"):
        draw_set(filled(), 5, 0)
    with pytest.raises(UserError, match="16 images of every class are stored, fewer than the 17"):
        filled(factor=2).sample(torch.zeros(17, dtype=torch.int64))


def pixel_learner(digits, ipc=2, factor=1, **options):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=ipc, factor=factor)
    pool = RandomPool(digits)
    initial.start(pixels, digits, "real", 0, pool)
    return PixelLearner(Accelerator(cpu=True, mixed_precision="no"), digits.spec, pixels, 0, **{"lr": 1.0, **options}), pool


def pixel_matcher(learner, digits, pool, **options):
    return matcher_for(learner, digits, pool, **{"match_batch": 6, "aug_type": "crop", "select_interval": 5, **options})


@pytest.mark.parametrize("match", ["mean", "grad", "energy"])
def test_classes_in_chunks_give_the_joint_result(digits, match):
    results = []
    for at_once in (None, 1, 3):
        learner, pool = pixel_learner(digits)
        report = learner.step(0, pixel_matcher(learner, digits, pool, match=match, class_batch=at_once))
        results.append((learner.source.pixels.detach(), report["matching"]))
    for pixels, loss in results[1:]:
        torch.testing.assert_close(pixels, results[0][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(loss, results[0][1], rtol=1e-4, atol=1e-5)


class Kept:
    """A tensor that autograd keeps for its backward pass, and how many bytes of them there have been at once."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.peak = max(Kept.peak, Kept.now)

    def __del__(self):
        Kept.now -= self.tensor.nbytes


def test_the_peak_of_memory_is_that_of_a_chunk():
    """100 classes of 50 images, 10 at once: no more for the backward pass than 10 classes need by themselves."""
    peaks = {}
    for classes, at_once in ((10, None), (100, 10), (100, None)):
        spec = Spec("many", tuple(map(str, range(classes))), 1, 8, (0.5,), (0.25,), True)
        split = Split(torch.randint(256, (classes * 4, 1, 8, 8), dtype=torch.uint8), torch.arange(classes).repeat(4))
        dataset = Dataset(spec, split, split, split)
        pixels = PixelSet(size=8, channels=1, num_classes=classes, ipc=50)
        learner, pool = PixelLearner(Accelerator(cpu=True, mixed_precision="no"), spec, pixels, 0, lr=1.0), RandomPool(
            dataset, names=("convnet:width=16",))
        Kept.now = Kept.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            learner.step(0, pixel_matcher(learner, dataset, pool, match_batch=4, class_batch=at_once))
        assert Kept.now == 0
        peaks[classes, at_once] = Kept.peak
    assert peaks[100, 10] < 1.2 * peaks[10, None]
    assert peaks[100, None] > 8 * peaks[10, None]


def test_a_step_of_dm_is_the_published_one(digits):
    """One step by hand: learning rate 1 on standardised images, squared distances of mean embeddings summed over classes."""
    learner, pool = pixel_learner(digits, ipc=3)
    matcher = pixel_matcher(learner, digits, pool, aug_type="none")
    spec, real = digits.spec, digits.train
    plan = matcher.shuffle.indices(0)
    start = standardise(learner.source.pixels.detach().flatten(0, 1), spec).unflatten(0, (10, 3)).requires_grad_()
    network = pool.draw(learner.stream("member", 0))
    loss = 0
    for label, rows in zip(plan, matcher.selector.indices(plan, 0)):
        target = network.embed(standardise(to_signed(real.images[rows]), spec)).mean(0)
        loss = loss + (target - network.embed(start[label]).mean(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, start)
    report = learner.step(0, matcher)
    assert float(report["matching"]) == pytest.approx(loss.item(), rel=1e-4)
    got = standardise(learner.source.pixels.detach().flatten(0, 1), spec).unflatten(0, (10, 3))
    torch.testing.assert_close(got - start.detach(), -gradient, atol=1e-4, rtol=1e-3)


def test_pixels_in_units_of_zero_to_one_stay_inside(digits):
    learner, pool = pixel_learner(digits, space="unit", lr=100.0)
    for step in range(3):
        learner.step(step, pixel_matcher(learner, digits, pool))
    assert learner.source.pixels.abs().max() <= 1


def test_pairs_need_as_many_synthetic_images_as_real_ones(digits):
    learner, pool = pixel_learner(digits)
    with pytest.raises(UserError, match="6 and 2 of each class: use --aug-setting class"):
        pixel_matcher(learner, digits, pool, aug_setting="image")


def test_logits_are_compared_image_by_image(digits):
    learner, pool = pixel_learner(digits)
    with pytest.raises(UserError, match="there are 6 real and 2 synthetic ones of each class: give --match-batch 2"):
        pixel_matcher(learner, digits, pool, match="logit")
    assert next(pixel_matcher(learner, digits, pool, match="logit", match_batch=2).parts(0)).item() > 0


def test_one_real_image_of_a_class_has_no_distribution(digits):
    learner, _ = pixel_learner(digits)
    rows = torch.cat([torch.nonzero(digits.train.labels == label)[: 1 + label, 0] for label in range(10)])
    few = dataclasses.replace(digits, train=Split(digits.train.images[rows], digits.train.labels[rows]))
    row = METHODS["dm"]
    with pytest.raises(UserError, match="--match energy: a class has one training image"):
        build.make_matcher(dataclasses.replace(row, match="energy"), learner, few)
    for fits in (row, METHODS["random"], dataclasses.replace(row, match="energy", aug_setting="image", match_batch=2),
                 dataclasses.replace(row, match="moments"), dataclasses.replace(row, match="cf", match_classes=5)):
        build.make_matcher(fits, learner, few)
    for match, parts in itertools.product(("moments", "cf"), ({"class_batch": 1}, {"class_batch": 3}, {"match_classes": 1},
                                                              {"class_batch": 5, "match_classes": 1})):
        with pytest.raises(UserError, match=f"--match {match}: a class has one training image"):  # and may be compared alone
            build.make_matcher(dataclasses.replace(row, match=match, **parts), learner, few)


def test_trainings_that_can_teach_nothing_are_refused(digits):
    learner, _ = pixel_learner(digits)
    method = dataclasses.replace(METHODS["mtt"], unroll_batch=1)
    for name in ("mtt", "bptt"):
        with pytest.raises(UserError, match=f"--match {METHODS[name].match}: networks learn nothing of one class alone"):
            build.make_matcher(METHODS[name], learner, digits.of([3]))
    matcher = build.make_matcher(method, learner, digits)
    matcher.check(1)
    matcher.rates.fill_(torch.nan)
    with pytest.raises(UserError, match="what --step-size-lr learns was NaN or infinite after step 2: lower it"):
        matcher.check(2)
    learner.accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match="--unroll-batch 1: 2 processes share these images: give 2 or more"):
        build.make_matcher(method, learner, digits)


def test_a_run_checks_what_matching_learns_too(call, monkeypatch):
    checked = []
    monkeypatch.setattr(TrainingMatcher, "check", lambda self, step: checked.append(step))
    call(pool_match, "--method", "bptt", "--ipc", 1, "--steps", 1, "--unroll", 1, "--window", 1, "--match-batch", 2,
         "--eval-epochs", 1, "--pool", SMALL_CLASSIFIER)
    assert checked == [1]


@pytest.mark.parametrize(("size", "factor"), [(8, 5), (8, 7), (28, 8), (30, 7), (15, 6)])
def test_parts_that_would_hold_nothing_are_refused(size, factor):
    with pytest.raises(UserError, match=f"--factor {factor}: of images of {size} pixels cut by {factor}"):
        PixelSet(size=size, channels=1, num_classes=2, ipc=1, factor=factor)


def test_a_subset_of_the_decoded_images_is_compared(digits):
    learner, _ = pixel_learner(digits, factor=2, batch=3)
    assert learner.images(torch.tensor([4, 1]), None, None, 0).shape == (2, 3, 1, 8, 8)
    assert not torch.equal(learner.images(torch.tensor([4]), None, None, 0), learner.images(torch.tensor([4]), None, None, 1))


@pytest.mark.parametrize("how", ["noise", *initial.CHOOSERS])
def test_pixels_start_from_noise_or_from_images_of_their_class(digits, how):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    initial.start(pixels, digits, how, 0, RandomPool(digits))
    images = to_uint8(pixels.pixels.detach())
    known = [(images[label].unsqueeze(1) == digits.train.images[digits.train.labels == label]).flatten(2).all(2).any(1).all()
             for label in range(10)]
    assert all(known) == (how != "noise")
    again = PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    initial.start(again, digits, how, 0, RandomPool(digits))
    assert torch.equal(again.pixels, pixels.pixels)


def test_herding_and_k_center_choose_in_the_eyes_of_a_network(digits):
    pool, pixels = RandomPool(digits, names=("convnet:depth=1,width=8",)), PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    points = pool.embed(pool.last(stream(0, "start", "network")), torch.arange(len(digits.train)))
    rows = torch.nonzero(digits.train.labels == 4)[:, 0]
    found = {}
    for how in ("herding", "k-center"):
        initial.start(pixels, digits, how, 0, pool)
        found[how] = to_uint8(pixels.pixels[4].detach())
    assert torch.equal(found["herding"], digits.train.images[rows[herding(points[rows][None], 3)[0]]])
    first = torch.nonzero((digits.train.images[rows] == found["k-center"][0]).flatten(1).all(1))[0]
    assert torch.equal(found["k-center"], digits.train.images[rows[k_center(points[rows][None], 3, first)[0]]])


@pytest.mark.parametrize(("space", "published", "unit"), [("standardised", (0.3,), 0.6), ("unit", None, 2.0)])
def test_the_unit_in_which_pixels_are_learned(digits, space, published, unit):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=1)
    learner = PixelLearner(Accelerator(cpu=True), dataclasses.replace(digits.spec, published_std=published), pixels, 0, lr=1.0,
                           momentum=0.0, space=space)
    torch.testing.assert_close(learner.rescale(torch.ones_like(pixels.pixels)), torch.full_like(pixels.pixels, unit**2))


def test_a_start_that_needs_more_images_than_there_are_is_refused(digits):
    with pytest.raises(UserError, match="fewer than the 800 that --init real asks for: lower --ipc or --factor"):
        initial.start(PixelSet(size=8, channels=1, num_classes=10, ipc=200, factor=2), digits, "real", 0, None)


def test_an_online_network_is_new_when_due_and_learns_in_between(digits):
    learner, _ = pixel_learner(digits)
    for trained_on in ("synthetic", "real"):
        pool = OnlinePool(digits, trained_on=trained_on, outer=3, inner=2, images=32, batch_size=16)
        seen = []
        for step in range(4):
            pool.prepare(step, learner)
            seen.append(torch.cat([weight.flatten().clone() for weight in pool.draw(None).parameters()]))
        moved = [float((after - before).norm()) for before, after in itertools.pairwise(seen)]
        assert 0 < moved[0] < 0.1 * moved[2]
        assert 0 < moved[1] < 0.1 * moved[2]
        other = OnlinePool(digits, trained_on=trained_on, outer=3, inner=2, images=32, batch_size=16)
        other.load_state_dict(pool.state_dict())
        for one in (pool, other):
            one.prepare(4, learner)
        assert all(torch.equal(*pair) for pair in zip(pool.draw(None).parameters(), other.draw(None).parameters()))


def test_a_new_online_network_may_learn_from_all_real_images_first(digits):
    learner, _ = pixel_learner(digits)
    settings = {"trained_on": "real", "outer": 2, "inner": 1, "images": 32, "batch_size": 32, "momentum": 0.9}
    cold, warm = OnlinePool(digits, **settings), OnlinePool(digits, **settings, warmup=1)
    scores = []
    for pool in (cold, warm):
        pool.prepare(0, learner)
        scores.append(accuracy(pool.draw(None), digits.held_out.images, digits.held_out.labels, digits.spec))
    assert scores[1] > scores[0] + 40
    network = warm.draw(None)
    warm.prepare(0, learner)  # as --init kmeans asks for it before the first step: it is there
    assert warm.draw(None) is network
    kept = OnlinePool(digits, **settings, warmup=1)
    kept.load_state_dict(copy.deepcopy(warm.state_dict()))
    for pool in (warm, kept):
        pool.prepare(1, learner)
    assert all(torch.equal(*pair) for pair in zip(warm.draw(None).parameters(), kept.draw(None).parameters()))


def test_random_networks_are_calibrated_where_they_have_batch_norms(digits):
    network = RandomPool(digits, names=("convnet_bn",)).draw(stream(0, "network"))
    means = [module.running_mean for module in network.modules() if hasattr(module, "running_mean")]
    assert means
    assert all(mean.abs().max() > 0 for mean in means)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("trained_on", ["synthetic", "real"])
def test_batch_norms_keep_statistics_of_real_images(digits, trained_on):
    learner, _ = pixel_learner(digits)
    learner.training_set = lambda: (torch.full((20, 1, 8, 8), 255, dtype=torch.uint8), torch.arange(10).repeat(2))  # all white
    pool = OnlinePool(digits, trained_on=trained_on, outer=2, inner=50, names=("convnet_bn:width=8",), images=20, batch_size=20)
    means = []
    for step in range(2):
        pool.prepare(step, learner)
        norm = next(module for module in pool.draw(None).modules() if hasattr(module, "running_mean"))
        means.append(norm.running_mean.clone())
    assert (means[1] - means[0]).norm() < 0.2 * means[0].norm()


@pytest.mark.parametrize("trained_on", ["synthetic", "real"])
def test_an_online_pool_of_several_architectures_resumes_in_any_round(digits, trained_on):
    learner, _ = pixel_learner(digits)
    settings = {"trained_on": trained_on, "outer": 2, "inner": 1, "images": 32, "batch_size": 16,
                "names": ("convnet", "mlp", "lenet")}
    pool, kinds = OnlinePool(digits, **settings), []
    for step in range(12):
        pool.prepare(step, learner)
        kinds.append(type(pool.draw(None)).__name__ + str(sum(value.numel() for value in pool.draw(None).parameters())))
        other = OnlinePool(digits, **settings)
        other.load_state_dict(pool.state_dict())
        assert all(torch.equal(*pair) for pair in zip(pool.draw(None).parameters(), other.draw(None).parameters()))
    assert len(set(kinds)) > 1


def test_stored_images_are_drawn_once(digits, monkeypatch):
    drawn = []
    monkeypatch.setattr(students, "draw_set", lambda *args: drawn.append(args) or draw_set(*args))
    stored = PixelSet(size=8, channels=1, num_classes=10, ipc=2)
    for sampling in ("fixed", "fresh"):
        evaluate(stored, digits, "convnet:depth=1,width=8", 2, sampling, num_eval=2, protocol=Protocol(epochs=3, min_steps=0))
    assert len(drawn) == 4
