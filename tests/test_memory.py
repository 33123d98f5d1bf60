"""The benchmark of memory, on networks too small to say anything about it."""

import json

import pytest

from benchmarks import document, memory


@pytest.mark.parametrize("method", memory.WORDS)
@pytest.mark.parametrize("class_batch", [0, 2])
def test_a_step_of_each_method(method, class_batch):
    step = memory.take_steps(method, classes=3, class_batch=class_batch, size=8, ipc=1, real=2, width=8)
    step(0)
    step(1)


@pytest.mark.parametrize("way", memory.WAYS)
def test_a_training_that_is_differentiated(way):
    memory.differentiate(way, steps=3, images=4, size=8, width=8)(0)


def test_trainings_become_a_table(command, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "measure", lambda repeats, **options: {**options, "seconds": [options["steps"]], "mib": 700})
    command(memory, "--unroll", 10, 60, "--output", tmp_path / "unroll.json")
    text = memory.table(tmp_path / "unroll.json")
    assert "| steps | graph of one step at a time | graph of the whole training |" in text
    assert "| 60 | 60 s, 700 MiB | 60 s, 700 MiB |" in text


def test_what_was_measured_stays_and_becomes_a_table(command, monkeypatch, tmp_path):
    asked = []

    def measure(repeats, **options):
        asked.append(options)
        fits = options["classes"] < 4
        return {**options, "seconds": [1.0, 3.0] if fits else None, "mib": 1234.5 if fits else None}

    monkeypatch.setattr(memory, "measure", measure)
    for classes in ((3,), (3, 4)):
        command(memory, "--methods", "dm", "--classes", *classes, "--class-batch", 0, 2, "--precision", "fp32", "--output",
                tmp_path / "memory.json")
    assert len(asked) == 4  # the second call has two of them already
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "page.md").write_text("<!-- memory: memory.json -->\nold\n<!-- /memory -->\n")
    command(document, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| DM | 3 | 2 s, 1,234 MiB | 2 s, 1,234 MiB |\n| DM | 4 | did not fit | did not fit |" in text
    assert "old" not in text


def test_rows_of_another_machine_stay_apart(fails, tmp_path):
    kept = json.dumps({"device": "an abacus", "torch": "1", "rows": []})
    (tmp_path / "memory.json").write_text(kept)
    assert "was measured on an abacus, torch 1: give another" in fails(2, memory, "--output", tmp_path / "memory.json")
    assert (tmp_path / "memory.json").read_text() == kept


def test_a_process_that_ends_is_a_step_that_did_not_fit():
    assert memory.measure(1, method="none", classes=2, class_batch=0)["seconds"] is None
