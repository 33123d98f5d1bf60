"""A residual generator and projection critic whose width shrinks as the resolution grows: the default.

Residual blocks after SNGAN (Miyato et al., ICLR 2018), the critic's class term after Miyato and Koyama (ICLR 2018), the
class-conditional normalisation of the generator after SAGAN and BigGAN with group statistics instead of the batch's, so that an
image depends on its own noise alone, in training as in use.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from gendistil.common.device import halve
from generators.base import GridGenerator, doublings
from generators.layers import conv_after_doubling, conv_then_halving


def level_widths(size, width):
    """Channels from the coarsest grid to the full resolution: `width` first, halved at each doubling, at least an eighth."""
    return [max(width >> level, width // 8) for level in range(doublings(size) + 1)]


class ConditionalNorm(nn.Module):
    """Group norm whose gain and bias are looked up by class."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(channels, 8), channels, affine=False)
        self.affine = nn.Embedding(num_classes, 2 * channels)
        nn.init.normal_(self.affine.weight, 0, 0.3)  # with 0.02 the classes stay alike for a thousand steps

    def forward(self, x, labels):
        gain, bias = self.affine(labels)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(bias, self.norm(x), 1 + gain)  # [B, C, H, W]


class UpBlock(nn.Module):
    """norm, ReLU, double, 3×3, norm, ReLU, 3×3, beside a doubled 1×1 shortcut."""

    def __init__(self, inputs, outputs, num_classes):
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(inputs, num_classes), ConditionalNorm(outputs, num_classes)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, labels):
        h = conv_after_doubling(F.relu(self.norm1(x, labels)), self.conv1)
        h = self.conv2(F.relu(self.norm2(h, labels)))
        return h + F.interpolate(self.shortcut(x), scale_factor=2)  # [B, outputs, 2H, 2W]


class PyramidGenerator(GridGenerator):
    """Noise to a grid of 4 to 7 pixels, then one residual block per doubling; the class enters at every norm.

    The class is not given beside the noise: a linear layer of both soon answers the class alone, and every image of a class
    becomes the same one.
    """

    @register_to_config
    def __init__(self, size, channels, num_classes, dim_noise=100, width=128):
        super().__init__()
        self._describe(size, channels, num_classes, dim_noise)
        widths = level_widths(size, width)
        self.linear = nn.Linear(dim_noise, widths[0] * self.grid**2)
        self.blocks = nn.ModuleList(UpBlock(a, b, num_classes) for a, b in zip(widths, widths[1:]))
        self.norm = ConditionalNorm(widths[-1], num_classes)
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def paint(self, x, labels):
        for block in self.blocks:
            x = block(x, labels)
        return self.cropped(torch.tanh(self.to_image(F.relu(self.norm(x, labels)))))  # [B, C, H, W]


class DownBlock(nn.Module):
    """ReLU, 3×3, ReLU, 3×3, halve, beside a halved 1×1 shortcut."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = conv_then_halving(F.relu(self.conv1(F.relu(x))), self.conv2)
        return h + self.shortcut(halve(x))  # [B, outputs, H // 2, W // 2]


class PyramidCritic(nn.Module):
    """One residual block per halving, one more at the coarsest grid, and a score that knows the class by projection."""

    def __init__(self, size, channels, num_classes, width=128):
        super().__init__()
        widths = level_widths(size, width)[::-1]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in zip(widths, widths[1:]))
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Linear(width, 1)
        self.project = nn.Embedding(num_classes, width)
        nn.init.normal_(self.project.weight, 0, 0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images, labels):
        """images [B, C, H, W] in [-1, 1], labels int64 [B] -> (score [B], None): there is no auxiliary classifier."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = F.relu(x + self.last(F.relu(x))).sum(dim=(2, 3))  # [B, width]
        return self.score(x)[:, 0] + (self.project(labels) * x).sum(1), None
