"""What a run has left, compared to the last bit, for tests."""

import torch

from gendistil.common.files import load_checkpoint


def contents(folder):
    """The bytes of every file in a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(a, b, path="checkpoint"):
    """Two checkpoints hold the same to the last bit, but for the seconds that they took."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"train_seconds"}:
            assert_same(a[key], b[key], f"{path}.{key}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


def assert_same_weights(run, other):
    """Two runs of generators have the same checkpoint and the same model."""
    assert_same(load_checkpoint(run / "checkpoint.pt"), load_checkpoint(other / "checkpoint.pt"))
    assert contents(run / "generator") == contents(other / "generator")
