"""The DenseNet-BC for CIFAR that dataset-condensation papers use to judge how distilled images transfer."""

import torch
import torch.nn.functional as F
from torch import nn

from gendistil.common.device import halve


class DenseLayer(nn.Module):
    """Bottleneck to 4 * growth maps, 3x3 convolution to `growth` new maps, put in front of the old ones."""

    def __init__(self, width_in, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))  # B,4*growth,H,W
        y = self.conv2(F.relu(self.norm2(y)))  # B,growth,H,W
        return torch.cat([y, x], 1)  # B,growth+width_in,H,W


class Transition(nn.Module):
    """Half the maps at half the side."""

    def __init__(self, width_in):
        super().__init__()
        self.norm = nn.BatchNorm2d(width_in)
        self.conv = nn.Conv2d(width_in, width_in // 2, 1, bias=False)

    def forward(self, x):
        return halve(self.conv(F.relu(self.norm(x))))  # B,width_in/2,H/2,W/2


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al., CVPR 2017) with `blocks` layers per stage and `growth` new maps per layer.

    Args: channels and size (side in pixels, at least 8) of the images; num_classes.
    """

    def __init__(self, channels, size, num_classes, *, growth=12, blocks=(6, 12, 24, 16)):
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        for stage, layers in enumerate(blocks):
            parts = [DenseLayer(width + layer * growth, growth) for layer in range(layers)]
            width += layers * growth
            if stage < len(blocks) - 1:
                parts.append(Transition(width))
                width //= 2
            self.stages.append(nn.Sequential(*parts))
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def features(self, images):
        """The maps after the stem and after each stage, transitions included: a list of [B, maps, side, side]."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def embed(self, images):
        """What enters the linear layer, the mean over pixels of the last maps: [B, D]."""
        return F.relu(self.norm(self.features(images)[-1])).mean((2, 3))  # B,D

    def forward(self, images):
        """Standardised images [B, C, H, W] to logits [B, K]."""
        return self.classifier(self.embed(images))  # B,K
