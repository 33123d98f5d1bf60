"""A generator's images made better without training: wider noise, and only those that a classifier takes for their class."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from gendistil.common.cli import FRACTION, POSITIVE, WEIGHT, number, say
from gendistil.common.device import send
from gendistil.common.errors import UserError
from gendistil.common.flags import flag_fields, flag_of, option
from gendistil.common.run import beside, made_by
from gendistil.common.source import Source, check_fits, index_within_class
from gendistil.data import to_uint8
from gendistil.sources.load import weights_digest
from gendistil.sources.taught import Teacher

_GROUP = "refinement of generators (where none of these is given, what the run's config keeps)"
_BATCH = 256  # candidates that are judged together, always as many, so that company changes no bit of an answer
_AT_ONCE = 4096  # candidates that are in memory together, about
_TRIED, _ONE_IN = 200, 50  # of so many candidates of a class, one in so many must be accepted


@dataclass(frozen=True)
class Refinement:
    """Of which noise a generator's images are drawn, and which of them are kept (GaFi, arXiv 2305.10118)."""

    noise_std: float = option("standard deviation of the generator's input noise (default: 1, as it was trained)", 1.0,
                              type=POSITIVE, group=_GROUP)
    keep_above: float | None = option("of each class, take the first images that a classifier assigns to it with a probability "
                                      "above this: that of --teacher (default: the pool that the run was matched with)", None,
                                      type=FRACTION, group=_GROUP)
    sample_steps: int | None = option("Euler steps of a flow (default: the generator's own)", None, type=number(int, 1, 1000),
                                      group=_GROUP)
    guidance: float | None = option("classifier-free guidance of a flow, 1 for none (default: the generator's own)", None,
                                    type=WEIGHT, group=_GROUP)

    @property
    def sampling(self):
        """Its options of a generator's `images_at` that are for a flow: a dict."""
        return {name: value for name in ("sample_steps", "guidance") if (value := getattr(self, name)) is not None}

    @property
    def words(self):
        """What a report says of it."""
        said = [] if self.keep_above is None else [f"kept above {self.keep_above:g}"]
        said += [] if self.noise_std == 1 else [f"noise {self.noise_std:g}"]
        said += [] if self.sample_steps is None else [f"{self.sample_steps} step{'s' * (self.sample_steps > 1)}"]
        said += [] if self.guidance is None else [f"guidance {self.guidance:g}"]
        return ", ".join(said) or "unrefined"


class TooFewAccepted(UserError):
    """A class of which the classifier accepts next to nothing."""


class Refined(Source):
    """The images of a generator as a `Refinement` has them.

    Image i of a class is the i-th of the generator's images of (seed, class) that the classifier accepts: it assigns them to
    their class, with a probability above `keep_above`. So it is a function of the seed, the class and i, as the generator's own
    are. Args: source, a generator; refinement; teacher, a `Teacher`, which is asked in the precision that the images are
    drawn in, or None where every image is kept.
    Raises TooFewAccepted where fewer than 1 in 50 images of a class are accepted.
    """

    def __init__(self, source, refinement, teacher=None):
        self.source, self.refinement, self.teacher = source, refinement, teacher
        self.num_classes, self.channels, self.size = source.num_classes, source.channels, source.size
        self.classifiers = tuple(teacher.weights) if teacher else ()
        self._seen, self._accepted = [0] * self.num_classes, [0] * self.num_classes  # so far, by class

    def stored_bytes(self, ipc):
        """Those of the generator and of the classifier."""
        return self.source.stored_bytes(ipc) + (sum(self.teacher.weights.values()) if self.teacher else 0)

    def check(self, device="cpu"):
        """Raise TooFewAccepted for a class of which too few of the first images of seed 0 are accepted, and UserError for a
        source that cannot be refined so."""
        if self.teacher is None:
            self.sample(torch.zeros(1, dtype=torch.int64, device=device))
        else:
            for classes in torch.arange(self.num_classes, device=device).split(_AT_ONCE // _TRIED):
                self._draw(classes, [0] * len(classes), [_TRIED] * len(classes), 0)

    @torch.no_grad()
    def sample(self, labels, seed=0):
        index = index_within_class(labels)
        if self.teacher is None:
            return self._candidates(labels, index, seed)
        classes, place, wanted = labels.unique(return_inverse=True, return_counts=True)
        missing = wanted.tolist()
        images = torch.empty(len(classes), max(missing), self.channels, self.size, self.size, device=labels.device)
        found, drawn = torch.zeros_like(wanted), [0] * len(missing)
        while max(missing) > 0:
            counts = self._counts(classes.tolist(), missing)
            made, owner = self._draw(classes, drawn, counts, seed)
            position = found[owner] + index_within_class(owner)
            taken = position < wanted[owner]
            images[owner[taken], position[taken]] = made[taken]
            found += owner.bincount(minlength=len(classes))
            missing, drawn = (wanted - found).tolist(), [sum(pair) for pair in zip(drawn, counts)]
        return images[place, index]

    def _counts(self, classes, missing):
        """How many more candidates of each class: enough, should they be accepted as often as those so far, and what fills the
        last batch; a list."""
        limit = max(1, _AT_ONCE // sum(number > 0 for number in missing))
        rates = [(self._accepted[label] + 1) / (self._seen[label] + 1) for label in classes]
        counts = [min(limit, math.ceil(1.2 * max(0, number) / rate)) for number, rate in zip(missing, rates)]
        asked = [place for place, count in enumerate(counts) if count]
        for _, place in zip(range(-sum(counts) % _BATCH), itertools.cycle(asked)):
            counts[place] += 1
        return counts

    def _draw(self, classes, first, counts, seed):
        """The accepted among the candidates `first` to `first + count` of `classes` [k], class by class and in their order:
        images [n, C, H, W], and of which of the k classes each is, int64 [n]."""
        first, number = (send(torch.tensor(values), classes.device) for values in (first, counts))
        owner = torch.arange(len(classes), device=classes.device).repeat_interleave(number, output_size=sum(counts))
        labels, index = classes[owner], first[owner] + index_within_class(owner)
        padding = (0, -len(owner) % _BATCH)
        batches = zip(F.pad(labels, padding).split(_BATCH), F.pad(index, padding).split(_BATCH))
        images, kept = (torch.cat(parts)[: len(owner)] for parts in zip(*(self._judge(*batch, seed) for batch in batches)))
        owner = owner[kept]
        accepted = owner.bincount(minlength=len(classes)).tolist()
        for label, new, of in zip(classes.tolist(), accepted, counts):
            self._accepted[label] += new
            self._seen[label] += of
            if self._seen[label] >= _TRIED and self._accepted[label] * _ONE_IN < self._seen[label]:
                raise TooFewAccepted(
                    f"--keep-above {self.refinement.keep_above:g}: {self._accepted[label]} of {self._seen[label]} images of "
                    f"class '{self.teacher.spec.classes[label]}' are accepted, fewer than 1 in {_ONE_IN}: lower it, or give "
                    "another --noise-std or --teacher")
        return images[kept], owner

    def _candidates(self, labels, index, seed):
        """The generator's images [B, C, H, W] of these indices within the classes [B]."""
        return self.source.images_at(labels, index, seed, self.refinement.noise_std, **self.refinement.sampling)

    def _judge(self, labels, index, seed):
        """Candidates [B, C, H, W] and whether the classifier accepts each: bool [B]."""
        images = self._candidates(labels, index, seed)
        probability, answer = self.teacher.logits(to_uint8(images)).softmax(1).max(1)
        return images, (answer == labels) & (probability > self.refinement.keep_above)


def refine(source, path, open_pool, values=None, labeller=None, device="cpu"):
    """`source`, from `path`, as it is refined: by `values`, fields of a `Refinement`, or where there are none as its run keeps.

    Args: open_pool, gives the `KeptClassifiers` in a folder; labeller, the folder of --teacher, whose classifier also accepts
    images where the run names no other.
    Raises UserError for stored images, and where there is no classifier or it accepts next to nothing.
    """
    values, made = values or {}, made_by(path)
    kept = {} if values or not hasattr(source, "images_at") else made.get("refinement") or {}  # not for a set in a run's folder
    if kept.get("weights") and kept["weights"] != weights_digest(path):
        say(f"{path} has learned on since its refinement was found, which is left out: find it anew (benchmarks/refine.py)")
        kept = {}
    known = {field.name for field in flag_fields(Refinement)}
    refinement = Refinement(**(values or {name: value for name, value in kept.items() if name in known}))
    if refinement == Refinement():
        return source
    if values and not hasattr(source, "images_at"):
        raise UserError(f"{flag_of(next(iter(values)))} is for generators, and the images of --pretrain-weight {path} are "
                        "stored: leave it out")
    if kept:
        say(f"{path} is refined as its config keeps: {refinement.words} (--noise-std 1 takes it as it is)")
    source.check_sampling(**refinement.sampling)
    teacher = None
    if refinement.keep_above is not None:
        folder = beside(kept.get("teacher"), path)  # --teacher may label beside it
        if not folder or (labeller and not Path(folder).exists()):
            folder = labeller or folder or beside(made.get("pool_folder"), path)
        if not folder:
            raise UserError(f"--keep-above: no pool of pretrained classifiers is named by --pretrain-weight {path}: give "
                            "--teacher, the folder of one (results/pools/...)")
        if kept and not labeller and not Path(folder).exists():
            raise UserError(f"{path} is refined by the classifiers in {folder}, which are not there: give --keep-above "
                            f"{refinement.keep_above:g} --teacher FOLDER for others")
        pool = open_pool(folder)
        check_fits(source, pool.spec, f"--pretrain-weight {path}", "name another --teacher")
        teacher = Teacher.of(pool)
    refined = Refined(source, refinement, teacher)
    refined.check(device)
    return refined
