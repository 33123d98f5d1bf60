"""The ConvNet of dataset condensation: blocks of convolution, norm, activation and pooling, then one linear layer."""

import torch
import torch.nn.functional as F
from torch import nn

from gendistil.common.device import halve
from gendistil.common.errors import UserError
from pools.options import choose

NORMS = {
    "instance": lambda width, side: nn.GroupNorm(width, width),
    "batch": lambda width, side: nn.BatchNorm2d(width),
    "layer": lambda width, side: nn.LayerNorm([width, side, side]),
    "group": lambda width, side: nn.GroupNorm(4, width),
    "none": None,
}
ACTIVATIONS = {"relu": F.relu, "leakyrelu": F.leaky_relu, "sigmoid": torch.sigmoid, "swish": F.silu}
POOLINGS = {"avg": halve, "max": lambda x: F.max_pool2d(x, 2), "none": None}


class ConvNet(nn.Module):
    """The field's standard student (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021), by default 3 blocks of 128.

    Args: channels and size (side in pixels) of the images; num_classes; width, maps per block; depth, number of blocks;
    norm, one of `NORMS`; activation, one of `ACTIVATIONS`; pooling, one of `POOLINGS`, halving the side after each block.

    Images are padded with zeros until every pooling divides evenly (28 -> 32 pixels with 3 blocks, as published). An image that
    cannot be halved once per block skips poolings before the last one. Images of up to 16 pixels keep 2x2 maps to the end:
    over 2x2 pixels an instance norm and an average leave next to nothing (8 epochs on digits: 74 % against 99 %).
    """

    def __init__(self, channels, size, num_classes, *, width=128, depth=3, norm="instance", activation="relu", pooling="avg"):
        super().__init__()
        make_norm = choose(NORMS, norm, "norm")
        self.activation = choose(ACTIVATIONS, activation, "activation")
        self.pooling = choose(POOLINGS, pooling, "pooling")
        if width < 1 or depth < 1 or (norm == "group" and width % 4):
            raise UserError(f"a ConvNet cannot have width {width} and depth {depth} with norm '{norm}'")

        halvings = min(depth, (size - 1).bit_length() - (size <= 16)) if self.pooling else 0  # bit_length: log2, rounded up
        self.pools = [block < halvings - 1 or (block == depth - 1 and halvings > 0) for block in range(depth)]
        extra = -size % 2**halvings
        self.pad = (extra // 2, extra - extra // 2) * 2  # left, right, top, bottom

        side = size + extra
        norms = []
        for pools in self.pools:
            norms += [make_norm(width, side)] if make_norm else []
            side = side // 2 if pools else side
        self.convs = nn.ModuleList(nn.Conv2d(width if block else channels, width, 3, padding=1) for block in range(depth))
        self.norms = nn.ModuleList(norms)
        self.classifier = nn.Linear(width * side**2, num_classes)

    def features(self, images):
        """The maps after each block, its pooling included: a list of [B, width, side, side], first block first."""
        maps = []
        x = F.pad(images, self.pad) if any(self.pad) else images
        for block, conv in enumerate(self.convs):
            x = conv(x)  # B,width,side,side
            x = self.norms[block](x) if self.norms else x
            x = self.activation(x)
            x = self.pooling(x) if self.pools[block] else x  # B,width,side/2,side/2
            maps.append(x)
        return maps

    def embed(self, images):
        """What enters the linear layer: [B, D] with D = width * side^2."""
        return self.features(images)[-1].flatten(1)  # B,D

    def forward(self, images):
        """Standardised images [B, C, H, W] to logits [B, K]."""
        return self.classifier(self.embed(images))  # B,K
