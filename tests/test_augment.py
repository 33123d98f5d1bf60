"""Augmentation: each operation's effect and range, siamese use, differentiability, reproducibility."""

import math
from dataclasses import asdict
from inspect import signature

import pytest
import torch
import torch.nn.functional as F

from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import AUGMENTATIONS, Augment, AugmentParams, Spec
from gendistil.data.augment import augmentations, cut_mix
from gendistil.evaluation import PROTOCOLS, protocols
from gendistil.matching import METHODS, methods
from generators import RECIPES
from pools import ClassifierPool

SPEC = Spec("colour", ("a", "b"), 3, 16, (0.5,) * 3, (0.25,) * 3, True)
GREY = Spec("grey", ("a", "b"), 1, 28, (0.5,), (0.25,), False)
ALL = "color_crop_cutout_flip_scale_rotate"
FLIP, BRIGHTNESS, SATURATION, CONTRAST, GEOMETRY_Y, GEOMETRY_X, CUTOUT_Y, CUTOUT_X = range(8)


def images(count=64, spec=SPEC):
    return torch.randn(count, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(0))


def setting(*names, **columns):
    """These operations, with one setting for the whole batch: 0.5 except for the columns named, which is no colour change."""
    uniform = torch.full((1, 8), 0.5)
    for name, value in columns.items():
        uniform[0, globals()[name]] = value
    return AugmentParams(frozenset(names), uniform)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("spec", [SPEC, GREY])
@pytest.mark.parametrize("strategy", ["none", ALL, *AUGMENTATIONS])
def test_shape_and_dtype_stay_and_the_stream_decides(strategy, spec, per_image):
    x = images(8, spec)
    augment = Augment(strategy, spec)
    drawn = lambda seed: augment.draw(8 if per_image else 1, stream(seed, "augment"))
    y = augment.apply(x, drawn(1))
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.equal(y, augment.apply(x, drawn(1)))
    if strategy == "none" or (strategy == "flip" and not spec.flip):
        assert y is x
    elif strategy != "flip" or per_image:
        assert not torch.equal(y, x)
        assert not torch.equal(y, augment.apply(x, drawn(2)))
    if per_image:
        assert torch.equal(y, augment(x, stream(1, "augment")))


@pytest.mark.parametrize("strategy", [ALL, *AUGMENTATIONS])
def test_a_setting_says_all_that_is_drawn(strategy):
    x = images(32)
    augment = Augment(strategy, SPEC)
    for n in (1, 32):
        params = augment.draw(n, stream(0, "siamese", n))
        real, synthetic = augment.apply(x, params), augment.apply(x.clone(), params)
        assert torch.equal(real, synthetic)


@pytest.mark.parametrize("strategy", [ALL, *AUGMENTATIONS])
def test_one_setting_treats_every_image_alike_and_fits_any_batch(strategy):
    augment = Augment(strategy, SPEC)
    params = augment.draw(1, stream(0, "batch"))
    same = images(1).expand(5, -1, -1, -1)
    y = augment.apply(same, params)
    torch.testing.assert_close(y, y[:1].expand_as(y))
    torch.testing.assert_close(augment.apply(same[:2], params), y[:2])


@pytest.mark.parametrize("strategy", AUGMENTATIONS)
def test_per_image_settings_differ(strategy):
    y = Augment(strategy, SPEC)(images(1).repeat(64, 1, 1, 1), stream(0, "image"))
    assert len({tuple(image.flatten().tolist()) for image in y}) > 1


def test_each_image_gets_the_setting_of_its_row():
    augment, x = Augment(ALL, SPEC), images(6)
    for seed in range(6):  # meets all three geometric operations
        params = augment.draw(6, stream(seed, "rows"))
        whole = augment.apply(x, params)
        for i in range(6):
            row = params._replace(uniform=params.uniform[i : i + 1])
            torch.testing.assert_close(whole[i : i + 1], augment.apply(x[i : i + 1], row))


def test_number_of_settings_must_fit():
    augment = Augment(ALL, SPEC)
    with pytest.raises(ValueError, match="3 settings do not fit 4 images"):
        augment.apply(images(4), augment.draw(3, stream(0)))


@pytest.mark.parametrize("strategy", [*AUGMENTATIONS, ALL])
def test_gradients(strategy):
    augment = Augment(strategy, SPEC)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    params = augment.draw(2, stream(3, "gradients"))
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, params), x)


def test_half_precision_keeps_its_dtype():
    augment = Augment(ALL, SPEC)
    for seed in range(4):
        assert augment(images(4).bfloat16(), stream(seed)).dtype == torch.bfloat16


def test_flip_mirrors_about_half_of_the_images_exactly():
    x = images(400)
    y = Augment("flip", SPEC)(x, stream(0, "flip"))
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert torch.equal(y[~mirrored], x[~mirrored])
    assert 150 < mirrored.sum() < 250


def test_flip_is_dropped_where_mirrored_images_change_class():
    assert "flip" not in Augment(ALL, GREY).names
    assert Augment("flip", GREY).names == frozenset()


def test_color_formulas():
    augment, x = Augment("color", SPEC), images(4)
    torch.testing.assert_close(augment.apply(x, setting("color")), x)
    torch.testing.assert_close(augment.apply(x, setting("color", BRIGHTNESS=0.9)), x + 0.4)
    grey = augment.apply(x, setting("color", SATURATION=0.0))
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    low = augment.apply(x, setting("color", CONTRAST=0.0))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(low - mean, (x - mean) / 2)


def test_saturation_does_nothing_to_grey_images():
    augment, x = Augment("color", GREY), images(4, GREY)
    assert torch.equal(augment.apply(x, setting("color", SATURATION=0.0)), augment.apply(x, setting("color", SATURATION=0.9)))


def test_crop_shifts_by_whole_pixels_up_to_an_eighth():
    augment, x = Augment("crop", SPEC), images(4)
    assert torch.equal(augment.apply(x, setting("crop")), x)
    corner = augment.apply(x, setting("crop", GEOMETRY_Y=0.0, GEOMETRY_X=0.9999))
    assert torch.equal(corner[:, :, 2:, :-2], x[:, :, :-2, 2:])
    assert (corner[:, :, :2] == 0).all()
    assert (corner[:, :, :, -2:] == 0).all()


def test_cutout_covers_a_quarter_at_most_and_is_cut_off_at_the_border():
    augment, x = Augment("cutout", SPEC), images(4).abs() + 1
    middle = augment.apply(x, setting("cutout"))
    assert (middle[:, :, 4:12, 4:12] == 0).all()
    assert (middle == 0).sum() == 4 * 3 * 64
    corner = augment.apply(x, setting("cutout", CUTOUT_Y=0.0, CUTOUT_X=0.9999))
    assert (corner[:, :, :4, 12:] == 0).all()
    assert (corner == 0).sum() == 4 * 3 * 16
    covered = (augment(torch.ones(2000, 3, 16, 16), stream(0, "cutout")) == 0)[:, 0].sum((1, 2))
    assert covered.max() == 64
    assert covered.min() == 16


def test_cutout_of_an_odd_side():
    spec = Spec("odd", ("a", "b"), 1, 9, (0.5,), (0.25,), False)
    covered = (Augment("cutout", spec)(torch.ones(500, 1, 9, 9), stream(0, "cutout")) == 0)[:, 0]
    assert covered.sum((1, 2)).max() == 25
    assert covered.any(0).all()


def test_cutout_comes_last():
    y = Augment("color_cutout", SPEC)(images(64), stream(0, "last"))
    assert ((y == 0).all(1).flatten(1).sum(1) >= 16).all()  # still exactly the mean colour


def test_scale_and_rotate_move_a_dot_where_they_should():
    spec = Spec("wide", ("a", "b"), 1, 64, (0.5,), (0.25,), True)
    x = torch.zeros(1, 1, 64, 64)
    x[0, 0, 31:33, 47:49] = 1  # 16 pixels to the right of the middle

    def dot(strategy, **columns):
        """Its place relative to the middle, in pixels: right, down."""
        y = Augment(strategy, spec).apply(x, setting(strategy, **columns))[0, 0]
        place = torch.arange(64) - 31.5
        return float((y.sum(0) * place).sum() / y.sum()), float((y.sum(1) * place).sum() / y.sum())

    assert dot("scale", GEOMETRY_X=0.0, GEOMETRY_Y=0.0) == pytest.approx((16 * 1.2, 0), abs=0.2)
    assert dot("scale", GEOMETRY_X=1.0, GEOMETRY_Y=0.3) == pytest.approx((16 / 1.2, 0), abs=0.2)
    assert dot("rotate", GEOMETRY_X=0.5) == pytest.approx((16, 0), abs=0.01)
    turned = 16 * math.cos(math.radians(15)), 16 * math.sin(math.radians(15))
    assert dot("rotate", GEOMETRY_X=0.0) == pytest.approx(turned, abs=0.2)
    assert dot("rotate", GEOMETRY_X=1.0) == pytest.approx((turned[0], -turned[1]), abs=0.2)


def test_one_geometric_operation_per_call_each_about_as_often():
    augment = Augment(ALL, SPEC)
    generator = stream(0, "choice")
    drawn = [augment.draw(1, generator).names for _ in range(300)]
    assert all(70 < drawn.count(frozenset((name, "color", "cutout", "flip"))) < 130 for name in ("crop", "scale", "rotate"))
    assert Augment("color_cutout", SPEC).draw(1, generator).names == {"color", "cutout"}


def test_single_applies_one_operation_per_call_each_about_as_often():
    augment, generator = Augment(ALL, SPEC, single=True), stream(0, "choice")
    drawn = [augment.draw(1, generator).names for _ in range(600)]
    assert all(60 < drawn.count(frozenset((name,))) < 140 for name in AUGMENTATIONS)
    digits = Augment(ALL, GREY, single=True)
    assert all(digits.draw(1, generator).names != {"flip"} for _ in range(60))


@pytest.mark.parametrize("strategy", ["colour", "color_", "", "none_crop", "color-crop"])
def test_unknown_names_list_the_choices(strategy):
    with pytest.raises(UserError) as error:
        Augment(strategy, SPEC)
    assert all(word in str(error.value) for word in ("--aug-type", *AUGMENTATIONS, "none"))


def test_a_strategy_has_one_spelling():
    assert augmentations("flip_crop") == augmentations("CROP_flip_crop") == "crop_flip"
    assert augmentations("none") == "none"


def test_every_preset_has_that_spelling():
    rows = [*map(asdict, (*METHODS.values(), *PROTOCOLS.values(), *RECIPES.values())),
            *(row.values for row in (*methods.PRESETS, *protocols.PRESETS)),
            {"aug_type": signature(ClassifierPool).parameters["aug_type"].default}]
    named = [row[name] for row in rows for name in ("aug_type", "pool_aug", "gan_aug") if row.get(name)]
    assert len(named) > len(METHODS)
    assert [augmentations(text) for text in named] == named


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("strategy", [ALL, *AUGMENTATIONS])
def test_gpu_agrees_with_cpu(strategy):
    augment, x = Augment(strategy, SPEC), images(16)
    params = augment.draw(16, stream(0, "gpu"))
    on_gpu = augment.apply(x.cuda(), params._replace(uniform=params.uniform.cuda()))
    torch.testing.assert_close(on_gpu.cpu(), augment.apply(x, params), atol=1e-4, rtol=1e-4)


def test_cutmix_puts_a_box_of_another_image_into_each():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8)  # the pixels of an image are its number
    labels = torch.arange(6)
    covered = set()
    for seed in range(40):
        mixed, targets = cut_mix(images, labels, 6, 1.0, stream(seed))
        assert torch.equal(mixed[:, :1].expand_as(mixed), mixed)
        changed = mixed[:, 0] != images[:, 0]
        for row, target in enumerate(targets):
            shares = torch.bincount(mixed[row, 0].flatten().long(), minlength=6) / 64
            torch.testing.assert_close(target, shares)
            box = changed[row].nonzero()
            if len(box):
                height, width = (box.amax(0) - box.amin(0) + 1).tolist()
                assert height * width == len(box)
        covered.add(float(1 - targets.max(1).values.min()))
    assert len(covered) > 5
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))  # what was given is unchanged


def test_cutmix_is_a_mixture_of_two_losses():
    logits, labels = torch.randn(6, 10, generator=stream(1)), torch.tensor([3, 1, 4, 1, 5, 9])
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8)
    mixed, targets = cut_mix(images, labels, 10, 1.0, stream(0))
    own = (mixed == images).flatten(1).float().mean(1)
    partner = torch.where(own < 1, (mixed - (mixed == images) * images).flatten(1).amax(1), torch.arange(6.0)).long()
    losses = own * F.cross_entropy(logits, labels, reduction="none")
    losses = losses + (1 - own) * F.cross_entropy(logits, labels[partner], reduction="none")
    assert 0 < own.min() < 1
    torch.testing.assert_close(F.cross_entropy(logits, targets), losses.mean())


def test_cutmix_mixes_the_asked_share_of_batches_and_soft_labels_too():
    images, soft = torch.randn(4, 1, 8, 8, generator=stream(0)), torch.rand(4, 10, generator=stream(1)).softmax(1)
    results = [cut_mix(images, soft, 10, 0.5, stream(seed)) for seed in range(400)]
    assert 160 < sum(mixed is not images for mixed, _ in results) < 240
    assert all(targets is soft for mixed, targets in results if mixed is images)
    assert all(torch.allclose(targets.sum(1), torch.ones(4)) for _, targets in results)
