"""The matching term of one step: which classes, which real images, in whose eyes, and what must agree."""

from common.rng import Shuffle
from data import Augment, standardise, to_signed
from matching.objectives import OBJECTIVES
from matching.selectors import SELECTORS


class Matcher:
    """Compares real and generated images of the same labels as members of a pool see them.

    Args:
        gan: the `GAN` whose generator is matched; dataset, a `Dataset` on the device; pool, a `ClassifierPool`.
        match, select: keys of OBJECTIVES and SELECTORS; weight, of the term (None: the objective's own).
        classes: compared in one step, spread over the processes (rounded up to a multiple of them).
        per_class: images of each class, real and generated.
        aug_type: siamese augmentation, the same for the i-th real and the i-th generated image of a class; "none" for none.
        interval, candidates: of the DREAM selector.
    """

    def __init__(self, gan, dataset, pool, *, match, weight, select, classes, per_class, aug_type, interval, candidates):
        spec, processes = dataset.spec, gan.accelerator.num_processes
        self.gan, self.dataset, self.pool, self.per_class = gan, dataset, pool, per_class
        self.objective = OBJECTIVES[match]
        self.weight = self.objective.weight if weight is None else weight
        self.classes = -(-min(classes, spec.num_classes) // processes) * processes
        self.selector = SELECTORS[select](dataset.train, spec.num_classes, per_class, gan.seed, pool=pool, interval=interval,
                                          candidates=candidates, spec=spec)
        self.augment = Augment(aug_type, spec)
        self.passes = Shuffle(spec.num_classes, self.classes, gan.seed, "classes")

    def __call__(self, step):
        """The weighted loss of step `step`, a 0-dim tensor whose gradient reaches the generator."""
        gan, spec = self.gan, self.dataset.spec
        labels = gan.mine(self.passes.indices(step))  # [k], this process's classes
        rows = self.selector.indices(labels.cpu(), step).to(labels.device)  # [k, n]
        noise = gan.noise((self.classes, self.per_class), "matching", step)  # [k, n, Z]
        setting = self.augment.draw(self.classes * self.per_class, gan.stream("augment", "matching", step))
        uniform = gan.mine(setting.uniform.unflatten(0, (self.classes, self.per_class))).flatten(0, 1)
        real = to_signed(self.dataset.train.images[rows.flatten()])
        fake = gan.generator(noise.flatten(0, 1), labels.repeat_interleave(self.per_class)).float()
        seen = (self.augment.apply(standardise(images, spec), setting._replace(uniform=uniform)).unflatten(0, rows.shape)
                for images in (real, fake))  # [k, n, C, H, W] each
        return self.weight * self.objective.function(self.pool.draw(gan.stream("member", step)), *seen, labels)
