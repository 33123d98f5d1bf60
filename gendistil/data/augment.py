"""Differentiable augmentation of whole batches, with settings that can be drawn once and applied to several batches.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (NeurIPS 2020), with the operations, strengths and
order of Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021). And CutMix, which mixes
images in pairs.
"""

import argparse
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gendistil.common.device import send
from gendistil.common.errors import UserError

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""What a strategy may name, joined by underscores."""

_GEOMETRIC = ("crop", "scale", "rotate")
# One column of uniform numbers for every quantity that is drawn; a call uses one geometric operation, so those share two.
_FLIP, _BRIGHTNESS, _SATURATION, _CONTRAST, _GEOMETRY_Y, _GEOMETRY_X, _CUTOUT_Y, _CUTOUT_X = range(8)


def augmentations(text):
    """An argparse type: names of `AUGMENTATIONS` joined by _, in that order, or none."""
    if complaint := _complaint(text):
        raise argparse.ArgumentTypeError(complaint)
    return "_".join(name for name in AUGMENTATIONS if name in _named(text)) or "none"


def _complaint(strategy):
    """What is wrong with the names of a strategy, or None."""
    if unknown := _named(strategy).difference(AUGMENTATIONS):
        return f"unknown augmentation '{min(unknown)}': join some of {', '.join(AUGMENTATIONS)} by _, or give none"


def _named(strategy):
    return set() if strategy == "none" else set(strategy.lower().split("_"))


class AugmentParams(NamedTuple):
    """A drawn setting: the operations to apply, and uniform numbers `[n, 8]`, one row per image or one for all."""

    names: frozenset
    uniform: torch.Tensor


class Augment:
    """The operations that `strategy` names, applied to standardised float images `[B, C, H, W]`.

    In this order, each only if named: flip (mirrors half of the images); color (brightness: adds -0.5 to 0.5; saturation:
    multiplies the distance from the grey image by 0 to 2, nothing to do for grey images; contrast: multiplies the distance from
    the image's mean by 0.5 to 1.5); one of crop (shifts by up to 1/8 of the side, zeros move in), scale (zooms each axis by
    1/1.2 to 1.2) and rotate (up to 15 degrees), the same one for a whole call; cutout (zeros a square of half the side, whose
    centre lies anywhere). Zero is the training images' mean colour.

    Args: strategy, names of `AUGMENTATIONS` joined by "_", or "none"; spec, the data set's `Spec`: where mirrored images
    change class, flip is dropped; single, whether a call applies only one of all that are named, as DSA and DM do.
    Raises UserError for an unknown name.
    """

    def __init__(self, strategy, spec, single=False):
        if complaint := _complaint(strategy):
            raise UserError(f"--aug-type {strategy}: {complaint}")
        names = _named(strategy)
        self.names = frozenset(names if spec.flip else names - {"flip"})
        self.exclusive = tuple(name for name in (AUGMENTATIONS if single else _GEOMETRIC) if name in self.names)

    def draw(self, n, generator, device=None):
        """Settings of `n` images, or one for a whole batch with n = 1; drawn on the generator's device, moved to `device`."""
        names = self.names
        if self.exclusive:  # read by the host, which costs nothing with a generator on the CPU
            choice = torch.randint(len(self.exclusive), (), generator=generator, device=generator.device)
            names = names.difference(self.exclusive) | {self.exclusive[int(choice)]}
        uniform = torch.rand(n, 8, generator=generator, device=generator.device)
        return AugmentParams(names, send(uniform, generator.device if device is None else device))

    def apply(self, images, params):
        """`images` `[B, C, H, W]` augmented as `params` say, whose number of rows is 1 or B. Differentiable."""
        if len(params.uniform) not in (1, len(images)):
            raise ValueError(f"{len(params.uniform)} settings do not fit {len(images)} images")
        uniform = params.uniform.to(images.dtype)[:, :, None, None, None]  # [n, 8, 1, 1, 1]
        if "flip" in params.names:
            images = torch.where(uniform[:, _FLIP] < 0.5, images.flip(3), images)
        if "color" in params.names:
            images = _color(images, uniform[:, _BRIGHTNESS], uniform[:, _SATURATION], uniform[:, _CONTRAST])
        y, x = params.uniform[:, _GEOMETRY_Y], params.uniform[:, _GEOMETRY_X]
        if "crop" in params.names:
            images = _crop(images, y, x)
        elif "scale" in params.names:
            low, high = 1 / 1.2, 1.2
            images = _warp(images, low + (high - low) * x, 0 * x, 0 * x, low + (high - low) * y)
        elif "rotate" in params.names:
            angle = (2 * x - 1) * math.radians(15)
            images = _warp(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())
        if "cutout" in params.names:
            images = _cutout(images, params.uniform[:, _CUTOUT_Y], params.uniform[:, _CUTOUT_X])
        return images

    def __call__(self, images, generator):
        """`images` augmented by fresh settings, one per image."""
        if not self.names:
            return images
        return self.apply(images, self.draw(len(images), generator, images.device))


def cut_mix(images, targets, num_classes, probability, generator):
    """With this probability, put a box of every image's partner into it, and mix their targets by the areas (CutMix).

    Yun et al., "CutMix" (ICCV 2019), as IDC trains networks: one draw for a whole batch; partners are a permutation of it; the
    box covers a share of the image that is uniform between 0 and 1, which is Beta(1, 1), but for what sticks out at its edges.

    Args: images, float `[B, C, H, W]`; targets, int64 `[B]` or float `[B, K]`; generator, of all draws, which the
    host reads: best on the CPU. Returns new images and float targets `[B, K]`, or those that were given.
    """
    chance, share, y, x = torch.rand(4, generator=generator, device=generator.device).tolist()
    if chance >= probability:
        return images, targets
    partner = torch.randperm(len(images), generator=generator, device=generator.device)
    partner = send(partner, images.device)
    (top, bottom), (left, right) = (_span(side, share, u) for side, u in zip(images.shape[2:], (y, x)))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    covered = (bottom - top) * (right - left) / images[0, 0].numel()
    soft = targets if targets.is_floating_point() else F.one_hot(targets, num_classes).float()
    return mixed, (1 - covered) * soft + covered * soft[partner]


def _span(side, share, uniform):
    """Start and end of a box's side, cut off at the edges; two of them cover `share` of a square."""
    half, centre = int(side * share**0.5) // 2, int(side * uniform)
    return max(centre - half, 0), min(centre + half, side)


def _integers(uniform, count):
    """Uniform numbers in [0, 1) as integers 0 to count - 1."""
    return (uniform * count).long().clamp(max=count - 1)


def _color(images, brightness, saturation, contrast):
    images = images + (brightness - 0.5)
    if images.shape[1] > 1:
        grey = images.mean(dim=1, keepdim=True)  # [B, 1, H, W]
        images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    return mean + (images - mean) * (contrast + 0.5)


def _crop(images, y, x):
    """Shift by whole pixels: every pixel is fetched from the zero-padded image, at an index that its setting gives."""
    batch, channels, height, width = images.shape
    pad_y, pad_x = int(height / 8 + 0.5), int(width / 8 + 0.5)
    rows = _integers(y, 2 * pad_y + 1)[:, None] + torch.arange(height, device=y.device)  # [n, H]
    columns = _integers(x, 2 * pad_x + 1)[:, None] + torch.arange(width, device=x.device)  # [n, W]
    index = (rows[:, :, None] * (width + 2 * pad_x) + columns[:, None]).flatten(1)[:, None]  # [n, 1, HW]
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y)).flatten(2)
    return padded.gather(2, index.expand(batch, channels, -1)).view_as(images)


def _warp(images, xx, xy, yx, yy):
    """Fetch each pixel, bilinearly, from where the matrix ((xx, xy), (yx, yy)), entries `[n]`, takes its place."""
    matrix = torch.stack([xx, xy, 0 * xx, yx, yy, 0 * yy], dim=1).view(-1, 2, 3).to(images.dtype)
    grid = F.affine_grid(matrix, [len(matrix), *images.shape[1:]], align_corners=False)  # [n, H, W, 2]
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _cutout(images, y, x):
    inside = [_window(side, u) for side, u in zip(images.shape[2:], (y, x))]
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0)


def _window(side, uniform):
    """Which of `side` pixels lie in a window of half as many, cut off at the ends: bool `[n, side]`."""
    length = int(side / 2 + 0.5)
    start = _integers(uniform, side + 1 - length % 2)[:, None] - length // 2  # [n, 1]
    place = torch.arange(side, device=uniform.device)
    return (place >= start) & (place < start + length)
