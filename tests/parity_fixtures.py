"""Reads the parity fixtures in tests/parity/ and rebuilds their weights and inputs from formulas (see its README.md)."""

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

FOLDER = Path(__file__).parent / "parity"
VARIANTS = ("sin", "hash")
INPUT_STREAM = 1000003  # the t of a network's input


def uniform_hash(count, t):
    """r(0..count-1, t) of the README: float64 in [-1, 1) by integer hashing modulo 2^32."""
    mask = np.uint64(0xFFFFFFFF)
    j = np.arange(count, dtype=np.uint64)
    z = (j * np.uint64(2654435761) + np.uint64((t * 2246822519 + 668265263) & 0xFFFFFFFF)) & mask
    for shift, factor in ((15, 739982445), (12, 695872825), (15, 1)):
        z ^= z >> np.uint64(shift)
        z = (z * np.uint64(factor)) & mask
    return z.astype(np.float64) / 2147483648 - 1


def sine(count, t):
    """sin(0.7 j + 1.3 t) for j = 0..count-1."""
    return np.sin(0.7 * np.arange(count) + 1.3 * t)


def hash_images(shape, t=INPUT_STREAM):
    """Input of unit variance: float32 tensor of `shape`, sqrt(3) r(j, t)."""
    return torch.from_numpy(np.sqrt(3) * uniform_hash(int(np.prod(shape)), t)).float().reshape(shape)


def load_data(path):
    """The pair `path`.json and `path`.npz (relative to tests/parity) as an object with `json` and `arrays`."""
    arrays = dict(np.load(FOLDER / f"{path}.npz"))
    return SimpleNamespace(json=json.loads((FOLDER / f"{path}.json").read_text()), arrays=arrays)


@lru_cache(maxsize=4)
def fixture(name):
    """The fixture of one network, e.g. "cls_convnet": an object with `json` (a dict) and `arrays` (name -> ndarray)."""
    return load_data(f"networks/{name}")


def fixture_names(prefix):
    """Names of the network fixtures that start with `prefix`."""
    return sorted(path.stem for path in FOLDER.glob(f"networks/{prefix}*.json"))


def formula_tensor(entry, variant):
    """The tensor that one line of a `state` list describes."""
    count = int(np.prod(entry["shape"]))
    base = {"sin": sine, "hash": uniform_hash}[variant](count, entry["t"])
    value = torch.from_numpy(entry["offset"] + entry[f"amp_{variant}"] * base).reshape(entry["shape"])
    return value.long() if entry["kind"] == "zero" else value.float()


def fixture_state(name, variant, convs_first=False):
    """The published state dict as a list of (name, tensor) in its own order, or, with `convs_first`, all convolutions, then
    all norms, then the linear layers: the order of our ConvNet, for codes that interleave them."""
    entries = fixture(name).json["state"]
    if convs_first:
        entries = sorted(entries, key=lambda entry: {"Conv2d": 0, "Linear": 2}.get(entry["module"], 1))
    return [(entry["name"], formula_tensor(entry, variant)) for entry in entries]


def fixture_input(name, variant):
    """The input of a fixture, float32."""
    shape = fixture(name).json["input"]["shape"]
    if variant == "hash":
        return hash_images(shape)
    return torch.from_numpy(np.sin(0.31 * np.arange(int(np.prod(shape))))).float().reshape(shape)


def fixture_outputs(name, variant):
    """The expected outputs of a fixture: output name -> (array, tol)."""
    data = fixture(name)
    return {out["name"]: (data.arrays[out["npz_key"]], out["tol"]) for out in data.json["outputs"] if out["variant"] == variant}


def load_positionally(module, tensors):
    """Load a list of tensors, or of (name, tensor), into `module`'s state dict by position; shapes must agree."""
    tensors = [item[1] if isinstance(item, tuple) else item for item in tensors]
    own = module.state_dict()
    assert len(own) == len(tensors), f"{len(own)} tensors in the module, {len(tensors)} in the fixture"
    for (key, value), tensor in zip(own.items(), tensors):
        assert value.shape == tensor.shape, f"{key}: {tuple(value.shape)} in the module, {tuple(tensor.shape)} in the fixture"
    module.load_state_dict(dict(zip(own, tensors)))
    return module


def assert_close(output, expected, tol):
    """max|output - expected| <= tol * max|expected|."""
    expected = torch.as_tensor(expected)
    assert output.shape == expected.shape
    error = (output.detach().double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tol, f"relative error {error:.2e} above {tol:.0e}"
