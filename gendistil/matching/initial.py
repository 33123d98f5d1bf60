"""What stored images start from: pixels from real images, which are all that a coreset is, latents from images like them."""

import torch

from gendistil.common.clustering import herding, k_center, representatives
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import take, to_signed
from gendistil.sources.latents import LatentSet
from gendistil.sources.pixels import mosaic
from generators import ConditionalGenerator
from generators.base import SAMPLE_BATCH


def _real(points, count, generator):
    return torch.randperm(len(points), generator=generator)[:count].to(points.device)


def _herding(points, count, generator):
    return herding(points[None], count)[0]


def _k_center(points, count, generator):
    nearest_to_mean = (points - points.mean(0)).square().sum(1).argmin()
    return k_center(points[None], count, nearest_to_mean[None])[0]


def _kmeans(points, count, generator):
    return representatives(points[None], count, generator, distinct=True)[0]


CHOOSERS = {"real": _real, "herding": _herding, "k-center": _k_center, "kmeans": _kmeans}
"""How real images are chosen, by what a network sees of those of one class: real is at random. A chooser is called with that,
[n, D], with how many it chooses, and with a generator of random draws, and gives their rows, int64."""


def check(dataset, how, count):
    """Raise UserError where a class has fewer real images than the `count` that `--init how` asks for."""
    if how != "noise":
        check_count(dataset, count, f"--init {how} asks for: lower --ipc or --factor")


def check_count(dataset, count, asked):
    """Raise UserError where a class has fewer than `count` real images; `asked` ends the sentence: who asks, and the remedy."""
    if count > dataset.fewest:
        raise UserError(f"the smallest class has {dataset.fewest} training images, fewer than the {count} that {asked}")


def start(pixels, dataset, how, seed, pool):
    """Fill a `PixelSet` with noise, or with real images that one of `CHOOSERS` chooses: as many more as each image holds parts.

    `pool` gives the network whose embeddings are compared. Raises UserError where a class has too few real images.
    """
    spec, real, config = dataset.spec, dataset.train, pixels.config
    if how == "noise":  # of the mean and the spread of the real images, as DC starts
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.mean, spec.std))
        noise = torch.randn(pixels.pixels.shape, generator=stream(seed, "noise"))
        pixels.pixels.data.copy_((noise * std + mean) * 2 - 1)
        return
    count = config.ipc * config.factor**2
    check(dataset, how, count)
    if how == "real":
        points = real.labels[:, None]  # the choice looks at nothing
    else:
        pool.prepare(0, None)
        points = pool.embed(pool.last(stream(seed, "start", "network")), torch.arange(len(real)))
    for label in range(spec.num_classes):
        rows = torch.nonzero(real.labels == label)[:, 0]
        chosen = rows[CHOOSERS[how](points[rows], count, stream(seed, "start", label))]
        pixels.pixels.data[label] = mosaic(to_signed(real.images[chosen])[None], config.factor)[0]


_CANDIDATES = 500  # vectors of a class in which each of its images finds its start


@torch.no_grad()
def latents(generator, dataset, ipc, space, seed):
    """A `LatentSet` of `ipc` vectors of every class (None: as many as the smallest class has images), and what they stand for.

    That is rows of training images, int64 [K, ipc] on the CPU, drawn at random; each vector is the one among `_CANDIDATES`
    random ones whose image has the nearest pixels. Raises UserError for a source that is no generator and where a class has
    too few images.
    """
    if not isinstance(generator, ConditionalGenerator):
        raise UserError("--weight holds no generator, whose latents could be learned: name a run of gen_condense.py")
    labels = dataset.train.labels.cpu()
    order = torch.randperm(len(labels), generator=stream(seed, "images of latents"))
    by_class = [order[labels[order] == label] for label in range(dataset.spec.num_classes)]
    ipc = ipc or dataset.fewest
    if ipc > dataset.fewest:
        raise UserError(f"--ipc {ipc}: the smallest class has {dataset.fewest} training images for latents to stand for")
    made = LatentSet.of(generator, ipc, space)
    rows = torch.stack([of_class[:ipc] for of_class in by_class])
    for label, of_class in enumerate(rows):
        real = to_signed(take(dataset.train.images, of_class)).flatten(1)
        drawn = made.draw(label, _CANDIDATES, seed)
        labels = torch.full((_CANDIDATES,), label, device=drawn.device)
        images = torch.cat([made.paint(*piece) for piece in zip(drawn.split(SAMPLE_BATCH), labels.split(SAMPLE_BATCH))])
        made.vectors[label] = drawn[torch.cdist(real, images.flatten(1)).argmin(1)]
    return made, rows
