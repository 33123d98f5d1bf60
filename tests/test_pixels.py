"""Pixels as what is learned: multi-formation against the published decodings, sets as sources."""

import pytest
import torch
from parity_fixtures import load_data

from common.errors import UserError
from evaluation import DistilledDataset, draw_set, load_source
from matching.pixels import PixelSet, decode, mosaic, scales, zoom

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
