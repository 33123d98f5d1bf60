"""In whose eyes a method compares: kinds of pools by the names that --pool-training knows, and the flags that each takes."""

from collections.abc import Callable
from dataclasses import dataclass
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

    def given(self, **names):
        """The values of the method's fields `names`, by the keywords of a pool, that a row or a flag gives."""
        values = {keyword: getattr(self.method, name) for keyword, name in names.items()}
        return {keyword: value for keyword, value in values.items() if value is not None}


_TRAINING = {"batch_size": "pool_batch", "lr": "pool_lr", "aug_type": "pool_aug"}
_PLAIN_SGD = {**_TRAINING, "momentum": "pool_momentum", "weight_decay": "pool_decay", "aug_single": "aug_single"}


def _kept(asked, **settings):
    return ClassifierPool(asked.dataset, asked.folder, asked.engine.accelerator, engine=asked.engine, known=asked.known,
                          **asked.given(names="pool", members="pool_members", epochs="pool_epochs"), **settings)


def _pretrained(asked):
    return _kept(asked, **asked.given(**_TRAINING, snapshots="pool_snapshots", mix="pool_mix", initial="pool_initial"))


def _experts(asked):
    return _kept(asked, **asked.given(**_PLAIN_SGD), snapshots="epochs", schedule="constant")


def _random(asked):
    return RandomPool(asked.dataset, names=asked.method.pool, engine=asked.engine)


def _online(asked):
    values = asked.given(**_PLAIN_SGD, names="pool", teacher="pool_training", outer="outer", inner="inner",
                         images="pool_images", warmup="pool_warmup", cutmix="pool_cutmix")
    return OnlinePool(asked.dataset, seed=asked.seed, engine=asked.engine, **values)


@dataclass(frozen=True)
class PoolRow:
    """A row of the table: build, called as `build(asked)` with an `Asked`, gives the `Pool`; words say how its networks are
    trained; options, the fields of a `Method` that it takes beside `pool`; learned, whether they have learned anything; online,
    whether they are trained between the steps; single, whether they are trained by one augmentation at a time, if
    --aug-single says so."""

    build: Callable
    words: str
    options: tuple = ()
    learned: bool = True
    online: bool = False
    single: bool = False


_OF_SETTINGS = ("calibrate", "pool_batch", "pool_lr", "pool_aug")
_OF_KEPT = ("pool_members", "pool_epochs")
_OF_SGD = ("pool_momentum", "pool_decay")
_OF_ONLINE = (*_OF_SETTINGS, *_OF_SGD, "outer", "inner", "pool_warmup", "pool_cutmix")

POOLS = {
    "pretrained": PoolRow(_pretrained, "on the real images, and kept",
                          (*_OF_SETTINGS, *_OF_KEPT, "match_real", "pool_mix", "pool_initial", "pool_snapshots")),
    "expert": PoolRow(_experts, "the same by plain SGD, and kept after every epoch",
                      (*_OF_SETTINGS, *_OF_KEPT, *_OF_SGD, "expert_epochs", "min_start", "max_start", "first_max_start",
                       "start_grows", "skip_above"), single=True),
    "random": PoolRow(_random, "never", learned=False),
    "synthetic": PoolRow(_online, "between the steps, on what is learned", _OF_ONLINE, online=True, single=True),
    "real": PoolRow(_online, "between the steps, on real images", (*_OF_ONLINE, "pool_images"), online=True, single=True),
}
"""Every kind of pool by the name that --pool-training knows."""


def not_taken(pool):
    """The fields of a `Method` that are for other kinds of pools alone: a set of names."""
    return {name for row in POOLS.values() for name in row.options} - {*POOLS[pool].options}


def make_pool(method, folder, seed, dataset, engine, run=None):
    """The networks that compare the images; pretrained ones are made in `folder`, or found there. Of a `run` that goes on, by
    its folder, they are those that it began with, though it may go on in another precision."""
    known = beside(made_by(run).get("pool_folder"), run) if run else None
    return POOLS[method.pool_training].build(Asked(method, folder, seed, dataset, engine, known))
