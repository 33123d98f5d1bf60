"""Classifiers of torchvision and timm; what is asked of timm is told by a stand-in."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.evaluation import PRESETS, PROTOCOLS, Preset, Protocol, evaluate, protocol_for, protocols
from gendistil.sources import RealImages
from pools import ClassifierPool, RandomPool, base_name, build_classifier, check_classifiers, full_name

SMALL = "torchvision:shufflenet_v2_x0_5"


class Seen(nn.Module):
    """Remembers the shape of the images that it saw, and drops some of what it knows of them."""

    def __init__(self, num_classes):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 48, 48), "min_input_size": (3, 24, 24)}
        self.drop, self.head = nn.Dropout(0.9), nn.Linear(3, num_classes)

    def forward(self, images):
        self.shape = tuple(images.shape[1:])
        return self.head(self.drop(images.mean((2, 3))))


@pytest.fixture
def timm(monkeypatch):
    """A package timm whose one classifier is a `Seen`."""
    made = []

    def create_model(name, *, pretrained, num_classes):
        assert not pretrained
        made.append(Seen(num_classes))
        return made[-1]

    library = SimpleNamespace(is_model=lambda name: name == "seen", create_model=create_model, made=made)
    monkeypatch.setitem(sys.modules, "timm", library)
    return library


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("vit_tiny_patch16_224", 192)])
def test_a_classifier_of_timm_itself(name, width):
    pytest.importorskip("timm")
    images = torch.rand(2, 1, 32, 32)
    model, same = (build_classifier(f"timm:{name}", channels, 32, 7, generator=stream(0)).eval() for channels in (1, 3))
    assert model.embed(images).shape == (2, width)
    assert torch.equal(same(images.expand(-1, 3, -1, -1)), model(images))
    assert torch.equal(model.train()(images), model(images))  # nothing is dropped at random


def test_a_classifier_of_torchvision(digits):
    images = torch.rand(2, 1, 32, 32)
    model = build_classifier(SMALL, 1, 32, 7, generator=stream(0)).eval()
    assert model.embed(images).shape == (2, model.classifier.in_features) == (2, 1024)
    assert torch.equal(model.classifier(model.embed(images)), model(images))
    same = build_classifier(SMALL, 3, 32, 7, generator=stream(0)).eval()
    assert torch.equal(same(images.expand(-1, 3, -1, -1)), model(images))  # grey images are three equal channels
    with pytest.raises(UserError, match=f"--pool {SMALL}: .* --match feature"):
        check_classifiers([SMALL], digits.spec, "--pool", lambda classifier, images: classifier.features(images))
    with pytest.raises(UserError, match="--match feature"):
        model.features(images)


def test_images_are_resized_where_a_network_needs_it():
    assert build_classifier("torchvision:alexnet", 3, 32, 2).side == 63
    assert build_classifier(SMALL, 3, 32, 2).side == 32
    assert build_classifier(f"{SMALL}:side=64", 3, 32, 2).side == 64


def test_a_classifier_of_timm(timm):
    images = torch.rand(2, 3, 8, 8)
    model = build_classifier("timm:seen", 3, 8, 5)
    assert torch.equal(model(images), model(images))  # in train mode: nothing is dropped
    assert timm.made[0].shape == (3, 24, 24)
    build_classifier("timm:seen:side=16", 3, 8, 5)(images)
    assert timm.made[1].shape == (3, 16, 16)
    with pytest.raises(UserError, match="timm has no classifier 'resnet18'"):
        full_name("timm:resnet18")


def test_a_network_of_a_fixed_size_gets_it(timm):
    timm.create_model("seen", pretrained=False, num_classes=2)
    fixed = timm.made[0]
    fixed.pretrained_cfg["fixed_input_size"] = True
    timm.create_model = lambda name, **_: fixed
    assert build_classifier("timm:seen", 3, 8, 2).side == 48


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        full_name("timm:resnet18")
    with pytest.raises(UserError, match="torchvision has no classifier 'resnet19'"):
        full_name("torchvision:resnet19")


@pytest.mark.parametrize(("name", "message"), [
    ("torchvision:squeezenet1_1", "does not end in a linear layer"),
    ("torchvision:googlenet", "does not work .*GoogLeNetOutputs"),
    ("convnet:norm=group,width=6", "width 6"), ("resnet18_full_in", "one pixel per map"),
])
def test_what_does_not_fit_is_refused_before_the_work(digits, name, message):
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=f"--pool {name}: .*{message}"):
        check_classifiers(["convnet", name], digits.spec, "--pool")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("side", "together"), [(6, 2), (16, 1), (16, 2)])
def test_students_of_another_library(digits, side, together):
    protocol = Protocol(epochs=2, min_steps=0, batch_size=10, aug_type="none")
    real, settings = RealImages(digits.train, 10), {"num_eval": 2, "protocol": protocol, "together": together}
    scores = [evaluate(real, digits, f"{SMALL}:side={side}", 2, "fixed", **settings).accuracies for _ in range(2)]
    assert scores[0] == scores[1]


def test_pools_of_names_with_options(digits, tmp_path):
    from accelerate import Accelerator

    names = ("convnet:norm=batch,width=8", "torchvision:shufflenet_v2_x0_5:side=16")
    settings = {"names": names, "members": 1, "epochs": 1, "snapshots": 1, "batch_size": 700, "aug_type": "none"}
    made = ClassifierPool(digits, tmp_path, Accelerator(cpu=True), **settings)
    kept = ClassifierPool.open(made.dir)
    assert [row["name"] for row in kept.table()] == list(names)
    assert all(":" not in row["file"] for row in kept.table())
    assert torch.equal(made[1].classifier.weight, kept[1].classifier.weight)
    network = RandomPool(digits, names=names[:1]).draw(stream(0))
    assert network.norms[0].num_features == 8


def test_an_architecture_and_its_variants_are_trained_as_their_row_says(monkeypatch):
    rows = [Preset("default", {"lr": rate}, models=(name,)) for name, rate in (("resnet18", 0.1), ("resnet18_full", 0.2))]
    monkeypatch.setattr(protocols, "PRESETS", [*PRESETS, *rows])
    names = ("resnet18", "resnet18_ap", "resnet18_full", "resnet18_full_ap", "resnet10", "convnet:width=8")
    assert [protocol_for("default", "digits", name).lr for name in names] == [0.1, 0.1, 0.2, 0.1, 0.05, 0.05]
    assert protocol_for("dc", "digits", "resnet18") == PROTOCOLS["dc"]
    assert all(Protocol(**row.values) and all(base_name(name) == name for name in row.models) for row in PRESETS)
