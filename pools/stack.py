"""The plain stacks that DC, DSA and DM judge their images with beside the ConvNet: MLP, LeNet, AlexNet and VGG11."""

import torch.nn.functional as F
from torch import nn

from gendistil.common.errors import UserError
from pools.options import choose

NORMS = {"batch": nn.BatchNorm2d, "instance": lambda width: nn.GroupNorm(width, width), "none": lambda width: nn.Identity()}


class Stack(nn.Module):
    """Convolutions with norm, ReLU and max pooling, then linear layers with ReLU, then the linear layer of the classes.

    Args: channels and size (side in pixels) of the images; num_classes; convs, one (maps, kernel, whether its output is halved)
    per convolution; hidden, widths of the linear layers between; norm, one of `NORMS`; same, pad convolutions so that they
    keep the side.

    Images are padded with zeros until every halving divides evenly (28 -> 32 pixels, as published), and to 32 pixels at
    least where convolutions shrink them.
    """

    def __init__(self, channels, size, num_classes, *, convs=(), hidden=(), norm="none", same=True):
        super().__init__()
        make_norm = choose(NORMS, norm, "norm")
        extra = -size % 2 ** sum(halved for _, _, halved in convs) if same else max(0, 32 - size)
        self.pad = (extra // 2, extra - extra // 2) * 2  # left, right, top, bottom
        width, side = channels, size + extra
        self.blocks, self.halved = nn.ModuleList(), [halved for _, _, halved in convs]
        for maps, kernel, halved in convs:
            conv = nn.Conv2d(width, maps, kernel, padding=kernel // 2 if same else 0)
            self.blocks.append(nn.Sequential(conv, make_norm(maps), nn.ReLU()))
            width, side = maps, (side if same else side - kernel + 1) // (2 if halved else 1)
        widths = [width * side**2, *hidden]
        if min(widths) < 1:
            raise UserError(f"images of {size} pixels leave nothing after {len(convs)} convolutions")
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def features(self, images):
        """What each layer but the last puts out, its pooling included: a list of [B, maps, side, side], side 1 if linear."""
        maps, x = [], F.pad(images, self.pad) if any(self.pad) else images
        for block, halved in zip(self.blocks, self.halved):
            x = block(x)  # B,maps,side,side
            x = F.max_pool2d(x, 2) if halved else x
            maps.append(x)
        for linear in self.hidden:
            x = F.relu(linear(x.flatten(1)))[:, :, None, None]  # B,D,1,1
            maps.append(x)
        return maps

    def embed(self, images):
        """What enters the last linear layer: [B, D]."""
        return self.features(images)[-1].flatten(1)  # B,D

    def forward(self, images):
        """Standardised images [B, C, H, W] to logits [B, K]."""
        return self.classifier(self.embed(images))  # B,K


MLP = {"hidden": (128, 128)}
LENET = {"convs": ((6, 5, True), (16, 5, True)), "hidden": (120, 84), "same": False}
ALEXNET = {"convs": ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))}
VGG11 = {"convs": tuple((maps, 3, halved) for maps, halved in (
    (64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, True))),
    "norm": "instance"}
