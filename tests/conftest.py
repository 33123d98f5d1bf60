"""What tests of several files use."""

import os
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from gendistil.common.cli import run_script
from gendistil.data import load_dataset
from generators import NETWORKS

# Most tests compare to the bit, and a GPU does not add in the same order twice. Those of tests/test_cuda.py use one.
os.environ.setdefault("ACCELERATE_USE_CPU", "1")

SMALL_POOL = ("--pool-members", 1, "--pool-epochs", 1, "--pool-snapshots", 1)
"""Flags for networks that train in no time: one, of one epoch, with one snapshot."""


SMALL_CLASSIFIER = "convnet:depth=1,width=8"
"""A classifier that is enough where a test asks nothing of how much it knows."""


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The CPU computes, whatever the environment says."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="module")
def digits():
    """The data set in the repository, on the CPU."""
    return load_dataset("digits")


@pytest.fixture
def cache(tmp_path):
    """A folder, not made yet, for what is kept of a data set."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def command():
    """Call a script's main() as its command line would, in this process: `command(script, *words)`."""

    def run(script, *words):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
            run_script(script.main)

    return run


@pytest.fixture(autouse=True)
def fresh_state():
    """No test inherits what another has drawn, nor its precision: Accelerate keeps that of the first Accelerator for all later
    ones."""
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def fails(command, capsys):
    """Call a script that must exit with `code`, and return what it wrote to standard error."""

    def run(code, script, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            command(script, *words)
        error = capsys.readouterr().err
        assert leaving.value.code == code, error
        return error

    return run


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """A small untrained generator of digits, as a saved model's folder."""
    folder = tmp_path_factory.mktemp("models") / "gan"
    torch.manual_seed(0)
    NETWORKS["pyramid"][0](size=8, channels=1, num_classes=10, dim_noise=16, width=8).save_pretrained(folder)
    return folder


@pytest.fixture
def call(command, monkeypatch, tmp_path):
    """As `command`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command
