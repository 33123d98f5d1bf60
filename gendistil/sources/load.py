"""Sources from where they are kept: a run, a saved model, a checkpoint or a set of published code, a model on a hub."""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

import torch

from gendistil.common.errors import UserError
from gendistil.common.hub import is_hub, local_copy
from gendistil.common.source import ROWS
from gendistil.sources.latents import LatentSet
from gendistil.sources.pipeline import INDEX, PipelineSource
from gendistil.sources.pixels import PixelSet
from gendistil.sources.published import SET, open_set, read_set, set_file, set_files
from gendistil.sources.taught import Rows
from generators import NETWORKS, load_published

MODEL_FOLDER, PIXELS_FOLDER, LATENTS_FOLDER = "generator", "pixels", "latents"
"""The folders inside a run that hold what was learned."""

STORED_SOURCES = {"PixelSet": PixelSet, "LatentSet": LatentSet}
"""Kinds of sources beside generators, by the name of their class: a new one is a row."""


def load_source(path, device="cpu", reading=None, spec=None):
    """The source kept at `path`, in eval mode on `device`.

    Args: path, a run's folder, a saved model's folder, a pipeline of diffusers that draws images of a class, a checkpoint file
    of the published DiM or IT-GAN code, or a model on a hub, `hub:owner/name` or `hub:owner/name@revision`; where there is a
    `Reading`, also a published set, a file or a folder, see `read_set`, which takes spec.
    Raises UserError, naming `path`, if there is none or it cannot be read.
    """
    path, place = Path(path), local_copy(path)
    if (place / INDEX).exists():
        return PipelineSource.load(place, device, use_safetensors=is_hub(path) or None)
    file = file_of_set(path) if reading or place.is_file() else None
    if file:
        return _of_file(file, device, reading, spec)
    if not place.exists() and not is_hub(path):
        raise UserError(f"{path} does not exist: name a run's folder, a saved model's folder or a checkpoint file")
    folder = _model_folder(place)
    kind, name = _saved_kind(folder, path, reading), path if is_hub(path) else folder
    try:
        with _quiet():
            # Pickles of a stranger are never read, should another program have left some among the downloaded files.
            source, found = kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False,
                                                 use_safetensors=is_hub(path) or None, output_loading_info=True)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers raises many kinds for damaged files
        raise _damaged(name, type(error).__name__) from None
    _check_weights(source, name, found["missing_keys"], found["unexpected_keys"])
    for module in source.modules():
        if getattr(module, "channels_last", False):  # loading forgets the format, and with it the last bits of an image
            module.to(memory_format=torch.channels_last)
    source.rows = Rows.load(folder, source, device)
    return source.eval().to(device)


def _saved_kind(folder, path, reading):
    """The class of the model in `folder`, which may be None. Raises UserError, naming `path`, where there is no model."""
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"] if folder else None
    except (TypeError, KeyError, ValueError):
        name = None
    if not isinstance(name, str) and folder and reading and (folder / SET).exists():
        raise UserError(f"{path} holds a config.json that is not of a model: for the set there name {folder / SET}")
    if not isinstance(name, str):
        raise UserError(f"{path} holds no saved generator{' and no published set' if reading else ''}: name a run of "
                        "gen_condense.py or pool_match.py that has reached its first checkpoint")
    kinds = STORED_SOURCES | {network.__name__: network for network, _ in NETWORKS.values()}
    if name not in kinds:
        raise UserError(f"{path} holds a model of the class {name}, which is not here: name the file that it is in by --plugin")
    return kinds[name]


def _of_file(file, device, reading, spec):
    """The source in a file or a folder of pictures: a published set, where there is a `Reading`, or a generator of published
    code."""
    state = open_set(file)
    source = read_set(state, file, reading, spec, device) if reading else None
    if source is None:
        source = load_published(state, file, " and no published set that is known" if reading else "")
        _check_weights(source, file)
        source.to(device)
    return source


@contextlib.contextmanager
def _quiet():
    """diffusers keeps for itself which weights it misses: they are asked for and named here."""
    log = logging.getLogger("diffusers.models.modeling_utils")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _damaged(name, reason):
    return UserError(f"{name} holds a damaged generator ({reason}): save it again")


def _check_weights(source, name, missing=(), unexpected=()):
    """Raise UserError where weights of the source called `name` are missing, are none of its own, or are no numbers."""
    odd = [key for key, value in source.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    for keys, words in ((missing, "is missing"), (unexpected, "is none of its weights"), (odd, "is NaN or infinite")):
        if keys:
            raise _damaged(name, f"{min(keys)} {words}")


def _model_folder(place):
    """The folder of the saved model in that of a run, or this one itself; None where there is none."""
    places = (place / MODEL_FOLDER, place / PIXELS_FOLDER, place / LATENTS_FOLDER, place)
    return next((folder for folder in places if (folder / "config.json").exists()), None)


def file_of_set(path):
    """The file or folder of a published set or checkpoint at `path`, as `set_file` has it; None in one that holds a model."""
    if is_hub(path):
        return None
    place = local_copy(path)
    return None if (place / INDEX).exists() or _model_folder(place) else set_file(place)


def weights_digest(path):
    """A name, text, for the weights kept at `path`, which `load_source` takes, and for all files of a published set; the rows
    of a teacher are no part of it."""
    place, found = local_copy(path), hashlib.blake2b(digest_size=16)
    file = file_of_set(path)
    folder = place if (place / INDEX).exists() else _model_folder(place) or place
    weights = (file for kind in ("*.safetensors", "*.bin") for file in folder.rglob(kind)
               if file.name != ROWS and not file.name.startswith("."))
    files = set_files(file) if file else sorted(weights)
    if not files:
        raise UserError(f"{path} holds no weights: name the folder of a run, of a saved model or a checkpoint")
    for name in files if file and file.is_dir() else ():
        found.update(os.fsencode(os.path.relpath(name, file)))
    for file in files:
        with open(file, "rb") as opened:
            while part := opened.read(2**24):
                found.update(part)
    return found.hexdigest()
