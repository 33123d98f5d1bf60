"""The BigGAN that IT-GAN keeps frozen (arXiv 2204.07513, after Brock et al., ICLR 2019), for any size from 8 to 128 pixels.

The small one of Zhao et al. (NeurIPS 2020, "Differentiable Augmentation"): one width at every resolution, no attention, class
embeddings of their own at every norm, spectral norm in both networks.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from generators.base import GridGenerator, doublings
from generators.layers import SyncBatchNorm

_EPS = 1e-8


class Spectral:
    """A layer whose weight is divided by its largest singular value (Miyato et al., ICLR 2018).

    The value comes from one step of the power method, which starts at `u` and moves it while training.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        nn.init.normal_(self.weight, 0, 0.02)
        self.register_buffer("u", F.normalize(torch.randn(1, len(self.weight)), dim=1))

    def normalised(self):
        """The weight, divided in float32, as it is where images are drawn."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, eps=_EPS)
                u = F.normalize(v @ matrix.T, eps=_EPS)
                if self.training:
                    self.u.copy_(u)
            return self.weight / (v @ matrix.T @ u.T).squeeze()


class SpectralConv(Spectral, nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.normalised(), self.bias, self.stride, self.padding)


class SpectralLinear(Spectral, nn.Linear):
    def forward(self, x):
        return F.linear(x, self.normalised(), self.bias)


class SpectralEmbedding(Spectral, nn.Embedding):
    def forward(self, labels):
        return F.embedding(labels, self.normalised())


class ClassBatchNorm(SyncBatchNorm):
    """Batch norm whose gain and bias are looked up by class."""

    def __init__(self, channels, num_classes):
        super().__init__(channels, affine=False)
        self.gain, self.shift = nn.Embedding(num_classes, channels), nn.Embedding(num_classes, channels)
        for table in (self.gain, self.shift):
            nn.init.normal_(table.weight, 0, 0.02)

    def forward(self, x, labels):
        gain, shift = self.gain(labels)[:, :, None, None], self.shift(labels)[:, :, None, None]
        return torch.addcmul(shift, super().forward(x), 1 + gain)  # [B, C, H, W]


class UpBlock(nn.Module):
    """norm, ReLU, double, 3×3, norm, ReLU, 3×3, beside a doubled 1×1 shortcut."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.conv1, self.conv2 = (SpectralConv(width, width, 3, padding=1) for _ in range(2))
        self.conv_sc = SpectralConv(width, width, 1)
        self.bn1, self.bn2 = ClassBatchNorm(width, num_classes), ClassBatchNorm(width, num_classes)

    def forward(self, x, labels):
        h = self.conv1(F.interpolate(F.relu(self.bn1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.bn2(h, labels)))
        return h + F.interpolate(self.conv_sc(x), scale_factor=2)  # a 1×1 convolution and doubling may change places


class BigGANGenerator(GridGenerator):
    """Noise to a grid of 4 to 7 pixels, then one residual block per doubling; the class enters at every norm but the last."""

    @register_to_config
    def __init__(self, size, channels, num_classes, dim_noise=128, width=256):
        super().__init__()
        self._describe(size, channels, num_classes, dim_noise)
        self.linear = SpectralLinear(dim_noise, width * self.grid**2)
        self.blocks = nn.ModuleList(UpBlock(width, num_classes) for _ in range(doublings(size)))
        self.norm = SyncBatchNorm(width)
        self.to_image = SpectralConv(width, channels, 3, padding=1)

    def paint(self, x, labels):
        for block in self.blocks:
            x = block(x, labels)
        return self.cropped(torch.tanh(self.to_image(F.relu(self.norm(x)))))  # [B, C, H, W]


class DownBlock(nn.Module):
    """(ReLU,) 3×3, ReLU, 3×3, halve, beside a 1×1 shortcut; the first block has no ReLU in front, the last do not halve."""

    def __init__(self, inputs, width, first, halves):
        super().__init__()
        self.first, self.halves = first, halves
        self.conv1 = SpectralConv(inputs, width, 3, padding=1)
        self.conv2 = SpectralConv(width, width, 3, padding=1)
        self.conv_sc = SpectralConv(inputs, width, 1) if inputs != width or halves else None

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halves:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (self.conv_sc(x) if self.conv_sc else x)


class BigGANCritic(nn.Module):
    """Residual blocks down to a grid of 5 to 8 pixels, two more there, and a score that knows the class by projection."""

    def __init__(self, size, channels, num_classes, width=256):
        super().__init__()
        halvings = max(0, math.ceil(math.log2(size / 8)))
        self.blocks = nn.ModuleList(DownBlock(width if block else channels, width, block == 0, block < halvings)
                                    for block in range(halvings + 2))
        self.linear = SpectralLinear(width, 1)
        self.embed = SpectralEmbedding(num_classes, width)

    def forward(self, images, labels):
        """images [B, C, H, W] in [-1, 1], labels int64 [B] -> (score [B], None): there is no auxiliary classifier."""
        x = images
        for block in self.blocks:
            x = block(x)
        x = F.relu(x).sum(dim=(2, 3))  # [B, width]
        return self.linear(x)[:, 0] + (self.embed(labels) * x).sum(1), None

