"""Sets of images as stored pixels of this suite: in files of other repositories and of `sample.py`, and in folders."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gendistil.common.cli import first_line, number, say
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint
from gendistil.common.flags import flag_of, given, option
from gendistil.common.source import check_fits
from gendistil.data import Whitened, original, to_signed
from gendistil.data.folders import class_folders, folder_names, read_pictures, same_classes
from gendistil.sources.pixels import PixelSet
from gendistil.sources.taught import LEARNED_LABELS, Rows

SET = "set.safetensors"
"""The file of images and labels that `sample.py` writes."""


@dataclass(frozen=True)
class Reading:
    """What a file of a published set does not say of itself."""

    factor: int | None = option("of a set of IDC, DREAM or NCFM, which does not say it: each stored image holds this number "
                                "squared of smaller ones (theirs: mostly 2; 1: itself alone)", None, type=number(int, 1, 8),
                                group="published sets")


def check_read(args, sources):
    """Raise UserError for a flag of `Reading` by which none of the sources was read."""
    for flag in given(Reading, args):
        if not any(flag in source.read_by for source in sources):
            raise UserError(f"{flag_of(flag)} is for published sets that do not say it, and none of --pretrain-weight is one: "
                            "leave it out")


@dataclass
class Content:
    """What a file or folder holds: images [N, C, H, W] in units of its own, labels int64 [N], perhaps logits float [N, K] that
    `teacher` answered and a step size, the names of its classes and what `sample.py` says of its own, and what else to say."""

    images: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor | None = None
    teacher: str = LEARNED_LABELS
    step_size: float | list | None = None
    facts: dict | None = None
    more: str = ""


def _exported(state, path, spec):
    facts = state["set"]
    return Content(state["images"], state["labels"], state.get("logits"), facts.get("teacher", LEARNED_LABELS),
                   facts.get("step_size"), facts)


def _last_experiment(state, path, spec):
    images, labels = state["data"][-1]  # which IDC's evaluation takes too
    count = len(state["data"])
    return Content(images, labels, more=f", the last of its {count} experiments" if count > 1 else "")


def _pair(state, path, spec):
    return Content(*state)


def _beside(path, kind):
    """The labels or the lr that were saved with the images in `path`."""
    return path.with_name(re.sub("^images_(zca_)?", f"{kind}_", path.name))


def _with_labels(images, path, spec):
    labels, rate = _beside(path, "labels"), _beside(path, "lr")
    if labels == path or not labels.exists():
        raise UserError(f"{path} holds images alone: call it images_NAME.pt, and put their labels beside it as labels_NAME.pt")
    labels, step_size = load_checkpoint(labels), float(load_checkpoint(rate)) if rate.exists() else None
    more = "" if rate.exists() else ", without a step size (--lr takes its place)"
    if not labels.is_floating_point():
        return Content(images, labels, step_size=step_size, more=more)
    count, classes = labels.shape  # logits, which need not be highest for the image's own class: images are in its order
    if count % classes:
        raise ValueError(f"{count} images of {classes} classes")
    return Content(images, torch.arange(classes).repeat_interleave(count // classes), labels, step_size=step_size, more=more)


def _of_folders(state, path, spec):
    pictures, more = dict(state), ""
    if spec:
        named = same_classes(pictures, spec.classes)
        spelled = lambda name: folder_names([name])[0].lower()
        known = {spelled(name) for name in spec.classes}
        some = next((name for name in pictures if spelled(name) in known), None)
        if some is not None and not named:
            raise UserError(f"{path} has a folder of class '{some}' of {spec.name}, and not one for each of its classes and "
                            "no others: name all folders as the classes, or none")
        more = " with the names of the classes" if named else ", by the order of their names"
    images, resized = read_pictures(path, [file for files in pictures.values() for file in files],
                                    *((spec.size, spec.channels) if spec else ()))
    labels = torch.arange(len(pictures)).repeat_interleave(torch.tensor([*map(len, pictures.values())]))
    return Content(images, labels, facts={"classes": [*pictures]},
                   more=more + (f", brought to {spec.size} pixels a side" if resized else ""))


_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OF_DC = {"mnist": ((0.1307,), (0.3081,)), "fashion": ((0.2861,), (0.3530,)),
          "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), "cifar10": _CIFAR10,
          "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)), "tinyimagenet": _IMAGENET}
_OF_MTT = {"cifar10": _CIFAR10, "cifar100": _CIFAR10, "tinyimagenet": _IMAGENET}
"""Mean and std by which published code standardises: `get_dataset` in utils.py of VICO-UoE/DatasetCondensation, and of
GeorgeCazenavette/mtt-distillation, which NUS-HPC-AI-Lab/DATM took over."""


def _from_bytes(images, spec, path):
    return to_signed(images)


def _from_unit(images, spec, path):
    return images * 2 - 1


def _from_standardised(images, spec, path, norms):
    if spec is None:
        raise UserError(f"{path} holds standardised images, and not the name of their data set: only validate.py, whose --data "
                        "says it, takes it")
    if original(spec.name) not in norms:
        raise UserError(f"{path} holds standardised images, of which mean and std are known for {', '.join(norms)}, and not "
                        f"for {spec.name}: give the --data that it was distilled from")
    mean, std = torch.tensor(norms[original(spec.name)])[:, :, None, None]
    if len(mean) != images.shape[1]:
        raise UserError(f"{path} holds images of {images.shape[1]} channels, and {original(spec.name)} has {len(mean)}: give "
                        "the --data that it was distilled from")
    return (images * std + mean) * 2 - 1


def _from_seen(images, spec, path):
    return spec.unwhiten(images) if isinstance(spec, Whitened) else _from_standardised(images, spec, path, _OF_MTT)


@dataclass(frozen=True)
class Format:
    """One in which sets are saved.

    `words` end "is read as", with "{seen}" for how networks saw the images; `holds(state, path)` is whether what was read from
    the file or folder `path` is one; `read(state, path, spec)` gives its `Content`; `signed(images, spec, path)` makes its
    images [N, C, H, W] signed ones; `read_by` names the fields of `Reading` that it needs.
    """

    words: str
    holds: Callable
    read: Callable
    signed: Callable
    read_by: tuple = ()


def _is_tensor(state, path):
    return isinstance(state, torch.Tensor) and state.dim() == 4


def _is_pair(state, path):
    return isinstance(state, list) and len(state) == 2 and all(isinstance(part, torch.Tensor) for part in state)


FORMATS = (
    Format("pictures in folders", lambda state, path: path.is_dir(), _of_folders, _from_bytes),
    Format("a set that sample.py wrote", lambda state, path: isinstance(state, dict) and "set" in state, _exported,
           _from_bytes),
    Format("a set of DC, DSA or DM", lambda state, path: isinstance(state, dict) and "data" in state, _last_experiment,
           partial(_from_standardised, norms=_OF_DC)),
    Format("a set of IDC, DREAM or NCFM", _is_pair, _pair, _from_unit, ("factor",)),
    Format("pixels of MTT or DATM", lambda state, path: _is_tensor(state, path) and path.name.startswith("images_zca_"),
           _with_labels, _from_unit),
    Format("{seen} images of MTT or DATM", _is_tensor, _with_labels, _from_seen),
)
"""Formats of published sets; the first that holds counts. They are what these write: sample.py; main.py and main_DM.py of
VICO-UoE/DatasetCondensation; condense.py of snu-mllab/Efficient-Dataset-Condensation and of lyq312318224/DREAM, utils/ddp.py of
gszfwsb/NCFM; distill.py of GeorgeCazenavette/mtt-distillation, distill/DATM.py of NUS-HPC-AI-Lab/DATM."""


def set_file(place):
    """The file of a set at `place`: itself, or of a folder set.safetensors, images_best.pt or its only images_*.pt, or the
    folder itself if all its folders hold pictures; else None.

    Raises UserError where there are several.
    """
    if place.is_file():
        return place
    found = [place / name for name in (SET, "images_best.pt") if (place / name).exists()][:1]
    found = found or [file for file in place.glob("images_*.pt") if not file.name.startswith("images_zca_")]
    if len(found) > 1:
        raise UserError(f"{place} holds {len(found)} sets, and none is images_best.pt: name one, as {min(found)}")
    return found[0] if found else place if place.is_dir() and class_folders(place) else None


def set_files(file):
    """The file of a set and those beside it that are read with it, or all its pictures: a list."""
    if file.is_dir():
        return [picture for pictures in class_folders(file).values() for picture in pictures]
    return [file, *(beside for kind in ("labels", "lr") if (beside := _beside(file, kind)) != file and beside.exists())]


def open_set(file):
    """What a file, a set or a checkpoint, holds: what was pickled, or tensors by their names and as `set` what `sample.py` says
    of them; of a folder its `class_folders`, as pairs. Raises UserError for a file that cannot be read."""
    if file.is_dir():
        return [*class_folders(file).items()]
    if file.suffix != ".safetensors":
        return load_checkpoint(file)
    try:
        with safe_open(file, "pt") as opened:
            said = (opened.metadata() or {}).get("set")
        return load_file(file) | ({"set": json.loads(said)} if said else {})
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no readable set ({type(error).__name__}): write it again") from None


def read_set(state, path, reading, spec=None, device="cpu"):
    """The `PixelSet` in `state`, which `open_set` read from the file or folder `path`, on a device; None if none of `FORMATS`
    holds it.

    Args: reading, a `Reading`; spec, of the data set that it was made from, without which standardised images are refused.
    Values stay as they are, float32, and are cut to [-1, 1] and rounded when students see them; its `remark` says how many are
    cut. Raises UserError for a set that is damaged, has not as many images of every class, or does not fit `spec`.
    """
    form = next((form for form in FORMATS if form.holds(state, path)), None)
    if form is None:
        return None
    factor = reading.factor if "factor" in form.read_by else 1
    if factor is None:
        raise UserError(f"{path} does not say how many images each of its own holds: give --factor 1 for one, 2 for four")
    try:
        content = form.read(state, path, spec)
        if content.images.is_floating_point() == (form.signed is _from_bytes):
            raise ValueError(f"images of {content.images.dtype}")
        classes, ipc = _count(content, path)
        source = PixelSet(content.images.shape[3], content.images.shape[1], classes, ipc, factor, step_size=content.step_size)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)[:80]}"
        raise UserError(f"{path} holds a damaged set ({reason}): get it again") from None
    source.facts, facts, place = content.facts, content.facts or {}, None
    if spec:
        check_fits(source, spec, f"--pretrain-weight {path}")
        named = [*map(str, facts["classes"])] if "name" in facts else [*spec.classes]
        if named != [*spec.classes]:
            raise UserError(f"{path} is of the classes {' '.join(named[:5])} ..., and those of {spec.name} "
                            f"are {' '.join(spec.classes[:5])} ...: give the --data that it was made of")
        place = same_classes(facts.get("classes", ()), spec.classes)  # where they are in an order of their own
        source.facts = facts | {"classes": [*spec.classes]} if facts and place else source.facts
        if "whitening" in facts and not isinstance(spec, Whitened):
            say(f"{path} was learned for networks that see whitened images: give --whiten zca for such students")
    place = torch.tensor(place or range(classes))
    order = place[content.labels.long()].argsort(stable=True)
    by_class = lambda values: values.detach().float()[order].unflatten(0, (classes, ipc))
    source.pixels.data = by_class(form.signed(content.images, spec, path))
    if content.logits is not None:
        logits = by_class(content.logits[:, place.argsort()]).to(device)
        source.rows = Rows(logits, content.teacher, None, content.teacher == LEARNED_LABELS)
    cut = float(((source.pixels.abs() - 1) * 255 > 1).float().mean() * 100)  # by more than half a level
    source.remark = f"{cut:.1f} % of its values cut to [0, 1]" if cut >= 0.05 else ""
    source.read_by = form.read_by
    words = form.words.format(seen="whitened" if isinstance(spec, Whitened) else "standardised")
    say(f"{path} is read as {words}{content.more}; its class i is the i-th of the data set")
    return source.eval().to(device)


def _count(content, path):
    """How many classes it has, and images of each. Raises ValueError or RuntimeError for what is no set."""
    images, labels, logits = content.images, content.labels, content.logits
    (channels, size), count = images.shape[1:3], len(labels)
    classes = int(labels.max()) + 1 if logits is None else logits.shape[1]
    if images.shape != (count, channels, size, size) or classes > count or (
            logits is not None and logits.shape != (count, classes)):
        raise ValueError(f"{count} labels of {classes} classes, images {tuple(images.shape)}")
    if not all(values.isfinite().all() for values in (images, labels if logits is None else logits.half())):  # as they are kept
        raise ValueError("NaN or infinite")
    counts = labels.bincount(minlength=classes)
    if len(counts) != classes:
        raise ValueError(f"label {len(counts) - 1} of {classes} classes")
    if counts.min() != counts.max():
        raise UserError(f"{path} holds {counts.min()} to {counts.max()} images of a class: only sets with as many of each are "
                        "taken")
    return classes, int(counts[0])
