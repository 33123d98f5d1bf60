"""Layers that generators and critics share."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from gendistil.common.device import process_mean


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the global batch, on any device and for [B, C] as for [B, C, H, W].

    `torch.nn.SyncBatchNorm` needs a GPU; this one also makes two CPU processes compute what one would. The same state
    dict as `nn.BatchNorm1d/2d`, and the same kernel where there is one process.
    """

    def _check_input_dim(self, x):
        if x.dim() not in (2, 4):
            raise ValueError(f"expected [B, C] or [B, C, H, W], got {list(x.shape)}")

    def forward(self, x):
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = process_mean(x.float().mean(axes))
        var = process_mean((x.float() - mean.view(shape)).square().mean(axes))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = (var + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _fold(weight):
    """The 4×4 kernel that adds a 3×3 `weight` [O, I, 3, 3] at the four corners of a 2×2 square."""
    weight = F.pad(weight, (1, 1, 1, 1))
    return weight[..., 1:, 1:] + weight[..., :-1, 1:] + weight[..., 1:, :-1] + weight[..., :-1, :-1]


def conv_after_doubling(x, conv):
    """`conv(F.interpolate(x, scale_factor=2))` for a 3×3 `conv` with padding 1, at 4/9 of the multiplications.

    x [B, I, H, W] -> [B, O, 2H, 2W]. One strided transposed convolution, after Karras et al. (ICLR 2018).
    """
    return F.conv_transpose2d(x, _fold(conv.weight.flip(2, 3)).transpose(0, 1), conv.bias, stride=2, padding=1)


def conv_then_halving(x, conv):
    """`F.avg_pool2d(conv(x), 2)` for a 3×3 `conv` with padding 1, at 4/9 of the multiplications.

    x [B, I, H, W] -> [B, O, H // 2, W // 2].
    """
    return F.conv2d(x, _fold(conv.weight) / 4, conv.bias, stride=2, padding=1)
