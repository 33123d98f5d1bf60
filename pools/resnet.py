"""ResNets for small images, and their variants that average where a ResNet strides."""

import torch.nn.functional as F
from torch import nn

from gendistil.common.device import halve
from gendistil.common.errors import UserError
from pools.options import choose

NORMS = {"batch": nn.BatchNorm2d, "instance": lambda width: nn.GroupNorm(width, width)}
BLOCKS_PER_STAGE = {10: 1, 18: 2}
STEM_REDUCTION = {"small": 1, "mid": 2, "large": 4}


class HalfPool(nn.Module):
    """2x2 average pooling that leaves a single pixel as it is."""

    def forward(self, x):
        return x if min(x.shape[-2:]) == 1 else halve(x)  # B,C,H/2,W/2


class Stem(nn.Module):
    """The first layer. "small": 3x3 convolution. "mid": the same, then halved. "large": 7x7 convolution, side divided by 4."""

    def __init__(self, channels, width, stem, norm, average):
        super().__init__()
        kernel, stride = (7, 1 if average else 2) if stem == "large" else (3, 1)
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.norm = norm(width)
        if stem == "small":
            self.pool = nn.Identity()
        elif average:
            self.pool = nn.AvgPool2d(STEM_REDUCTION[stem])
        else:
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images):
        return self.pool(F.relu(self.norm(self.conv(images))))  # B,width,H/r,W/r


class Pointwise(nn.Conv2d):
    """A 1x1 convolution. Of fewer than 16 maps it takes the pixels that its stride leaves before it multiplies them.

    There oneDNN 3.12 writes beyond its memory, on processors that multiply bfloat16 but have no AMX.
    """

    def forward(self, x):
        if self.in_channels >= 16:
            return super().forward(x)
        down, right = self.stride
        return F.conv2d(x[..., ::down, ::right], self.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016). With `average`, a block that halves the side convolves at
    stride 1 and average-pools, in the shortcut too (IDC, Kim et al., ICML 2022, appendix)."""

    def __init__(self, width_in, width, halve, norm, average):
        super().__init__()
        stride = 2 if halve and not average else 1
        self.pool = HalfPool() if halve and average else nn.Identity()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = nn.Identity()
        if halve or width_in != width:
            self.shortcut = nn.Sequential(Pointwise(width_in, width, 1, stride, bias=False), self.pool, norm(width))

    def forward(self, x):
        y = self.pool(F.relu(self.norm1(self.conv1(x))))  # B,width,H/2,W/2
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))  # B,width,H/2,W/2


class ResNet(nn.Module):
    """A ResNet of basic blocks whose four stages have `width`, 2x, 4x and 8x maps.

    Args: channels and size (side in pixels) of the images; num_classes; depth, 10 or 18; width, maps of the first stage;
    stem, "small" (3x3), "mid" or "large" (7x7, ImageNet's); norm, "batch" or "instance"; average,
    average pooling in place of strides ("ResNetAP"); flatten, leave out the mean over the last maps' pixels.

    The default width of 32 is half the usual one: "ResNet-18" of the CIFAR-10 tables of DiM, IDC and DREAM is this net.
    Width 64 is the full one, which those codes build for every other data set.
    """

    def __init__(self, channels, size, num_classes, *, depth=18, width=32, stem="small", norm="batch", average=False,
                 flatten=False):
        super().__init__()
        blocks = choose(BLOCKS_PER_STAGE, depth, "ResNet depth")
        make_norm = choose(NORMS, norm, "norm")
        reduction = 8 * choose(STEM_REDUCTION, stem, "stem")
        side = max(1, size // reduction if average else -(-size // reduction))  # of the last maps
        if norm == "instance" and side < 2:
            raise UserError(f"images of {size} pixels leave this ResNet one pixel per map, which instance norm makes a "
                            f"constant: use norm 'batch', a smaller stem or larger images")

        self.stem = Stem(channels, width, stem, make_norm, average)
        stages, width_in = [], width
        for stage in range(4):
            layers = []
            for block in range(blocks):
                layers.append(BasicBlock(width_in, width << stage, stage > 0 and block == 0, make_norm, average))
                width_in = width << stage
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.flatten = flatten
        self.classifier = nn.Linear(width_in * side**2 if flatten else width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images):
        """The maps after the stem and after each stage: a list of 5 [B, maps, side, side]."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def embed(self, images):
        """What enters the linear layer, the mean over pixels of the last maps unless they are flattened: [B, D]."""
        last = self.features(images)[-1]
        return last.flatten(1) if self.flatten else last.mean((2, 3))  # B,D

    def forward(self, images):
        """Standardised images [B, C, H, W] to logits [B, K]."""
        return self.classifier(self.embed(images))  # B,K
