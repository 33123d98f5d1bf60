"""The published methods as rows of one table: what is learned, what must agree, in whose eyes, against which real images."""

from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Method:
    """One row; the names of its fields are the flags of `pool_match.py`, and any flag that is given takes its place."""

    learn: str                        # generator, pixels or latents
    source: str                       # where it was published
    # what must agree
    match: str = "energy"
    metric: str = "l1"
    match_weight: float | None = None  # None: the objective's own, beside the adversarial loss
    match_classes: int = 0            # classes of a step, 0 for all
    match_batch: int = 64             # real images of a class
    syn_batch: int = 0                # decoded images of a class, 0 for all
    match_aug: bool = True
    aug_type: str = "color_crop_cutout"
    aug_single: bool = False          # one of them at a time
    aug_setting: str = "class"
    # in whose eyes
    pool_training: str = "random"     # pretrained, random, synthetic or real
    outer: int = 1                    # steps of one network of the last two
    inner: int = 1                    # passes of its training between two steps
    pool_batch: int = 256
    pool_momentum: float = 0.0
    pool_decay: float = 0.0
    pool_images: int = 500            # real images of such a pass
    pool_aug: str = "none"
    # against which real images
    select: str = "random"
    select_interval: int = 10
    # pixels
    init: str = "real"
    factor: int = 1
    lr: float | None = None
    momentum: float = 0.5
    space: str = "standardised"
    # latents
    latent_space: str = "noise"
    own_weight: float = 0.0           # of each latent's distance from the image that it stands for
    chunk_steps: int = 0              # Adam steps on one batch of latents before the next (inversion), 0: a new batch each step
    # all
    steps: int | None = 1000          # None: every chunk once


DSA = "color_crop_cutout_flip_scale_rotate"
_DC = Method("pixels", "DC, ICLR 2021", "grad", "dc", 1.0, match_batch=256, match_aug=False, pool_training="synthetic",
             init="noise", lr=0.1)
_IDC = Method("pixels", "IDC, ICML 2022", "grad", "mse", 1.0, syn_batch=128, pool_training="real", outer=100, pool_batch=64,
              pool_momentum=0.9, pool_decay=5e-4, pool_images=2000, pool_aug="color_crop_cutout", factor=2, lr=5e-3,
              space="unit", steps=200_000)
_LATENTS = Method("latents", "IT-GAN, arXiv 2204.07513", "mean", match_weight=1.0, match_batch=256, syn_batch=256, aug_type=DSA,
                  aug_single=True, own_weight=0.1, lr=1.0, momentum=0.0, steps=2000)
_CORESET = Method("pixels", "coreset", steps=0, match_weight=1.0, lr=1.0)

METHODS = {
    "dim": Method("generator", "DiM, arXiv 2303.04707; --match logit is as published", match_classes=2, match_batch=96,
                  aug_setting="image", pool_training="pretrained", select="dream", select_interval=50),
    "dm": Method("pixels", "DM, arXiv 2110.04181", "mean", match_weight=1.0, match_batch=256, aug_type=DSA, aug_single=True,
                 lr=1.0, steps=20_000),
    "dc": _DC,
    "dsa": replace(_DC, source="DSA, ICML 2021", match_aug=True, aug_type=DSA, aug_single=True, pool_aug=DSA,
                   init="real"),
    "idc": _IDC,
    "dream": replace(_IDC, source="DREAM, arXiv 2302.14416", select="dream", match_batch=128, init="kmeans", steps=120_000),
    "inversion": replace(_LATENTS, source="GAN inversion, as IT-GAN starts", match="own", own_weight=0.0, match_aug=False,
                         lr=0.1, chunk_steps=200, steps=None),
    "itgan": _LATENTS,
    "random": replace(_CORESET, source="images at random", init="real"),
    "herding": replace(_CORESET, source="Welling, ICML 2009", init="herding", pool_training="pretrained"),
    "k-center": replace(_CORESET, source="Sener and Savarese, ICLR 2018", init="k-center", pool_training="pretrained"),
    "kmeans": replace(_CORESET, source="nearest to centroids, as DREAM starts", init="kmeans", pool_training="pretrained"),
}
"""Every method by the name that --method knows."""

_GREY = {"metric": "l1", "lr": 1e-4, "pool_images": 500}
_COLOUR_ONLY = {"svhn": {"pool_images": 500}, "mnist": _GREY, "fashion": _GREY}
PUBLISHED = {"idc": _COLOUR_ONLY, "dream": _COLOUR_ONLY}
"""What a method's authors set otherwise for a data set."""

_INNER = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10}


def loops(ipc):
    """Steps of one network, and passes of its training between them, by DC and DSA; in between, the nearest below."""
    return ipc, _INNER[max(known for known in _INNER if known <= ipc)]


def method_for(name, data, ipc):
    """The row of a method with what its authors set for this data set and this many images per class."""
    method = replace(METHODS[name], **PUBLISHED.get(name, {}).get(data, {}))
    if method.pool_training == "synthetic":
        outer, inner = loops(ipc)
        method = replace(method, outer=outer, inner=inner, steps=1000 * outer)
    return method


def override(method, args):
    """The row with the flags of `args` that were given in place of its values."""
    given = {field.name: getattr(args, field.name, None) for field in fields(method)}
    return replace(method, **{name: value for name, value in given.items() if value is not None})


def table():
    """The table as markdown: one line per method."""
    names = ("learn", "match", "metric", "pool_training", "select", "init", "factor", "aug_type", "aug_single", "match_batch",
             "lr", "steps")
    lines = ["| method | " + " | ".join(names) + " | source |", "|" + " --- |" * (len(names) + 2)]
    for name, method in METHODS.items():
        values = asdict(method)
        lines.append(f"| {name} | " + " | ".join(str(values[key]) for key in names) + f" | {method.source} |")
    return "\n".join(lines)
