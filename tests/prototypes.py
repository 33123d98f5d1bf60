"""Sources whose images any student tells apart, small learners and matching terms, for tests."""

from torch.nn import functional as F

from gendistil.common.rng import counter_normal
from gendistil.matching import GeneratorLearner, LatentLearner, Matcher, Method, PixelLearner, initial
from gendistil.sources import PixelSet, Source, index_within_class
from generators import GAN, RECIPES, GANRecipe
from generators.pyramid import PyramidGenerator


class Prototypes(Source):
    """A source whose classes are told apart easily: a lit row or column per class, in noise. It remembers what was asked."""

    num_classes, channels, size = 10, 1, 8

    def __init__(self):
        self.asked = []

    def sample(self, labels, seed):
        self.asked.append((labels.clone(), seed))
        images = -1 + 0.1 * counter_normal(seed, labels, index_within_class(labels), 64).view(-1, 1, 8, 8)
        for image, label in zip(images, labels.tolist()):
            if label < 5:
                image[:, label] = 1
            else:
                image[..., label - 5] = 1
        return images


class SoftPrototypes(Prototypes):
    """The same with soft labels: a tenth of the weight on the next class, and a little more for odd seeds."""

    def targets(self, labels, seed=0, images=None):
        share = 0.1 + 0.001 * (seed % 2)
        hard = F.one_hot(labels, 10).float()
        return (1 - share) * hard + share * hard.roll(1, 1)


def matcher_for(learner, dataset, pool, match="mean", kind=Matcher, **values):
    """A matcher of weight 1 and without augmentation, but for the `values` of a `Method` that a test names."""
    small = {"match_weight": 1.0, "aug_type": "none", "select_interval": 1, "select_candidates": 20}
    return kind(learner, dataset, Method("pixels", "a test", match=match, **{**small, **values})).begin(pool)


def reaches_the_generator(matcher):
    """Whether the matching term of step 2 has a gradient at the weights of a generator, which has a loss of its own besides."""
    trainer = matcher.learner.trainer
    trainer.optim_g.zero_grad()
    sum(matcher.parts(2)).backward()
    return any(weight.grad.abs().max() > 0 for weight in trainer.generator.parameters())


def make_learner(name, digits, accelerator, ipc=4, started=False):
    """A small learner: generator, latents, pixels or multi-formation. Pixels are grey unless they are `started` from images."""
    if name == "generator":
        recipe = {**vars(RECIPES["pyramid"]), "width": 8, "batch_size": 4}
        return GeneratorLearner(GAN(accelerator, digits.spec, GANRecipe(**recipe), 0), digits)
    if name == "latents":
        latents, partners = initial.latents(PyramidGenerator(8, 1, 10, 9, width=8), digits, ipc, "noise", 0)
        return LatentLearner(accelerator, digits.spec, latents, 0, real=digits.train, partners=partners, lr=0.1, batch=2)
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=ipc, factor=2 if name == "multi-formation" else 1)
    if started:
        initial.start(pixels, digits, "real", 0, None)
    return PixelLearner(accelerator, digits.spec, pixels, 0, lr=0.1)
