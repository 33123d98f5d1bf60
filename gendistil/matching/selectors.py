"""Selectors: which real images a matching step compares with."""

import math

import torch

from gendistil.common.clustering import representatives
from gendistil.common.device import process_first
from gendistil.common.errors import UserError
from gendistil.common.rng import stream

_AT_ONCE = 20_000  # candidates that are in memory together


class Uniform:
    """`count` real images of a class, drawn without replacement while they last, then again so, anew at every step.

    Of a selector `options` are the fields of a `Method` that it takes, as keywords without "select_", and `interval` is the
    number of steps for which a choice stays. Its `pool` gives the network in whose eyes it chooses.
    """

    options, interval, pool = (), 1, None

    def __init__(self, split, num_classes, count, seed):
        self.split, self.count, self.seed = split, count, seed
        self.rows = [torch.nonzero(split.labels == label)[:, 0].cpu() for label in range(num_classes)]

    def indices(self, classes, step):
        """Rows of the split for `classes`, int64 [k] or a list: int64 [k, count]."""
        return torch.stack([self._draw(label, self.count, step) for label in torch.as_tensor(classes).tolist()])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """Nothing is kept between steps."""

    def _draw(self, label, count, step):
        rows, generator = self.rows[label], stream(self.seed, "select", label, step)
        passes = [torch.randperm(len(rows), generator=generator) for _ in range(math.ceil(count / len(rows)))]
        return rows[torch.cat(passes)[:count]]


class Dream(Uniform):
    """The images nearest to the centroids of a clustering of each class, refreshed every `interval` steps.

    Each refresh embeds `candidates` images of every class, drawn uniformly, or all that it has, as one member of the pool sees
    them. `nearest` of them are taken around each centroid, which are as many times fewer (DREAM+). A class that has no more
    than are wanted is drawn uniformly. Raises UserError where `nearest` leaves a rest, or `candidates` no choice.
    """

    options = ("select_interval", "select_candidates", "select_nearest")

    def __init__(self, split, num_classes, count, seed, *, interval, candidates, nearest=1):
        super().__init__(split, num_classes, count, seed)
        if count % nearest:
            raise UserError(f"--select-nearest {nearest} does not divide the {count} real images of a class (--match-batch)")
        if candidates <= count:
            raise UserError(f"--select-candidates {candidates} leaves no choice of the {count} images of a class that a step "
                            "compares: give more, or --select random")
        self.interval, self.nearest = interval, nearest
        self.candidates = [min(candidates, len(rows)) for rows in self.rows]
        self._epoch, self._selected = None, None

    def indices(self, classes, step):
        if step // self.interval != self._epoch:
            self._epoch = step // self.interval
            self._selected = self._select(self._epoch * self.interval)
        chosen = self._selected[classes]
        for place, label in enumerate(torch.as_tensor(classes).tolist()):
            if self.candidates[label] <= self.count:
                chosen[place] = self._draw(label, self.count, step)
        return chosen

    def state_dict(self):
        """The latest choice: the network that made it may have learned since."""
        return {"epoch": self._epoch, "selected": self._selected}

    def load_state_dict(self, state):
        self._epoch, self._selected = state["epoch"], state["selected"]

    def _select(self, step):
        """The chosen rows of every class, int64 [K, count]; of one that has no more, anything."""
        generator, candidates = stream(self.seed, "dream", step), torch.tensor(self.candidates)
        chosen = torch.zeros(len(self.rows), self.count, dtype=torch.int64)
        sizes = candidates[candidates > self.count].unique().tolist()
        network = self.pool.draw(generator) if sizes else None
        for count in sizes:  # classes of as many are clustered together
            for part in torch.nonzero(candidates == count)[:, 0].split(max(1, _AT_ONCE // count)):
                rows = torch.stack([self._draw(label, count, step) for label in part.tolist()])
                points = self.pool.embed(network, rows.flatten()).unflatten(0, rows.shape)
                nearest = process_first(representatives(points, self.count, generator, self.nearest))
                chosen[part] = rows.gather(1, nearest.cpu())
        return chosen


SELECTORS = {"dream": Dream, "random": Uniform}
"""Every selector by the name that --select knows."""
