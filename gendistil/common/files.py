"""Files that a reader finds whole or not at all: JSON, checkpoints, saved models."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from gendistil.common.errors import UserError


@contextlib.contextmanager
def replacing(path):
    """A context that gives the name under which to write what then takes the place of `path`, all at once.

    A reader sees the old file or the new one and never a part, and so does another process that writes the same file. After an
    error the old one stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        _fsync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _fsync(path):
    """Wait until a file is on the disk: else a machine that goes down may leave its new name with nothing in it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path):
    """A context in which torch or safetensors writes to `path`: what they raise where it has no room becomes an OSError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        raise OSError(None, str(error).split("\n")[0], str(path)) from None


def write_json(path, value):
    """Write `value` in place of what is in `path`."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1, default=str) + "\n")


def read_json(path):
    """The JSON object in `path`; a UserError names a file that cannot be read."""
    try:
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({type(error).__name__}): the run is damaged, make it again") from None


def save_checkpoint(path, state):
    """Save a nested dict of tensors and plain values, replacing the file only once the new one is complete."""
    with replacing(path) as partial, writing(path):
        torch.save(state, partial)


class _Number:
    """Stands for a number of NumPy or its type, as published code keeps accuracies, which nobody reads here."""

    def __init__(self, *parts):
        pass

    def __setstate__(self, state):
        pass


# Under the names that NumPy 1 and 2 pickle them by.
_NUMBERS = [(_Number, f"numpy.{name}") for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")]


def load_checkpoint(path):
    """Load, on the CPU, what `save_checkpoint` or the published code saved. Only tensors and plain containers are unpickled."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a run's folder or a checkpoint file") from None
    except Exception as error:  # torch raises many kinds for truncated, foreign and unsafe files
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}): it may be truncated or hold "
                        "something other than tensors") from None


def save_model(model, folder):
    """`model.save_pretrained(folder)`, so that a reader finds the old model or the new one and never a damaged one.

    Learned labels and a learned step size lie in files of their own, which take their places one after the other.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    with writing(folder):
        model.save_pretrained(draft)
    for file in draft.iterdir():
        _fsync(file)
    if folder.exists():
        for file in draft.iterdir():
            os.replace(file, folder / file.name)
        draft.rmdir()
    else:
        os.rename(draft, folder)
