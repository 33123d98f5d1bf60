"""How students are trained and scored: published protocols and ours as rows of one table."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from gendistil.common.cli import COUNT, FRACTION, NATURAL, POSITIVE, WEIGHT, number
from gendistil.common.flags import Idle, flag_fields, flag_of, option
from gendistil.data import original
from gendistil.data.augment import augmentations
from pools import OPTIMIZERS, SCHEDULES, base_name

GROUP = "students (a flag that is not given takes the protocol's value)"


@dataclass(frozen=True)
class Protocol:
    """How a student is trained and scored; the fields with a text are flags of `validate.py`.

    The others say what a score means, so no flag changes them and a report can tell by the protocol's name.
    """

    epochs: int = option("passes over the --ipc images of every class", 300, type=COUNT, group=GROUP)
    min_steps: int = option("steps that a student takes at least, in more --epochs if need be", 300, type=NATURAL, group=GROUP)
    batch_size: int = option("images a step", 64, type=number(int, 2, 2**31 - 1), group=GROUP)
    optimizer: str = option("what takes the steps (--lr suits one of them)", "sgd", choices=OPTIMIZERS, group=GROUP)
    lr: float = option("learning rate of the first epoch", 0.05, type=POSITIVE, group=GROUP)
    schedule: str = option("how the learning rate falls; half: to a tenth after half of the epochs; step: to a fifth after two "
                           "thirds and again after five sixths; fifths: to a half after each fifth", "cosine",
                           choices=SCHEDULES, group=GROUP)
    momentum: float = option("momentum of SGD", 0.9, type=number(float, 0, 0.9999), group=GROUP)
    weight_decay: float = option("weight decay", 5e-4, type=WEIGHT, group=GROUP)
    aug_type: str = option("augmentation of every image of a batch, joined by _, or none", "color_crop_cutout",
                           type=augmentations, group=GROUP)
    aug_single: bool = option("only one of the named augmentations at a time, drawn for every batch", False, group=GROUP)
    cutmix: float = option("probability that a batch's images are mixed in pairs (CutMix)", 0.0, type=FRACTION, group=GROUP)
    looks: int = 1        # how often the student is scored, evenly spaced; the best counts, so only 1 is honest
    lessons: str = "set"  # what an epoch shows the student, a key of `LESSONS` in students.py
    source: str = ""      # who published it so, as a heading calls them; empty for a row of one's own


IDLE = (
    Idle(lambda protocol: protocol.optimizer != "sgd", "is for SGD, and students take steps by {optimizer}: leave it out, "
         "or add --optimizer sgd", {"momentum"}),
    Idle(lambda protocol: protocol.aug_type == "none", "does nothing beside --aug-type none: leave it out", {"aug_single"}),
)
"""Flags of a protocol that do nothing beside other values."""


# The code of DC, DSA and DM.
_VICO = Protocol(epochs=1001, min_steps=0, batch_size=256, lr=0.01, schedule="half", momentum=0.9, weight_decay=5e-4)

PROTOCOLS = {
    "default": Protocol(),
    # That of DiM's validate.py, but for scoring in eval mode and training at IPC so small that it takes no step at all.
    "dim": Protocol(source="DiM", epochs=1000, min_steps=0, batch_size=128, lr=0.01, schedule="constant", aug_type="color_crop",
                    looks=5, lessons="random"),
    # Their loop runs one epoch more than the 300 or 1000 that it is told.
    "dc": replace(_VICO, source="DC", epochs=301, aug_type="none"),
    "dsa": replace(_VICO, source="DSA and DM", aug_type="color_crop_cutout_flip_scale_rotate", aug_single=True),
    # Their scores are the best of four looks at the test set; here the last step alone is scored.
    "idc": Protocol(source="IDC and DREAM", epochs=1000, min_steps=0, batch_size=64, lr=0.01, schedule="step", momentum=0.9,
                    weight_decay=5e-4, aug_type="color_crop_flip_scale_rotate", cutmix=0.5),
    # Its authors score every 100th epoch on the test set, and the best counts. The decay is that which AdamW has by itself.
    "ncfm": Protocol(source="NCFM", epochs=2000, min_steps=0, batch_size=128, optimizer="adamw", lr=1e-3, schedule="fifths",
                     momentum=0.0, weight_decay=0.01, aug_type="color_crop_flip_scale_rotate", cutmix=0.5),
    # 3,000 steps are the last of the four places where its authors look at the test set.
    "bptt": Protocol(source="RaT-BPTT", epochs=1, min_steps=3000, batch_size=100, optimizer="adam", lr=1e-3,
                     schedule="constant", momentum=0.0, weight_decay=0.0, aug_type="flip_rotate", aug_single=True),
    # Of Dataset Distillation (2018): each step takes its own images at its own step size.
    "replay": Protocol(epochs=1, min_steps=0, momentum=0.0, weight_decay=0.0, aug_type="none", schedule="constant",
                       lessons="replay"),
}
"""Every protocol by the name that --protocol knows."""


class Preset(NamedTuple):
    """What a protocol sets otherwise, `values` by the names of its fields, for some data sets and for students of some
    classifiers, for all of them where none is named. A classifier's variants are meant too, `vgg11_bn` by `vgg11`."""

    protocol: str
    values: dict
    data: tuple = ()
    models: tuple = ()


PRESETS = [
    # DC draws an operation for every image and not for every batch, and rotates by up to 45 degrees and not 15.
    Preset("dc", {"epochs": 1001, "aug_type": "crop_scale_rotate", "aug_single": True}, data=("mnist",)),
    Preset("idc", {"cutmix": 0.0}, data=("mnist",)),  # with images of several parts, which --method idc and dream have
    Preset("bptt", {"batch_size": 50}, data=("tinyimagenet",)),
    # Measured on held-out images of CIFAR-10, docs/results/students.md: at the usual rate VGG11 answers one class.
    Preset("default", {"lr": 0.01}, models=("vgg11", "mlp")),
]
"""Rows that are applied in this order, one over the other; a plugin may add some."""


def protocol_for(name, data, model="convnet"):
    """The protocol of this name with what `PRESETS` say of it for the data set called `data`, or for its `original`, and for
    students that are called `model`."""
    protocol, base = PROTOCOLS[name], base_name(model)
    kinds = {base, base.partition("_")[0]}
    for row in PRESETS:
        meant = (not row.data or original(data) in row.data) and (not row.models or kinds.intersection(row.models))
        if row.protocol == name and meant:
            protocol = replace(protocol, **row.values)
    return protocol


_SHOWN = {"epochs", "min_steps", "lr"}  # of a protocol: rows say what came of them


def flags_that_changed(protocol, base):
    """The flags by which `protocol` differs from `base`, as text, but for its length and its learning rate; None for none."""
    changed = {field.name: getattr(protocol, field.name) for field in flag_fields(Protocol) if field.name not in _SHOWN
               and getattr(protocol, field.name) != getattr(base, field.name)}
    words = {True: flag_of, False: lambda name: flag_of(f"no_{name}")}  # of flags without a value
    return " ".join(words[value](name) if isinstance(value, bool) else f"{flag_of(name)} {value}"
                    for name, value in changed.items()) or None
