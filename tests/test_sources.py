"""Sources and the sets that are drawn from them."""

import pytest
import torch
from prototypes import Prototypes

from gendistil.common.errors import UserError
from gendistil.data import Split, to_signed
from gendistil.sources import (
    DistilledDataset,
    LatentSet,
    RealImages,
    balanced_labels,
    draw,
    draw_set,
)


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
    monkeypatch.setattr(draw, "_AT_ONCE", at_once)
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


@pytest.mark.parametrize(("ipc", "candidates"), [(2, 500), (25, 500), (50, 1000)])
def test_a_generator_offers_20_images_for_each_of_a_set_and_500_at_least(ipc, candidates):
    source = Prototypes()
    draw_set(source, ipc, 0, choice="representative")
    assert torch.cat([labels for labels, _ in source.asked]).bincount().tolist() == [candidates] * 10


def test_more_representatives_than_there_are_images_are_refused(digits):
    latents = LatentSet("pyramid", {"size": 8, "channels": 1, "num_classes": 10, "dim_noise": 4, "width": 8}, ipc=2)
    for source in (RealImages(digits.train, 10), latents):
        with pytest.raises(UserError, match="lower --ipc"):
            draw_set(source, source.max_ipc + 1, seed=1, choice="representative")


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
