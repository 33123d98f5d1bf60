"""Class-incremental learning: what a step sees, what students see of the steps before, and what a report says of them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import continual
import pool_match
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, read_json
from gendistil.data import load_dataset
from gendistil.evaluation.continual import LABELLINGS, Memory, class_order, steps_of
from gendistil.evaluation.rows import read_report
from gendistil.sources import Joined, PixelSet, RealImages, draw_set, load_source

ROOT = Path(__file__).parent.parent
DM = "dm=pool_match.py --method dm --match-batch 4 --steps 2 --eval-epochs 1 --eval-interval 2 --log-interval 1"
GAN = "gen_condense.py --width 8 --batch-size 8 --steps 3 --log-interval 1 --save-interval 2"
MATCHED = "pool_match.py --steps 0 --eval-epochs 1 --eval-ipc 1 --pool-members 1 --pool-epochs 1 --pool-snapshots 1"
QUICK = ("--steps", 2, "--ipc", 2, "--epochs", 2, "--min-steps", 1, "--num-eval", 2, "--tag", "cl")


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits")


def test_a_part_of_the_classes_knows_nothing_of_the_others(dataset):
    part = dataset.of([7, 2])
    assert part.spec.classes == ("7", "2")
    for name in ("train", "held_out", "test"):
        whole, chosen = getattr(dataset, name), getattr(part, name)
        for label, place in ((7, 0), (2, 1)):
            assert torch.equal(chosen.images[chosen.labels == place], whole.images[whole.labels == label])
        assert set(chosen.labels.tolist()) == {0, 1}
    train = dataset.train
    garbled = dataclasses.replace(train, images=torch.where(torch.isin(train.labels, torch.tensor([2, 7]))[:, None, None, None],
                                                            train.images, 255 - train.images))
    assert dataclasses.replace(dataset, train=garbled).of([7, 2]).spec == part.spec
    assert load_dataset("digits", classes=[7, 2]).spec == part.spec


@pytest.mark.parametrize("classes", [[10], [3, 3], [-1]])
def test_classes_that_are_not_there(dataset, classes):
    with pytest.raises(UserError, match=r"--classes .*: digits has classes 0 to 9, each of which may be named once"):
        dataset.of(classes)


def test_orders_are_those_of_the_published_code():
    assert class_order(0, 10) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]  # np.random.seed(0); np.random.permutation(10)
    assert sorted(class_order(3, 100)) == list(range(100))
    assert steps_of([4, 2, 0, 1, 3, 5], 3) == [[4, 2], [0, 1], [3, 5]]
    with pytest.raises(UserError, match="--steps 3 cannot share 10 classes evenly: give one of 1, 2, 5, 10"):
        steps_of(list(range(10)), 3)


def pixels(value, num_classes):
    made = PixelSet(size=8, channels=1, num_classes=num_classes, ipc=2)
    with torch.no_grad():
        made.pixels.copy_(value + torch.arange(num_classes * 2).view(num_classes, 2, 1, 1, 1) / 100)
    return made


def test_joined_sources_are_one_after_the_other():
    parts = [pixels(-0.5, 2), pixels(0.5, 3)]
    joined = Joined(parts)
    images, labels = draw_set(joined, 2, 0)
    assert torch.equal(images, torch.cat([draw_set(part, 2, 0)[0] for part in parts]))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (joined.num_classes, joined.max_ipc) == (5, 2)
    assert joined.stored_bytes(2) == sum(part.stored_bytes(2) for part in parts)
    mixed = torch.tensor([4, 0, 4, 1])
    assert torch.equal(joined.sample(mixed), torch.stack([parts[1].pixels[2, 0], parts[0].pixels[0, 0], parts[1].pixels[2, 1],
                                                          parts[0].pixels[1, 0]]))


def teacher(answers, size=7):
    """A stand-in for a `Teacher`, sure of the class `answers` of `size`."""
    sure = lambda images, *rest: 50 * torch.eye(size)[answers].repeat(len(images), 1)
    return SimpleNamespace(logits=sure, look=sure, weights={"a": size})


def test_every_labelling_says_who_answers():
    parts, labels = [pixels(-0.5, 2), pixels(0.5, 2)], torch.tensor([0, 3, 1])
    hard = LABELLINGS["hard"].join(parts, [], None)
    assert torch.equal(hard.targets(labels), labels)
    previous, seen = LABELLINGS["previous"].join(parts, [], teacher(1, 2)), torch.zeros(3, 1, 8, 8)
    assert hard.answers is None
    assert torch.equal(previous.targets(labels), labels)  # until they are seen
    assert previous.answers(seen, labels, None).round().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    mixed = torch.tensor([[0.75, 0, 0, 0.25], [0, 0, 1, 0], [0.5, 0.5, 0, 0]])
    assert torch.allclose(previous.answers(seen, mixed, None), torch.tensor(
        [[0, 0.75, 0, 0.25], [0, 0, 1, 0], [0, 1, 0, 0]]))
    assert previous.stored_bytes(2) == hard.stored_bytes(2) + 2
    assert torch.equal(LABELLINGS["previous"].join(parts[:1], [], None).targets(labels[:1]), labels[:1])
    pool = LABELLINGS["pool"].join(parts, [teacher(1, 2), teacher(0, 2)], None)
    assert pool.targets(labels).round().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]


@pytest.fixture(scope="module")
def results(command, tmp_path_factory):
    """The evaluation cl, of a memory of pixels and a generator, with two orders."""
    folder = tmp_path_factory.mktemp("results")
    command(continual, "--output-dir", folder, *QUICK, "--orders", 2, "--memory", DM, f"replay={GAN} && {MATCHED}",
            "--labels", "hard", "previous", "--replay-ipc", 3)
    return folder


def test_a_report_over_orders(results):
    rows = read_report(results / "cl" / "report.json")
    assert {(row["source"], row["labels"], row["classes"], row["n"], row["sampling"], row["ipc"]) for row in rows} == {
        (name, labels, classes, 2, sampling, ipc) for name, sampling, ipc in (("dm", "fixed", 2), ("replay", "fresh", 3))
        for labels in ("hard", "previous") for classes in (5, 10)}
    for row in rows:
        assert row["kin"] == rows[0]["kin"]  # so that they are compared by pairs of one order
        assert row["images"] == row["classes"] * row["ipc"]
        assert np.shape(row["students"]) == (2, 2)
        assert np.allclose(np.mean(row["students"], 1), row["accuracies"])
        assert row["mean"] == pytest.approx(np.mean(row["accuracies"]))
    kept = {(row["source"], row["labels"], row["classes"]): row["bytes"] for row in rows}
    assert kept["dm", "previous", 5] == kept["dm", "hard", 5]  # no step before, whose student answers
    assert kept["dm", "previous", 10] > kept["dm", "hard", 10]
    table = (results / "cl" / "report.md").read_text()
    assert "| sampling | orders | 5 classes" in table
    assert "scored once at the last step; 2 steps of new classes" in table
    assert (results / "cl" / "classes.png").stat().st_size > 1000
    assert not (results / "cl" / "accuracy.png").exists()


def test_a_memory_is_a_run_of_the_new_classes_alone(command, results, dataset):
    for order in (0, 1):
        for step, classes in enumerate(steps_of(class_order(order, 10), 2)):
            made = read_json(results / "cl" / "memories" / f"dm-order{order}-step{step}" / "config.json")
            assert made["classes"] == classes
            assert made["dataset"]["classes"] == [str(label) for label in classes]
            assert made["dataset"]["mean"] == list(dataset.of(classes).spec.mean)
    command(pool_match, *DM.split()[1:], "--ipc", 2, "--classes", *classes, "--seed", made["seed"], "--output-dir", results,
            "--tag", "alone")
    images = [load_source(results / path).pixels for path in ("alone", f"cl/memories/dm-order{order}-step{step}")]
    assert torch.equal(*images)


def test_resuming_is_exact_step_by_step(command, results, tmp_path, monkeypatch):
    words = ("--output-dir", tmp_path, *QUICK, "--memory", DM, f"replay={GAN} && {MATCHED}", "--labels", "hard", "previous",
             "--replay-ipc", 3)
    judge, left = continual.judge, iter(range(3))

    def interrupted(*args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return judge(*args, **options)

    monkeypatch.setattr(continual, "judge", interrupted)
    with pytest.raises(SystemExit):
        command(continual, *words, "--orders", 1)
    assert len(read_report(tmp_path / "cl" / "report.json")) == 3
    monkeypatch.setattr(continual, "judge", judge)
    steps, main = [], pool_match.main
    monkeypatch.setattr(pool_match, "main", lambda words: steps.append(words[words.index("--tag") + 1]) or main(words))
    command(continual, *words, "--orders", 2, "--resume")
    assert steps[0] == "dm-order0-step1"  # the first step is not made again
    rows, whole = (read_report(folder / "cl" / "report.json") for folder in (tmp_path, results))
    key = lambda row: (row["source"], row["labels"], row["classes"])
    assert {key(row): row["students"] for row in rows} == {key(row): row["students"] for row in whole}
    command(continual, "--output-dir", tmp_path, "--tag", "cl", "--memory", DM, "--resume")  # the generators' rows stay
    assert [key(row) for row in read_report(tmp_path / "cl" / "report.json")] == [key(row) for row in rows]


def test_labels_of_the_pools(command, tmp_path):
    command(continual, "--output-dir", tmp_path, *QUICK, "--orders", 1, "--memory", f"replay={GAN} && {MATCHED}", "--labels",
            "pool")
    rows = read_report(tmp_path / "cl" / "report.json")
    assert [(row["labels"], row["teacher"], row["classes"]) for row in rows] == [
        ("pool", "the pool of each image's own step", classes) for classes in (5, 10)]
    state = load_checkpoint(tmp_path / "cl" / "memories" / "replay-order0-step1" / "checkpoint.pt")
    assert state["summary"]["steps_before"] == 3


def test_two_processes_judge_what_one_does(command, tmp_path):
    words = [str(word) for word in (*QUICK, "--steps", 5, "--orders", 1, "--labels", "hard", "previous", "--num-eval", 3,
                                    "--memory", "random=pool_match.py --method random --eval-epochs 1",
                                    f"replay={GAN} && {MATCHED}")]
    command(continual, "--output-dir", tmp_path / "one", *words)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "continual.py",
                    "--output-dir", str(tmp_path / "two"), *words], check=True, timeout=400, cwd=ROOT,
                   env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"})
    one, two = (read_report(tmp_path / name / "cl" / "report.json") for name in ("one", "two"))
    assert [row["labels"] for row in two] == [row["labels"] for row in one]
    students = [[row["students"] for row in rows if row["source"] == "random"] for rows in (one, two)]
    assert np.allclose(*students, atol=0.6)  # one or two of the test images, by the last bits of a float
    assert {np.shape(row["students"]) for row in two} == {(1, 3)}


@pytest.mark.parametrize(("words", "message"), [
    ((), "the following arguments are required: --memory"),
    (("--memory", "dm"), "--memory: dm: write NAME=\"COMMAND\", a command of pool_match.py or gen_condense.py"),
    (("--memory", "dm=train.py"), "--memory: dm=train.py: write NAME"),
    (("--memory", "a=gen_condense.py && pool_match.py --method dm"), "--memory a: --weight is not for --method dm"),
    (("--memory", "dm=pool_match.py --method 'dm"), "No closing quotation"),
    (("--memory", "a/b=pool_match.py"), "must be the name of one folder"),
    (("--memory", "dm=pool_match.py --ipc=2"), "dm: --ipc=2: it is the same for all memories: give it to continual.py itself"),
    (("--memory", f"{DM} --whiten zca"), "dm: --whiten: students see them as pictures: leave it out"),
    (("--memory", f"{DM} --eval-epochs x"), "--memory dm: argument --eval-epochs: 'x' is not a whole number"),
    (("--memory", "a=pool_match.py --list-methods"), "--memory a: its command makes nothing"),
    (("--memory", f"a={GAN} && pool_match.py --weight b"), "a: a command after && starts from the run before it"),
    (("--memory", DM, "--memory", DM), "--memory is given twice: write all its values behind one"),
    (("--memory", DM, DM), "two memories of dm, dm have one name"),
    (("--memory", "gan=pool_match.py"), "starts from a generator: give --weight"),
    (("--memory", DM, "--steps", 3), "--steps 3 cannot share 10 classes evenly: give one of 1, 2, 5, 10"),
    (("--memory", DM, "--labels", "pool"), "--labels pool: memory 'dm' is matched with no pretrained pool"),
    (("--memory", f"gan={GAN}", "--labels", "pool"), "&& pool_match.py --steps 0 to a generator"),
    (("--memory", "mtt=pool_match.py --method mtt", "--steps", 10), "--match trajectory: networks learn nothing of one class"),
    (("--memory", DM, "--aug-type", "blur"), "blur"),
    (("--memory", DM, "--replay-ipc", 3), "no --memory is one: leave them out"),
    (("--memory", DM, "--eval-model", "convnet:colour=9"), "unknown option of convnet 'colour'"),
    (("--memory", DM, "--protocol", "dim"), "invalid choice: 'dim'"),
    (("--memory", DM, "--resume"), "holds no run"),
    (("--memory", "itgan=pool_match.py --method itgan --weight no"), "--memory itgan: --weight no does not exist"),
    (("--memory", f"{DM} --teacher no"), "--memory dm: --teacher no does not exist: check its command"),
    (("--memory", f"{DM} --teacher docs"), "--teacher docs is of one set of classes, and each step has others"),
    (("--memory", "itgan=pool_match.py --method itgan --weight docs"), "--weight docs is of one set of classes"),
    (("--memory", DM, "--protocol", "bptt", "--momentum", 0.5), "--momentum is for SGD, and students take steps by adam"),
    (("--memory", DM, DM.replace("dm=", "DM=")), "have one name: name them apart"),
    (("--memory", DM, "--ipc", 900), "fewer than the 900 that --memory dm starts from: lower --ipc"),
    (("--memory", f"{DM} --factor 2", "--ipc", 50), "fewer than the 200 that --memory dm starts from: lower --ipc"),
])
def test_bad_input_is_one_line(fails, tmp_path, words, message):
    error = fails(2, continual, "--output-dir", tmp_path, *words)
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_name_keeps_its_memory(fails, results):
    before = (results / "cl" / "report.json").read_text()
    words = ("--output-dir", results, *QUICK, "--replay-ipc", 3, "--resume")
    error = fails(2, continual, *words, "--memory", "dm=pool_match.py --method random")
    assert "'dm' was dm=pool_match.py --method dm" in error
    error = fails(2, continual, *words, "--num-eval", 3, "--memory", DM)
    assert "--num-eval is not what the run was started with" in error
    error = fails(2, continual, *words[:-1], "--memory", DM)
    assert "already holds a run" in error
    assert (results / "cl" / "report.json").read_text() == before


@pytest.mark.parametrize("words", ["random", "mgd3 --weight flow"])
def test_what_is_stored_counts_as_stored(words, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("flow").mkdir()
    memory = Memory.parse(f"one=pool_match.py --method {words}", {"pool_match.py": pool_match})
    args = SimpleNamespace(output_dir=tmp_path, tag="cl", data="digits", held_out=0.1, precision="auto", compile="auto", ipc=2,
                           data_dir=None, image_size=None, mirror=None, seed=0, labels=("hard",), steps=1)
    assert memory.check(args, dataset)
    args.mirror = True
    (_, words, options, _), = memory._runs(args, "step", [0], 0)
    assert words[-2:] == ["--ipc", "2"]
    assert options.mirror


def test_hard_labels_are_the_classes_own(command, tmp_path, monkeypatch):
    seen = []

    def judge(source, *words, **options):
        seen.append((source.targets(torch.arange(2)), source.stored_bytes(2)))
        raise KeyboardInterrupt

    monkeypatch.setattr(continual, "judge", judge)
    with pytest.raises(SystemExit):
        command(continual, "--output-dir", tmp_path, *QUICK, "--memory", "soft=pool_match.py --method mtt --label-lr 1 "
                "--steps 1 --unroll 1 --pool-members 1 --pool-epochs 2 --expert-epochs 1 --max-start 1 --eval-epochs 1")
    (targets, kept), = seen
    assert targets.tolist() == [0, 1]
    assert kept == 2 * 5 * 64
    assert load_source(tmp_path / "cl" / "memories" / "soft-order0-step0").soft


def test_an_interrupted_inversion_goes_on(tmp_path, monkeypatch):
    memory = Memory.parse("itgan=pool_match.py --method itgan --weight gan", {"pool_match.py": pool_match})
    args = SimpleNamespace(output_dir=tmp_path, tag="cl", data="digits", held_out=0.1, precision="auto", compile="auto", ipc=2,
                           data_dir=None, image_size=None, mirror=None, seed=0, labels=("hard",))
    folder, called = memory.folder(args, "step"), []
    monkeypatch.setattr(pool_match, "match", lambda run: called.append((run.tag, run.resume, run.overwrite)))
    memory.make(args, "step", [0], 0)
    folder.mkdir(parents=True)  # begun, and stopped before its first checkpoint
    inversion = folder.with_name(f"{folder.name}-inversion")
    inversion.mkdir()
    for file in (inversion / "checkpoint.pt", inversion / "config.json", folder / "config.json"):
        file.write_text("{}")
    memory.make(args, "step", [0], 0)
    assert called == [(inversion.name, False, True), (folder.name, False, True),
                      (inversion.name, True, False), (folder.name, False, True)]  # which takes the place of what was begun


def test_a_coreset_is_of_real_images_of_its_class(command, tmp_path, dataset):
    command(continual, "--output-dir", tmp_path, *QUICK, "--orders", 1, "--classes", 4, 8, 1, 0, "--memory",
            "random=pool_match.py --method random --eval-epochs 1", "--scored-on", "held_out", "--eval-model",
            "convnet:width=8")
    order = [[4, 8, 1, 0][place] for place in class_order(0, 4)]
    for step in (0, 1):
        images, labels = draw_set(load_source(tmp_path / "cl" / "memories" / f"random-order0-step{step}"), 2, 0)
        for image, label in zip(images, labels):
            real = dataset.train.images[dataset.train.labels == order[2 * step + label]]
            assert (real == image).flatten(1).all(1).any()
    rows = read_report(tmp_path / "cl" / "report.json")
    assert [(row["classes"], row["scored_on"]) for row in rows] == [(2, "held_out"), (4, "held_out")]
    assert RealImages(dataset.of(order).train, 4).max_ipc > 100
