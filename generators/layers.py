"""Layers that generators and critics share."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce


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
        mean = all_reduce(x.float().mean(axes)) / dist.get_world_size()
        var = all_reduce((x.float() - mean.view(shape)).square().mean(axes)) / dist.get_world_size()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (var + self.eps).rsqrt()
        return (x * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
