"""Refinement of a generator without training: wider noise, and images that a classifier takes for their class."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import register_to_config
from safetensors import safe_open
from safetensors.torch import load_file

import gen_condense
import pool_match
import sample
import validate
from benchmarks import refine as search_script
from gendistil.common.rng import counter_normal, stream
from gendistil.data import to_signed, to_uint8
from gendistil.evaluation import Protocol
from gendistil.evaluation.report import read_report
from gendistil.sources import (
    DistilledDataset,
    Refined,
    Refinement,
    Taught,
    Teacher,
    TooFewAccepted,
    draw_set,
    load_source,
    refine,
    refined,
    weights_digest,
)
from generators import NETWORKS
from generators.base import ConditionalGenerator
from pools import ClassifierPool


class Blurred(ConditionalGenerator):
    """The mean image of every class of digits, in noise: the wider it is, the fewer images a classifier knows."""

    @register_to_config
    def __init__(self, size=8, channels=1, num_classes=10, dim_noise=64):
        super().__init__()
        self._describe(size, channels, num_classes, dim_noise)
        self.means = torch.nn.Parameter(torch.zeros(10, 1, 8, 8))

    def forward(self, noise, labels):
        return (self.means[labels] + 0.5 * noise.view(-1, 1, 8, 8)).clamp(-1, 1)


@pytest.fixture(scope="module", autouse=True)
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "blurred", (Blurred, None))
        patch.setattr(search_script, "usual_classifier", lambda size: "convnet:width=8")
        patch.setattr(search_script, "student_protocol", lambda epochs: Protocol(epochs=epochs, min_steps=1))
        yield


@pytest.fixture(scope="module")
def pool(digits, tmp_path_factory):
    return ClassifierPool(digits, tmp_path_factory.mktemp("pools"), Accelerator(cpu=True, mixed_precision="no"), members=1,
                          epochs=10, lr=0.05, snapshots=2, options={"convnet": {"width": 16}})


@pytest.fixture(scope="module")
def teacher(pool):
    return Teacher.of(pool)


@pytest.fixture
def source(digits):
    generator = Blurred()
    for label in range(10):
        generator.means.data[label] = to_signed(digits.train.images[digits.train.labels == label]).mean(0)
    return generator.requires_grad_(False)


@pytest.fixture
def run(source, pool, tmp_path):
    """A run of that generator, as matched with the pool."""
    source.save_pretrained(tmp_path / "run" / "generator")
    (tmp_path / "run" / "config.json").write_text(json.dumps(
        {"commands": [["pool_match.py"]], "data": "digits", "held_out": 0.1, "pool_folder": str(pool.dir)}))
    return tmp_path / "run"


def test_the_noise_is_scaled_and_nothing_else(source):
    labels, index = torch.tensor([3, 3, 0]), torch.tensor([5, 2, 2])
    wide = source.images_at(labels, index, 7, 1.5)
    assert torch.equal(wide, source(1.5 * counter_normal(7, labels, index, 64), labels))
    assert torch.equal(source.images_at(labels[1:], index[1:], 7), source.sample(torch.tensor([3, 3, 3, 0, 0, 0]), 7)[[2, 5]])
    assert torch.equal(Refined(source, Refinement(1.5)).sample(torch.tensor([3] * 6), 7)[5], wide[0])


def test_image_i_is_the_ith_accepted_candidate(source, teacher):
    made = Refined(source, Refinement(1.2, 0.5), teacher)
    drawn = made.sample(torch.arange(10).repeat_interleave(6), 5).unflatten(0, (10, 6))
    for label in (0, 4, 9):
        labels = torch.full((200,), label)
        candidates = source.images_at(labels, torch.arange(200), 5, 1.2)
        probability = teacher.logits(to_uint8(candidates)).softmax(1)
        accepted = (probability.argmax(1) == label) & (probability[:, label] > 0.5)
        assert 6 <= accepted.sum() < 200
        assert torch.equal(drawn[label], candidates[accepted][:6])


def test_an_image_depends_on_seed_class_and_index_alone(source, teacher, monkeypatch):
    refinement = Refinement(1.2, 0.5)
    whole = Refined(source, refinement, teacher).sample(torch.arange(10).repeat_interleave(8), 5).unflatten(0, (10, 8))
    order = torch.randperm(30, generator=stream(0, "order"))
    labels = torch.tensor([1, 7, 8]).repeat(10)[order]
    labels = labels[:24]
    for at_once in (4096, 11):
        monkeypatch.setattr(refined, "_AT_ONCE", at_once)
        again = Refined(source, refinement, teacher)
        again.sample(torch.arange(10), 1)  # what it has seen changes the chunks that it draws, and nothing else
        some = again.sample(labels, 5)
        for label in (1, 7, 8):
            count = min(8, int((labels == label).sum()))
            assert torch.equal(some[labels == label][:count], whole[label, :count])
    assert not torch.equal(whole, again.sample(torch.arange(10).repeat_interleave(8), 6).unflatten(0, (10, 8)))


def test_what_fills_a_batch_is_judged_for_its_own_sake(source, teacher, monkeypatch):
    made, judged, judge = Refined(source, Refinement(1.2, 0.5), teacher), [], Refined._judge
    made.sample(torch.arange(10), 1)
    monkeypatch.setattr(Refined, "_judge", lambda self, *batch: judged.append(batch) or judge(self, *batch))
    made.sample(torch.arange(10).repeat_interleave(6), 5)
    (labels, index, _), *more = judged  # the first batch has more than 20 candidates of each class
    assert not more
    assert set(labels.bincount(minlength=10).tolist()) <= {*range(20, 40)}
    assert len({*zip(labels.tolist(), index.tolist())}) == len(labels) == 256


def test_it_goes_with_every_way_of_sampling_and_labelling(source, teacher):
    made = Refined(source, Refinement(1.2, 0.5), teacher)
    images, labels = draw_set(made, 2, 3, choice="representative")
    assert torch.equal(teacher.logits(images).argmax(1), labels)
    images, targets = draw_set(Taught(made, teacher, 2.0, stored=True), 3, 3)
    assert torch.equal(targets, (teacher.logits(images).half().float() / 2).softmax(1))


def test_the_classifier_is_counted_once(source, pool, teacher):
    made, weights = Refined(source, Refinement(1.0, 0.5), teacher), sum(teacher.weights.values())
    assert made.stored_bytes(3) == source.stored_bytes(3) + weights
    assert Refined(source, Refinement(1.5)).stored_bytes(3) == source.stored_bytes(3)
    again = Teacher.of(ClassifierPool.open(pool.dir))
    assert Taught(made, again, 2.0, stored=False).stored_bytes(3) == made.stored_bytes(3)
    assert Taught(made, Teacher.of(pool, [0]), 2.0, stored=False).stored_bytes(3) == made.stored_bytes(3) + weights
    assert Taught(made, again, 2.0, stored=True).stored_bytes(3) == made.stored_bytes(3) + 2 * 100 * 3


def test_a_class_that_is_hardly_accepted_is_named(source, teacher):
    source.means.data[4] = source.means.data[5]
    made = Refined(source, Refinement(1.0, 0.6), teacher)
    for draw in (made.check, lambda: made.sample(torch.tensor([4]), 1)):
        with pytest.raises(TooFewAccepted, match=r"--keep-above 0.6: \d+ of \d+ images of class '4' are accepted"):
            draw()
    assert len(Refined(source, Refinement(1.0, 0.6), teacher).sample(torch.tensor([5] * 9))) == 9  # the others are not asked


QUICK = ("--ipc", 2, "--epochs", 1, "--min-steps", 1, "--num-eval", 1)


def test_the_flags_of_validate_and_sample(command, run, teacher, tmp_path):
    command(validate, "--output-dir", tmp_path, *QUICK, "--pretrain-weight", f"mine={run}", "--keep-above", 0.5, "--noise-std",
            1.1, "--labels", "hard", "teacher", "--compare", "random")
    rows = json.loads((tmp_path / "test" / "report.json").read_text())
    name = "mine, kept above 0.5, noise 1.1"
    assert [row["source"] for row in rows] == [name, "random real images"] * 2
    assert [row.get("refined_by") for row in rows] == [teacher.name, None] * 2
    assert rows[0]["bytes"] == rows[2]["bytes"] == load_source(run).stored_bytes(2) + sum(teacher.weights.values())
    assert name in (tmp_path / "test" / "report.md").read_text()
    command(sample, "--pretrain-weight", run, "--ipc", 2, "--seed", 4, "--keep-above", 0.5, "--output-dir", tmp_path / "set")
    images, _ = draw_set(Refined(load_source(run), Refinement(1.0, 0.5), teacher), 2, 4)
    assert torch.equal(load_file(tmp_path / "set" / "set.safetensors")["images"], images)
    with safe_open(tmp_path / "set" / "set.safetensors", "pt") as file:
        assert json.loads(file.metadata()["set"])["refined"] == "kept above 0.5"


def test_a_pool_moves_with_the_runs(command, run, pool, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved / run.name)
    shutil.copytree(pool.dir, moved / "pools" / pool.dir.name)
    config = json.loads((moved / run.name / "config.json").read_text())
    config["pool_folder"] = "gone/" + Path(config["pool_folder"]).name
    (moved / run.name / "config.json").write_text(json.dumps(config))
    command(sample, "--pretrain-weight", moved / run.name, "--ipc", 1, "--keep-above", 0.5, "--output-dir", tmp_path / "set")
    assert (tmp_path / "set" / "set.safetensors").exists()


def test_a_kept_classifier_accepts_whoever_labels(source, pool, run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    kept = {"noise_std": 1.0, "keep_above": 0.0, "teacher": str(pool.dir)}
    opened = []
    open_pool = lambda folder: opened.append(str(folder)) or ClassifierPool.open(pool.dir)
    for folder in (pool.dir, "gone"):
        (run / "config.json").write_text(json.dumps({**config, "refinement": {**kept, "teacher": str(folder)}}))
        refine(source, run, open_pool, labeller=tmp_path / "other")
    (run / "config.json").write_text(json.dumps(config))
    assert opened == [str(pool.dir), str(tmp_path / "other")]  # the second only because the first is no longer there


def test_what_cannot_be_refined(command, fails, run, source, pool, tmp_path):
    command(pool_match, "--output-dir", tmp_path, "--tag", "stored", "--method", "random", "--ipc", 2, "--eval-epochs", 1)
    source.save_pretrained(tmp_path / "alone")
    words = ("--output-dir", tmp_path, "--tag", "wrong", *QUICK)
    for flags, named in (
        (("--pretrain-weight", run, tmp_path / "stored", "--noise-std", 1.2), "--noise-std is for generators"),
        (("--compare", "random", "--keep-above", 0.5), "--keep-above is for generators, not for real images"),
        (("--pretrain-weight", tmp_path / "alone", "--keep-above", 0.5), "give --teacher"),
        (("--pretrain-weight", tmp_path / "alone", "--keep-above", 0.5, "--teacher", "nowhere"), "nowhere"),
        (("--pretrain-weight", run, "--keep-above", 1), "--keep-above 1: 0 of 200 images of class '0' are accepted"),
        (("--pretrain-weight", run, "--noise-std", 1.2, "--teacher", pool.dir), "--teacher is for labels of a teacher"),
        (("--pretrain-weight", run, "--noise-std", 0), "--noise-std"),
    ):
        error = fails(2, validate, *words, *flags)
        assert named in error
        assert error.count("\n") == 1
        assert not (tmp_path / "wrong").exists()
    error = fails(2, sample, "--pretrain-weight", tmp_path / "stored", "--keep-above", 0.5, "--output-dir", tmp_path / "set")
    assert "--keep-above is for generators" in error
    assert not (tmp_path / "set").exists()


def test_a_search_is_kept_by_the_run_and_used(command, fails, capsys, run, pool, tmp_path, monkeypatch):
    command(search_script, "--pretrain-weight", run, "--noise-std", 1.2, "--keep-above", 0.5, 1, "--ipc", 2, "--students", 2,
            "--eval-epochs", 1, "--output", tmp_path / "rows.json")
    rows = read_report(tmp_path / "rows.json")
    assert [row["source"] for row in rows[:3]] == ["unrefined", "kept above 0, noise 1.2", "kept above 0.5, noise 1.2"]
    assert all(row["scored_on"] == "held_out" and row["n"] == 2 and row["model"] == "convnet:width=8" for row in rows)
    assert "kept above 1, noise 1.2: left out" in capsys.readouterr().out
    rows = rows[:3]
    for gain, chosen in ((2.0, 2), (0.0, 0)):  # new students have to find the best of several above the generator as it is
        for number, row in enumerate(rows):
            row.update(mean=50.0 + number, std=0.1)
        again = []
        for place in (2, 0):
            mean = 50.0 + (gain if place else 0)
            again.append({**rows[place], "source": f"{rows[place]['source']}, new students", "mean": mean,
                          "accuracies": [mean - 0.1, mean + 0.1]})
        (tmp_path / "rows.json").write_text(json.dumps(rows + again))
        command(search_script, "--pretrain-weight", run, "--noise-std", 1.2, "--keep-above", 0.5, "--ipc", 2, "--students", 2,
                "--eval-epochs", 1, "--output", tmp_path / "rows.json")
        config = json.loads((run / "config.json").read_text())
        assert config["refinement"] == {**rows[chosen]["refinement"], "teacher": str(pool.dir), "weights": weights_digest(run)}
        assert ("no clear gain" in capsys.readouterr().out) == (chosen == 0)
    assert config["commands"] == [["pool_match.py"]]

    (run / "config.json").write_text(json.dumps({**config, "refinement": {**rows[2]["refinement"], "teacher": str(pool.dir)}}))
    command(validate, "--output-dir", tmp_path, *QUICK, "--pretrain-weight", run)
    assert "is refined as its config keeps: kept above 0.5, noise 1.2" in capsys.readouterr().err
    row, = json.loads((tmp_path / "test" / "report.json").read_text())
    assert row["source"] == "run, kept above 0.5, noise 1.2"
    command(validate, "--output-dir", tmp_path, "--overwrite", *QUICK, "--pretrain-weight", run, "--noise-std", 1)
    row, = json.loads((tmp_path / "test" / "report.json").read_text())
    assert row["source"] == "run"
    config["refinement"] = {**rows[2]["refinement"], "teacher": str(pool.dir), "weights": "of before"}
    (run / "config.json").write_text(json.dumps(config))
    command(validate, "--output-dir", tmp_path, "--overwrite", *QUICK, "--pretrain-weight", run)
    assert "has learned on since its refinement was found" in capsys.readouterr().err
    row, = json.loads((tmp_path / "test" / "report.json").read_text())
    assert row["source"] == "run"
    config["refinement"]["weights"] = weights_digest(run)
    (run / "config.json").write_text(json.dumps(config))
    command(sample, "--pretrain-weight", run, "--ipc", 1, "--output-dir", tmp_path / "set")
    with safe_open(tmp_path / "set" / "set.safetensors", "pt") as file:
        assert json.loads(file.metadata()["set"])["refined"] == "kept above 0.5, noise 1.2"
    images = load_file(tmp_path / "set" / "set.safetensors")["images"]
    assert torch.equal(DistilledDataset(run, ipc=1).images, images)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(DistilledDataset("~/run", ipc=1).images, images)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: path != run)
        error = fails(2, search_script, "--pretrain-weight", run, "--output", tmp_path / "rows.json")
    assert f"--pretrain-weight: the folder {run} cannot be written" in error
    (run / "generator").rename(tmp_path / "alone")
    assert "no run's folder" in fails(2, search_script, "--pretrain-weight", tmp_path / "alone", "--teacher", pool.dir)


def test_a_greedy_search_tries_the_thresholds_at_the_best_noise():
    axes = ([], [{"noise_std": noise, "keep_above": 0.0} for noise in (1.0, 1.2, 1.4)],
            [{"keep_above": above} for above in (0.5, 0.9)])
    scores = {Refinement(): 50, Refinement(1.0, 0.0): 55, Refinement(1.2, 0.0): 60, Refinement(1.4, 0.0): None,
              Refinement(1.2, 0.5): 58, Refinement(1.2, 0.9): None}
    asked = []
    assert search_script.search(lambda x: asked.append(x) or scores[x], axes) == Refinement(1.2, 0.0)
    assert asked == list(scores)
    assert search_script.search(lambda x: 70 if x == Refinement() else None, axes) == Refinement()


def test_a_search_of_a_flow_tries_steps_and_then_guidance(command, fails, tmp_path):
    for recipe in ("flow", "shortcut"):
        command(gen_condense, "--output-dir", tmp_path, "--tag", recipe, "--recipe", recipe, "--width", 8, "--batch-size", 16,
                "--sample-steps", 2, "--steps", 1)
    short = ("--ipc", 1, "--students", 2, "--eval-epochs", 1, "--output", tmp_path / "rows.json")
    command(search_script, "--pretrain-weight", tmp_path / "flow", "--sample-steps", 2, 1, "--guidance", 1, 2, *short)
    unrefined, one_step, guided, *again = read_report(tmp_path / "rows.json")
    assert all(row["source"].endswith(", new students") for row in again)
    assert (unrefined["source"], one_step["source"]) == ("unrefined", "1 step")
    best = max(unrefined, one_step, key=lambda row: row["mean"])
    assert guided["refinement"] == {**best["refinement"], "guidance": 2.0}
    assert json.loads((tmp_path / "flow" / "config.json").read_text())["refinement"]["teacher"] is None
    for words, named in ((("--guidance", 2), "--guidance 2: a shortcut"), (("--noise-std", 1.2), "give --teacher")):
        assert named in fails(2, search_script, "--pretrain-weight", tmp_path / "shortcut", *words, *short)
