"""bfloat16 beside float32: every method learns nearly the same in both. Where a processor has no bf16, it runs in software."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_POOL
from prototypes import matcher_for

import gen_condense
import pool_match
import pools.pool
from gendistil.common.clustering import kmeans
from gendistil.common.device import make_accelerator, native_bf16
from gendistil.common.engine import EAGER, Engine
from gendistil.common.files import load_checkpoint
from gendistil.common.rng import stream
from gendistil.data import standardise, to_signed
from gendistil.matching import METHODS, OBJECTIVES, PixelLearner, initial, matcher, objectives, selectors
from gendistil.sources import PixelSet
from generators import RECIPES, make_trainer
from pools import OnlinePool, RandomPool, accuracy, build_classifier

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SHORT = ("--match-batch", 8, "--eval-epochs", 1, "--eval-ipc", 1, "--pool", "convnet", "--log-interval", 1)
CHOSEN = ("--select-candidates", 40, "--select-interval", 1)
ONLINE = ("--outer", 4, "--inner", 2)  # the network of the second step has been trained in two passes
STOPPED = ("--lr", 1e-12, "--overwrite")

# Networks keep three digits in bf16. Two steps of Adam follow the sign of gradients that are near to zero, which three digits
# do not tell; and gradients of gradients lose more than gradients do.
TOLERANCE = 0.35


@pytest.fixture(scope="module")
def gan(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    command(gen_condense, "--output-dir", folder, "--tag", "gan", "--width", 16, "--batch-size", 16, "--steps", 4,
            "--precision", "fp32")
    command(pool_match, "--output-dir", folder, "--tag", "inversion", "--method", "inversion", "--weight", folder / "gan",
            "--ipc", 4, "--chunk-steps", 2, "--eval-epochs", 1, "--precision", "fp32")
    return folder / "gan"


def learned(run):
    """What a run has learned, as one vector."""
    state = load_checkpoint(run / "checkpoint.pt")
    if "pixels" in state:
        return state["pixels"]["pixels"].flatten()
    if "latents" in state:
        return state["latents"]["vectors"].flatten()
    return torch.cat([value.flatten() for value in state["generator"].values()])


# What trains networks does it in float32 whatever the precision, and so does what draws: test_unroll.py, test_drawing.py.
# A pass that warms a network takes too long here.
CASES = [*((name, ()) for name, row in METHODS.items()
           if row.steps != 0 and not row.pool_warmup and row.learn != "drawn" and OBJECTIVES[row.match].per != "training"),
         ("dc", ("--mean-weight", 1)),
         ("default", ("--match", "grad", "--pool-training", "real", *ONLINE)),
         ("default", ("--match", "feature")), ("default", ("--match", "moments")), ("default", ("--match", "mean")),
         ("default", ("--match", "cf")), ("default", ("--calibrate", 3, "--match-real", 8, "--no-match-aug"))]


@pytest.mark.parametrize(("method", "flags"), CASES, ids=[" ".join([method, *map(str, flags[:2])]) for method, flags in CASES])
def test_a_method_learns_in_bf16_what_it_learns_in_float32(command, gan, tmp_path, monkeypatch, method, flags):
    monkeypatch.setattr(pools.pool, "_precision", lambda engine: {})  # both are compared by the same pool
    row = METHODS[method]
    words = ["--output-dir", tmp_path, "--method", method, *(SHORT[2:] if method == "inversion" else SHORT), *flags]
    words += ["--weight", gan.with_name("inversion") if method == "itgan" else gan] if row.learn != "pixels" else []
    words += ["--ipc", 4] if row.learn != "generator" else ["--batch-size", 16]
    words += ["--init", "real"] if row.init == "kmeans" else []  # which images stand for a cluster, three digits do not tell
    words += ["--chunk-steps", 2] if method == "inversion" else ["--steps", 2]
    words += CHOSEN if row.select == "dream" else []
    words += ONLINE if row.pool_training in ("synthetic", "real") else []
    words += SMALL_POOL if row.pool_training == "pretrained" and "--pool-training" not in flags else []
    for precision in ("fp32", "bf16"):
        command(pool_match, *words, "--tag", precision, "--precision", precision)
    if row.learn == "generator":
        before = learned(gan)
    else:
        command(pool_match, *words, "--tag", "before", "--precision", "fp32", *STOPPED)
        before = learned(tmp_path / "before")
    exact, rounded = (learned(tmp_path / tag) for tag in ("fp32", "bf16"))
    assert 0 < (rounded - exact).norm() < TOLERANCE * (exact - before).norm()


def pixels_of(digits, accelerator):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    initial.start(pixels, digits, "real", 0, None)
    return PixelLearner(accelerator, digits.spec, pixels, 0, lr=1.0)


@pytest.mark.parametrize("match", ["energy", "moments", "mean", "logit", "grad", "feature"])
def test_distances_and_clusterings_are_taken_in_float32_outside_autocast(digits, monkeypatch, match):
    seen = []

    def noted(function):
        @functools.wraps(function)
        def call(*args, **options):
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            seen.append(torch.is_autocast_enabled("cpu") or any(x.dtype != torch.float32 for x in tensors if x.dim() > 2))
            return function(*args, **options)

        return call

    row = objectives.OBJECTIVES[match]
    for name in ("class_means", "energy", "moments", "log_probabilities", "gradient_distance", "relative"):
        monkeypatch.setattr(objectives, name, noted(getattr(objectives, name)))
    monkeypatch.setattr(selectors, "representatives", noted(selectors.representatives))
    monkeypatch.setitem(matcher.OBJECTIVES, match, objectives.Objective(noted(row.function), 1.0, "", row.options))
    accelerator = make_accelerator("bf16")
    learner = pixels_of(digits, accelerator)
    pool = OnlinePool(digits, trained_on="real", outer=3, inner=1, images=32, engine=learner.engine)
    monkeypatch.setattr(pool, "prepare", noted(pool.prepare))
    term = matcher_for(learner, digits, pool, match, select="dream", match_batch=3, aug_setting="image")
    for step in range(2):
        learner.step(step, term)
    assert len(seen) >= 6
    assert not any(seen)


def test_a_clustering_of_bf16_embeddings_chooses_as_one_of_float32_does(digits):
    accelerator = make_accelerator("bf16")
    network, seen = RandomPool(digits).draw(torch.Generator().manual_seed(0)), []
    images = standardise(to_signed(digits.train.images[:200]), digits.spec)
    for eyes in (objectives.Eyes(network, engine) for engine in (EAGER, Engine(accelerator))):
        with torch.no_grad():
            points = eyes.embed(images)[None]
        assert points.dtype == torch.float32
        seen.append(kmeans(points, 5, centroids=points[:, :5])[1])
    assert (seen[0] == seen[1]).float().mean() > 0.9


class Half(Accelerator):
    """float16, which Accelerate refuses on a CPU, where torch computes it in software."""

    mixed_precision = "fp16"

    def autocast(self):
        return torch.autocast("cpu", torch.float16)


def test_a_generators_scale_of_float16_gradients_is_kept(digits):
    def trainer():
        made = make_trainer(Accelerator(cpu=True), digits.spec, replace(RECIPES["pyramid"], width=8, batch_size=8), seed=0)
        made.accelerator.scaler = torch.amp.GradScaler("cpu")
        return made

    one, other = trainer(), trainer()
    one.accelerator.scaler.load_state_dict({**one.accelerator.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 3})
    other.load_state_dict(one.state_dict(), "checkpoint.pt")
    assert other.accelerator.scaler.state_dict()["scale"] == 8
    assert other.accelerator.scaler.state_dict()["_growth_tracker"] == 3


def test_a_network_that_learns_step_by_step_keeps_its_scale_of_float16_gradients(digits):
    pool = OnlinePool(digits, trained_on="real", outer=50, inner=1, images=32, batch_size=32, engine=Engine(Half(cpu=True)))
    pool.prepare(0, None)
    pool._scaler.load_state_dict({**pool._scaler.state_dict(), "scale": 2.0**40})  # at which every gradient overflows
    pool.prepare(1, None)
    before = [weight.clone() for weight in pool.draw(None).parameters()]
    again = OnlinePool(digits, trained_on="real", outer=50, inner=1, images=32, batch_size=32, engine=Engine(Half(cpu=True)))
    again.load_state_dict(pool.state_dict())
    for step in range(2, 40):
        pool.prepare(step, None)
        again.prepare(step, None)
    assert pool._scaler.get_scale() < 2.0**40
    assert any(not torch.equal(*pair) for pair in zip(before, pool.draw(None).parameters()))
    assert all(torch.equal(*pair) for pair in zip(again.draw(None).parameters(), pool.draw(None).parameters()))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_float16_scales_the_loss_of_pixels_and_unscales_their_gradient(digits, momentum):
    steps = []
    for accelerator in (Accelerator(cpu=True), Half(cpu=True)):
        learner = pixels_of(digits, accelerator)
        before = learner.parameter.detach().clone()
        term = matcher_for(learner, digits, RandomPool(digits), match_weight=1e-3, match_batch=8)
        learner.step(0, term)
        steps.append(learner.parameter.detach() - before)
    assert learner.scaler.is_enabled()
    assert (steps[1] - steps[0]).norm() < 0.1 * steps[0].norm()


def test_a_score_does_not_hang_on_the_last_bits_of_bfloat16(digits):
    network = build_classifier("convnet:depth=1,width=8", 1, 8, 10, generator=stream(0, "weights"))
    with torch.no_grad():  # of a pair of classes the second scores more by less than bfloat16 tells
        network.classifier.weight[1::2] = network.classifier.weight[::2]
        network.classifier.bias[1::2] = network.classifier.bias[::2] + 1e-4
    images, labels = digits.test.images, torch.zeros(len(digits.test), dtype=torch.int64)
    half = Engine(Accelerator(cpu=True, mixed_precision="bf16"))
    assert accuracy(network, images, labels, digits.spec, engine=half) == 0


def test_small_gradients_are_not_lost_in_float16(digits):
    network = build_classifier("convnet:depth=1,width=8", 1, 8, 10, generator=stream(0, "weights"))
    with torch.no_grad():
        network.classifier.weight.mul_(1e-3)  # whose answer reaches the layers before as next to nothing
    images = torch.rand(1, 64, 1, 8, 8, generator=stream(0, "images"))
    exact = objectives.gradients(network, images, torch.tensor([3]))
    for through in (images, images.clone().requires_grad_()):
        half = objectives.gradients(network, through, torch.tensor([3]), engine=Engine(Half(cpu=True)))
        for one, other in zip(exact, half):
            if one.dim() > 2:  # of a convolution; its bias has none before an instance norm
                assert (one - other).norm() < 0.05 * one.norm()


@pytest.mark.parametrize(("flags", "native"), [("fma avx512_bf16 amx", True), ("fma amx_bf16", True), ("fma avx512f", False)])
def test_bf16_is_native_where_the_processor_multiplies_it(monkeypatch, flags, native):
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags}\n")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert native_bf16(torch.device("cpu")) == native


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_native_where_the_gpu_multiplies_it(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native_bf16(torch.device("cuda")) == native


@pytest.mark.parametrize("name", ["convnet_bn:depth=2,width=16", "resnet10:width=8"])
def test_gradients_of_networks_with_batch_norms(digits, name):
    """In float16 as in bfloat16 their kernels under `vmap` take no images in half precision beside float32 statistics."""
    network = build_classifier(name, 1, 8, 10, generator=torch.Generator().manual_seed(0)).eval()
    images = standardise(to_signed(digits.train.images[:15]), digits.spec).unflatten(0, (3, 5))
    for asks in (True, False):
        seen = images.clone().requires_grad_(asks)
        exact, half = (objectives.gradients(network, seen, torch.arange(3), engine) for engine in (
            EAGER, Engine(make_accelerator("bf16"))))
        apart = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(half, exact) if theirs.norm() > 1e-3]
        assert max(apart) < TOLERANCE
        assert half[0].requires_grad == asks
    assert not any(module._forward_pre_hooks for module in network.modules())
