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

    Args:
        learner: what is learned, see `matching.learners`; dataset, a `Dataset` on the device; pool, see `pools`, None to find
            out whether the choices go together.
        match, select: keys of OBJECTIVES and SELECTORS; options, the keywords of the objective, by their names.
        weight: of the term (None: the objective's own).
        classes: compared in one step, shared out evenly over the processes; 0 for all.
        per_class: real images of each class. A generator makes as many; a pixel set gives all that it has.
        kept: instead, so many real images of each class (at most as many as the smallest has), of which the pool keeps the
            embeddings: seen once and without augmentation; 0 for none.
        at_once: classes of a process that are in memory together; 0 for all. The sum over the parts is the same.
        aug_type: siamese augmentation, "none" for none; aug_single, one of its operations a step;
            aug_setting, one of `SETTINGS`.
        interval, candidates, nearest: of the DREAM selector.
    Raises UserError for choices that do not go together.
    """

    shared = False
    """Whether processes share the work of an objective that looks at all classes together."""

    def __init__(self, learner, dataset, pool, *, match, weight, select, classes, per_class, aug_type, interval, candidates,
                 kept=0, nearest=1, aug_single=False, aug_setting="image", at_once=0, options=None):
        spec = dataset.spec
        self.learner, self.dataset, self.pool, self.per_class, self.at_once = learner, dataset, pool, per_class, at_once
        self.objective, self.options = OBJECTIVES[match], dict(options or {})
        self.weight = self.objective.weight if weight is None else weight
        self.classes = min(classes or spec.num_classes, spec.num_classes)
        fewest = int(torch.bincount(dataset.train.labels, minlength=spec.num_classes).min())
        self.kept = min(kept, fewest)
        self._check(match, spec, aug_type)
        self.selector = SELECTORS[select](dataset.train, spec.num_classes, self.kept or per_class, learner.seed, pool=pool,
                                          interval=interval, candidates=candidates, nearest=nearest)
        self.augment, self.aug_setting = Augment(aug_type, spec, aug_single), aug_setting
        synthetic = learner.images_per_class(per_class)
        if self.objective.pairwise and synthetic != per_class:
            raise UserError(f"--match {match} compares image by image, but there are {per_class} real and {synthetic} "
                            f"synthetic ones of each class: give --match-batch {synthetic}")
        if aug_setting == "image" and synthetic != per_class:
            raise UserError(f"--aug-setting image pairs real images with synthetic ones, but there are {per_class} and "
                            f"{synthetic} of each class: use --aug-setting class")
        self.shuffle = Shuffle(spec.num_classes, self.classes, learner.seed, "classes")

    def _check(self, match, spec, aug_type):
        """Raise UserError where the objective, the learner and the processes do not go together."""
        processes, objective = self.learner.accelerator.num_processes, self.objective
        self.paired = objective.paired == "real" or (objective.paired and self.options.get("paired_weight", 0.0) > 0)
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
        if self.kept and aug_type != "none":
            raise UserError("--match-real compares images as they are: add --no-match-aug")
        if self.classes % processes:
            shared = range(processes, spec.num_classes + 1, processes)
            remedy = f"give --match-classes {' or '.join(map(str, shared))}" if shared else "launch fewer processes"
            raise UserError(f"--match-classes: {processes} processes cannot share {self.classes} classes of {spec.num_classes} "
                            f"evenly: {remedy}")

    @property
    def summed(self):
        """What turns the loss of `parts` into the sum over all classes that the methods of stored images minimise."""
        classes = self.dataset.spec.num_classes if self.objective.per == "class" else 1
        return classes / self.learner.accelerator.num_processes

    def __call__(self, step):
        """The weighted loss of step `step`, a 0-dim tensor whose gradient reaches what is learned."""
        return sum(self.parts(step))

    def parts(self, step):
        """Yield the same loss as terms, one for each `at_once` classes: each may be differentiated before the next is made."""
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
                real = self.pool.embed(network, rows.flatten()).unflatten(0, rows.shape)  # k,n,D
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

    def state_dict(self):
        """What resuming needs beside the learner's own state."""
        return {"pool": self.pool.state_dict(), "selector": self.selector.state_dict()}

    def load_state_dict(self, state):
        self.pool.load_state_dict(state["pool"])
        self.selector.load_state_dict(state["selector"])
