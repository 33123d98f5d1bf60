"""Sets of images drawn from a source: what students are trained on, what `sample.py` writes and what a loader takes."""

import os
from pathlib import Path

import torch

from gendistil.common.clustering import representatives
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import to_signed, to_uint8
from gendistil.sources.load import load_source
from gendistil.sources.refined import refine
from pools import KeptClassifiers, build_classifier

CHOICES = ("fixed", "representative")
"""How a set is chosen: its first IPC images of every class, or those that stand for the classes' clusters."""

_CANDIDATES, _CANDIDATES_PER_IMAGE = 500, 20  # of each class; the larger of the two counts
_AT_ONCE = 4096  # candidates that are in memory together
_COMPARED = 100  # images of a class whose distances are taken
_VIEWS = 2  # networks that see them


def balanced_labels(num_classes, ipc, device="cpu"):
    """Each class `ipc` times, class by class: int64 `[num_classes * ipc]`."""
    return torch.arange(num_classes, device=device).repeat_interleave(ipc)


def draw_set(source, ipc, seed, device="cpu", choice="fixed"):
    """The set of `ipc` images of every class that `seed` names, class by class: uint8 `[K * ipc, C, H, W]`, and its targets.

    The one place where a set is drawn: students are trained on what `sample.py` writes and `DistilledDataset` holds, the
    rounding to 256 levels included, on the same kind of device. (Those of fresh sets are drawn in the precision of their run.)
    Targets are int64 labels, or soft ones where the source has them. `choice` is one of `CHOICES`; a representative set is
    chosen among the first images of the same seed, 20 for each wanted one and at least 500 of a class, where there are so many.
    Raises UserError for another choice.
    """
    if choice not in CHOICES:
        raise UserError(f"a set is chosen by one of {', '.join(CHOICES)}, and not by {choice!r}")
    if choice == "representative":
        return _representatives(source, ipc, seed, device)
    labels = balanced_labels(source.num_classes, source.decoded(ipc), device)
    images = to_uint8(source.sample(labels, seed))
    return images, source.targets(labels, seed, images)


@torch.no_grad()
def _representatives(source, ipc, seed, device):
    """The candidates nearest to the centroids of each class's clusters, as DREAM picks its real images.

    They are compared as randomly initialised ConvNets see them, whose embeddings DM matches: any source will do, with no data
    set or trained classifier at hand.
    """
    wanted = source.decoded(ipc)
    count = max(_CANDIDATES, _CANDIDATES_PER_IMAGE * ipc)
    count = count if source.max_ipc is None else min(count, source.decoded(source.max_ipc))
    if wanted > count:
        raise UserError(f"{count} images of every class are there, fewer than the {wanted} asked for: lower --ipc")
    views = _views(source, device)
    images, targets = [], []
    for classes in torch.arange(source.num_classes, device=device).split(max(1, _AT_ONCE // count)):
        labels = classes.repeat_interleave(count)
        drawn = to_uint8(source.sample(labels, seed))
        points = _seen(drawn, views).unflatten(0, (len(classes), count))  # k,N,D
        rows = representatives(points, wanted, stream(seed, "clusters", int(classes[0])), distinct=True)  # k,wanted
        rows = (rows + count * torch.arange(len(classes), device=device)[:, None]).flatten()
        images.append(drawn[rows])
        targets.append(source.targets(labels, seed, drawn)[rows])
    return torch.cat(images), torch.cat(targets)


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

    In units of the standard deviation of all entries of all their embeddings, so that it falls as the images of a class become
    alike. Compare it within a data set. None for one image.
    """
    count = min(source.decoded(ipc), _COMPARED)
    if count < 2:
        return None
    images = to_uint8(source.sample(balanced_labels(source.num_classes, count, device), 0))
    points = _seen(images, _views(source, device)).unflatten(0, (source.num_classes, count))  # K,n,D
    distances = torch.cdist(points, points).sum((1, 2)) / (count * (count - 1))
    return float(distances.mean() / points.shape[-1] ** 0.5)


class DistilledDataset(torch.utils.data.Dataset):
    """Exactly `ipc` images of every class as a map-style dataset: the images that `sample.py` writes for the same seed.

    Args: source, a path (see `load_source`; a run that keeps a refinement is refined), or a source on the CPU; ipc, images per
    class; seed, the set's name; transform, called with a uint8 `[C, H, W]` tensor (default: float in [-1, 1]); choice, one of
    `CHOICES`. Items are (image, target), class by class: an int, or float `[K]` where the source has soft labels.
    """

    def __init__(self, source, ipc, seed=0, transform=to_signed, choice="fixed"):
        if isinstance(source, (str, Path)):
            path = os.path.expanduser(source)
            source = refine(load_source(path), path, KeptClassifiers.open)
        self.images, self.targets = draw_set(source, ipc, seed, choice=choice)
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        target = self.targets[index]
        return self.transform(self.images[index]), target if target.dim() else int(target)
