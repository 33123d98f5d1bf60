"""Pixels as what is learned: a number of stored images of every class, each of which may hold several smaller ones."""

import itertools
import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from gendistil.common.errors import UserError
from gendistil.common.source import index_within_class
from gendistil.sources.stored import StoredSource, check_rates


def zoom(images, factor):
    """Cut every image into factor x factor parts and enlarge them: [k, n, C, H, H] -> [k, n * factor^2, C, H, H].

    The parts of one image follow each other, row by row; what is missing at the right and the bottom is grey (zero).
    """
    if factor == 1:
        return images
    size = images.shape[-1]
    part = math.ceil(size / factor)
    padded = F.pad(images, (0, part * factor - size) * 2)
    parts = padded.unflatten(4, (factor, part)).unflatten(3, (factor, part))  # k,n,C,f,p,f,p
    parts = parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(1, 3)  # k,n·f²,C,p,p
    return F.interpolate(parts.flatten(0, 1), size=(size, size), mode="bilinear").unflatten(0, parts.shape[:2])


def scales(count, factor, decoder, bound=128):
    """The factors by which each of `count` images of a class is cut (Kim et al., arXiv 2205.14959): a list of tuples.

    single: all by `factor`; multi: each by 1 to `factor`; bound: by `factor` as long as no more than `bound` parts come out in
    all, the rest by less.
    """
    if decoder == "multi":
        return [tuple(range(1, factor + 1))] * count
    if decoder == "single":
        return [(factor,)] * count
    chosen = []
    for f in range(factor, 0, -1):
        left, taken = count - len(chosen), sum(g * g for (g,) in chosen)
        chosen += [(f,)] * (min((bound - taken - left) // (f * f), left) if f > 1 else left)
    return chosen


DECODERS = ("single", "multi", "bound")
"""Ways of multi-formation, see `scales`."""


def decode(images, chosen):
    """The parts of stored images [k, n, C, H, H] by the factors `chosen` for each of the n, image by image: [k, m, C, H, H]."""
    parts = []
    for factors, group in itertools.groupby(zip(chosen, images.unbind(1)), key=lambda pair: pair[0]):
        group = torch.stack([image for _, image in group], 1)
        cut = [zoom(group, f).unflatten(1, (group.shape[1], f * f)) for f in factors]
        parts.append(torch.cat(cut, 2).flatten(1, 2))
    return torch.cat(parts, 1)


def mosaic(images, factor):
    """Make one image of each factor^2: the inverse of `zoom`, [k, n * factor^2, C, H, H] -> [k, n, C, H, H]."""
    size = images.shape[-1]
    part = math.ceil(size / factor)
    small = F.interpolate(images.flatten(0, 1), size=(part, part), mode="bilinear", antialias=True)
    grid = small.unflatten(0, (images.shape[0], -1, factor, factor))  # k,n,f,f,C,p,p
    return grid.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)[..., :size, :size]


class PixelSet(StoredSource, ModelMixin, ConfigMixin):
    """`ipc` stored images of every class, decoded into more where `factor` is above 1: a distilled source.

    A diffusers model, as generators are. `pixels` is float [K, ipc, C, H, H] and, clamped to [-1, 1], signed images.
    """

    kind, config_name = "pixels", "config.json"

    @register_to_config
    def __init__(self, size, channels, num_classes, ipc, factor=1, decoder="single", bound=128, step_size=None):
        super().__init__()
        self.size, self.channels, self.num_classes, self.max_ipc = size, channels, num_classes, ipc
        self.step_size = check_rates(step_size)
        if not isinstance(factor, int) or factor < 1 or decoder not in DECODERS:
            raise ValueError(f"images cut {decoder!r} by {factor!r}")
        self.scales = scales(ipc, factor, decoder, bound)
        for used in sorted({factor for factors in self.scales for factor in factors}):
            if (used - 1) * math.ceil(size / used) >= size:
                raise UserError(f"--factor {factor}: of images of {size} pixels cut by {used} some parts would hold nothing: "
                                "give another")
        self.pixels = nn.Parameter(torch.zeros(num_classes, ipc, channels, size, size))

    @property
    def even(self):
        return len({factor for factors in self.scales for factor in factors}) == 1

    def decoded(self, ipc):
        """How many images of every class the first `ipc` stored ones are decoded into."""
        if ipc > self.max_ipc:
            raise UserError(f"{self.max_ipc} images of every class are stored: lower --ipc, now {ipc}")
        return sum(f * f for factors in self.scales[:ipc] for f in factors)

    def stored_bytes(self, ipc):
        """The first `ipc` stored images of every class, a byte a pixel, and their learned labels."""
        return self.pixels[:, :ipc].numel() + self.label_bytes(ipc)

    def forward(self, classes):
        """The images of `classes` [k] as students see them, signed but not clamped: [k, m, C, H, H], differentiable."""
        return decode(self.pixels[classes], self.scales)

    @torch.no_grad()
    def sample(self, labels, seed=0):
        """The images in the order in which they are stored, whatever the seed: signed float [B, C, H, H] for labels [B]."""
        index = index_within_class(labels)
        if index.max() >= self.decoded(self.max_ipc):
            raise UserError(f"{self.decoded(self.max_ipc)} images of every class are stored, fewer than the {index.max() + 1} "
                            "asked for: lower --ipc")
        classes, row = labels.unique(return_inverse=True)
        return self(classes)[row, index].clamp(-1, 1)
