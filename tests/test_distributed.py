"""Two processes on the CPU give what one gives for the same global batch, draw different data, and one of them writes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_CLASSIFIER
from safetensors.torch import load_file

import gen_condense
import pool_match
import validate
from gendistil.common.files import load_checkpoint, read_json
from gendistil.data import load_dataset
from gendistil.evaluation.rows import read_report
from generators import GAN, GANRecipe

ROOT = Path(__file__).parent.parent
STEPS = 2

# Runs command lines one after another as one process of several. Notes the rows of real images that the process takes, and
# every file and folder that it makes, renames or removes. Pixels start elsewhere in the others, as where GPUs round apart.
WORKER = textwrap.dedent("""
    import json, os, sys
    import gen_condense, pool_match, validate
    from accelerate.state import AcceleratorState
    from gendistil.common.cli import run_script
    from gendistil.data import Split
    from gendistil.matching import initial
    from generators import GAN

    folder, commands = sys.argv[1], json.loads(sys.argv[2])
    rows, noises, written = [], [], []

    def note(event, args):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        changes = changes or event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if changes and str(args[0]).startswith(folder):
            written.append(str(args[0]))

    def batch(self, asked, batch=Split.batch):
        rows.append(asked.tolist())
        return batch(self, asked)

    def noise(self, *args, noise=GAN.noise):
        share = noise(self, *args)
        noises.append(share.flatten().tolist())
        return share

    def start(source, *args, start=initial.start):
        start(source, *args)
        source.pixels.data += int(os.environ["RANK"])

    Split.batch, GAN.noise, initial.start = batch, noise, start
    sys.addaudithook(note)
    for script, *words in commands:
        AcceleratorState._reset_state()
        sys.argv = [script + ".py", *words]
        run_script({"gen_condense": gen_condense, "pool_match": pool_match, "validate": validate}[script].main)
    notes = json.dumps({"rows": rows, "noises": noises, "written": written})
    with open(os.path.join(folder, "rank" + os.environ["RANK"] + ".json"), "w") as file:
        file.write(notes)
""")


def stage1(recipe, folder, tag):
    """Command line of stage 1. A width of 32 leaves no convolution of the pyramid in front of a norm of single channels."""
    return ["gen_condense", "--output-dir", str(folder), "--tag", tag, "--recipe", recipe, "--width", "32",
            "--batch-size", "16", "--steps", str(STEPS), "--precision", "fp32", "--log-interval", "1"]


def stage2(weight, folder, tag):
    """Command line of stage 2. Of this seed no activation of the critic lies so near to zero, where its slope changes, that
    another order of summation puts it on the other side: one alone would move the weights by a hundredth."""
    return ["pool_match", "--output-dir", str(folder), "--tag", tag, "--weight", str(weight), "--batch-size", "16",
            "--steps", str(STEPS), "--precision", "fp32", "--match-batch", "4", "--select-candidates", "20",
            "--select-interval", "2", "--pool", SMALL_CLASSIFIER, "--pool-members", "1", "--pool-epochs", "1",
            "--pool-snapshots", "2", "--eval-epochs", "1", "--eval-ipc", "1", "--log-interval", "1", "--seed", "1"]


def launch(folder, commands):
    """Run these command lines in two processes; what each of them noted."""
    (folder / "worker.py").write_text(WORKER)
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         folder / "worker.py", folder, json.dumps(commands)],
        capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module", params=["pyramid", "dim"])
def runs(request, command, tmp_path_factory):
    """(folder, notes of the two processes): runs gan1 and match1 of one process, gan2 and match2 of two.

    The second stages start from the same generator, use the same pool and compare by the default objective.
    """
    folder = tmp_path_factory.mktemp(request.param)
    scripts = {"gen_condense": gen_condense, "pool_match": pool_match}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        for script, *words in (stage1(request.param, folder, "gan1"), stage2(folder / "gan1", folder, "match1")):
            command(scripts[script], *words)
    return folder, launch(folder, [stage1(request.param, folder, "gan2"), stage2(folder / "gan1", folder, "match2")])


def pixels(method, folder, tag):
    return ["pool_match", "--output-dir", str(folder), "--tag", tag, "--method", method, "--ipc", "2", "--steps", str(STEPS),
            "--match-batch", "4", "--precision", "fp32", "--eval-epochs", "1", "--log-interval", "1"]


def test_two_processes_learn_the_pixels_of_one(command, tmp_path, on_the_cpu):
    for method in ("dm", "dream"):
        command(pool_match, *pixels(method, tmp_path, f"{method}1")[1:])
    launch(tmp_path, [pixels(method, tmp_path, f"{method}2") for method in ("dm", "dream")])
    for method in ("dm", "dream"):
        one, two = (load_checkpoint(tmp_path / f"{method}{count}" / "checkpoint.pt") for count in (1, 2))
        moved = one["optimizer"]["state"][0]["momentum_buffer"]
        assert moved.abs().max() > 0
        torch.testing.assert_close(two["optimizer"]["state"][0]["momentum_buffer"], moved, rtol=1e-2,
                                   atol=1e-3 * float(moved.abs().max()))
        torch.testing.assert_close(two["pixels"]["pixels"], one["pixels"]["pixels"], atol=1e-3, rtol=0)
        assert_same_losses(tmp_path, method)


def test_two_processes_judge_as_one(command, gan, tmp_path):
    words = ["--output-dir", str(tmp_path), "--pretrain-weight", f"a={gan}", f"b={gan}", "--ipc", "1", "--epochs", "1",
             "--min-steps", "2", "--eval-model", "convnet:depth=1,width=8", "--num-eval", "3", "--sampling", "fixed", "fresh",
             "--compare", "random", "--keep-students", "--tag"]
    command(validate, *words, "judged1")
    _, second = launch(tmp_path, [["validate", *words, "judged2"]])
    one, two = (read_report(tmp_path / f"judged{count}" / "report.json") for count in (1, 2))
    facts = ("source", "sampling", "ipc", "accuracies", "steps", "bytes", "student")
    assert [[row.get(fact) for fact in facts] for row in one] == [[row.get(fact) for fact in facts] for row in two]
    assert all("/students/" in path for path in second["written"])  # each process keeps those that it has trained


def assert_same_losses(folder, name):
    """Two processes report the matching terms of one."""
    lines = [map(json.loads, (folder / f"{name}{count}" / "metrics.jsonl").open()) for count in (1, 2)]
    ours, theirs = ([entry["matching"] for entry in entries if "matching" in entry] for entries in lines)
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-3)


TRAININGS = {
    "datm": ["--pool-members", "1", "--pool-epochs", "2", "--max-start", "1", "--first-max-start", "1",
             "--expert-epochs", "1", "--unroll", "4", "--unroll-batch", "7"],
    "bptt": ["--unroll", "4", "--window", "2", "--match-batch", "4"],
}


def test_two_processes_share_a_training_on_the_images(command, tmp_path, on_the_cpu):
    shared = ["pool_match", "--output-dir", str(tmp_path), "--steps", str(STEPS), "--precision", "fp32", "--eval-epochs", "1",
              "--eval-ipc", "1", "--log-interval", "1", "--pool", "convnet:depth=1,width=8"]
    _, *words = stage1("pyramid", tmp_path, "gan")
    command(gen_condense, *words)

    def commands(count):
        for method, flags in TRAININGS.items():
            yield [*shared, "--tag", f"{method}{count}", "--method", method, "--ipc", "2", *flags]
        yield [*shared, "--tag", f"outcome{count}", "--weight", str(tmp_path / "gan"), "--match", "outcome", "--unroll", "3",
               "--pool-training", "random", "--match-batch", "4", "--select-candidates", "20", "--match-weight", "10"]

    for _, *words in commands(1):
        command(pool_match, *words)
    launch(tmp_path, [*commands(2)])
    for method in TRAININGS:
        one, two = (load_checkpoint(tmp_path / f"{method}{count}" / "checkpoint.pt") for count in (1, 2))
        torch.testing.assert_close(two["pixels"]["pixels"], one["pixels"]["pixels"], rtol=0, atol=1e-4)
        for value in ("rates", "length", *(["logits"] if method == "datm" else [])):
            torch.testing.assert_close(two["matching"][value], one["matching"][value], rtol=1e-4, atol=1e-6)
        moments = [list(state["optimizer"]["state"][0].values()) for state in (one, two)]
        for ours, theirs in zip(*moments):
            assert (theirs - ours).norm() < 1e-3 * ours.norm()
    one, two = (load_checkpoint(tmp_path / f"outcome{count}" / "checkpoint.pt")["optim_g"]["state"] for count in (1, 2))
    ours, theirs = (torch.cat([moment["exp_avg"].flatten() for moment in state.values()]) for state in (one, two))
    assert (theirs - ours).norm() < 1e-3 * ours.norm()
    for name in (*TRAININGS, "outcome"):
        assert_same_losses(tmp_path, name)


def counted(state, part, optimizer):
    """Names of the weights of a network whose values can be compared.

    Left out are the biases in front of a batch norm, which subtracts them again: their gradient is nothing but rounding.
    Adam divides it by its own size and moves them by a learning rate a step in a direction that no two orders of summation
    share. Left out with them are all buffers: the running means follow these biases.
    """
    buffers = ("running_mean", "running_var", "num_batches_tracked", "._u", "._v")
    names = [name for name in state[part] if not name.endswith(buffers)]
    moments = state[optimizer]["state"]
    rounding = [name for index, name in enumerate(names)
                if name.endswith("bias") and 0 < moments[index]["exp_avg_sq"].max().sqrt() < 1e-6]
    return [name for name in names if name not in rounding], rounding


def flat(tensors, names):
    return torch.cat([tensors[name].flatten().float() for name in names])


@pytest.mark.parametrize(("part", "optimizer"), [("generator", "optim_g"), ("ema", "optim_g"), ("discriminator", "optim_d")])
@pytest.mark.parametrize("tag", ["gan", "match"])
def test_two_processes_give_the_weights_of_one(runs, tag, part, optimizer):
    """The difference is measured against the distance that the weights have moved: Adam's steps have one size whatever the
    gradient's, so the elements whose gradient is near to zero differ by more than rounding, and only they."""
    folder, _ = runs
    one, two = (load_checkpoint(folder / f"{tag}{count}" / "checkpoint.pt") for count in (1, 2))
    if tag == "gan":
        start = GAN(Accelerator(cpu=True), load_dataset().spec, GANRecipe(**one["recipe"]), seed=3407).state_dict()
    else:
        start = load_checkpoint(folder / "gan1" / "checkpoint.pt")
    # Matching, which sees batch norms in eval mode, gives those biases a gradient that is a little more than rounding.
    names, rounding = counted(load_checkpoint(folder / "gan1" / "checkpoint.pt"), part, optimizer)
    if part != "discriminator" and one["recipe"]["generator"] == "dim":
        assert len(rounding) == 8  # a linear layer and seven convolutions
    else:
        assert not rounding
    before, ours, theirs = (flat(state[part], names) for state in (start, one, two))
    assert (theirs - ours).norm() < 1e-2 * (ours - before).norm()
    for name in one[part]:
        if name.endswith("running_var"):
            assert torch.allclose(one[part][name], two[part][name], rtol=1e-3), name


@pytest.mark.parametrize("optimizer", ["optim_g", "optim_d"])
@pytest.mark.parametrize("tag", ["gan", "match"])
def test_two_processes_give_the_gradient_of_one(runs, tag, optimizer):
    """Adam's first moment is the last step's gradient, because its first beta is 0."""
    folder, _ = runs
    one, two = (load_checkpoint(folder / f"{tag}{count}" / "checkpoint.pt")[optimizer]["state"] for count in (1, 2))
    ours, theirs = (torch.cat([moment["exp_avg"].flatten() for moment in state.values()]) for state in (one, two))
    assert (theirs - ours).norm() < 1e-3 * ours.norm()


def test_the_generator_that_is_written_is_that_of_the_checkpoint(runs):
    folder, _ = runs
    for tag in ("gan1", "gan2"):
        written = load_file(folder / tag / "generator" / "diffusion_pytorch_model.safetensors")
        kept = load_checkpoint(folder / tag / "checkpoint.pt")["ema"]
        assert written.keys() == kept.keys()
        assert all(torch.equal(written[name], kept[name]) for name in kept)


@pytest.mark.parametrize("tag", ["gan", "match"])
def test_reports_are_of_the_global_batch(runs, tag):
    folder, _ = runs
    one, two = ([json.loads(line) for line in (folder / f"{tag}{count}" / "metrics.jsonl").read_text().splitlines()]
                for count in (1, 2))
    assert len(one) == len(two)
    for ours, theirs in zip(one, two):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-3)
                   for key in ours.keys() - {"held_out_accuracy", "steps_per_second"})


def test_every_process_draws_other_data(runs):
    _, (first, second) = runs
    assert len(first["rows"]) == len(second["rows"]) >= 2 * STEPS
    real = set(first["rows"][0]), set(second["rows"][0])  # the first draw of all is the first step's real images
    assert not real[0] & real[1]
    assert len(real[0] | real[1]) == 16
    assert len(first["noises"]) == len(second["noises"]) >= 2 * STEPS
    assert not any(set(ours) & set(theirs) for ours, theirs in zip(first["noises"], second["noises"]))


def test_two_processes_train_flows_as_one(command, tmp_path, on_the_cpu):
    for recipe in ("flow", "shortcut"):
        _, *words = stage1(recipe, tmp_path, f"{recipe}1")
        command(gen_condense, *words)
    launch(tmp_path, [stage1(recipe, tmp_path, f"{recipe}2") for recipe in ("flow", "shortcut")])
    for recipe in ("flow", "shortcut"):
        one, two = (load_checkpoint(tmp_path / f"{recipe}{count}" / "checkpoint.pt") for count in (1, 2))
        for part in ("generator", "ema"):
            names = [name for name in one[part] if not name.endswith("to_k.bias")]  # has no gradient but rounding
            ours, theirs = flat(one[part], names), flat(two[part], names)
            assert (theirs - ours).norm() < 1e-4 * ours.norm()
        ours, theirs = (torch.cat([moment["exp_avg"].flatten() for moment in state["optim_g"]["state"].values()])
                        for state in (one, two))
        assert (theirs - ours).norm() < 1e-3 * ours.norm()


def test_one_process_writes(runs):
    folder, (first, second) = runs
    assert second["written"] == []
    assert any("metrics.jsonl" in path for path in first["written"])
    for tag in ("gan", "match"):
        assert read_json(folder / f"{tag}2" / "config.json")["processes"] == 2
        one, two = ({path.name for path in (folder / f"{tag}{count}").rglob("*") if "events" not in path.name}
                    for count in (1, 2))
        assert one == two
        assert len(list((folder / f"{tag}2").glob("events.*"))) == 1
