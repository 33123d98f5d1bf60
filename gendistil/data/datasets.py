"""The table of data sets: everything that is true of one is read from its row or measured on its images.

To add one, add a row. Other tables name a data set only where somebody published a setting or a figure for it.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gendistil.common.cli import LARGEST
from gendistil.common.device import free_bytes, send, user_cache
from gendistil.common.errors import UserError
from gendistil.common.hub import INHERITED
from gendistil.common.rng import stream
from gendistil.data.folders import load_folder, make_folder
from gendistil.data.images import HostImages, join, moments, resize, take
from gendistil.data.spec import Spec, Whitened

WHITENINGS = (None, "none", "zca")
"""What networks may see of a data set: its images standardised by channel, or whitened."""

_SHARE = 0.5  # of a device's free memory that images may take: networks and what they remember need the rest


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, C, H, W]` and their labels int64 `[N]`, on one device; `HostImages` where they do not fit there."""

    images: torch.Tensor | HostImages
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        """The split of the images at `indices` (a tensor or a slice)."""
        images = self.images.part(indices) if isinstance(self.images, HostImages) else self.images[indices]
        return Split(images, self.labels[indices])

    def batch(self, rows):
        """The images and labels at int64 `rows` of the host, as tensors on the device; nobody waits for them."""
        return take(self.images, rows), self.labels[send(rows, self.labels.device)]

    def to(self, device, on_host=False):
        """The split on a device; with `on_host` its images stay where they are until they are taken."""
        images = HostImages(self.images.cpu(), device) if on_host else self.images.to(device)
        return Split(images, self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: `train` to learn from, `held_out` (part of the training set) to select by, `test` to score once."""

    spec: Spec
    train: Split
    held_out: Split
    test: Split

    @property
    def full_train(self):
        """A new Split of all training images: `train`, then `held_out`."""
        return Split(join([self.train.images, self.held_out.images]), torch.cat([self.train.labels, self.held_out.labels]))

    @functools.cached_property
    def fewest(self):
        """How many training images the smallest class has."""
        return int(torch.bincount(self.train.labels, minlength=self.spec.num_classes).min())

    def to(self, device):
        """The data set on a device; its images stay in the host's memory if they would take more than half of what is free."""
        parts = {"train": self.train, "held_out": self.held_out, "test": self.test}
        size = sum(part.images.shape.numel() for part in parts.values())
        on_host = self.train.images.device.type == "cpu" and size > _SHARE * free_bytes(device)
        return replace(self, **{name: part.to(device, on_host) for name, part in parts.items()})

    def of(self, classes):
        """The data set of some classes alone, on the CPU: label i is for class `classes[i]` of this one.

        Mean and std are those of its own training images, so nothing in it depends on the other classes. Raises UserError where
        a class is named twice or is not there.
        """
        count = self.spec.num_classes
        if len({*classes}) != len(classes) or not {*classes} <= {*range(count)}:
            raise UserError(f"--classes {' '.join(map(str, classes))}: {self.spec.name} has classes 0 to {count - 1}, each of "
                            "which may be named once")
        place = torch.full((count,), -1)
        place[list(classes)] = torch.arange(len(classes))

        def part(split):
            labels = place[split.labels]
            return Split(split.images[labels >= 0], labels[labels >= 0])

        chosen = Dataset(self.spec, part(self.train), part(self.held_out), part(self.test))
        mean, std = moments(chosen.full_train.images)
        spec = replace(self.spec, classes=tuple(self.spec.classes[i] for i in classes), mean=mean, std=std)
        return replace(chosen, spec=spec)


@dataclass(frozen=True)
class DataRow:
    """What is true of a data set and not measured on its images; see `Spec` for flip and published_std.

    `load(data_dir, image_size)` returns (class names, train, test); a split is uint8 images [N, C, H, W] and int64 labels [N].
    `size` is the side of its images as they are, in pixels, where that is known.
    """

    load: Callable
    flip: bool
    size: int | None = None
    published_std: tuple[float, ...] | None = None


_DIGITS = tuple("0123456789")


def _load_digits(data_dir, image_size):
    """scikit-learn's `load_digits`: 1,797 real 8x8 digits, of which the last 360 are the test set.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (test part), UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49, CC BY 4.0.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        levels = torch.from_numpy(file["images"]).double()  # 0 to 16
        labels = torch.from_numpy(file["labels"]).long()
    images = (levels * 255 / 16).round().to(torch.uint8)[:, None]
    return _DIGITS, (images[:-360], labels[:-360]), (images[-360:], labels[-360:])


def _load_torchvision(kind, data_dir, image_size, classes=None, parts=({"train": True}, {"train": False}), labels="targets"):
    """The data set of class `torchvision.datasets.<kind>`, downloaded into `data_dir` if it is not there yet.

    Args: classes, their names where they are to be others than it knows; parts, the keywords by which it gives the training and
    the test images; labels, its attribute that holds these.
    """
    import torchvision.datasets  # here, because the embedded set and folders do without it and it takes a second

    def part(which):
        build = partial(getattr(torchvision.datasets, kind), data_dir, **which)
        try:
            return build()
        except Exception:  # absent or damaged: only a download can help
            make_folder(data_dir)
        try:
            return build(download=True)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--data-dir {data_dir}: {kind} is absent or damaged and cannot be downloaded ({reason}): check the network "
                "or copy its files there, and delete damaged ones"
            )

    def tensors(source):
        images = torch.as_tensor(source.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:  # else they come first already
            images = images.permute(0, 3, 1, 2)
        return images.contiguous(), torch.as_tensor(getattr(source, labels)).long()

    train, test = map(part, parts)
    names = classes or tuple(name.replace("/", "-") for name in train.classes)  # names of classes become folders
    return names, tensors(train), tensors(test)


def _load_tinyimagenet(data_dir, image_size):
    folder = data_dir / "tiny-imagenet-200"
    if not folder.is_dir():
        raise UserError(
            f"--data tinyimagenet: there is no folder {folder}: unpack it there, with train/<class>/ and val/<class>/, or name "
            "its parent by --data-dir"
        )
    return load_folder(folder, image_size, data_dir, usual=64)


DATASETS = {
    "digits": DataRow(_load_digits, flip=False, size=8),
    "mnist": DataRow(partial(_load_torchvision, "MNIST", classes=_DIGITS), flip=False, size=28),
    "fashion": DataRow(partial(_load_torchvision, "FashionMNIST"), flip=True, size=28),
    "svhn": DataRow(partial(_load_torchvision, "SVHN", classes=_DIGITS, parts=({"split": "train"}, {"split": "test"}),
                            labels="labels"), flip=False, size=32),
    # The std widely copied for CIFAR-10 is the mean of the stds of single images.
    "cifar10": DataRow(partial(_load_torchvision, "CIFAR10"), flip=True, size=32, published_std=(0.2023, 0.1994, 0.2010)),
    "cifar100": DataRow(partial(_load_torchvision, "CIFAR100"), flip=True, size=32),
    "tinyimagenet": DataRow(_load_tinyimagenet, flip=True, size=64, published_std=(0.229, 0.224, 0.225)),  # ImageNet's
}
"""Every data set by the name that --data knows, besides folders."""

INHERITED["data"] = lambda value: isinstance(value, str) and value in DATASETS


def original(name):
    """The data set of `DATASETS` that a folder called `name` holds in another form, as cifar10-jpeg does; else `name`.

    Such a name begins with that of the data set, with a hyphen behind it.
    """
    return next((known for known in DATASETS if name.startswith(f"{known}-")), name)


def default_data_dir():
    """$DATA_DIR, else a folder in the user's cache."""
    if os.environ.get("DATA_DIR"):
        return Path(os.path.expanduser(os.environ["DATA_DIR"]))
    return user_cache()


def load_dataset(name="digits", data_dir=None, image_size=None, held_out=0.1, classes=None, device="cpu", whiten=None,
                 mirror=None):
    """The data set called `name` (one of `DATASETS`, or a folder in ImageFolder layout), decoded, split and on `device`.

    Args: data_dir, where downloads and caches go (default: `default_data_dir()`); image_size, the side in pixels (default: the
    data set's own, of a folder see `load_folder`); held_out, the fraction of each class's training images that are held out, at
    least one image and at most all but one. The split depends on the labels alone: runs with other seeds select by the same
    images; classes, the labels of those that are wanted, in their new order, see `Dataset.of` (default: all); whiten, one of
    `WHITENINGS`: "zca" for networks that see whitened images, see `Whitened`; mirror, the `flip` of its `Spec` (default: as its
    row of `DATASETS` has it, or that of its `original`, else True).
    Returns a `Dataset`. Raises UserError for whatever is missing, damaged or unusable.
    """
    if whiten not in WHITENINGS:
        raise UserError(f"load_dataset(whiten={whiten!r}): give one of {', '.join(map(repr, WHITENINGS))}")
    name = str(name)
    data_dir = Path(os.path.expanduser(data_dir)) if data_dir else default_data_dir()
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir}: is a file: name a folder")
    folder = Path(os.path.expanduser(name))
    if name in DATASETS:
        row = DATASETS[name]
    elif name and folder.is_dir():
        name = folder.resolve().name
        known = DATASETS.get(original(name), DataRow(None, flip=True))
        row = replace(known, load=lambda data_dir, size: load_folder(folder, size, data_dir))
    else:
        raise UserError(f"--data {name}: is neither a folder nor one of the data sets {', '.join(DATASETS)}")

    names, (images, labels), test = row.load(data_dir, image_size)
    size = image_size or images.shape[-1]
    if size > LARGEST:
        raise UserError(f"--data {name}: its images have {size} pixels a side, and the networks are made for {LARGEST} at most:"
                         " say by --image-size to how many to reduce them")
    images, test = resize(images, size), Split(resize(test[0], size), test[1])
    name, *names = (text.encode("utf-8", "backslashreplace").decode() for text in (name, *names))  # of folders: any bytes
    flip = row.flip if mirror is None else mirror
    spec = Spec(name, tuple(names), images.shape[1], size, *moments(images), flip, row.published_std)
    selected = _held_out(labels, names, held_out, name)
    whole = Split(images, labels)
    dataset = Dataset(spec, whole[~selected], whole[selected], test)
    dataset = dataset.of(classes) if classes else dataset
    if whiten == "zca":
        dataset = replace(dataset, spec=Whitened.of(dataset.spec, dataset.full_train.images))
    return dataset.to(device)


def load_asked(args, accelerator, device=None):
    """The data set that a command's flags name, `args`, on the accelerator's device or another, see `load_dataset`."""
    with accelerator.local_main_process_first():  # one process downloads and decodes, the others find its cache
        return load_dataset(args.data, args.data_dir, args.image_size, args.held_out, args.classes,
                            device or accelerator.device, getattr(args, "whiten", None), args.mirror)


def _held_out(labels, classes, fraction, name):
    """Which images are held out: bool `[N]`, about `fraction` of each class, one at least and all but one at most."""
    counts = labels.bincount(minlength=len(classes))
    if counts.min() < 2:
        raise UserError(
            f"--data {name}: class '{classes[int(counts.argmin())]}' has fewer than 2 training images, so none can be held "
            "out: add images or remove the class"
        )
    quota = (counts * fraction).round().clamp(min=1).minimum(counts - 1)
    shuffled = torch.randperm(len(labels), generator=stream(0, "held-out"))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within its class
    selected = torch.zeros(len(labels), dtype=torch.bool)
    selected[grouped] = rank < quota.repeat_interleave(counts)
    return selected
