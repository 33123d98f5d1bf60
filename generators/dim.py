"""The generator and critic of DiM (Wang et al., arXiv 2303.04707), for any size from 8 to 128 pixels.

Modules are registered in the order of the published state dicts, so its checkpoints load by position.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from gendistil.common.errors import UserError
from generators.base import ConditionalGenerator
from generators.layers import SyncBatchNorm


class DiMGenerator(ConditionalGenerator):
    """A linear layer to a 4×4 grid (at 32 pixels) and eight convolutions of one width, three of them doubling the size.

    The class is told by overwriting the first K entries of the noise with the label's one-hot code.
    """

    channels_last = True

    @register_to_config
    def __init__(self, size, channels, num_classes, dim_noise=100, width=196):
        super().__init__()
        if dim_noise <= num_classes:
            raise UserError(f"--dim-noise {dim_noise}: the dim generator writes the label over the first {num_classes} entries "
                            "of the noise, so it needs more than that, or --generator pyramid")
        self._describe(size, channels, num_classes, dim_noise)
        self.width = width
        self.grid = -(-size // 8)
        # The first doubling ends at ceil(size / 4): 4 -> 8 for 32 pixels (kernel 4), 4 -> 7 for 28 (kernel 3).
        first = 4 if -(-size // 4) == 2 * self.grid else 3

        def double(kernel):
            return nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1)

        def keep():
            return nn.Conv2d(width, width, 3, padding=1)

        layers = [double(first), keep(), keep(), keep(), double(4), keep(), double(4)]
        self.linear = nn.Linear(dim_noise, width * self.grid**2)
        self.linear_norm = SyncBatchNorm(width * self.grid**2)
        self.blocks = nn.ModuleList(nn.ModuleList([conv, SyncBatchNorm(width)]) for conv in layers)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, noise, labels=None):
        """noise [B, Z] and labels int64 [B]; without labels the noise must already hold the one-hot code."""
        return super().forward(noise, labels)

    def lift(self, noise, labels):
        if labels is not None:
            one_hot = F.one_hot(labels, self.num_classes).to(noise.dtype)
            noise = torch.cat([one_hot, noise[:, self.num_classes:]], dim=1)
        return F.relu(self.linear_norm(self.linear(noise))).view(-1, self.width, self.grid, self.grid)

    def paint(self, x, labels):
        for conv, norm in self.blocks:
            x = F.relu(norm(conv(x)))
        return torch.tanh(self.to_image(x))[..., : self.size, : self.size]  # [B, C, H, W]


class DiMCritic(nn.Module):
    """Eight 3×3 convolutions with LayerNorm over [width, H, W], and two heads: a score and the class logits."""

    strides = (1, 2, 1, 2, 1, 1, 1, 2)
    channels_last = True  # as it is written for, which compiling would undo

    def __init__(self, size, channels, num_classes, width=196):
        super().__init__()
        self.layers = nn.ModuleList()
        for index, stride in enumerate(self.strides):
            size = -(-size // stride)
            conv = nn.Conv2d(width if index else channels, width, 3, stride=stride, padding=1)
            self.layers.append(nn.ModuleList([conv, nn.LayerNorm([width, size, size])]))
        self.score = nn.Linear(width, 1)
        self.classify = nn.Linear(width, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images, labels=None):
        """images [B, C, H, W] in [-1, 1] -> (score [B], class logits [B, K]); the labels are not looked at."""
        x = images.contiguous(memory_format=torch.channels_last)
        for conv, norm in self.layers:
            # Channels last throughout, which the convolutions like best; the norm is over all three axes, in any order.
            x = conv(x).permute(0, 2, 3, 1)  # [B, H, W, width]
            weight, bias = norm.weight.permute(1, 2, 0), norm.bias.permute(1, 2, 0)
            x = F.leaky_relu(F.layer_norm(x, x.shape[1:], weight, bias, norm.eps)).permute(0, 3, 1, 2)
        x = x.amax(dim=(2, 3))  # [B, width]
        return self.score(x)[:, 0], self.classify(x)
