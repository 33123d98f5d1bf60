"""Sources and the sets that are drawn from them."""

import json
import shutil

import pytest
import torch
from prototypes import Prototypes
from safetensors.torch import load_file, save_file

from gendistil.common.errors import UserError
from gendistil.data import Split, to_signed
from gendistil.sources import (
    DistilledDataset,
    LatentSet,
    PixelSet,
    RealImages,
    Rows,
    balanced_labels,
    draw,
    draw_set,
    forget,
    load_source,
)
from generators.dim import DiMGenerator


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


def test_a_choice_that_is_none_is_named():
    with pytest.raises(UserError, match="a set is chosen by one of fixed, representative, and not by 'representive'"):
        DistilledDataset(Prototypes(), ipc=1, choice="representive")


def test_what_was_learned_with_the_images_is_left_out_and_the_rows_of_a_teacher_stay():
    for learned in (True, False):
        source = PixelSet(size=8, channels=1, num_classes=10, ipc=2, step_size=0.3)
        source.rows = Rows(torch.zeros(10, 2, 10), "one", None, learned=learned)
        forget(source, step_size=False)
        assert (source.rows is None, source.step_size, source.soft) == (learned, 0.3, False)
        forget(source)
        assert source.step_size is None


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


def edited(folder, config=None, weights=None):
    """The model in a folder, of which its config.json or its weights are changed by hand."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if weights:
        path = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        weights(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("weights", "said"), [
    (lambda tensors: tensors.pop("linear.weight"), "linear.weight is missing"),
    (lambda tensors: tensors.update(more=torch.zeros(1)), "more is none of its weights"),
    (lambda tensors: tensors["linear.bias"].fill_(torch.nan), "linear.bias is NaN or infinite"),
])
def test_a_generator_with_other_weights_than_its_own_is_damaged(gan, tmp_path, capfd, weights, said):
    folder = edited(shutil.copytree(gan, tmp_path / "gan"), weights=weights)
    with pytest.raises(UserError) as raised:
        load_source(folder)
    assert str(raised.value) == f"{folder} holds a damaged generator ({said}): save it again"
    assert not capfd.readouterr().err


@pytest.mark.parametrize("config", [
    {"factor": 0}, {"factor": "2"}, {"decoder": "cut"}, {"step_size": -0.1}, {"step_size": "0.1"}, {"step_size": [0.1, None]},
    {"quantization_config": 3}, {"_class_name": ["PixelSet"]}])
def test_stored_images_with_a_config_that_nothing_writes_are_damaged(tmp_path, config):
    PixelSet(8, 1, 10, ipc=2, step_size=0.5).save_pretrained(tmp_path)
    assert load_source(tmp_path).step_size == 0.5
    with pytest.raises(UserError, match="holds no saved generator" if "_class_name" in config else "holds a damaged generator"):
        load_source(edited(tmp_path, config))


def test_an_index_of_shards_that_names_none_is_damaged(gan, tmp_path):
    folder = shutil.copytree(gan, tmp_path / "gan")
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors.index.json")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a damaged generator \(KeyError\)"):
        load_source(folder)


def test_a_published_checkpoint_of_no_numbers_is_damaged(tmp_path):
    generator = DiMGenerator(size=8, channels=1, num_classes=10, dim_noise=12, width=8)
    state = {"generator": generator.state_dict(), "discriminator": {"linear": torch.zeros(10)}}
    torch.save(state, tmp_path / "dim.pt")
    load_source(tmp_path / "dim.pt")
    state["generator"]["linear.weight"][0, 0] = torch.inf
    torch.save(state, tmp_path / "dim.pt")
    with pytest.raises(UserError, match=r"dim\.pt holds a damaged generator \(linear\.weight is NaN or infinite\)"):
        load_source(tmp_path / "dim.pt")
