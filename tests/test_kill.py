"""SIGKILL at random moments of every kind of run: resumed, it gives what a run gives that was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import assert_same

import gen_condense
import pool_match
from gendistil.common.files import load_checkpoint
from gendistil.common.run import CHECKPOINT
from gendistil.sources import load_source

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", 2))
"""Of each kind of run, whose length grows with them. Every one costs a start of Python: a thorough check sets 20."""

SCORES = ("--eval-epochs", 1, "--eval-ipc", 1, "--eval-interval", 4, "--log-interval", 2, "--match-batch", 4,
          "--select", "dream", "--select-candidates", 20, "--select-interval", 3, "--steps", 30 * KILLS)
POOL = ("--pool-members", 1, "--pool-epochs", 1, "--pool-snapshots", 2)
KINDS = {
    "stage1": (gen_condense, ("--width", 8, "--batch-size", 8, "--save-interval", 3, "--log-interval", 2,
                              "--sample-interval", 5, "--steps", 60 * KILLS)),
    "auto-stop": (gen_condense, ("--width", 8, "--batch-size", 8, "--save-interval", 3, "--auto-stop", "--patience", 2,
                                 "--eval-interval", 8, "--eval-epochs", 1, "--eval-ipc", 1, "--steps", 60 * KILLS)),
    "generator": (pool_match, ("--weight", "{gan}", "--batch-size", 8, *POOL, *SCORES)),
    "pixels": (pool_match, ("--method", "dsa", "--ipc", 2, "--outer", 5, "--inner", 2, "--keep", "best", *SCORES)),
    "latents": (pool_match, ("--method", "itgan", "--weight", "{inversion}", *SCORES)),
}


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    command(gen_condense, "--output-dir", folder, "--tag", "gan", "--width", 8, "--batch-size", 8, "--steps", 4)
    command(pool_match, "--output-dir", folder, "--tag", "inversion", "--method", "inversion", "--weight", folder / "gan",
            "--ipc", 4, "--chunk-steps", 2, "--eval-epochs", 1)
    return folder


def killed(script, words, run, writes, moment):
    """Start the command, kill it `moment` seconds after it has written its checkpoint `writes` times (0: its config.json once),
    and say whether it had work left."""
    path = run / (CHECKPOINT if writes else "config.json")
    stamp = lambda: path.stat().st_mtime_ns if path.exists() else 0
    last, seen = stamp(), 0
    with (run.parent / f"{run.name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, ROOT / f"{script.__name__}.py", *words], stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while process.poll() is None and seen < max(1, writes) and time.monotonic() < deadline:
        if stamp() != last:
            last, seen = stamp(), seen + 1
        time.sleep(0.001)
    time.sleep(moment)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen, Path(log.name).read_text()
    return running


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_bit(command, folder, on_the_cpu, kind):
    script, words = KINDS[kind]
    words = [str(word).format(gan=folder / "gan", inversion=folder / "inversion") for word in words]
    words = [*words, "--output-dir", str(folder), "--tag"]
    command(script, *words, f"{kind}-whole")
    whole, cut = folder / f"{kind}-whole", folder / f"{kind}-cut"
    moments, hits = random.Random(kind), 0
    for place in range(KILLS):
        words_now = [*words, cut.name, "--resume" if (cut / CHECKPOINT).exists() else "--overwrite"]
        hits += killed(script, words_now, cut, moments.randint(place % 2, 3), moments.uniform(0, 0.1))
        if any((cut / name / "config.json").exists() for name in ("generator", "pixels", "latents")):
            load_source(cut)  # whatever moment it was, the model is whole
    assert hits > (KILLS // 2 if kind == "auto-stop" else KILLS - 1), f"{hits} of {KILLS} kills before its end"
    assert (cut / CHECKPOINT).exists()
    command(script, *words, cut.name, "--resume" if (cut / CHECKPOINT).exists() else "--overwrite")

    one, two = (load_checkpoint(run / CHECKPOINT) for run in (whole, cut))
    assert one["step"] == two["step"]
    assert_same(*({key: value for key, value in state.items() if key != "summary"} for state in (one, two)))
    assert_same(load_source(whole).state_dict(), load_source(cut).state_dict())
    steps = [(entry["step"], "held_out_accuracy" in entry) for entry in
             map(json.loads, (cut / "metrics.jsonl").read_text().splitlines())]
    assert len(set(steps)) == len(steps)
    assert {step for step, scored in steps if scored} == {
        entry["step"] for entry in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
        if "held_out_accuracy" in entry}
