"""Distilled sources: whatever, asked for labels and a seed, returns images.

A source has `num_classes`, `channels`, `size` and `sample(labels [B] int64, seed) -> signed float [B, C, H, W]` on the labels'
device, where image i depends on the seed, on its label and on how many earlier labels are the same, and on nothing else.
"""

from pathlib import Path

import torch

from common.errors import UserError
from common.rng import stream
from data import to_signed, to_uint8
from generators import load_generator
from generators.base import index_within_class


def load_source(path, device="cpu"):
    """The source kept at `path`: a run's folder, a saved model's folder, or a checkpoint file of the published DiM code.

    Raises UserError if there is none.
    """
    return load_generator(path, device)


def check_fits(source, spec, name):
    """Raise UserError unless the source called `name` makes the classes and shapes of the data set that `spec` describes."""
    made = (source.num_classes, source.channels, source.size)
    real = (spec.num_classes, spec.channels, spec.size)
    if made != real:
        describe = lambda k, c, s: f"{k} classes of {c}x{s}x{s} images"
        raise UserError(f"{name} makes {describe(*made)}, but the data set {spec.name} has {describe(*real)}: "
                        "choose the --data (and --image-size) that it was distilled from")


def balanced_labels(num_classes, ipc, device="cpu"):
    """Each class `ipc` times, class by class: int64 `[num_classes * ipc]`."""
    return torch.arange(num_classes, device=device).repeat_interleave(ipc)


def draw_set(source, ipc, seed, device="cpu"):
    """The set of `ipc` images of every class that `seed` names, class by class: uint8 `[K * ipc, C, H, W]`, int64 labels.

    The one place where a set is drawn: students are trained on what `sample.py` writes and `DistilledDataset` holds, the
    rounding to 256 levels included.
    """
    labels = balanced_labels(source.num_classes, ipc, device)
    return to_uint8(source.sample(labels, seed)), labels


class RealImages:
    """Real images as a source: those of each class, in an order that the seed names.

    Args: split, a `data.Split`; num_classes, an int.
    """

    def __init__(self, split, num_classes):
        self.split, self.num_classes = split, num_classes
        self.channels, self.size = split.images.shape[1], split.images.shape[-1]
        self.counts = torch.bincount(split.labels, minlength=num_classes)  # [K]
        self.max_ipc = int(self.counts.min())
        self._starts = self.counts.cumsum(0) - self.counts

    def sample(self, labels, seed):
        """Real images of these labels, none twice: signed float `[B, C, H, W]` on the labels' device.

        Raises UserError where `labels` asks for more images of a class than there are.
        """
        wanted = labels.to(self.counts.device)
        index = index_within_class(wanted)
        missing = wanted[index >= self.counts[wanted]]
        if len(missing):
            label = missing[0]
            raise UserError(f"class {label} has {self.counts[label]} real images, fewer than the {(wanted == label).sum()} "
                            "asked for: lower --ipc")
        order = torch.randperm(len(self.split), generator=stream(seed, "real images")).to(wanted.device)
        by_class = order[self.split.labels[order].argsort(stable=True)]  # class by class, each in a random order
        return to_signed(self.split.images[by_class[self._starts[wanted] + index]]).to(labels.device)


class DistilledDataset(torch.utils.data.Dataset):
    """Exactly `ipc` images of every class as a map-style dataset: the images that `sample.py` writes for the same seed.

    Args: source, a path (see `load_source`) or a source on the CPU; ipc, images per class; seed, the set's name; transform,
    called with a uint8 `[C, H, W]` tensor (default: float in [-1, 1]). Items are (image, int label), class by class.
    """

    def __init__(self, source, ipc, seed=0, transform=to_signed):
        source = load_source(source) if isinstance(source, (str, Path)) else source
        self.images, self.labels = draw_set(source, ipc, seed)
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])
