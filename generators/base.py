"""What every conditional generator offers: rebuilding itself from its own files, and sampling that nothing can disturb."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin

from gendistil.common.errors import UserError
from gendistil.common.rng import counter_normal
from gendistil.common.source import Source, index_within_class

SAMPLE_BATCH = 256


class ConditionalGenerator(Source, ModelMixin, ConfigMixin):
    """forward(noise [B, Z], labels [B]) -> images [B, C, H, W] in [-1, 1].

    A diffusers model: `save_pretrained` writes config.json and safetensors, `from_pretrained` rebuilds it with no flags.
    A subclass's `__init__` takes (size, channels, num_classes, dim_noise, ...) and calls `_describe` with the first four; its
    `lift(noise, labels)` gives the coarsest grid [B, width, grid, grid], and `paint(grid, labels)` the images.
    """

    config_name = "config.json"

    def _describe(self, size, channels, num_classes, dim_noise):
        self.size, self.channels, self.num_classes, self.dim_noise = size, channels, num_classes, dim_noise

    def forward(self, noise, labels):
        """noise [B, Z], labels int64 [B] -> images [B, C, H, W] in [-1, 1]."""
        return self.paint(self.lift(noise, labels), labels)

    def stored_bytes(self, ipc):
        """Bytes of its weights, whatever the number of images."""
        return sum(value.nbytes for value in self.state_dict().values())

    def sample(self, labels, seed=0):
        """Images [B, C, H, W] in [-1, 1] for `labels` int64 [B], each a function of (seed, class, index within the class).

        The batch, the number of processes and the other labels change nothing but the last bits of a float. The network
        is used in eval mode and left as it was found.
        """
        return self.images_at(labels, index_within_class(labels), seed)

    def check_sampling(self, **sampling):
        """Raise UserError unless its images can be drawn with these options, by the names of their flags: here, without any."""
        for name in sampling:
            raise UserError(f"--{name.replace('_', '-')} is for a flow, which {type(self).__name__} is not: leave it out")

    @torch.no_grad()
    def images_at(self, labels, index, seed=0, noise_std=1.0, **sampling):
        """As `sample`, but for any indices within the classes, int64 [B], and noise of any standard deviation.

        `sampling` are options of `forward` that `check_sampling` lets pass.
        """
        was_training = self.training
        self.eval()
        parts = zip(labels.split(SAMPLE_BATCH), index.split(SAMPLE_BATCH))
        images = [self(counter_normal(seed, y, i, self.dim_noise) * noise_std, y, **sampling) for y, i in parts]
        self.train(was_training)
        return torch.cat(images).float()


def doublings(size):
    """How often a grid of 4 to 7 pixels is doubled to reach `size`."""
    return max(1, math.ceil(math.log2(size / 7)))


class GridGenerator(ConditionalGenerator):
    """The base of those whose layer `linear` makes of the noise a grid of `grid` pixels a side, which is then doubled until it
    covers the image."""

    def _describe(self, size, channels, num_classes, dim_noise):
        super()._describe(size, channels, num_classes, dim_noise)
        self.grid = -(-size // 2 ** doublings(size))

    def lift(self, noise, labels):
        return self.linear(noise).view(len(noise), -1, self.grid, self.grid)

    def cropped(self, x):
        """The middle of x [B, C, H, W] that has the image's size."""
        top = (x.shape[-1] - self.size) // 2
        return x[..., top : top + self.size, top : top + self.size]
