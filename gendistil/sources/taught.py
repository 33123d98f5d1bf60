"""Labels of a teacher in place of the classes' own: what a classifier of the real images answers to the images of a source."""

import torch

from gendistil.common.engine import EAGER
from gendistil.common.source import Source
from gendistil.data import standardise, to_signed, to_uint8

KINDS = ("hard", "rows", "teacher")
"""hard: the classes' own labels; rows: one row of a teacher's logits is kept with every image of a set; teacher: the teacher is
kept and answers to every image that is drawn."""

_AT_ONCE = 512


class Teacher:
    """Classifiers of a data set whose mean logits are the labels of whatever images they are shown.

    Args: networks, a list, in eval mode and frozen; spec, the data set's `Spec`; name, what a report calls it; engine, an
    `Engine`.
    """

    def __init__(self, networks, spec, name, engine=EAGER):
        self.networks, self.spec, self.name, self.engine = networks, spec, name, engine
        self.bytes = sum(value.nbytes for network in networks for value in network.state_dict().values())

    @classmethod
    def of(cls, pool, indices=None, engine=EAGER):
        """The members of a `ClassifierPool` at the end of their training, or those at `indices`."""
        indices, table = pool.finished() if indices is None else indices, pool.table()
        words = " and ".join(f"{table[index]['name']} of step {table[index]['step']}" for index in indices)
        return cls([pool[index] for index in indices], pool.spec, words, engine)

    @torch.no_grad()
    def logits(self, images):
        """uint8 images [N, C, H, W] -> float32 [N, K]."""
        parts = []
        for batch in images.split(_AT_ONCE):
            batch = standardise(to_signed(batch), self.spec)
            parts.append(sum(self.engine(network, batch).float() for network in self.networks) / len(self.networks))
        return torch.cat(parts)

    def accuracy(self, split):
        """Percentage of a `Split` that it classifies as it should: a float."""
        return float((self.logits(split.images).argmax(1) == split.labels).float().mean() * 100)


class Taught(Source):
    """A source whose targets are a teacher's answers to its images, softened by a temperature: float [B, K] that sum to 1.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015). Images are those of `source`, and so is every other
    answer; stored says that what is kept of the teacher is a float16 row of logits for every image, and not the teacher itself.
    """

    def __init__(self, source, teacher, temperature, stored):
        self.source, self.teacher, self.temperature, self.stored = source, teacher, temperature, stored
        self.num_classes, self.channels, self.size = source.num_classes, source.channels, source.size
        self.max_ipc = source.max_ipc

    def sample(self, labels, seed=0):
        return self.source.sample(labels, seed)

    def targets(self, labels, seed=0, images=None):
        logits = self.teacher.logits(to_uint8(self.sample(labels, seed)) if images is None else images)
        return ((logits.half().float() if self.stored else logits) / self.temperature).softmax(1)

    def decoded(self, ipc):
        return self.source.decoded(ipc)

    def stored_bytes(self, ipc):
        """Those of the source, and the rows or the teacher."""
        rows = 2 * self.num_classes * self.num_classes * self.decoded(ipc)
        return self.source.stored_bytes(ipc) + (rows if self.stored else self.teacher.bytes)
