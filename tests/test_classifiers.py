"""Classifiers: parity with the published networks, every image size, and the training loop."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from parity_fixtures import (
    VARIANTS,
    assert_close,
    fixture_input,
    fixture_names,
    fixture_outputs,
    fixture_state,
    load_positionally,
    uniform_hash,
)

from gendistil.common.cli import LARGEST
from gendistil.common.device import halve
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import Augment, standardise, to_signed
from pools import (
    CLASSIFIERS,
    SCHEDULES,
    SETS,
    accuracy,
    build_classifier,
    embed_images,
    epoch_batches,
    full_name,
    train_classifier,
)
from pools.classifiers import some_classifiers
from pools.resnet import Pointwise
from pools.training import count_batches, split_batches

FULL = {"width": 64, "stem": "large"}
CONVNET_OPTIONS = {
    "norm_batch": {"norm": "batch"}, "norm_layer": {"norm": "layer"}, "norm_group": {"norm": "group"},
    "norm_none": {"norm": "none"}, "depth1": {"depth": 1}, "depth2": {"depth": 2}, "depth4": {"depth": 4},
    "depth5": {"depth": 5}, "im64_depth4": {"depth": 4}, "width32": {"width": 32}, "width64": {"width": 64},
    "width256": {"width": 256}, "sigmoid": {"activation": "sigmoid"}, "leakyrelu": {"activation": "leakyrelu"},
    "maxpool": {"pooling": "max"}, "nopool": {"pooling": "none"}, "c1_28": {}, "": {},
}
RESNET_OPTIONS = {
    "cifar10": {}, "cifar10_instance": {"norm": "instance"}, "svhn_dim": FULL, "mnist_dim": FULL,
    "svhn_size32_instance": {"width": 64, "norm": "instance"},
}


def published(name):
    """The classifier's name and options that rebuild a fixture's network."""
    kind, _, rest = name.removeprefix("cls_").partition("_")
    if kind == "convnet":
        return kind, CONVNET_OPTIONS[rest]
    if kind == "densenet":
        return kind, {}
    return (f"resnet{kind.removeprefix('resnetap')}_ap" if "ap" in kind else kind), RESNET_OPTIONS[rest]


def test_the_hash_formula():
    for j, t, value in ((0, 0, 0.7459310027770698), (1, 0, 0.8391114501282573), (0, 1, -0.42703496338799596),
                        (7, 5, 0.3618832123465836), (123456, 1000003, 0.6972718928009272)):
        assert uniform_hash(j + 1, t)[j] == value


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", fixture_names("cls_"))
def test_parity(name, variant):
    kind, options = published(name)
    images = fixture_input(name, variant)
    model = build_classifier(kind, images.shape[1], images.shape[2], 10, **options)
    load_positionally(model, fixture_state(name, variant)).eval()
    with torch.no_grad():
        outputs = {"logits": model(images), "features": model.embed(images)}
    for output, (expected, tol) in fixture_outputs(name, variant).items():
        assert_close(outputs[output], expected, tol)


VICO = {
    "ConvNet": "convnet", "ConvNetBN": "convnet_bn", "ConvNetASwish": "convnet_swish", "ConvNetASwishBN": "convnet_swish_bn",
    "MLP": "mlp", "LeNet": "lenet", "AlexNet": "alexnet", "AlexNetBN": "alexnet_bn", "VGG11": "vgg11", "VGG11BN": "vgg11_bn",
    "ResNet18": "resnet18_full_in", "ResNet18BN": "resnet18_full", "ResNet18BN_AP": "resnet18_full_ap",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fixture", fixture_names("vico_"))
def test_parity_of_the_evaluation_networks(fixture, variant):
    name = fixture.removeprefix("vico_").rpartition("_")[0]
    images = fixture_input(fixture, variant)
    model = build_classifier(VICO[name], images.shape[1], images.shape[2], 10)
    load_positionally(model, fixture_state(fixture, variant, convs_first=name.startswith("ConvNet"))).eval()
    with torch.no_grad():
        outputs = {"logits": model(images), "embed": model.embed(images)}
    for output, (expected, tol) in fixture_outputs(fixture, variant).items():
        assert_close(outputs[output], expected, tol)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 20, 28, 32, 64])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_size_and_channel_count(name, size, channels):
    if (name, size) == ("resnet18_full_in", 8):
        with pytest.raises(UserError, match="one pixel per map"):
            build_classifier(name, channels, size, 2)
        return
    model = build_classifier(name, channels, size, 2)
    images = torch.randn(2, channels, size, size)
    with torch.set_grad_enabled(size == 8):
        logits = model(images)
    assert logits.shape == (2, 2)
    if size == 8:
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        model.eval()
        assert model.embed(images).shape == (2, model.classifier.in_features)
        assert all(maps.shape[0] == 2 and maps.dim() == 4 for maps in model.features(images))


@pytest.mark.parametrize("size", [2, 3, 64])
def test_batches_are_counted_as_they_are_cut(size):
    for images in (*range(1, 14), 63, 64, 65, 129, 191):
        assert count_batches(images, size) == len(split_batches(torch.arange(images), size))


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnet:width=4", "convnet4", "convnet_bn", "resnet10", "resnet18", "resnet18_ap",
                                  "resnet18_full_in:width=8", "densenet", "mlp", "lenet", "alexnet", "vgg11"])
def test_the_largest_images(name):
    model = build_classifier(name, 3, LARGEST, 5)
    assert model(torch.randn(2, 3, LARGEST, LARGEST)).shape == (2, 5)


@pytest.mark.parametrize("depth", range(1, 7))
def test_convnet_sees_its_images_at_any_size_and_depth(depth):
    for size in range(8, 65):
        model = build_classifier("convnet", 1, size, 3, depth=depth, width=4)
        logits = model(torch.randn(2, 1, size, size))
        assert logits.shape == (2, 3)
        assert not torch.allclose(logits[0], logits[1]), f"size {size}: every image has the same logits"


def test_convnet_pads_28_to_32_and_nothing_else_that_divides():
    sides = {size: build_classifier("convnet", 3, size, 10).features(torch.zeros(1, 3, size, size))[0].shape[-1] * 2
             for size in (8, 20, 28, 32, 64)}
    assert sides == {8: 8, 20: 24, 28: 32, 32: 32, 64: 64}


@pytest.mark.parametrize("stem", ["small", "mid", "large"])
@pytest.mark.parametrize("name", ["resnet10", "resnet10_ap"])
def test_resnet_stems_run_on_small_images(name, stem):
    for size in (8, 28):
        assert build_classifier(name, 1, size, 5, stem=stem, width=4)(torch.randn(2, 1, size, size)).shape == (2, 5)


@pytest.mark.parametrize("side", [(6, 8), (7, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_halving_is_average_pooling_twice_differentiable(side, memory_format):
    x = torch.randn(2, 3, *side, generator=stream(0, "x"), dtype=torch.float64).to(memory_format=memory_format)
    torch.testing.assert_close(halve(x), F.avg_pool2d(x, 2))
    x.requires_grad_()
    assert torch.autograd.gradcheck(halve, x)
    assert torch.autograd.gradgradcheck(halve, x)


def test_bad_names_and_options():
    with pytest.raises(UserError, match="convnet, convnet4"):
        build_classifier("vgg", 3, 32, 10)
    with pytest.raises(UserError, match="norm 'batches'"):
        build_classifier("resnet18", 3, 32, 10, norm="batches")
    with pytest.raises(UserError, match="one pixel"):
        build_classifier("resnet18", 3, 8, 10, norm="instance")
    with pytest.raises(UserError, match="activation 'gelu'"):
        build_classifier("convnet", 3, 32, 10, activation="gelu")


@pytest.mark.parametrize(("given", "name"), [
    ("convnet", "convnet"), ("convnet:width=0128", "convnet"), ("convnet4:depth=4", "convnet4"),
    ("convnet:width=256,norm=batch", "convnet:norm=batch,width=256"), ("resnet18_ap:average=yes,flatten=yes",
                                                                      "resnet18_ap:flatten=yes"),
])
def test_a_name_has_one_spelling(given, name):
    assert full_name(given) == full_name(name) == name


def test_a_name_with_options_builds_what_the_options_do():
    named = build_classifier("convnet:depth=2,norm=batch,width=8", 1, 8, 10, generator=stream(0))
    meant = build_classifier("convnet", 1, 8, 10, generator=stream(0), width=8, depth=2, norm="batch").state_dict()
    assert named.state_dict().keys() == meant.keys()
    assert all(torch.equal(value, meant[key]) for key, value in named.state_dict().items())


@pytest.mark.parametrize(("name", "message"), [
    ("convnet:", "unknown option of convnet ''"), ("convnet:size=9", "choose from width, depth"),
    ("convnet:width=wide", "'wide' is no option width of convnet, which is a whole number above 0"),
    ("convnet:width=0", "whole number above 0"), ("resnet18:flatten=1", "choose from yes, no"),
    ("mlp:hidden=9", "cannot be given in a name"), ("keras:resnet", "unknown classifier 'keras'"),
])
def test_bad_names_with_options(name, message):
    with pytest.raises(UserError, match=message):
        full_name(name)


def test_sets_hold_names_in_their_one_spelling():
    for names in SETS.values():
        assert names == tuple(map(full_name, names)) == tuple(dict.fromkeys(names))
    assert some_classifiers("IDC") == SETS["IDC"]
    assert some_classifiers("convnet:norm=instance") == ("convnet",)
    assert not set(SETS) & set(CLASSIFIERS)


def test_the_generator_decides_the_weights():
    def weights(seed):
        model = build_classifier("convnet", 1, 8, 10, generator=torch.Generator().manual_seed(seed))
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(before, torch.get_rng_state())


def test_training_improves_accuracy_and_scoring_keeps_the_mode(digits):
    spec, train, test = digits.spec, digits.train, digits.test
    model = build_classifier("resnet10", spec.channels, spec.size, spec.num_classes, width=8, generator=stream(0, "weights"))

    def batches(epoch):
        return epoch_batches(train.images, train.labels, spec, Augment("crop", spec), 128, stream(0, "order", epoch))

    before, losses, steps = accuracy(model, test.images, test.labels, spec), [], []
    last = train_classifier(model, batches, epochs=3, lr=0.05, on_epoch=lambda epoch, loss: losses.append((epoch, loss)),
                            on_step=steps.append)
    after = accuracy(model, test.images, test.labels, spec)
    assert before < 40
    assert after > 60
    assert [epoch for epoch, _ in losses] == [1, 2, 3]
    assert losses[-1][1] == last < losses[0][1]
    assert steps == list(range(1, 3 * len(list(batches(0))) + 1))
    assert model.training
    model.eval()
    assert accuracy(model, test.images, test.labels, spec, batch_size=7) == after
    assert not model.training
    embedding = embed_images(model, test.images[:10], spec)
    assert embedding.shape == (10, 64)
    assert not embedding.requires_grad
    assert torch.equal((model.classifier(embedding).argmax(1) == test.labels[:10]).float().mean() * 100,
                       accuracy(model, test.images[:10], test.labels[:10], spec))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast(digits, dtype):
    accelerator = SimpleNamespace(mixed_precision=str(dtype), autocast=partial(torch.autocast, "cpu", dtype))
    spec, train = digits.spec, digits.train[:256]
    model = build_classifier("convnet", 1, 8, 10, width=8, generator=stream(0, "weights"))
    loss = train_classifier(model, lambda epoch: epoch_batches(train.images, train.labels, spec, None, 64, stream(0, epoch)),
                            epochs=5, lr=0.1, engine=Engine(accelerator))
    assert loss.dtype == torch.float32
    assert loss < 2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_diverging_run_names_the_step(digits):
    spec, train = digits.spec, digits.train[:128]
    model = build_classifier("convnet", 1, 8, 10, width=8, norm="none")
    with pytest.raises(UserError, match=r"after \d+ steps.*--lr"):
        train_classifier(model, lambda epoch: epoch_batches(train.images, train.labels, spec, None, 64, stream(0, epoch)),
                         epochs=10, lr=1e6)


def test_an_epoch_has_every_image_once_and_no_batch_of_one(digits):
    spec, some = digits.spec, digits.train[:65]
    numbers = torch.arange(65)
    batches = list(epoch_batches(some.images, numbers, spec, None, 32, stream(0, "order")))
    assert [len(labels) for _, labels in batches] == [32, 33]
    order = torch.cat([labels for _, labels in batches])
    assert torch.equal(order.sort().values, numbers)
    assert torch.equal(torch.cat([images for images, _ in batches]), standardise(to_signed(some.images[order]), spec))
    assert [len(labels) for _, labels in epoch_batches(some.images[:1], numbers[:1], spec, None, 32, stream(0))] == [1]


@pytest.mark.parametrize(("schedule", "factors"), [("constant", [1, 1, 1, 1, 1, 1]), ("step", [1, 1, 1, 1, 0.2, 0.04]),
                                                   ("cosine", [1, 0.933, 0.75, 0.5, 0.25, 0.067])])
def test_schedules(schedule, factors):
    assert [SCHEDULES[schedule](epoch, 6) for epoch in range(6)] == pytest.approx(factors, abs=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_narrow_shortcut_is_a_convolution(stride):
    ours = Pointwise(8, 16, 1, stride, bias=False)
    images = torch.randn(2, 8, 7, 7)
    assert torch.allclose(ours(images), F.conv2d(images, ours.weight, stride=stride), atol=1e-6)
