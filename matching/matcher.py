"""The matching term of one step: which classes, which real images, in whose eyes, and what must agree."""

import functools

import torch

from common.device import autocast
from common.errors import UserError
from common.rng import Shuffle
from data import Augment, standardise, to_signed
from matching.objectives import OBJECTIVES
from matching.selectors import SELECTORS

SETTINGS = ("image", "class")
"""Siamese augmentation: one setting for each pair of a real and a synthetic image, or for all images of a class."""


class Matcher:
    """Compares real and synthetic images of the same labels as networks of a pool see them.

    Args:
        learner: what is learned, see `matching.learners`; dataset, a `Dataset` on the device; pool, see `pools`.
        match, select: keys of OBJECTIVES and SELECTORS; metric, of METRICS, for `match="grad"`.
        weight: of the term (None: the objective's own).
        classes: compared in one step, spread over the processes (rounded up to a multiple of them); None for all.
        per_class: real images of each class. A generator makes as many; a pixel set gives all that it has.
        own_weight: for latents, of the distance of each image's embedding from that of the real image that it stands for.
        at_once: classes of a process that are in memory together; None for all. The sum over the parts is the same.
        aug_type: siamese augmentation, "none" for none; aug_single, one of its operations a step;
            aug_setting, one of `SETTINGS`.
        interval, candidates: of the DREAM selector.
    """

    def __init__(self, learner, dataset, pool, *, match, weight, select, classes, per_class, aug_type, interval, candidates,
                 metric="l1", aug_single=False, aug_setting="image", at_once=None, own_weight=0.0):
        spec, processes = dataset.spec, learner.accelerator.num_processes
        self.learner, self.dataset, self.pool, self.per_class, self.at_once = learner, dataset, pool, per_class, at_once
        objective = OBJECTIVES[match]
        self.own = objective.own if objective.own == "real" or own_weight else None
        if self.own and not hasattr(learner, "own"):
            raise UserError(f"--match {match} compares latents with the images that they stand for: use --method inversion")
        if own_weight and objective.own != "beside":
            names = ", ".join(name for name, row in OBJECTIVES.items() if row.own == "beside")
            raise UserError(f"--own-weight is for an objective that compares embeddings: --match {names}")
        self.objective = functools.partial(objective.function, metric=metric) if match == "grad" else objective.function
        if self.own == "beside":
            self.objective = functools.partial(objective.function, own_weight=own_weight)
        self.weight = objective.weight if weight is None else weight
        self.classes = -(-min(classes or spec.num_classes, spec.num_classes) // processes) * processes
        self.selector = SELECTORS[select](dataset.train, spec.num_classes, per_class, learner.seed, pool=pool,
                                          interval=interval, candidates=candidates, spec=spec)
        self.augment, self.aug_setting = Augment(aug_type, spec, aug_single), aug_setting
        synthetic = learner.images_per_class(per_class)
        if aug_setting == "image" and synthetic != per_class:
            raise UserError(f"--aug-setting image pairs real images with synthetic ones, but there are {per_class} and "
                            f"{synthetic} of each class: use --aug-setting class")
        self.passes = Shuffle(spec.num_classes, self.classes, learner.seed, "classes")

    def __call__(self, step):
        """The weighted loss of step `step`, a 0-dim tensor whose gradient reaches what is learned."""
        return sum(self.parts(step))

    def parts(self, step):
        """Yield the same loss as terms, one for each `at_once` classes: each may be differentiated before the next is made."""
        learner = self.learner
        plan = self.passes.indices(step)  # the classes of all processes
        mine = learner.mine(torch.arange(self.classes))  # places in the plan
        each = self.per_class if self.aug_setting == "image" else 1
        setting = self.augment.draw(self.classes * each, learner.stream("augment", "matching", step))
        uniform = setting.uniform.unflatten(0, (self.classes, each))
        self.pool.prepare(step, learner)
        classifier = self.pool.draw(learner.stream("member", step))
        for places in mine.split(self.at_once or len(mine)):
            labels = plan.to(places.device)[places]  # [k]
            own = learner.own(labels, step) if self.own else None  # [k, m]
            rows = own if self.own == "real" else self.selector.indices(labels.cpu(), step)  # [k, n]
            real = self._real(rows, labels.device)  # k,n,C,H,W
            drawn = uniform.to(labels.device)[places]
            with autocast(learner.accelerator):
                fake = learner.images(labels, places, (self.classes, self.per_class), step)  # k,m,C,H,W
                seen = (self._look(images, setting, drawn) for images in (real, fake))
                beside = {}
                if self.own == "beside":
                    beside = {"own": self._look(self._real(own, labels.device), setting, drawn)}
                loss = self.objective(classifier, *seen, labels, **beside)
            yield self.weight * len(places) / len(mine) * loss

    def _real(self, rows, device):
        return to_signed(self.dataset.train.images[rows.to(device)])

    def _look(self, images, setting, drawn):
        """What a network is shown of `images` [k, n, C, H, W]; `drawn` is [k, n or 1, 8]."""
        flat = standardise(images.flatten(0, 1), self.dataset.spec)
        setting = setting._replace(uniform=drawn.expand(-1, images.shape[1], -1).flatten(0, 1))
        return self.augment.apply(flat, setting).unflatten(0, images.shape[:2])

    def state_dict(self):
        """What resuming needs beside the learner's own state."""
        return {"pool": self.pool.state_dict(), "selector": self.selector.state_dict()}

    def load_state_dict(self, state):
        self.pool.load_state_dict(state["pool"])
        self.selector.load_state_dict(state["selector"])
