"""DD-Ranking (Li et al., arXiv 2505.13300): its two scores of distilled sets, and the files that its package `ddranking` takes.

What a set scores is what it adds to random images of the same number under the same training, with and without augmentation,
and how much of the real images' accuracy it keeps with hard labels.
"""

import json
import math
from statistics import fmean, stdev
from typing import NamedTuple

import torch

from gendistil.common.errors import UserError
from gendistil.data import original, standardise, to_signed
from gendistil.evaluation.protocols import PROTOCOLS
from gendistil.evaluation.rows import DEFAULT, PLAIN, REAL
from gendistil.evaluation.students import rate_of
from gendistil.sources import CHOICES

_SHARED = ("data", "model", "protocol", "scored_on", "flags")  # what the rows of one ranking have in common
_ACCURACIES = {"real": "all real, hard", "hard": "set, hard", "own": "set", "random": "random", "plain": "set, no augmentation",
               "random_plain": "random, no augmentation"}
"""What the columns of accuracies are called."""


def score(points):
    """A sum of weighted differences of accuracy, in per cent, on DD-Ranking's scale: 100 for 100, 26.9 for 0, 0 for -100."""
    return 100 * (math.exp(points / 100) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(real, hard, own, random, weight=0.5):
    """The label-robust score (LRS): `weight` of what the set adds to random images, IOR, against what it loses to all real ones
    with hard labels, HLR.

    Args: accuracies in per cent of students of all `real` images and of the set, with `hard` labels; of the set with its `own`
    labels and of as many `random` real images with such.
    """
    return score(weight * (own - random) - (1 - weight) * (real - hard))


def augmentation_robust(own, random, plain, random_plain, weight=0.5):
    """The augmentation-robust score (ARS): what the set adds to random images, by `weight` with augmentation, else without.

    Args: accuracies in per cent of the set and of random images with augmentation, and both without.
    """
    return score(weight * (own - random) + (1 - weight) * (plain - random_plain))


def complete(args):
    """Add to the flags of validate.py what --ranking needs: both comparisons and hard labels. UserError for fresh images."""
    if args.ranking:
        if not {"fixed"} <= set(args.sampling) <= set(CHOICES):
            raise UserError("--ranking scores sets beside random ones: use --sampling fixed, or fixed representative")
        if "none" in (args.compare or ()):
            raise UserError("--ranking compares with random images and with all real ones: leave out --compare none")
        args.compare, args.labels = ["random", "whole"], tuple(dict.fromkeys(("hard", *args.labels)))


def rankings(rows):
    """The scores of every set that has all that they need among the rows of a report: a list of dicts.

    Each has the row's source, sampling, ipc, labels and teacher; the accuracies that the scores are made of, means in per cent;
    hlr, ior, lrs and ars, means over students, of which those of one seed are compared with each other; and the scores'
    `lrs_std` and `ars_std`, None for one student, and where rows are not of the same seeds, whose means are compared.
    """
    rows = [{**DEFAULT, "augmentation": None, "flags": None, **row} for row in rows if not row.get("task")]
    places = [_place(row, _origin(row), row["sampling"], row["labels"], row["augmentation"]) for row in rows]
    anywhere = dict(zip(places, rows))
    beside = {(row.get("report"), place): row for place, row in zip(places, rows)}  # rows of its own report come first
    found = {}
    for row in rows:
        name, sampling, labels = _origin(row), row["sampling"], row["labels"]
        if name == REAL or sampling not in CHOICES or row["augmentation"]:
            continue
        parts = {"real": _place(row, None, "all", "hard"), "hard": _place(row, name, sampling, "hard"),
                 "own": _place(row, name, sampling, labels), "random": _place(row, REAL, "fixed", labels),
                 "plain": _place(row, name, sampling, labels, PLAIN),
                 "random_plain": _place(row, REAL, "fixed", labels, PLAIN)}
        needed = {part: beside.get((row.get("report"), place), anywhere.get(place)) for part, place in parts.items()}
        if all(needed.values()):
            facts = {key: row.get(key) for key in (*_SHARED, "source", "sampling", "ipc", "labels", "teacher")}
            found[(*facts.values(),)] = {**facts, **_scores(needed)}
    return [*found.values()]


def _origin(row):
    """The name that a source had in its own report."""
    return row.get("origin", row["source"])


def _place(row, source, sampling, labels, augmentation=None):
    """Where the row of a source stands among those of one table with `row`; all real images have the same place for any IPC."""
    shared, teacher = tuple(row[key] for key in _SHARED), None if labels == "hard" else row.get("teacher")
    return (*shared, "all") if sampling == "all" else (*shared, source, sampling, row["ipc"], labels, teacher, augmentation)


def _scores(needed):
    """The numbers of one ranking, from its rows."""
    means = {name: fmean(row["accuracies"]) for name, row in needed.items()}
    students = [means]
    if len({(row.get("seed"), row["n"]) for row in needed.values()}) == 1:
        students = [dict(zip(needed, values)) for values in zip(*(row["accuracies"] for row in needed.values()))]
    lrs = [label_robust(*(each[name] for name in ("real", "hard", "own", "random"))) for each in students]
    ars = [augmentation_robust(*(each[name] for name in ("own", "random", "plain", "random_plain"))) for each in students]
    spread = stdev if len(students) > 1 else lambda values: None
    return {**means, "n": min(row["n"] for row in needed.values()), "hlr": means["real"] - means["hard"],
            "ior": means["own"] - means["random"], "lrs": fmean(lrs), "lrs_std": spread(lrs), "ars": fmean(ars),
            "ars_std": spread(ars)}


def ranking_grids(rows):
    """The scores of `rankings`, the highest LRS first, as tables: tuples of a heading, a header and lines of text."""
    found = rankings(rows)
    for shared in dict.fromkeys(tuple(each[key] for key in _SHARED) for each in found):
        chosen = [each for each in found if tuple(each[key] for key in _SHARED) == shared]
        data, model, protocol, _, flags = shared
        several = len({each["teacher"] for each in chosen if each["teacher"]}) > 1
        lines = [[each["source"], each["sampling"], str(each["ipc"]),
                  f"{each['labels']} ({each['teacher']})" if several and each["teacher"] else each["labels"], str(each["n"]),
                  *(f"{each[name]:.2f}" for name in _ACCURACIES), f"{each['hlr']:.2f}", f"{each['ior']:.2f}",
                  *(f"{each[name]:.2f}" + ("" if each[f"{name}_std"] is None else f" ± {each[f'{name}_std']:.2f}")
                    for name in ("lrs", "ars"))] for each in sorted(chosen, key=lambda each: -each["lrs"])]
        how = "" if protocol == "default" else f", students of `--protocol {protocol}`"
        how += f", students by `{flags}`" if flags else ""
        yield (f"**DD-Ranking of sets of {data}**, {model}{how}, by accuracies of the last step and without a search for a "
               "learning rate. HLR: what hard labels lose to all real images; IOR: what the set adds to random images; LRS and "
               "ARS: the label-robust and the augmentation-robust score, 26.9 where nothing is lost or added",
               ["source", "sampling", "IPC", "labels", "students", *_ACCURACIES.values(), "HLR", "IOR", "LRS", "ARS"], lines)


class PackageData(NamedTuple):
    """A data set of `ddranking` 0.2.0 that is one here: its name there, classes and side in pixels, a network that the package
    knows how to train on all real images, and how it standardises images."""

    dataset: str
    classes: int
    size: int
    model: str
    mean: tuple
    std: tuple


_CIFAR = {"size": 32, "model": "ConvNet-3", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
_KNOWN = {
    "cifar100": PackageData("CIFAR100", 100, **_CIFAR),
    "cifar10": PackageData("CIFAR10", 10, **_CIFAR),
    "tinyimagenet": PackageData("TinyImageNet", 200, 64, "ConvNet-4-BN", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def package_data(name):
    """The `PackageData` of a data set, or of its `original`; None where the package knows none."""
    return _KNOWN.get(original(name))


# One operation for a batch is what the package draws of these, with the ranges of DSA.
_OPERATIONS = {"flip": 0.5, "rotate": 15.0, "scale": 1.2, "crop": 0.125, "cutout": 0.5, "brightness": 1.0, "saturation": 2.0,
               "contrast": 0.5}


class RankingExport:
    """Writes sets for `ddranking` 0.2.0: images.pt, labels.pt or soft_labels.pt, lr.pt and config.json.

    Args: facts, what is known of the data set, a dict whose `name`, or the `original` of that name, is one of the package's;
    source, a `Source`. Raises UserError for images of anything else, and for another number of classes or size than the package
    has.
    """

    def __init__(self, facts, source):
        name = str(facts.get("name", ""))
        self.data = package_data(name)
        shape = (source.num_classes, source.channels, source.size)
        if self.data is None or shape != (self.data.classes, 3, self.data.size):
            classes, channels, size = shape
            raise UserError(f"--format ddranking: its package knows {', '.join(sorted(_KNOWN))}, and these are {classes} "
                            f"classes of {channels}x{size}x{size} images of {name or 'an unknown data set'}: name a run on one "
                            "of them")
        names = list(facts.get("classes", ()))
        if names != sorted(names):
            raise UserError("--format ddranking: its package has the classes in alphabetical order, and these are "
                            f"{', '.join(names[:3])}, ...: name a run without --classes")
        if "whitening" in facts:
            raise UserError("--format ddranking: these images are for networks that see whitened ones, and its package whitens "
                            "otherwise: name a run without --whiten zca")
        self.rate = rate_of(source, PROTOCOLS["default"])

    def write(self, folder, ipc, images, labels, logits=None, learned=False):
        """Write a set: uint8 images `[N, 3, H, W]`, class by class, labels int64 `[N]` and perhaps logits `[N, K]`: those of a
        teacher, to be taken at temperature 2, or `learned` with the images, at 1.

        The images are float32, standardised as the package standardises the test images. The learning rate is the source's own
        step size where it has one; else it and all other settings in config.json are those of our default protocol, as far as
        the package has them. Of stored images that hold several it compares with `ipc` random ones where it is given labels;
        with logits it counts all, because it makes the labels itself.
        """
        folder.mkdir()
        data, protocol = self.data, PROTOCOLS["default"]
        torch.save(standardise(to_signed(images), data), folder / "images.pt")
        targets = ("labels.pt", labels) if logits is None else ("soft_labels.pt", logits.float())
        torch.save(targets[1], folder / targets[0])
        torch.save(torch.tensor(self.rate), folder / "lr.pt")
        soft = {} if logits is None else {
            "soft_label_mode": "S", "soft_label_criterion": "kl",
            "loss_fn_kwargs": {"temperature": 1.0 if learned else 2.0, "scale_loss": True},
            "use_aug_for_hard": True, "stu_use_torchvision": False, "tea_use_torchvision": False,
            "teacher_dir": "./teacher_models", "teacher_model_names": [data.model]}
        config = {
            "dataset": data.dataset, "real_data_path": "./dataset/", "im_size": [data.size] * 2, "use_zca": False,
            "ipc": ipc if logits is None else len(labels) // data.classes, "model_name": data.model,
            "use_torchvision": False,
            "data_aug_func": "dsa", "aug_params": _OPERATIONS, "optimizer": "sgd", "momentum": protocol.momentum,
            "weight_decay": protocol.weight_decay, "lr_scheduler": "cosineannealing", "step_size": protocol.epochs // 2,
            "num_epochs": protocol.epochs, "num_eval": 5, "real_batch_size": 256, "syn_batch_size": protocol.batch_size,
            "custom_train_trans": None, "custom_val_trans": None, "num_workers": 4, "save_path": None, "device": "cuda",
            "dist": False, "random_data_format": "tensor", "random_data_path": None, "eval_full_data": True, **soft}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
