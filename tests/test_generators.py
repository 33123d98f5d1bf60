"""Generators: the published networks' outputs, every size, sampling that nothing disturbs, saving and loading."""

import pytest
import torch
from parity_fixtures import assert_close, fixture, fixture_input, fixture_state
from torch import nn
from torch.nn import functional as F

from gendistil.common import rng
from gendistil.common.errors import UserError
from gendistil.common.files import save_checkpoint
from gendistil.sources import index_within_class, load_source
from generators import NETWORKS, base, load_weights
from generators.dim import DiMCritic, DiMGenerator
from generators.layers import conv_after_doubling, conv_then_halving
from generators.losses import LOSSES, PENALTIES, gradient_penalty
from generators.pyramid import PyramidGenerator

SHAPES = {"cifar10": (32, 3), "mnist": (28, 1)}
GANS = [name for name, (_, critic) in NETWORKS.items() if critic]


@pytest.mark.parametrize("variant", ["hash", "sin"])
@pytest.mark.parametrize("data", SHAPES)
def test_dim_networks_compute_what_the_published_ones_do(data, variant):
    for kind, network in (("generator", DiMGenerator), ("discriminator", DiMCritic)):
        name = f"dim_{kind}_{data}"
        reference = fixture(name)
        module = network(*SHAPES[data], num_classes=10).eval()
        load_weights(module, dict(fixture_state(name, variant)))
        with torch.no_grad():
            outputs = module(fixture_input(name, variant))
        outputs = {"images": outputs} if kind == "generator" else {"source": outputs[0][:, None], "classes": outputs[1]}
        for output in reference.json["outputs"]:
            if output["variant"] == variant:
                assert_close(outputs[output["name"]], reference.arrays[output["npz_key"]], output["tol"])


@pytest.mark.parametrize("name", GANS)
@pytest.mark.parametrize(("size", "channels", "classes"),
                         [(8, 1, 2), (13, 3, 5), (20, 1, 10), (28, 1, 10), (48, 4, 7), (64, 3, 30), (128, 3, 4)])
def test_every_size_channel_and_class_count(name, size, channels, classes):
    make_generator, make_critic = NETWORKS[name]
    generator = make_generator(size, channels, classes, dim_noise=classes + 6, width=16)
    critic = make_critic(size, channels, classes, width=16)
    labels = torch.arange(4) % classes
    images = generator(torch.randn(4, classes + 6), labels)
    score, logits = critic(images, labels)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    assert score.shape == (4,)
    assert logits is None or logits.shape == (4, classes)


def test_folded_convolutions_equal_the_two_operations_they_replace():
    conv, x = nn.Conv2d(5, 7, 3, padding=1), torch.randn(2, 5, 6, 6)
    torch.testing.assert_close(conv_after_doubling(x, conv), conv(F.interpolate(x, scale_factor=2)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv_then_halving(x, conv), F.avg_pool2d(conv(x), 2), atol=1e-5, rtol=1e-5)


def test_noise_is_the_same_for_a_device_without_float64(monkeypatch):
    labels, indices = torch.tensor([3, 0, 3]), torch.tensor([0, 0, 1])
    expected = rng.counter_normal(5, labels, indices, 16)
    answers = iter([False, True])  # of the device, and of the CPU that draws for it
    monkeypatch.setattr(rng, "has_float64", lambda device: next(answers))
    assert torch.equal(rng.counter_normal(5, labels, indices, 16), expected)
    assert next(answers, None) is None


def test_gradient_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(1, 2, 4, 4)
    penalty = gradient_penalty(lambda x, y: ((x * weight).sum((1, 2, 3)), None), torch.randn(3, 2, 4, 4),
                               torch.randn(3, 2, 4, 4), None, None, torch.rand(3, 1, 1, 1))
    torch.testing.assert_close(penalty, (weight.norm() - 1) ** 2)


@pytest.mark.parametrize(("name", "critic", "generator"), [
    ("hinge", (0 + 0.5) / 2 + (3 + 0) / 2, -0.5),
    ("wgan", 0.5 - 1.25, -0.5),
    # Differences real - fake are 0 and 1.5: ln(1 + e^-d) and ln(1 + e^d), by hand.
    ("relativistic", (0.693147 + 0.201413) / 2, (0.693147 + 1.701413) / 2),
])
def test_losses_of_known_scores(name, critic, generator):
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([2.0, -1.0])
    assert LOSSES[name].critic(real, fake).item() == pytest.approx(critic, abs=1e-5)
    assert LOSSES[name].generator(real, fake).item() == pytest.approx(generator, abs=1e-5)


def test_zero_centred_penalties_of_a_quadratic_critic_are_known():
    """The score is half of |image|² times a factor of the class, so its gradient is the image times that factor."""
    critic = lambda images, labels: (0.5 * images.square().sum((1, 2, 3)) * (1 + labels), None)
    real, fake = torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2, 2), 1.0)
    labels, fake_labels = torch.tensor([0, 1]), torch.tensor([0, 2])
    r1, r2 = (1 + 4) / 2, (4 + 36) / 2  # a mean over two images of |0.5 · factor|² · 4 and |factor|² · 4
    assert PENALTIES["r1"](critic, real, fake, labels, fake_labels, None).item() == pytest.approx(r1)
    assert PENALTIES["r1+r2"](critic, real, fake, labels, fake_labels, None).item() == pytest.approx(r1 + r2)


def test_index_within_class():
    assert index_within_class(torch.tensor([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]


@pytest.mark.parametrize("name", GANS)
def test_samples_depend_on_seed_class_and_index_alone(name):
    generator = NETWORKS[name][0](size=8, channels=1, num_classes=3, dim_noise=9, width=16).train()
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    images = generator.sample(labels, seed=5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(generator.sample(labels[order], seed=5), images[order])
    torch.testing.assert_close(generator.sample(torch.tensor([1]), seed=5), images[3:4], atol=1e-5, rtol=0)
    assert not torch.equal(generator.sample(labels, seed=6), images)
    assert not torch.equal(images[0], images[1])
    assert generator.training


def test_sampling_does_not_touch_the_global_stream():
    generator = PyramidGenerator(8, 1, 3, 4, width=16)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generator.sample(torch.tensor([0, 1]), seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", GANS)
def test_saved_generators_rebuild_themselves(name, tmp_path):
    generator = NETWORKS[name][0](size=20, channels=3, num_classes=4, dim_noise=9, width=16).eval()
    generator.save_pretrained(tmp_path)
    again = load_source(tmp_path)
    labels = torch.tensor([0, 3, 3])
    assert type(again) is type(generator)
    assert torch.equal(again.sample(labels, 1), generator.sample(labels, 1))


def test_a_published_checkpoint_loads(tmp_path):
    """The published names, with numbers in them, and the tensors of a 28-pixel grey network with 12 noise entries."""
    generator, critic = DiMGenerator(28, 1, 10, 12, width=8).eval(), DiMCritic(28, 1, 10, width=8)
    rename = lambda module: {f"published.{i}": value for i, value in enumerate(module.state_dict().values())}
    save_checkpoint(tmp_path / "model_dict_9.pth", {"generator": rename(generator), "discriminator": rename(critic)})
    loaded = load_source(tmp_path / "model_dict_9.pth")
    labels = torch.arange(10)
    assert (loaded.size, loaded.channels, loaded.num_classes, loaded.dim_noise) == (28, 1, 10, 12)
    assert torch.equal(loaded.sample(labels, 0), generator.sample(labels, 0))


def test_a_training_state_of_this_suite_is_no_published_checkpoint(tmp_path):
    generator, critic = DiMGenerator(28, 1, 10, 12, width=8), DiMCritic(28, 1, 10, width=8)
    save_checkpoint(tmp_path / "checkpoint.pt", {"recipe": {}, "generator": generator.state_dict(),
                                                 "discriminator": critic.state_dict()})
    with pytest.raises(UserError, match="for a run of this suite name its folder"):
        load_source(tmp_path / "checkpoint.pt")


def test_noise_is_drawn_for_the_images_that_are_made_together(monkeypatch):
    generator, asked = NETWORKS["pyramid"][0](8, 1, 10, 12, width=8), []
    noise = base.counter_normal
    monkeypatch.setattr(base, "counter_normal", lambda seed, *rows: (asked.append(len(rows[0])), noise(seed, *rows))[1])
    generator.sample(torch.zeros(600, dtype=torch.int64))
    assert asked == [256, 256, 88]


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04 nothing")
    save_checkpoint(tmp_path / "other.pth", {"weights": torch.zeros(3)})
    PyramidGenerator(8, 1, 3, 4, width=16).save_pretrained(tmp_path / "model")
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    for path in ("short.pth", "other.pth", "model", "nowhere", "."):
        with pytest.raises(UserError) as error:
            load_source(tmp_path / path)
        assert "\n" not in str(error.value)


def test_dim_needs_room_for_the_label():
    with pytest.raises(UserError, match="--dim-noise"):
        DiMGenerator(8, 1, 10, 10)
