"""Latents as what is learned: vectors that a frozen generator turns into images, a number of them for every class."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.common.source import index_within_class
from gendistil.sources.stored import StoredSource, check_rates
from generators import NETWORKS
from generators.base import SAMPLE_BATCH

LATENT_SPACES = ("noise", "grid")
"""What a vector is: the generator's noise (IT-GAN, arXiv 2204.07513), or its coarsest grid (GLaD, arXiv 2305.01649)."""


class LatentSet(StoredSource, ModelMixin, ConfigMixin):
    """`ipc` vectors of every class beside the generator that reads them: a distilled source, stored with float16 vectors.

    Args: network, a key of `generators.NETWORKS`; options, its constructor's; ipc, vectors of every class; space, one of
    `LATENT_SPACES`. A diffusers model, as generators are. `vectors` is float32 [K, ipc, Z] or [K, ipc, width, grid, grid].
    """

    kind, config_name = "latents", "config.json"

    @register_to_config
    def __init__(self, network, options, ipc, space="noise", step_size=None):
        super().__init__()
        if network not in NETWORKS:
            raise UserError(f"these are latents of a generator '{network}', which is not there: give the --plugin that has it")
        self.generator = NETWORKS[network][0](**options).requires_grad_(False).eval()
        self.size, self.channels, self.num_classes = (getattr(self.generator, name)
                                                      for name in ("size", "channels", "num_classes"))
        self.max_ipc, self.space, self.step_size = ipc, space, check_rates(step_size)
        if space not in LATENT_SPACES:
            raise ValueError(f"latents of the space {space!r}")
        noise = torch.zeros(1, self.generator.dim_noise)
        with torch.no_grad():
            one = noise if space == "noise" else self.generator.lift(noise, torch.zeros(1, dtype=torch.int64))
        self.vectors = nn.Parameter(torch.zeros(self.num_classes, ipc, *one.shape[1:]))

    @classmethod
    def of(cls, generator, ipc, space="noise"):
        """A set of zero vectors for a generator that is at hand, whose weights it copies; UserError for one of no row."""
        own = type(generator)  # and not one that it is derived from
        name = next((name for name, (kind, _) in NETWORKS.items() if kind is own), own.__name__)
        options = {key: value for key, value in generator.config.items() if not key.startswith("_")}
        latents = cls(name, options, ipc, space).to(next(generator.parameters()).device)
        latents.generator.load_state_dict(generator.state_dict())
        return latents

    @torch.no_grad()
    def draw(self, label, count, seed):
        """`count` vectors of one class for the noise of a run's seed: [count, ...]."""
        noise = torch.randn(count, self.generator.dim_noise, generator=stream(seed, "latents", label)).to(self.vectors.device)
        if self.space == "noise":
            return noise
        return self.generator.lift(noise, torch.full((count,), label, device=noise.device))

    def train(self, mode=True):
        """The generator stays as it is used: in eval mode."""
        super().train(mode)
        self.generator.eval()
        return self

    def paint(self, vectors, labels):
        """Vectors [B, ...] and labels int64 [B] -> images [B, C, H, W] in [-1, 1]."""
        return (self.generator if self.space == "noise" else self.generator.paint)(vectors, labels)

    def forward(self, classes, chosen):
        """The images of the vectors `chosen` [m] of every one of `classes` [k]: [k, m, C, H, W], differentiable."""
        vectors = self.vectors[classes[:, None], chosen]
        images = self.paint(vectors.flatten(0, 1), classes.repeat_interleave(len(chosen)))
        return images.float().unflatten(0, vectors.shape[:2])

    @torch.no_grad()
    def sample(self, labels, seed=0):
        """The images of the vectors as they are stored, in their order, whatever the seed: signed float [B, C, H, W]."""
        index = index_within_class(labels)
        if index.max() >= self.max_ipc:
            raise UserError(f"{self.max_ipc} vectors of every class are stored, fewer than the {index.max() + 1} asked for: "
                            "lower --ipc")
        parts = zip(labels.split(SAMPLE_BATCH), index.split(SAMPLE_BATCH))
        return torch.cat([self.paint(self.vectors[y, i].half().float(), y) for y, i in parts]).float()

    def stored_bytes(self, ipc):
        """The generator, the first `ipc` float16 vectors of every class, and their learned labels."""
        return self.generator.stored_bytes(ipc) + 2 * self.vectors[:, :ipc].numel() + self.label_bytes(ipc)

    def save_pretrained(self, folder, **options):
        exact = self.vectors.data
        self.vectors.data = exact.half()
        try:
            super().save_pretrained(folder, **options)
        finally:
            self.vectors.data = exact
