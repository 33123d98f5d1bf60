"""A class-conditional velocity field on diffusers' U-Net, and the few Euler steps that lead along it from noise to images.

On the straight way from an image x to noise e, at time s in [0, 1], lies x_s = (1 - s) x + s e. The network says where the way
leads: e - x, in the mean over all ways through that point (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003).
"""

import math

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from gendistil.common.errors import UserError
from generators.base import ConditionalGenerator, doublings
from generators.pipeline import FlowPipeline

FINEST = 7
"""A shortcut's network knows steps of 2^-span of the way, for spans from 0 to this one; the last has learned no guidance, and
nothing is drawn by it."""


def check_shortcut(sample_steps=None, guidance=None, flag="--sample-steps"):
    """Raise UserError for what a shortcut cannot be asked for, the steps by `flag`; None for its own."""
    if sample_steps not in (None, *(2**span for span in range(FINEST))):
        raise UserError(f"{flag} {sample_steps}: a shortcut draws in 1, 2, 4, ... or {2 ** (FINEST - 1)} steps")
    if guidance is not None:
        raise UserError(f"--guidance {guidance:g}: a shortcut has learned its guidance: leave it out")


class FlowGenerator(ConditionalGenerator):
    """`sample_steps` Euler steps from noise to an image, under classifier-free guidance (arXiv 2207.12598) unless that is 1.

    The U-Net has half of `width` channels at full resolution and `width` at each halving below, down to a grid of 4 to 7
    pixels, where pixels attend to each other. Sizes that cannot be halved so often are padded. The noise has an entry for every
    value of an image. A `shortcut`'s network knows the length of its step too (arXiv 2410.12557): it draws in a power of two of
    steps, and has learned its guidance. One that is not `guidable` has never seen an image without its class.
    Raises UserError for `dim_noise` other than an image's, and as `check_sampling` does.
    """

    eager = True  # compiling its steps takes minutes on two cores, for a gain that nobody has measured

    @register_to_config
    def __init__(self, size, channels, num_classes, dim_noise=None, width=64, sample_steps=16, guidance=1.0, shortcut=False,
                 guidable=True):
        super().__init__()
        entries = channels * size**2
        if dim_noise not in (None, entries):
            raise UserError(f"--dim-noise {dim_noise}: the noise of unet has as many entries as an image, {entries}: leave it "
                            "out")
        self._describe(size, channels, num_classes, entries)
        self.shortcut, self.sample_steps, self.guidance, self.guidable = shortcut, sample_steps, guidance, guidable
        self.check_sampling(sample_steps, None if guidance == 1 else guidance)
        self.padding = -size % 2 ** doublings(size)
        widths = (width // 2, *[width] * doublings(size))
        self.unet = UNet2DModel(
            in_channels=channels, out_channels=channels, block_out_channels=widths, layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(widths), up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=math.gcd(*widths, 8), class_embed_type="identity")
        self.classes = nn.Embedding(num_classes + 1, 4 * widths[0])  # the last one stands for no class
        self.spans = nn.Embedding(FINEST + 1, 4 * widths[0]) if shortcut else None

    def as_pipeline(self, sample_steps=None, guidance=None):
        """The same flow as a `FlowPipeline`, which diffusers loads without this package, with other options if they are given.
        """
        rows = self.classes.weight.data  # K+1,D
        if self.shortcut:
            rows = (self.spans.weight.data.unsqueeze(1) + rows).flatten(0, 1)
        shape = {**self.unet.config, "class_embed_type": None, "num_class_embeds": len(rows),
                 "sample_size": self.size + self.padding}
        shape.pop("_use_default_values", None)  # by which diffusers would forget the three
        unet = UNet2DModel.from_config(shape)
        unet.load_state_dict({**self.unet.state_dict(), "class_embedding.weight": rows})
        return FlowPipeline(unet.eval(), self.size, self.num_classes, sample_steps or self.sample_steps,
                            self.guidance if guidance is None else guidance, self.shortcut, self.guidable)

    def check_sampling(self, sample_steps=None, guidance=None, flag="--sample-steps"):
        """As `ConditionalGenerator.check_sampling`; `flag` asks for the steps."""
        if self.shortcut:
            check_shortcut(sample_steps, guidance, flag)
        if not self.guidable and guidance not in (None, 1):
            raise UserError(f"--guidance {guidance:g}: this flow was trained with --label-dropout 0, and knows no image "
                            "without a class: leave it out")

    def forward(self, noise, labels, time=None, span=None, sample_steps=None, guidance=None):
        """noise [B, Z], labels int64 [B] -> images [B, C, H, W] in [-1, 1]; with a `time`, as `velocity`, in training."""
        if time is not None:
            return self.velocity(noise, labels, time, span)
        return self.paint(self.lift(noise, labels), labels, sample_steps, guidance)

    def velocity(self, x, labels, time, span=None):
        """Where the way through x [B, C, H, W] leads, float [B, C, H, W], at the times [B], from 0 (image) to 1 (noise).

        Args: labels, int64 [B], `num_classes` for no class; span, int64 [B], the length of the step for a shortcut.
        """
        known = self.classes(labels) if span is None else self.classes(labels) + self.spans(span)
        x = F.pad(x, (0, self.padding, 0, self.padding))
        answer = self.unet(x, 1000 * time, known, return_dict=False)[0]  # the embedding of times is made for 0 to 1000
        return answer[..., : self.size, : self.size].float()

    def guided(self, x, labels, time, guidance, span=None):
        """As `velocity`, led away from that of no class: `guidance`, a number or [B, 1, 1, 1], times their difference."""
        both = [None if value is None else torch.cat([value, value]) for value in (x, time, span)]
        asked = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        known, free = self.velocity(both[0], asked, *both[1:]).chunk(2)
        return free + guidance * (known - free)

    def lift(self, noise, labels):
        """The noise as an image, which is the coarsest grid that there is: [B, C, H, W]."""
        return noise.view(len(noise), self.channels, self.size, self.size)

    def step_velocity(self, x, labels, time, steps, guidance=None):
        """The `velocity` at x [B, C, H, W] and `time`, a number, of one of so many steps, under guidance: float [B, C, H, W].

        guidance, None for the generator's own.
        """
        guidance = self.guidance if guidance is None else guidance
        time = x.new_full((len(x),), time)
        span = torch.full_like(labels, int(math.log2(steps))) if self.shortcut else None
        return self.velocity(x, labels, time, span) if guidance == 1 else self.guided(x, labels, time, guidance, span)

    def paint(self, x, labels, sample_steps=None, guidance=None):
        steps = sample_steps or self.sample_steps
        for step in range(steps):
            x = x - self.step_velocity(x, labels, 1 - step / steps, steps, guidance) / steps
        return x.detach().clamp(-1, 1) + (x - x.detach())  # bounds that let gradients through
