"""Real images as a source, to compare with."""

import torch

from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.common.source import Source, index_within_class
from gendistil.data import to_signed


class RealImages(Source):
    """Real images as a source: those of each class, in an order that the seed names.

    Args: split, a `data.Split`; num_classes, an int.
    """

    kind = "pixels"

    def __init__(self, split, num_classes):
        self.split, self.num_classes = split, num_classes
        self.channels, self.size = split.images.shape[1], split.images.shape[-1]
        self.counts = torch.bincount(split.labels, minlength=num_classes)  # [K]
        self.max_ipc = int(self.counts.min())
        self._starts = self.counts.cumsum(0) - self.counts

    def stored_bytes(self, ipc):
        """A byte a pixel."""
        return self.num_classes * ipc * self.channels * self.size**2

    def sample(self, labels, seed=0):
        """Real images of these labels, none twice: signed float `[B, C, H, W]` on the labels' device.

        Raises UserError where `labels` asks for more images of a class than there are.
        """
        wanted = labels.to(self.counts.device)
        index = index_within_class(wanted)
        missing = wanted[index >= self.counts[wanted]]
        if len(missing):
            label = missing[0]
            raise UserError(f"class {label} has {self.counts[label]} real images, fewer than the {(wanted == label).sum()} "
                            "asked for: lower --ipc or --batch-size, or leave them out (--compare none)")
        order = torch.randperm(len(self.split), generator=stream(seed, "real images")).to(wanted.device)
        by_class = order[self.split.labels[order].argsort(stable=True)]  # class by class, each in a random order
        return to_signed(self.split.images[by_class[self._starts[wanted] + index]]).to(labels.device)
