"""Images that a flow draws under guidance: as its own without it, nearer to modes with it, and steered by an objective."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL_POOL
from prototypes import matcher_for

import gen_condense
import pool_match
from gendistil.common.device import make_accelerator
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import to_signed
from gendistil.matching.drawing import DrawingLearner, modes_of
from gendistil.sources import PixelSet, load_source
from generators.unet import FlowGenerator
from pools import RandomPool

STEPS = 4


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    made = FlowGenerator(8, 1, 10, width=16)
    with torch.no_grad():  # an untrained U-Net ends in zeros
        made.unet.conv_out.weight.normal_(0, 0.1, generator=stream(0, "last layer"))
    return made


def drawing(digits, flow, ipc=3, precision="fp32", **settings):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=ipc)
    return DrawingLearner(make_accelerator(precision), digits.spec, pixels, 0, flow=flow, steps=STEPS, **settings)


def drawn(learner, matching=None):
    for step in range(STEPS):
        learner.step(step, matching)
    return learner.source.pixels.detach()


def test_without_guidance_they_are_the_flows_own(digits, flow):
    labels = torch.arange(10).repeat_interleave(3)
    own = flow.images_at(labels, torch.arange(3).repeat(10), 0, sample_steps=STEPS)
    torch.testing.assert_close(drawn(drawing(digits, flow)).clamp(-1, 1).flatten(0, 1), own, atol=1e-4, rtol=1e-4)


def test_modes_are_centroids_of_their_class_and_draw_the_images(digits, flow):
    modes = modes_of(digits.train, 10, 3, 0)
    for label in (0, 7):
        images = to_signed(digits.train.images[digits.train.labels == label])
        nearest = torch.cdist(images.flatten(1), modes[label].flatten(1)).argmin(1)
        means = torch.stack([images[nearest == mode].mean(0) for mode in range(3)])
        torch.testing.assert_close(modes[label], means, atol=0.05, rtol=0)
    learners = [drawing(digits, flow, modes=modes, pull=pull, until=0.3) for pull in (0.0, 0.2, 0.5)]
    gaps = [(drawn(learner) - modes).square().mean() for learner in learners]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    late, early, never = (drawn(drawing(digits, flow, modes=modes, pull=0.5, until=until)) for until in (0.0, 0.5, 1.0))
    assert torch.equal(never, drawn(drawing(digits, flow)))
    assert not torch.equal(late, early)


def test_a_drawing_goes_on_where_it_was_stopped_in_as_many_steps(digits, flow):
    modes = modes_of(digits.train, 10, 3, 0)
    whole = drawn(drawing(digits, flow, modes=modes, pull=0.2))
    first, second = (drawing(digits, flow, modes=modes, pull=0.2) for _ in range(2))
    for step in range(2):
        first.step(step, None)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state, "there")
    for step in range(2, STEPS):
        second.step(step, None)
    assert torch.equal(second.source.pixels, whole)
    second.steps = 8
    with pytest.raises(UserError, match="was begun with --steps 4"):
        second.load_state_dict(state, "there")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_objective_steers_them(digits, flow, on_the_cpu, precision):
    def loss_of(steer):
        learner = drawing(digits, flow, precision=precision, steer=steer)
        matcher = matcher_for(learner, digits, Fixed(digits, names=("convnet:width=16",)), class_batch=4)
        drawn(learner, matcher)
        return float(learner.differentiate(0, matcher))

    losses = [loss_of(steer) for steer in (0.0, 0.1, 0.3)]
    assert losses[0] > losses[1] > losses[2]


def test_a_loss_without_a_gradient_steers_nothing(digits, flow):
    skipped = SimpleNamespace(parts=lambda step: [torch.tensor(1.0)], summed=1)
    assert torch.equal(drawn(drawing(digits, flow, steer=0.3), skipped), drawn(drawing(digits, flow)))


class Fixed(RandomPool):
    """One network."""

    def draw(self, generator):
        return super().draw(stream(0, "the network"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flows")
    words = ["--output-dir", folder, "--recipe", "shortcut", "--width", 16, "--batch-size", 8, "--steps", 2]
    gen_condense.main([str(word) for word in words])
    return folder / "gan"


@pytest.mark.parametrize("method", ["mgd3", "igd"])
def test_methods_draw_sets(command, tmp_path, on_the_cpu, run, method):
    pool = SMALL_POOL if method == "igd" else ()
    command(pool_match, "--output-dir", tmp_path, "--method", method, "--weight", run, "--ipc", 2, "--steps", 4,
            "--eval-epochs", 1, *pool)
    source = load_source(tmp_path / "match")
    assert isinstance(source, PixelSet)
    assert source.stored_bytes(2) == 10 * 2 * 64
    assert source.pixels.flatten(1).std(1).min() > 0.1


@pytest.mark.parametrize(("words", "said"), [
    (("--method", "mgd3"), "starts from a generator"),
    (("--method", "mgd3", "--weight", "{run}", "--steps", 4, "--ipc", 900), "that --pull asks for: lower --ipc"),
    (("--method", "mgd3", "--weight", "{run}", "--steps", 3), "a shortcut draws in 1, 2, 4"),
    (("--method", "mgd3", "--weight", "{run}", "--steps", 4, "--steer", 0.1), "--steer says how far"),
    (("--method", "mgd3", "--weight", "{run}", "--lr", 0.1), "--lr is not for --method mgd3"),
    (("--method", "mgd3", "--weight", "{run}", "--match-batch", 8), "--match-batch is not for --match none"),
    (("--method", "mgd3", "--weight", "{run}", "--pool", "mlp"), "--pool is not for --match none"),
    (("--method", "dm", "--pull", 0.1), "--pull is not for --method dm"),
])
def test_what_does_not_go_together_is_refused(fails, tmp_path, on_the_cpu, run, words, said):
    words = (str(word).format(run=run) for word in words)
    assert said in fails(2, pool_match, "--output-dir", tmp_path, "--ipc", 1, *words)


def test_a_drawing_does_not_go_on_with_another_flow(digits, flow):
    first, same, other = (drawing(digits, flow, digest=digest) for digest in ("one", "one", "two"))
    first.step(0, None)
    same.load_state_dict(first.state_dict(), "there")
    with pytest.raises(UserError, match="there: this drawing was begun with another flow than --weight holds now"):
        other.load_state_dict(first.state_dict(), "there")
