"""In whose eyes a method compares: kinds of pools by the names that --pool-training knows, and the flags that each takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gendistil.common.run import beside, made_by
from pools import ClassifierPool, OnlinePool, RandomPool


@dataclass(frozen=True)
class Asked:
    """What a pool is made from: method, a `Method`; folder, where pools that are kept lie; seed; dataset; engine; known, the
    folder of the pool that the run began with, or None."""

    method: object
    folder: Path
    seed: int
    dataset: object
    engine: object
    known: Path | None = None


def _kept(asked, **settings):
    return ClassifierPool(asked.dataset, asked.folder, asked.engine.accelerator, names=asked.method.pool, engine=asked.engine,
                          known=asked.known, **settings)


def _random(asked):
    return RandomPool(asked.dataset, names=asked.method.pool, engine=asked.engine)


def _online(asked, **settings):
    return OnlinePool(asked.dataset, names=asked.method.pool, seed=asked.seed, engine=asked.engine, **settings)


@dataclass(frozen=True)
class PoolRow:
    """A row of the table: build, called as `build(asked, **values)` with an `Asked`, gives the `Pool`; words say how its
    networks are trained; keywords, {keyword of `build`: field of a `Method`}, of which those are given that are not None; also,
    other fields that are for it; learned, whether its networks have learned anything."""

    build: Callable
    words: str
    keywords: dict = field(default_factory=dict)
    also: tuple = ()
    learned: bool = True

    @property
    def options(self):
        """The fields of a `Method` that are for it and not for every pool: a set of names."""
        return {*self.keywords.values(), *self.also, *(["calibrate"] if self.learned else [])} - {"aug_single"}

    @property
    def online(self):
        """Whether its networks are trained between the steps."""
        return "outer" in self.options

    @property
    def single(self):
        """Whether they are trained by one augmentation at a time, if --aug-single says so."""
        return "aug_single" in self.keywords.values()


_TRAINING = {"batch_size": "pool_batch", "lr": "pool_lr", "aug_type": "pool_aug"}
_PLAIN_SGD = {**_TRAINING, "momentum": "pool_momentum", "weight_decay": "pool_decay", "aug_single": "aug_single"}
_KEPT = {"members": "pool_members", "epochs": "pool_epochs"}
_ONLINE = {**_PLAIN_SGD, "outer": "outer", "inner": "inner", "warmup": "pool_warmup", "cutmix": "pool_cutmix"}

POOLS = {
    "pretrained": PoolRow(_kept, "on the real images, and kept", {
        **_TRAINING, **_KEPT, "snapshots": "pool_snapshots", "mix": "pool_mix", "initial": "pool_initial"}, ("match_real",)),
    "expert": PoolRow(partial(_kept, snapshots="epochs", schedule="constant"),
                      "the same by plain SGD, and kept after every epoch", {**_PLAIN_SGD, **_KEPT},
                      ("expert_epochs", "min_start", "max_start", "first_max_start", "start_grows", "skip_above")),
    "random": PoolRow(_random, "never", learned=False),
    "synthetic": PoolRow(partial(_online, trained_on="synthetic"), "between the steps, on what is learned", _ONLINE),
    "real": PoolRow(partial(_online, trained_on="real"), "between the steps, on real images",
                    {**_ONLINE, "images": "pool_images"}),
}
"""Every kind of pool by the name that --pool-training knows."""


def not_taken(pool):
    """The fields of a `Method` that are for other kinds of pools alone: a set of names."""
    return set().union(*(row.options for row in POOLS.values())) - POOLS[pool].options


def make_pool(method, folder, seed, dataset, engine, run=None):
    """The networks that compare the images; pretrained ones are made in `folder`, or found there. Of a `run` that goes on, by
    its folder, they are those that it began with, though it may go on in another precision."""
    known = beside(made_by(run).get("pool_folder"), run) if run else None
    row = POOLS[method.pool_training]
    values = {keyword: getattr(method, name) for keyword, name in row.keywords.items()}
    return row.build(Asked(method, folder, seed, dataset, engine, known),
                     **{keyword: value for keyword, value in values.items() if value is not None})
