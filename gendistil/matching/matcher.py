"""The matching term of one step: which classes, which real images, in whose eyes, and what must agree."""

import torch

from gendistil.common.device import own_rows, send
from gendistil.common.errors import UserError
from gendistil.common.rng import Shuffle
from gendistil.data import Augment, standardise, take, to_signed
from gendistil.matching.objectives import OBJECTIVES, Eyes
from gendistil.matching.selectors import SELECTORS

SETTINGS = ("image", "class")
"""Siamese augmentation: one setting for each pair of a real and a synthetic image, or for all images of a class."""


class Matcher:
    """Compares real and synthetic images of the same labels as networks of a pool see them.

    Args: learner, what is learned, see `matching.learners`; dataset, a `Dataset` on the device; method, a `Method`, whose
    fields for matching say the rest. `begin` gives it the networks. The classes of a step are shared out over the processes,
    `class_batch` of one of them at a time, which changes no sum. A generator makes as many images of a class as there are real
    ones, `match_batch`; what is stored gives all of a class, or `syn_batch`. With `match_real` the real side is instead so many
    images, at most as many as the smallest class has, of which the pool keeps the embeddings.
    Raises UserError for choices that do not go together.
    """

    shared = False
    """Whether processes share the work of an objective that looks at all classes together."""

    def __init__(self, learner, dataset, method):
        spec, real = dataset.spec, method.match_batch
        self.learner, self.dataset = learner, dataset
        self.per_class, self.at_once, self.aug_setting = real, method.class_batch, method.aug_setting
        self.objective = OBJECTIVES[method.match]
        self.options = {name: getattr(method, name) for name in self.objective.options}
        self.paired = self.objective.paired == "real" or (self.objective.paired and self.options.get("paired_weight", 0.0) > 0)
        self.weight = self.objective.weight if method.match_weight is None else method.match_weight
        self.classes = min(method.match_classes or spec.num_classes, spec.num_classes)
        self.kept = min(method.match_real, dataset.fewest)
        self.augment = Augment(method.augmentation, spec, method.aug_single)
        self._check(method.match, spec)
        selector = SELECTORS[method.select]
        options = {name.removeprefix("select_"): getattr(method, name) for name in selector.options}
        self.selector = selector(dataset.train, spec.num_classes, self.kept or real, learner.seed, **options)
        synthetic = learner.images_per_class(real)
        if self.objective.pairwise and synthetic != real:
            raise UserError(f"--match {method.match} compares image by image, but there are {real} real and {synthetic} "
                            f"synthetic ones of each class: give --match-batch {synthetic}")
        if self.aug_setting == "image" and synthetic != real:
            raise UserError(f"--aug-setting image pairs real images with synthetic ones, but there are {real} and "
                            f"{synthetic} of each class: use --aug-setting class")
        self.shuffle = Shuffle(spec.num_classes, self.classes, learner.seed, "classes")

    def _check(self, match, spec):
        """Raise UserError where the objective, the learner and the processes do not go together."""
        processes, objective = self.learner.accelerator.num_processes, self.objective
        if self.paired and not self.learner.has_pairs:
            raise UserError(f"--match {match} compares latents with the images that they stand for: use --method inversion")
        if objective.per != "class" and ((processes > 1 and not self.shared) or self.at_once):
            raise UserError(f"--match {match} looks at all classes of a step together: launch one process, and give no "
                            "--class-batch")
        if self.kept and not objective.embeds:
            names = ", ".join(name for name, row in OBJECTIVES.items() if row.embeds)
            raise UserError(f"--match-real is for an objective that compares embeddings: --match {names}")
        if self.kept == 1:
            raise UserError("--match-real 1: one image of a class has no distribution: give 2 or more")
        if self.kept and self.augment.names:
            raise UserError("--match-real compares images as they are: add --no-match-aug")
        if self.classes % processes:
            shared = range(processes, spec.num_classes + 1, processes)
            remedy = f"give --match-classes {' or '.join(map(str, shared))}" if shared else "launch fewer processes"
            raise UserError(f"--match-classes: {processes} processes cannot share {self.classes} classes of {spec.num_classes} "
                            f"evenly: {remedy}")

    def begin(self, pool, state=None):
        """Compare by the networks of `pool`, see `pools`, from the first step on, or from where its `state_dict` was taken."""
        self.pool = self.selector.pool = pool
        if state:
            pool.load_state_dict(state["pool"])
            self.selector.load_state_dict(state["selector"])
        return self

    @property
    def summed(self):
        """What turns the loss of `parts` into the sum over all classes that the methods of stored images minimise."""
        classes = self.dataset.spec.num_classes if self.objective.per == "class" else 1
        return classes / self.learner.accelerator.num_processes

    def parts(self, step):
        """Yield the weighted loss of step `step` as 0-dim terms, one for each `at_once` classes, whose gradient reaches what is
        learned: each may be differentiated before the next is made."""
        learner = self.learner
        plan = self.shuffle.indices(step)  # the classes of all processes
        device = learner.accelerator.device
        shard = own_rows(learner.accelerator, torch.arange(self.classes))  # positions in the plan
        each = self.per_class if self.aug_setting == "image" else 1
        setting = self.augment.draw(self.classes * each, learner.stream("augment", "matching", step))
        uniform = setting.uniform.unflatten(0, (self.classes, each))
        self.pool.prepare(step, learner)
        selected = self.selector.indices(plan[shard], step)  # before the network, because it may draw one for itself
        network = self.pool.draw(learner.stream("member", step))
        eyes = Eyes(network, learner.engine)
        at_once = self.at_once or len(shard)
        for positions, rows in zip(shard.split(at_once), selected.split(at_once)):  # k; k,n
            chosen = plan[positions]  # k, read by the host
            pairs = learner.pairs(chosen, step) if self.paired else None  # k,m
            rows = pairs if self.objective.paired == "real" else rows
            labels, drawn, positions = (send(x, device) for x in (chosen, uniform[positions], positions))
            if self.kept:
                real = self.pool.embed(network, rows.flatten(), whole=True).unflatten(0, rows.shape)  # k,n,D
            else:
                real = self._look(self._real(rows), setting, drawn)  # k,n,C,H,W
            with learner.engine.autocast():
                fake = learner.images(labels, positions, (self.classes, self.per_class), step).float()  # k,m,C,H,W
            options = dict(self.options)
            if self.objective.draws:
                options["generator"] = learner.stream("objective", step)
            if self.paired and self.objective.paired == "beside":
                options["paired"] = self._look(self._real(pairs), setting, drawn)
            fake = self._look(fake, setting, drawn)
            yield self.weight * len(positions) / len(shard) * self.objective.function(eyes, real, fake, labels, **options)

    def _real(self, rows):
        return to_signed(take(self.dataset.train.images, rows))

    def _look(self, images, setting, drawn):
        """What a network is shown of `images` [k, n, C, H, W]; `drawn` is [k, n or 1, 8]."""
        flat = standardise(images.flatten(0, 1), self.dataset.spec)
        drawn = drawn[:, : images.shape[1]]  # the last vectors may be fewer
        setting = setting._replace(uniform=drawn.expand(-1, images.shape[1], -1).flatten(0, 1))
        return self.augment.apply(flat, setting).unflatten(0, images.shape[:2])

    def check(self, step):
        """Raise UserError if what is learned is NaN or infinite after `step` steps."""
        self.learner.check(step)

    def state_dict(self):
        """What resuming needs beside the learner's own state."""
        return {"pool": self.pool.state_dict(), "selector": self.selector.state_dict()}
