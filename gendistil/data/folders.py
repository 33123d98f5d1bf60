"""Folders of pictures: data sets in ImageFolder layout, decoded once to uint8 and kept in a cache beside them, and distilled
sets."""

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from gendistil.common.cli import LARGEST, say
from gendistil.common.errors import UserError
from gendistil.common.files import replacing

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_CHUNK = 256  # images that one thread decodes at a time
_FORMAT = 2  # of the cache: raise it when the decoding changes
_LIST = "val_annotations.txt"  # of TinyImageNet as it is published: a picture of images/ and its class in every line


def load_folder(folder, size, data_dir, usual=32):
    """The pictures of `folder`, as (class names, (train images, labels), (test images, labels)).

    Layout: `train/<class>/…` and `test/<class>/…`, or `val/` where `test/` is absent or holds none of the classes (`val/` may
    be as TinyImageNet's is published); pictures may lie in folders below those of the classes. Names that start with a dot are
    skipped. Images are uint8 `[N, C, size, size]` (bilinear, antialiased, aspect ratio not kept; None is the `usual` size,
    or that of the pictures where the first of every class are squares of one larger size), turned upright by their EXIF tag;
    labels are int64 `[N]`, the index of the class in the sorted names. C is 1 if all pictures are grey, else 3: where some are
    grey and some are colour, a line says so. Of a picture that moves it is the first, and what hides behind transparency is
    shown. Files of other `EXTENSIONS` are not read, and when the others are decoded a line says how many there are.
    The cache lies in `folder`, or in `data_dir` if that is read-only; it is rebuilt when a file's name, size or time changes.
    Raises UserError, naming the file, for a layout or a picture that cannot be used, and for one that is larger than the
    networks' images where no size is given: the first picture of every class is looked at.
    """
    folder = Path(folder)
    others = Counter()
    try:
        classes, splits = _list(folder, others)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror}): repair or remove it")
    if size is None:
        size = max(usual, _own_size(splits))
    names = [[path for group in split for path, *_ in group] for split in splits]
    labels = [torch.arange(len(classes)).repeat_interleave(torch.tensor([len(group) for group in split])) for split in splits]
    images = _cached(folder, size, data_dir, splits, lambda: _decode_all(folder, names, size, others))
    return classes, *((torch.from_numpy(part), label) for part, label in zip(images, labels))


def _own_size(splits):
    """The side of the first pictures of all classes, in pixels; 0 where these are not squares of one size. Raises UserError if
    one of them is larger than the networks' images."""
    sides = set()
    for path, width, height in _sizes(group[0][0] for split in splits for group in split):
        if max(width, height) > LARGEST:
            raise UserError(f"{path}: has {width}x{height} pixels, and the networks are made for {LARGEST} a side at most: say "
                            "by --image-size to how many the pictures are to be reduced")
        sides |= {width, height}
    return sides.pop() if len(sides) == 1 else 0


def _sizes(paths):
    """(path, width, height) of pictures; of one that cannot be read decoding will say what is wrong with it."""
    for path in paths:
        with contextlib.suppress(Exception):
            with Image.open(path) as image:
                width, height = image.size
            yield path, width, height


def folder_names(classes):
    """The classes' names as folders that any file system takes, all different."""
    names = [re.sub(r"[^\w.-]+", "_", str(name)).strip(".")[:100] for name in classes]
    if "" in names or len({name.lower() for name in names}) < len(names):
        names = [f"{label:0{len(str(len(names) - 1))}d}_{name}" for label, name in enumerate(names)]
    return names


def same_classes(names, classes):
    """Which of `classes` each of `names` is, as they are or as folders spell them: a list of indices; None unless both are one
    set of names."""
    for spell in (lambda some: [*map(str, some)], folder_names, lambda some: [name.lower() for name in folder_names(some)]):
        own, known = spell(names), spell(classes)
        if sorted(own) == sorted(known):
            return [known.index(name) for name in own]
    return None


def class_folders(folder):
    """A dict of the names of the folders in `folder` and the paths of the pictures that lie in each, both in the order of their
    names, of names that are whole numbers by these; an empty one if there is a folder without pictures, or none."""
    try:
        found = {name: [entry.path for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name)
                        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")]
                 for name in _classes(folder)}
    except OSError:
        return {}
    order = sorted(found, key=int) if all(name.isdecimal() for name in found) else found
    return {name: found[name] for name in order} if all(found.values()) else {}


def read_pictures(folder, paths, size=None, channels=None):
    """Pictures of `folder`, decoded as those of `load_folder` are: (uint8 [N, C, size, size], whether any had another size).

    Args: size, if it is not that of the pictures; channels, what they are to have where that changes nothing of them: three of
    grey ones, one of what is grey and saved in colour. A line says how many other files there are.
    Raises UserError for a picture that cannot be read, and without a size where they are no squares of one size.
    """
    sizes = {(width, height) for _, width, height in _sizes(paths)}
    if size is None:
        size = max(map(max, sizes), default=1)
        if sizes - {(size, size)}:
            raise UserError(f"{folder} holds pictures of several sizes, or some that are no squares: only validate.py, whose "
                            "--data says the size, takes them")
    others = Counter()
    elsewhere = len(list(_walk(folder, others))) - len(paths)
    others.update({"pictures elsewhere": elsewhere} if elsewhere else {})
    images = torch.from_numpy(_decode_all(folder, [paths], size, others)[0])
    if channels == 1 and bool((images == images[:, :1]).all()):
        images = images[:, :1]
    return images.expand(-1, max(channels or 1, images.shape[1]), -1, -1), bool(sizes - {(size, size)})


def make_folder(data_dir):
    """Create `data_dir` if need be; UserError unless it can be written to."""
    try:
        Path(data_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data-dir {data_dir}: cannot be created ({error.strerror}): name a folder that can be written to")
    if not os.access(data_dir, os.W_OK):
        raise UserError(f"--data-dir {data_dir}: cannot be written to: name another folder")


def _list(folder, others):
    """The sorted names of the classes, and for the training and the test set a list per class of its `_pictures`."""
    train, test = _split_folders(folder)
    classes = _classes(train)
    if len(classes) < 2:
        raise UserError(f"{train}: holds {len(classes)} class folders and at least 2 are needed: put each class into its own")
    apart = set(classes).isdisjoint(_classes(test))  # and not sorted into folders already
    listed = _listed(test, others) if apart and (test / _LIST).is_file() else None
    if difference := set(classes) ^ set(_classes(test) if listed is None else listed):
        odd = min(difference)
        problem = "has no folder of" if odd in classes else f"has, and {train.name}/ has not, a folder of"
        raise UserError(f"{test}: {problem} class '{odd}': {train.name}/ and {test.name}/ need the same class folders")
    own = [_pictures(test / name, others) if listed is None else listed[name] for name in classes]
    return classes, [[_pictures(train / name, others) for name in classes], own]


def _listed(folder, others):
    """The `_pictures` of every class of TinyImageNet's val/, where they lie together and a list says what they show."""
    groups = {}
    try:
        lines = (folder / _LIST).read_text(encoding="utf-8").splitlines()
        shows = dict(line.split("\t")[:2] for line in lines)
        for picture in _pictures(folder / "images", others):
            groups.setdefault(shows[os.path.basename(picture[0])], []).append(picture)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder / _LIST}: does not say the class of every picture of images/ ({error}): unpack both anew")
    return groups


def _split_folders(folder):
    """The folders of the training and the test pictures."""
    layout = "pictures belong in train/<class>/ and test/<class>/ (or val/<class>/)"
    train, test, val = (folder / name for name in ("train", "test", "val"))
    if not train.is_dir():
        raise UserError(f"{folder}: has no folder train/: {layout}")
    if not test.is_dir() and not val.is_dir():
        raise UserError(f"{folder}: has neither test/ nor val/: {layout}")
    labelled = test.is_dir() and not set(_classes(train)).isdisjoint(_classes(test))  # challenges publish test/ without labels
    return train, test if labelled or not val.is_dir() else val


def _classes(folder):
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))


def _pictures(folder, others):
    """(path, bytes, time in ns) of every picture in a class's folder and below it, in the order of their names.

    `others` counts the files that are not read, by their extensions.
    """
    pictures = list(_walk(folder, others))
    if not pictures:
        raise UserError(f"{folder}: holds no images ({', '.join(EXTENSIONS)}): add some or remove the class")
    return pictures


def _walk(folder, others):
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, others)
        elif entry.name.lower().endswith(EXTENSIONS):
            stat = entry.stat()
            yield entry.path, stat.st_size, stat.st_mtime_ns
        else:
            others[os.path.splitext(entry.name)[1].lower() or "without an extension"] += 1


def _cached(folder, size, data_dir, splits, decode):
    """The arrays that `decode()` returns (train, test), from the cache if it still describes the same files."""
    start = len(str(folder / "x")) - 1  # of a name relative to `folder`
    listing = [[(path[start:], *rest) for group in split for path, *rest in group] for split in splits]
    key = hashlib.sha256(json.dumps([_FORMAT, size, listing]).encode()).hexdigest()
    if os.access(folder, os.W_OK):
        path = folder / f".cache-{size}.npz"
    else:
        make_folder(data_dir)
        place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
        path = Path(data_dir) / f"{folder.resolve().name}-{place}-{size}.npz"
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:  # whatever is wrong with it: decode again
        if file["key"].item() == key:
            return [file["train"], file["test"]]  # the archive's checksums vouch for the pixels
    arrays = decode()
    try:
        with replacing(path) as draft:
            np.savez(draft, key=np.array(key), train=arrays[0], test=arrays[1])
    except OSError as error:
        raise UserError(f"{path}: the cache cannot be written ({error.strerror}): make room there")
    return arrays


class _Colour(Exception):
    """A colour picture among grey ones."""


def _decode_all(folder, names, size, others):
    """Decode two lists of paths into two uint8 arrays `[N, C, size, size]`. Say of how many `others` nothing is read."""
    if others:
        left, kinds = others.total(), ", ".join(sorted(others))
        say(f"{folder}: {left} of {left + sum(map(len, names))} files are not read ({kinds})")
    try:
        return _decode_as(folder, names, size, len(_decode(names[0][0], size)))
    except _Colour:
        return _decode_as(folder, names, size, 3)


def _decode_as(folder, names, size, depth):
    """The same with `depth` channels; raises `_Colour` if that is 1 and a picture has colours."""
    arrays = [np.empty((len(paths), depth, size, size), np.uint8) for paths in names]

    def decode(task):
        array, paths = task
        grey = 0
        for i, path in enumerate(paths):
            image = _decode(path, size)
            if len(image) > depth:
                raise _Colour
            grey += len(image) < depth
            array[i] = image  # a grey picture fills all three channels
        return len(paths), grey

    tasks = [
        (array[i : i + _CHUNK], paths[i : i + _CHUNK])
        for array, paths in zip(arrays, names)
        for i in range(0, len(paths), _CHUNK)
    ]
    total, converted = sum(map(len, names)), 0
    with ThreadPoolExecutor() as threads, tqdm(total=total, desc="decoding", unit="img", disable=None) as bar:
        for count, grey in threads.map(decode, tasks):
            bar.update(count)
            converted += grey
    if converted:
        say(f"{folder}: {converted} of {total} pictures are grey and the others colour: all are read as colour")
    return arrays


def _decode(path, size):
    """One picture as uint8 `[C, size, size]`."""
    try:
        with Image.open(path) as image:
            wide = image.mode == "I" and image.format == "TIFF"
            image.draft(None, (2 * size, 2 * size))  # a JPEG far larger than needed is decoded at a fraction of its size
            image = ImageOps.exif_transpose(image)
            if image.mode == "F" or wide:
                raise ValueError("32-bit pixels" if wide else "floating-point pixels")
            if image.mode.startswith("I"):  # 16 bits, which Pillow's convert would clip instead of scale
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # which Pillow asks for
            depth = 1 if image.mode in ("1", "L", "LA") else 3
            image = image.convert("L" if depth == 1 else "RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).reshape(size, size, depth).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = str(error).replace(f" {str(path)!r}", "")
        raise UserError(f"{path}: is not a readable image ({reason}): repair or remove it")
