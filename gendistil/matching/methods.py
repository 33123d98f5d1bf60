"""The published methods as rows of one table: what is learned, what must agree, in whose eyes, against which real images."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from gendistil.common.cli import COUNT, FRACTION, NATURAL, POSITIVE, WEIGHT, number
from gendistil.common.flags import LENGTH_GROUP, Flattened, option
from gendistil.data import original
from gendistil.data.augment import augmentations
from gendistil.matching import initial
from gendistil.matching.learners import SPACES
from gendistil.matching.matcher import SETTINGS
from gendistil.matching.networks import POOLS
from gendistil.matching.objectives import METRICS, OBJECTIVES
from gendistil.matching.selectors import SELECTORS
from gendistil.matching.trained import ORDERS
from gendistil.matching.unroll import UNROLLED
from gendistil.sources import DECODERS, LATENT_SPACES
from generators.trainer import TUNED
from pools import some_classifiers, usual_classifier

GENERATOR, PIXELS, LATENTS, DRAWN = "generator", "pixels", "latents", "drawn"
"""What the published methods learn; `build.LEARNED` says how."""

STORED = (PIXELS, LATENTS)
KEEPS = ("last", "best")
DEFAULT_IPC = 10

_method = partial(option, group="method (a flag that is not given takes the method's value)")
_unroll = partial(option, group="training on the synthetic images (--match trajectory, outcome)")
_of_generator = partial(option, group="a generator", learns=(GENERATOR,))
_of_stored = partial(option, group="pixels and latents", learns=STORED)
_of_pixels = partial(option, group="pixels", learns=(PIXELS,))
_of_latents = partial(option, group="latents", learns=(LATENTS,))
_of_drawn = partial(option, group="images that a flow draws", learns=(DRAWN,))
_pool = partial(option, group="pool")
_length = partial(option, group=LENGTH_GROUP)


@dataclass(frozen=True)
class Method:
    """One row; the names of its fields are the flags of `pool_match.py`, and any flag that is given takes its place.

    `learns` of a field: the kinds of what is learned that it has a meaning for (default: all); `first`: whether its flag also
    goes to the method that runs first, or only to that one. `networks.POOLS` says which pools take a field.
    """

    learn: str    # a key of build.LEARNED
    source: str   # where it was published
    first: str | None = None  # the method that finds what this one starts from, unless --weight holds it already

    match: str = _method("what must agree between real and synthetic images; none: train a generator on without matching",
                         "energy", choices=lambda: [*OBJECTIVES, "none"])
    metric: str = _method("distance of gradients, for --match grad", "l1", choices=METRICS)
    match_weight: float | None = _method("weight of matching (a generator's default: the objective's)", None, type=WEIGHT)
    match_classes: int = _method("classes compared in one step, 0 for all", 0, type=NATURAL)
    match_batch: int = _method("real images of each class (and generated ones)", 64, type=number(int, 2, 2**31 - 1))
    match_real: int = _method("compare with so many real images of each class, at most as many as the smallest has, in place "
                              "of --match-batch new ones, by embeddings that a pretrained pool keeps; wants --no-match-aug; "
                              "0: do not", 0, type=NATURAL)
    calibrate: float = _method("weight of the pool's cross-entropy on synthetic images, beside that of their embeddings", 0.0,
                               type=WEIGHT)
    mean_weight: float = _method("weight of the distance of mean embeddings, in the same metric, beside that of gradients "
                                 "(DREAM+)", 0.0, type=WEIGHT)
    match_aug: bool = _method("compare through siamese augmentation: the same for real and synthetic images", True)
    aug_type: str = _method("augmentations, joined by _, or none", "color_crop_cutout", type=augmentations)
    aug_single: bool = _method("apply only one of them to a batch (DSA, DM), in place of all of them with one of crop, scale "
                               "and rotate; so too where experts and online networks are trained", False)
    aug_setting: str = _method("one setting of them for each pair of a real and a synthetic image, or for each class", "class",
                               choices=SETTINGS)
    class_batch: int = _method("classes in memory together, 0 for all (the default); the result is the same, but for the units "
                               "of --match moments and cf, which are then those of each part", 0, type=NATURAL, first=True)
    select: str = _method("real images: nearest to the centroids of a clustering of their class, or drawn uniformly", "random",
                          choices=SELECTORS)
    select_interval: int = _method("steps between clusterings", 10, type=COUNT)
    select_candidates: int = _method("images of each class that are clustered, more than are compared (default: the method's)",
                                     1000, type=COUNT)
    select_nearest: int = _method("images that are taken around each centroid, of fewer clusters (DREAM+)", 1, type=COUNT)

    unroll: int | None = _unroll("steps of a network's training on the synthetic images, in each step of matching (of dd by "
                                 "default three for each image of a class)", 30, type=COUNT)
    unroll_batch: int = _unroll("synthetic images in one step of that training, 0 for all", 0, type=NATURAL)
    unroll_optimizer: str = _unroll("optimizer of that training", "sgd", choices=UNROLLED)
    unroll_momentum: float = _unroll("momentum of --unroll-optimizer sgd", 0.0, type=number(float, 0, 0.999))
    unroll_order: str = _unroll("passes: images in a new order in each pass; steps: one image of every class a step, always in "
                                "the same order, and a step size of each step's own (Wang et al., 2018)", "passes",
                                choices=ORDERS)
    window: int = _unroll("differentiate only the last so many steps of a training whose length is drawn between this number "
                          "and --unroll (RaT-BPTT); 0: train for --unroll steps and differentiate all", 0, type=NATURAL)
    step_size: float = _unroll("learning rate of that training, its first one with --step-size-lr", 0.01, type=POSITIVE)
    step_size_lr: float = _unroll("learning rate of the step size (SGD; of several, Adam), 0 to leave it", 0.0, type=WEIGHT)
    label_lr: float = _unroll("learning rate of a row of label logits for each stored image, 0 for the classes' own labels",
                              0.0, type=WEIGHT, learns=STORED)
    clip: float = _unroll("gradients longer than so many times their running mean are shortened to that, 0 for none", 0.0,
                          type=WEIGHT)
    expert_epochs: int = _unroll("the network starts at some epoch of an expert, and its weights are compared with the "
                                 "expert's so many epochs later", 2, type=COUNT)
    min_start: int = _unroll("first epoch of an expert at which the network may start", 0, type=NATURAL)
    max_start: int = _unroll("epoch of an expert below which the network starts", 5, type=COUNT)
    first_max_start: int = _unroll("--max-start of the first step, from where it grows (DATM); 0: --max-start from the first "
                                   "step on", 0, type=NATURAL)
    start_grows: int = _unroll("steps in which --first-max-start grows to --max-start", 1000, type=COUNT)
    skip_above: float = _unroll("steps that leave a network further from its expert than this learn nothing (1: no nearer than "
                                "at its start), 0 for none (DATM)", 0.0, type=WEIGHT)

    lr_critic: float | None = _of_generator("learning rate of the critic (default: the method's, else the recipe's)", None,
                                            type=POSITIVE)
    batch_size: int | None = _of_generator("images of the generator's own step (default: the method's, else the recipe's)",
                                           None, type=number(int, 2, 2**31 - 1))
    ema: float | None = _of_generator("decay of its averaged weights, 0 for none (default: the recipe's)", None, type=FRACTION)
    sample_steps: int | None = _of_generator("Euler steps of a flow, through which it is matched and which it keeps (default: "
                                             "its own, at most 4)", None, type=number(int, 1, 1000))
    tune: str = _of_generator("which of its weights are learned: all, or those of norms and class embeddings alone", "all",
                              choices=TUNED)

    syn_batch: int = _of_stored("images of a class compared in one step, 0 for all", 0, type=NATURAL, first=True)
    optimizer: str = _of_stored("optimizer of pixels or latents; with adam, --lr counts in images in [-1, 1] whatever --space "
                                "says", "sgd", choices=("sgd", "adam"))
    momentum: float = _of_stored("momentum of --optimizer sgd", 0.5, type=number(float, 0, 0.999))

    init: str = _of_pixels("what they start from: noise, or real images chosen so", "real",
                           choices=lambda: ["noise", *initial.CHOOSERS])
    factor: int = _of_pixels("each stored image holds this number squared of smaller ones (IDC: 2)", 1, type=number(int, 1, 8))
    decoder: str = _of_pixels("how stored images are cut; single: all by --factor; multi: each by every number from 1 to it; "
                              "bound: by --factor as long as a class has 128 parts at most, the rest by less (default: single)",
                              "single", choices=DECODERS)
    space: str = _of_pixels("units of --lr: of standardised images, or of images in [0, 1]", "standardised", choices=SPACES)

    latent_space: str | None = _of_latents("vectors are the generator's noise, or its coarsest grid (default: noise, or what "
                                           "--weight holds)", None, choices=LATENT_SPACES, first=True)
    paired_weight: float = _of_latents("of the distance of each image's embedding from that of the real image that its latent "
                                       "was found for: keeps a class diverse", 0.0, type=WEIGHT)
    chunk_steps: int = _of_latents("inversion: Adam steps on --syn-batch latents of a class before the next; 0: others each "
                                   "step", 0, type=NATURAL, first="only")

    pull: float = _of_drawn("how far each image is moved towards its mode, a centroid of its class's real images, in every "
                            "step: a share, above 1 beyond it, 0 for none (MGD3)", 0.0, type=WEIGHT)
    pull_until: float = _of_drawn("time, from 1 (noise) to 0 (image), at which that ends", 0.5, type=FRACTION)
    steer: float = _of_drawn("how far each image is moved against the gradient of --match in every step, as a share of how far "
                             "it has still to go, 0 for none (IGD)", 0.0, type=WEIGHT)
    guidance: float | None = _of_drawn("classifier-free guidance, 1 for none (default: the flow's own)", None, type=WEIGHT)

    pool: tuple = _pool("classifiers in the pool, named as for validate.py --eval-model (default: the method's)", ("convnet",),
                        nargs="+", type=some_classifiers, action=Flattened, metavar="NAME", first=True)
    pool_training: str = _pool(lambda: "how they are trained; " + "; ".join(f"{name}: {row.words}" for name, row in
                                                                            POOLS.items()), "random", choices=lambda: POOLS)
    outer: int | None = _pool("steps of matching before the online network (synthetic, real) is replaced by a new one "
                              "(default of dc and dsa: --ipc)", 1, type=COUNT)
    inner: int | None = _pool("passes that train the online network between two steps of matching (default of dc and dsa: "
                              "1 to 50, by --ipc)", 1, type=COUNT)
    pool_images: int = _pool("real images in each pass that trains the online network", 500, type=COUNT)
    pool_warmup: int = _pool("passes over all real images that a new online network learns from first (DREAM+)", 0,
                             type=NATURAL)
    pool_batch: int | None = _pool("images a step of its training, or of the pretraining", None, type=number(int, 2, 2**31 - 1))
    pool_lr: float | None = _pool("learning rate of its training, or of the pretraining (SGD)", None, type=POSITIVE)
    pool_momentum: float = _pool("momentum of its training", 0.0, type=number(float, 0, 0.999))
    pool_decay: float = _pool("weight decay of its training", 0.0, type=WEIGHT)
    pool_aug: str | None = _pool("augmentation of its training, or of the pretraining", None, type=augmentations)
    pool_cutmix: float = _pool("probability that CutMix mixes a batch of its training", 0.0, type=FRACTION)
    pool_mix: bool = _pool("networks between two snapshots of a member, by interpolated weights (NCFM)", False)
    pool_initial: bool = _pool("also keep each network as it was before its pretraining (NCFM)", False)
    pool_members: int = _pool("pretrained networks of each classifier (default: the method's)", 4, type=COUNT)
    pool_epochs: int = _pool("epochs of their pretraining on the real images (default: the method's)", 20, type=COUNT)
    pool_snapshots: int = _pool("snapshots kept of each, from early to late (default: the method's)", 5, type=COUNT)

    lr: float | None = _length("learning rate of the generator, of pixels or of latents (default: the method's, else that of "
                               "the generator's recipe)", None, type=POSITIVE, learns=(GENERATOR, *STORED))
    steps: int | None = _length("steps (default: the method's; of dc and dsa, 1000 for each stored image of a class; of "
                                "inversion, each latent once)", 1000, type=NATURAL)
    epochs: int | None = _length("passes over the real images, instead of --steps, for a generator", None, type=COUNT,
                                 learns=(GENERATOR,))
    keep: str = _length("the result is what the last step left, or what scored best on held-out images (DiM, DREAM, MTT, BPTT)",
                        "last", choices=KEEPS)

    @property
    def augmentation(self):
        """The augmentations of what is compared, joined by _, or none."""
        return self.aug_type if self.match_aug else "none"


DSA = "color_crop_cutout_flip_scale_rotate"
DIM_POOL = ("convnet", "resnet10", "resnet18", "resnet10_ap", "resnet18_ap")

_DEFAULT = Method(GENERATOR, "DiM on DREAM's batches, with what held-out images chose", match="energy", match_classes=2,
                  calibrate=3.0, match_batch=96, aug_setting="image", pool_training="pretrained", select="dream",
                  select_interval=50)
_DM = Method(PIXELS, "DM, arXiv 2110.04181", match="mean", match_weight=1.0, match_batch=256, aug_type=DSA, aug_single=True,
             lr=1.0, steps=20_000)
_DC = Method(PIXELS, "DC, ICLR 2021", match="grad", metric="dc", match_weight=1.0, match_batch=256, match_aug=False,
             pool_training="synthetic", outer=None, inner=None, pool_batch=256, pool_lr=0.01, pool_aug="none", init="noise",
             lr=0.1, steps=None)
_IDC = Method(PIXELS, "IDC, ICML 2022", match="grad", metric="mse", match_weight=1.0, syn_batch=128, pool_training="real",
              outer=100, pool_batch=64, pool_lr=0.01, pool_momentum=0.9, pool_decay=5e-4, pool_images=500,
              pool_aug="color_crop", pool_cutmix=0.5, factor=2, lr=5e-3, space="unit", steps=200_000)
# Its authors score every 4,000th step on the test set and report the best; here held-out images choose.
_DREAM = replace(_IDC, source="DREAM, arXiv 2302.14416", select="dream", match_batch=128, pool_batch=128, init="kmeans",
                 keep="best")
_LATENTS = Method(LATENTS, "IT-GAN, arXiv 2204.07513", first="inversion", match="mean", match_weight=1.0, match_batch=256,
                  syn_batch=256, aug_type=DSA, aug_single=True, paired_weight=0.1, lr=1.0, momentum=0.0, steps=2000)
# The authors keep 100 experts of 50 epochs; no setting of theirs is for MNIST or Fashion-MNIST.
_MTT = Method(PIXELS, "MTT, arXiv 2203.11932", match="trajectory", match_weight=1.0, aug_type=DSA, aug_single=True,
              pool_training="expert", pool_members=10, pool_batch=256, pool_lr=0.01, pool_aug=DSA, step_size_lr=1e-5, lr=1e3,
              steps=5000, keep="best")
_BPTT = Method(PIXELS, "RaT-BPTT, arXiv 2311.07025", match="outcome", match_weight=1.0, match_batch=500, unroll=200, window=60,
               unroll_optimizer="adam", step_size=1e-3, clip=2.0, aug_type="flip_rotate", aug_single=True, init="noise",
               optimizer="adam", lr=1e-3, steps=2000, keep="best")
# Its authors' modes are of a diffusion model's latents; these are of pixels.
_MGD3 = Method(DRAWN, "MGD3, arXiv 2505.18963", match="none", match_weight=1.0, pull=0.1, steps=50)
_CORESET = Method(PIXELS, "images at random", match_weight=1.0, steps=0, lr=1.0)

METHODS = {
    "default": _DEFAULT,
    "dim": replace(_DEFAULT, source="DiM, arXiv 2303.04707", match="logit", calibrate=0.0, select="random", pool=DIM_POOL,
                   lr=5e-6, lr_critic=5e-6, batch_size=64, steps=None, epochs=100, keep="best"),
    "dm": _DM,
    "dc": _DC,
    "dsa": replace(_DC, source="DSA, ICML 2021", match_aug=True, aug_type=DSA, aug_single=True, pool_aug=DSA, init="real"),
    "idc": _IDC,
    "dream": _DREAM,
    "dream+": replace(_DREAM, source="DREAM+, arXiv 2310.15052", mean_weight=1.0, pool_warmup=1),
    "inversion": replace(_LATENTS, source="GAN inversion, as IT-GAN starts", first=None, match="paired", paired_weight=0.0,
                         match_aug=False, lr=0.1, chunk_steps=200, steps=None),
    "itgan": _LATENTS,
    "mtt": _MTT,
    "datm": replace(_MTT, source="DATM, arXiv 2310.05773", unroll=80, max_start=20, first_max_start=10, skip_above=1.0,
                    label_lr=2.0, lr=100.0, pool_epochs=25, steps=10_000),
    "bptt": _BPTT,
    # Its images are steps in an order: students of a plain set, who score on held-out images, cannot tell which are best.
    "dd": replace(_BPTT, source="Dataset Distillation, arXiv 1811.10959", keep="last", match_batch=103, unroll=None, window=0,
                  unroll_optimizer="sgd", unroll_order="steps", step_size=0.02, step_size_lr=2e-4, clip=0.0, match_aug=False,
                  lr=0.01),
    # Its authors take a step by each of the two losses; here it is one by their sum, in which neither outweighs the other.
    "ncfm": replace(_IDC, source="NCFM, arXiv 2502.20653", match="cf", match_weight=300.0, calibrate=0.1, match_batch=1024,
                    syn_batch=0, pool_training="pretrained", pool_mix=True, pool_initial=True, pool_members=20, pool_epochs=60,
                    pool_batch=128, pool_snapshots=1, optimizer="adam", lr=2e-3, steps=20_000),
    "mgd3": _MGD3,
    "igd": replace(_MGD3, source="IGD, ICLR 2025", match="grad", metric="cos", steer=0.1, pull=0.0, match_batch=64,
                   match_aug=False, pool_training="pretrained"),
    "random": _CORESET,
    "herding": replace(_CORESET, source="Welling, ICML 2009", init="herding", pool_training="pretrained"),
    "k-center": replace(_CORESET, source="Sener and Savarese, ICLR 2018", init="k-center", pool_training="pretrained"),
    "kmeans": replace(_CORESET, source="nearest to centroids, as DREAM starts", init="kmeans", pool_training="pretrained"),
}
"""Every method by the name that --method knows."""


class Preset(NamedTuple):
    """What the authors of `methods` set otherwise for some data sets: where `ipc` images of a class or more are stored, and if
    `parts` is true, only where each of them holds several smaller ones."""

    methods: tuple
    data: tuple
    values: dict
    ipc: int = 1
    parts: bool = False


_DREAMS = ("dream", "dream+")
_IDCS = ("idc", *_DREAMS)
PRESETS = (
    Preset(_IDCS, ("mnist", "fashion"), {"metric": "l1", "lr": 1e-4}),
    Preset(_IDCS, ("mnist",), {"aug_type": "color_crop", "pool_cutmix": 0.0}, parts=True),
    Preset(_IDCS, ("cifar10", "cifar100"), {"pool_images": 2000}),
    Preset(_DREAMS, ("tinyimagenet",), {"match_batch": 64, "pool_batch": 64, "pool_images": 1000}),
    Preset(_DREAMS, ("tinyimagenet",), {"lr": 1e-6}, 50),
    Preset(("dm",), ("cifar10",), {"lr": 10.0}, 100),
    # As many real images in all as published, and as many of the learned ones in a step: 100, and one of 50 classes.
    Preset(("bptt",), ("cifar100",), {"match_batch": 50, "unroll": 130, "unroll_batch": 100, "window": 90, "lr": 3e-4}),
    Preset(("bptt",), ("cifar100",), {"unroll": 300, "window": 100, "lr": 1e-3}, 10),
    Preset(("bptt",), ("tinyimagenet",), {"match_batch": 5, "unroll": 300, "unroll_batch": 50, "window": 100, "lr": 3e-4}),
    # Their step sizes are softplus of what Adam moves by 0.01, which is about a hundredth of such small ones.
    Preset(("dd",), ("cifar10", "cifar100"), {"step_size": 1e-3, "step_size_lr": 1e-5}),
    Preset(("dd",), ("cifar100",), {"match_batch": 10}),
    Preset(("dd",), ("tinyimagenet",), {"match_batch": 5}),
    Preset(("mtt",), ("cifar10",), {"unroll": 50, "step_size_lr": 1e-7}),
    Preset(("mtt",), ("cifar10",), {"unroll": 30, "max_start": 15, "step_size_lr": 1e-5}, 10),
    Preset(("mtt",), ("cifar10",), {"max_start": 40, "step_size": 1e-3, "pool_epochs": 45}, 50),
    Preset(("mtt",), ("cifar100",), {"unroll": 20, "expert_epochs": 3, "max_start": 20, "pool_epochs": 25}),
    Preset(("datm",), ("cifar10",), {"max_start": 4, "first_max_start": 0, "skip_above": 1.1, "label_lr": 5.0,
                                     "step_size_lr": 1e-7}),
    Preset(("datm",), ("cifar10",), {"max_start": 20, "first_max_start": 10, "skip_above": 1.0, "label_lr": 2.0,
                                     "step_size_lr": 1e-5}, 10),
    Preset(("datm",), ("cifar10",), {"max_start": 40, "first_max_start": 20, "start_grows": 2000, "lr": 1e3,
                                     "pool_epochs": 45}, 50),
    Preset(("datm",), ("cifar10",), {"unroll": 40, "unroll_batch": 1000, "min_start": 40, "max_start": 60,
                                     "first_max_start": 0, "label_lr": 10.0, "lr": 50.0, "pool_epochs": 65}, 500),
    Preset(("datm",), ("cifar10",), {"unroll": 100}, 1000),
    Preset(("datm",), ("cifar100",), {"unroll": 40, "expert_epochs": 3, "label_lr": 10.0, "lr": 1e3}),
    Preset(("datm",), ("cifar100",), {"unroll": 80, "unroll_batch": 1000, "expert_epochs": 2, "max_start": 50,
                                      "first_max_start": 30, "start_grows": 2000, "pool_epochs": 55}, 10),
    Preset(("datm",), ("cifar100",), {"min_start": 20, "max_start": 70, "first_max_start": 0, "pool_epochs": 75}, 50),
    Preset(("datm",), ("cifar100",), {"min_start": 30, "lr": 50.0}, 100),
    Preset(("datm",), ("tinyimagenet",), {"unroll": 40, "unroll_batch": 500, "first_max_start": 15, "start_grows": 2000,
                                          "label_lr": 10.0, "step_size_lr": 1e-4, "lr": 1e4}),
    Preset(("datm",), ("tinyimagenet",), {"min_start": 10, "max_start": 50, "first_max_start": 0, "lr": 100.0,
                                          "pool_epochs": 55}, 10),
    Preset(("datm",), ("tinyimagenet",), {"unroll": 20, "unroll_batch": 1000, "min_start": 40, "max_start": 70,
                                          "pool_epochs": 75}, 50),
)
"""Rows that are applied in this order."""

_BASE_SIZE = {"mnist": 28}  # else 32
_INNER = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10}


def loops(ipc):
    """Steps of one network, and passes of its training between them, by DC and DSA; in between, the nearest below."""
    return ipc, _INNER[max(known for known in _INNER if known <= ipc)]


def method_for(name, data, ipc, size=32, factor=None):
    """The row of a method with what its authors set for a data set.

    Args: data, its name, or one that says so of its `original`; ipc, stored images per class; size, of an image in pixels;
    factor, if it is not the method's own.
    """
    data = original(data)
    method = METHODS[name]
    parts = (factor or method.factor) > 1
    for row in PRESETS:
        if name in row.methods and data in row.data and ipc >= row.ipc and (parts or not row.parts):
            method = replace(method, **row.values)
    if method.pool == ("convnet",):
        method = replace(method, pool=(usual_classifier(size),))
    # IDC's and DREAM's rate is for 10 images of a class, and a loss that is a mean over images; Adam's is the same for all.
    if method.space == "unit" and method.optimizer == "sgd":
        method = replace(method, lr=method.lr * ipc / 10 * (size / _BASE_SIZE.get(data, 32)) ** 2)
    if method.unroll is None:  # three passes of steps that take one image of a class each
        method = replace(method, unroll=3 * ipc * (factor or method.factor) ** 2)
    online = POOLS[method.pool_training].online
    if None in (method.outer, method.inner) or (online and method.steps is None):  # DC and DSA, by the number of images
        outer, inner = loops(ipc)
        published = {"outer": outer, "inner": inner, "steps": 1000 * outer}
        method = replace(method, **{name: value for name, value in published.items() if getattr(method, name) is None})
    return method
