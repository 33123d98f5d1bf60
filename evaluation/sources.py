"""Distilled sources: whatever, asked for labels and a seed, returns images.

A source has `num_classes`, `channels`, `size` and `sample(labels [B] int64, seed) -> signed float [B, C, H, W]` on the labels'
device, where image i depends on the seed, on its label and on how many earlier labels are the same, and on nothing else.
`stored_bytes(ipc)` says what keeping it takes.
"""

from pathlib import Path

import torch

from common.clustering import representatives
from common.errors import UserError
from common.rng import stream
from data import to_signed, to_uint8
from generators import load_generator
from generators.base import index_within_class
from matching.latents import LatentSet
from matching.pixels import PixelSet
from pools import build_classifier

CHOICES = ("fixed", "representative")
"""How a set is chosen: its first IPC images of every class, or those that stand for the classes' clusters."""

_CANDIDATES, _CANDIDATES_PER_IMAGE = 500, 20  # of each class; the larger of the two counts
_AT_ONCE = 4096  # candidates that are in memory together
_COMPARED = 100  # images of a class whose distances are taken
_VIEWS = 2  # networks that see them


def load_source(path, device="cpu"):
    """The source kept at `path`: a run's folder, a saved model's folder, or a checkpoint file of the published DiM code.

    Raises UserError if there is none.
    """
    return load_generator(path, device, others=(PixelSet, LatentSet))


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


def images_per_class(source, ipc):
    """How many images of a class students see: `ipc`, or what as many stored ones are decoded into."""
    return source.decoded(ipc) if hasattr(source, "decoded") else ipc


def draw_set(source, ipc, seed, device="cpu", choice="fixed"):
    """The set of `ipc` images of every class that `seed` names, class by class: uint8 `[K * ipc, C, H, W]`, int64 labels.

    The one place where a set is drawn: students are trained on what `sample.py` writes and `DistilledDataset` holds, the
    rounding to 256 levels included. `choice` is one of `CHOICES`; a representative set is chosen among the first images of the
    same seed, 20 for each wanted one, and is the same on the same kind of device.
    """
    labels = balanced_labels(source.num_classes, images_per_class(source, ipc), device)
    if choice == "representative":
        return _representatives(source, ipc, seed, device), labels
    return to_uint8(source.sample(labels, seed)), labels


@torch.no_grad()
def _representatives(source, ipc, seed, device):
    """The candidates nearest to the centroids of each class's `ipc` clusters, as DREAM picks its real images.

    They are compared as randomly initialised ConvNets see them, whose embeddings DM matches: any source will do, with no data
    set or trained classifier at hand.
    """
    count = max(_CANDIDATES, _CANDIDATES_PER_IMAGE * ipc)
    count = min(count, getattr(source, "max_ipc", count))
    views = _views(source, device)
    chosen = []
    for classes in torch.arange(source.num_classes, device=device).split(max(1, _AT_ONCE // count)):
        images = to_uint8(source.sample(classes.repeat_interleave(count), seed))
        points = _seen(images, views).unflatten(0, (len(classes), count))  # k,N,D
        rows = representatives(points, ipc, stream(seed, "clusters", int(classes[0])))  # k,ipc
        chosen.append(images.unflatten(0, (len(classes), count))[torch.arange(len(classes), device=device)[:, None], rows])
    return torch.cat(chosen).flatten(0, 1)


def _views(source, device):
    """Randomly initialised ConvNets, always the same."""
    return [build_classifier("convnet", source.channels, source.size, source.num_classes,
                             generator=stream(0, "view", view)).eval().to(device) for view in range(_VIEWS)]


def _seen(images, views):
    """What `views` make of uint8 images [N, C, H, W]: embeddings [N, D] of spread 1."""
    points = [torch.cat([view.embed(to_signed(batch)) for batch in images.split(512)]) for view in views]
    return torch.cat([x / x.std() for x in points], dim=1)


@torch.no_grad()
def diversity(source, ipc, device="cpu"):
    """Mean distance of two images of a class as random networks see them, among the first `ipc`, at most 100, of seed 0.

    In units of the spread of all these images, so that it falls as the images of a class become alike. None for one image.
    """
    count = min(images_per_class(source, ipc), _COMPARED)
    if count < 2:
        return None
    images = to_uint8(source.sample(balanced_labels(source.num_classes, count, device), 0))
    points = _seen(images, _views(source, device)).unflatten(0, (source.num_classes, count))  # K,n,D
    distances = torch.cdist(points, points).sum((1, 2)) / (count * (count - 1))
    return float(distances.mean() / points.shape[-1] ** 0.5)


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

    def stored_bytes(self, ipc):
        """A byte a pixel."""
        return self.num_classes * ipc * self.channels * self.size**2

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
    called with a uint8 `[C, H, W]` tensor (default: float in [-1, 1]); choice, one of `CHOICES`. Items are (image, int label),
    class by class.
    """

    def __init__(self, source, ipc, seed=0, transform=to_signed, choice="fixed"):
        source = load_source(source) if isinstance(source, (str, Path)) else source
        self.images, self.labels = draw_set(source, ipc, seed, choice=choice)
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])
