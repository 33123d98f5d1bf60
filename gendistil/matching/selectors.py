"""Selectors: which real images a matching step compares with."""

import torch

from gendistil.common.clustering import representatives
from gendistil.common.errors import UserError
from gendistil.common.rng import stream

_AT_ONCE = 20_000  # candidates that are in memory together


class Uniform:
    """`count` real images of a class, drawn without replacement while they last, anew at every step."""

    def __init__(self, split, num_classes, count, seed, **unused):
        self.split, self.count, self.seed = split, count, seed
        self.rows = [torch.nonzero(split.labels == label)[:, 0].cpu() for label in range(num_classes)]

    def indices(self, classes, step):
        """Rows of the split for `classes` (a list of k labels): int64 [k, count]."""
        return torch.stack([self._draw(label, self.count, step) for label in classes])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """Nothing is kept between steps."""

    def _draw(self, label, count, step):
        rows, generator = self.rows[label], stream(self.seed, "select", label, step)
        if count <= len(rows):
            return rows[torch.randperm(len(rows), generator=generator)[:count]]
        return rows[torch.randint(len(rows), (count,), generator=generator)]


class Dream(Uniform):
    """The images nearest to the centroids of a clustering of each class, refreshed every `interval` steps.

    Each refresh embeds `candidates` images of every class, drawn uniformly, as one member of the pool sees them. `nearest` of
    them are taken around each centroid, which are as many times fewer (DREAM+). Raises UserError where that leaves a rest.
    """

    def __init__(self, split, num_classes, count, seed, *, pool, interval, candidates, nearest=1):
        super().__init__(split, num_classes, count, seed)
        if count % nearest:
            raise UserError(f"--select-nearest {nearest} does not divide the {count} real images of a class (--match-batch)")
        self.pool, self.interval, self.nearest = pool, interval, nearest
        self.candidates = min(candidates, min(len(rows) for rows in self.rows))
        self._epoch, self._selected = None, None

    def indices(self, classes, step):
        if self.candidates <= self.count:  # too few images to choose from
            return super().indices(classes, step)
        if step // self.interval != self._epoch:
            self._epoch = step // self.interval
            self._selected = self._select(self._epoch * self.interval)
        return self._selected[classes]

    def state_dict(self):
        """The latest choice: the network that made it may have learned since."""
        return {"epoch": self._epoch, "selected": self._selected}

    def load_state_dict(self, state):
        self._epoch, self._selected = state["epoch"], state["selected"]

    def _select(self, step):
        generator = stream(self.seed, "dream", step)
        rows = torch.stack([self._draw(label, self.candidates, step) for label in range(len(self.rows))])
        network, chosen = self.pool.draw(generator), []
        for part in rows.split(max(1, _AT_ONCE // self.candidates)):
            points = self.pool.embed(network, part.flatten()).unflatten(0, part.shape)
            chosen.append(part.gather(1, representatives(points, self.count, generator, self.nearest).cpu()))
        return torch.cat(chosen)


SELECTORS = {"dream": Dream, "random": Uniform}
"""Every selector by the name that --select knows."""
