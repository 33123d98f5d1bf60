"""What tests of several files use."""

import sys

import pytest
from accelerate.state import AcceleratorState

from gendistil.common.cli import run_script


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
    """Accelerate keeps the precision of the first Accelerator for all later ones: no test inherits that of another."""
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
