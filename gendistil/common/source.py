"""The one interface of what was distilled: whatever returns images for labels and a seed."""

import torch

from gendistil.common.errors import UserError

ROWS = "rows.safetensors"
"""The file beside the weights of stored images that holds a row of a teacher's logits for each of them."""


def index_within_class(labels):
    """How many earlier entries of `labels` [B] equal each entry: int64 [B]."""
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    position = torch.arange(len(labels), device=labels.device)
    first = torch.searchsorted(ordered, ordered)  # where the run of equal labels begins
    return torch.empty_like(position).scatter_(0, order, position - first)


class Source:
    """A source of images: a generator, stored pixels, latents, real images, a checkpoint of the published code.

    It has `num_classes`, `channels` and `size` (pixels a side). Image i of `sample(labels, seed)` depends on the seed, on its
    label and on how many earlier labels are the same, and on nothing else.
    """

    kind = "generator"
    """What stores its images: a "generator", "pixels" or "latents"."""
    max_ipc = None
    """How many images of every class are stored; None where any number can be drawn."""
    even = True
    """Whether the images that students see of what is stored all take as many bytes."""
    varies = True
    """Whether another seed gives other images."""
    rows = None
    """The `Rows` of a teacher, or learned ones, that were kept with its images, if any were."""
    step_size = None
    """The learning rate that its images were learned for, or one for each step, where it is a part of what was learned."""
    soft = False
    """Whether its labels were learned with its images."""
    classifiers = ()
    """Digests of the weights of classifiers that are kept with it."""
    remark = ""
    """What a report says beside its name."""
    read_by = ()
    """The names of flags that said how its file is read."""
    facts = None
    """Of a set that was read: the names of its classes, and what else `sample.py` says of it, a dict, if anything is known."""
    answers = None
    """Where a teacher is kept and asked: `answers(batch, targets, spec)` are soft labels, float [B, K], in place of `targets`,
    int64 [B] or float [B, K], for a batch as students see it, standardised by `spec` and augmented, [B, C, H, W]. None where
    labels belong to the images that are drawn."""
    temperature = 1.0
    """At which its soft labels were taken, and at which students answer to them."""

    def fitted(self, spec):
        """As it is, or adapted to the classes and the shape of a data set, where it can be."""
        return self

    def sample(self, labels, seed=0):
        """Images for `labels` int64 [B], on the labels' device: float [B, C, H, W] in [-1, 1]."""
        raise NotImplementedError

    def targets(self, labels, seed=0, images=None):
        """What a student learns to answer to these images: `labels` themselves, or soft labels, float [B, K] that sum to 1.

        `images`, if they are at hand, are those of `sample(labels, seed)` as uint8 [B, C, H, W].
        """
        return labels

    def decoded(self, ipc):
        """How many images of a class students see of `ipc` stored ones."""
        return ipc

    def stored_bytes(self, ipc):
        """Bytes that keeping `ipc` images of every class takes, with the labels that were learned with them."""
        raise NotImplementedError

    def label_bytes(self, ipc):
        """Bytes of these labels alone, a part of `stored_bytes`."""
        return 0


def check_fits(source, spec, name, remedy="choose the --data (and --image-size) that it was distilled from"):
    """Raise UserError unless the source called `name` makes the classes and shapes of the data set that `spec` describes."""
    made = (source.num_classes, source.channels, source.size)
    real = (spec.num_classes, spec.channels, spec.size)
    if made != real:
        describe = lambda k, c, s: f"{k} classes of {c}x{s}x{s} images"
        raise UserError(f"{name} makes {describe(*made)}, but the data set {spec.name} has {describe(*real)}: "
                        f"{remedy}")
