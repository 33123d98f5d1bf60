"""Labels of a teacher: what they are, what they cost, which snapshot answers, and how a report keeps them apart."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from prototypes import Prototypes
from safetensors.torch import load_file
from torch.nn import functional as F

import gen_condense
import pool_match
import sample
import validate
from gendistil.common.device import make_accelerator
from gendistil.common.engine import EAGER, Engine
from gendistil.common.errors import UserError
from gendistil.common.files import read_json, write_json
from gendistil.common.rng import stream
from gendistil.data import standardise, to_signed, to_uint8
from gendistil.evaluation import PROTOCOLS, evaluate, student_batches, teachers, validation
from gendistil.evaluation.teachers import Labels, Teachers
from gendistil.sources import ROWS, PixelSet, RealImages, Rows, Taught, Teacher, draw_set, load_source
from pools import ClassifierPool, KeptClassifiers, build_classifier, train_classifier

SETTINGS = {"members": 1, "epochs": 2, "snapshots": 2, "options": {"convnet": {"width": 8}}}


@pytest.fixture(scope="module")
def pool(digits, tmp_path_factory):
    return ClassifierPool(digits, tmp_path_factory.mktemp("pools"), Accelerator(cpu=True, mixed_precision="no"), **SETTINGS)


def test_targets_are_softened_mean_logits_of_the_images_themselves(digits, pool):
    teacher, source, labels = Teacher([pool[0], pool[1]], digits.spec, "two"), Prototypes(), torch.arange(10).repeat(3)
    images = to_uint8(source.sample(labels, 5))
    taught = Taught(source, teacher, 3.0, stored=True)
    logits = sum(network(standardise(to_signed(images), digits.spec)) for network in (pool[0], pool[1])) / 2
    assert torch.allclose(taught.targets(labels, 5), (logits.half().float() / 3).softmax(1), atol=1e-3)
    assert torch.equal(taught.targets(labels, 5, images), taught.targets(labels, 5))
    assert torch.allclose(taught.targets(labels, 5), (teacher.logits(images).half().float() / 3).softmax(1))
    drawn, targets = draw_set(taught, 3, 5)
    assert torch.equal(targets, taught.targets(torch.arange(10).repeat_interleave(3), 5, drawn))
    drawn, targets = draw_set(taught, 3, 5, choice="representative")
    assert torch.allclose(targets, (teacher.logits(drawn).half().float() / 3).softmax(1), atol=1e-6)


def test_a_kept_teacher_is_asked_about_what_a_student_sees(digits, pool, monkeypatch):
    teacher, source, protocol = Teacher([pool[0]], digits.spec, "one"), Prototypes(), replace(PROTOCOLS["default"], cutmix=1.0)
    taught = Taught(source, teacher, 3.0, stored=False)
    assert Taught(source, teacher, 3.0, stored=True).answers is source.answers is None
    hard, soft = (student_batches(lambda epoch: draw_set(source, 8, 5), digits.spec, protocol, 4, answers)
                  for answers in (None, taught.answers))
    for (images, mixed), (seen, targets) in zip(hard(2), soft(2), strict=True):
        assert torch.equal(images, seen)
        assert mixed.is_floating_point()
        assert torch.allclose(targets, (pool[0](seen) / 3).softmax(1), atol=1e-6)
    monkeypatch.setattr(teacher, "logits", None)  # of images that no student sees as they are
    for name in ("default", "dim"):
        protocol = replace(PROTOCOLS[name], epochs=1, min_steps=0)
        assert evaluate(taught, digits, "convnet", 4, num_eval=1, protocol=protocol).n == 1


def test_a_taught_student_starts_otherwise_than_the_teacher_of_its_seed(digits, pool, monkeypatch):
    started, temperatures, source = [], [], Prototypes()
    monkeypatch.setattr("gendistil.evaluation.students.train_students", lambda models, *rest, **more: (
        started.append(models[0].state_dict()), temperatures.append(more["temperature"]), torch.zeros(1))[2])
    for taught in (source, *(Taught(source, Teacher([pool[0]], digits.spec, "one"), 3.0, stored) for stored in (True, False))):
        evaluate(taught, digits, "convnet:width=8", 1, num_eval=1, seed=3)
    name = next(iter(started[0]))
    assert not torch.equal(started[0][name], started[1][name])
    assert torch.equal(started[1][name], started[2][name])
    assert temperatures == [1.0, 3.0, 3.0]


def test_a_teacher_with_another_mean_and_std_sees_the_same_images(digits, pool):
    images = to_uint8(Prototypes().sample(torch.arange(10), 5))
    own = replace(digits.spec, mean=(0.1,), std=(0.7,))
    teacher = Teacher([pool[0]], own, "one")
    assert torch.allclose(teacher.look(standardise(to_signed(images), digits.spec), digits.spec), teacher.logits(images),
                          atol=1e-4)


def test_what_rows_and_teachers_take_is_added(digits, pool):
    source = Prototypes()
    source.stored_bytes = lambda ipc: 1000
    teacher = Teacher([pool[1]], digits.spec, "one")
    weights = sum(value.numel() for value in pool[1].state_dict().values())
    assert Taught(source, teacher, 1.0, stored=True).stored_bytes(3) == 1000 + 2 * 10 * 30
    assert Taught(source, teacher, 1.0, stored=False).stored_bytes(3) == 1000 + 4 * weights
    soft = PixelSet(size=8, channels=1, num_classes=10, ipc=3)
    soft.rows = Rows(torch.zeros(10, 3, 10), "learned", None, learned=True)
    assert soft.stored_bytes(3) == 30 * 64 + 2 * 10 * 30
    assert Taught(soft, teacher, 1.0, stored=True).stored_bytes(3) == 30 * 64 + 2 * 10 * 30  # one row an image, the teacher's
    assert Taught(soft, teacher, 1.0, stored=False).stored_bytes(3) == 30 * 64 + 4 * weights


def test_the_loss_has_the_gradient_of_the_divergence_at_a_temperature():
    torch.manual_seed(0)
    images, answers = torch.randn(6, 1, 8, 8), (torch.randn(6, 10) / 4).softmax(1)
    models = [build_classifier("convnet", 1, 8, 10, width=8, generator=stream(0, "weights")) for _ in range(2)]
    train_classifier(models[0], lambda epoch: [(images, answers)], epochs=1, lr=1.0, momentum=0, weight_decay=0,
                     temperature=4.0)
    loss = 16 * F.kl_div((models[1](images) / 4).log_softmax(1), answers, reduction="batchmean")
    loss.backward()
    for learned, weight in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(learned, weight - weight.grad, rtol=1e-4, atol=1e-5)


def test_a_pool_is_opened_where_it_lies(digits, pool):
    opened = ClassifierPool.open(pool.dir)
    assert opened.table() == pool.table()
    assert opened.finished() == [1]
    assert opened.learned_from(digits.train)
    assert not opened.learned_from(digits.full_train)
    for index in range(len(pool)):
        assert all(torch.equal(*pair) for pair in zip(opened[index].parameters(), pool[index].parameters()))


@pytest.mark.parametrize("choice", ["last", "auto"])
def test_the_snapshot_that_answers(digits, pool, monkeypatch, choice):
    tried = []

    def evaluate(taught, dataset, model, ipc, sampling, **options):
        tried.append((taught.source, options["scored_on"], ipc))
        return SimpleNamespace(mean=50.0 if taught.teacher.networks[0] is chosen.pool[0] else 40.0)

    monkeypatch.setattr(teachers, "evaluate", evaluate)
    first, second = Prototypes(), Prototypes()
    labels = Labels(labels=("hard", "rows"), teacher=pool.dir, teacher_snapshots=choice)
    chosen = Teachers(labels, [], [first, second], digits, engine=EAGER, protocol=PROTOCOLS["default"], seed=0)
    answers = [chosen.teach(source, "rows", 1, "fixed").teacher.networks for source in (first, second)]
    assert answers == [[chosen.pool[0 if choice == "auto" else 1]]] * 2
    assert tried == ([(first, "held_out", 1)] * 2 if choice == "auto" else [])
    assert chosen.teach(first, "hard", 1, "fixed") is first


def test_snapshots_are_tried_on_what_has_enough_images(digits, pool, monkeypatch):
    tried = []
    monkeypatch.setattr(teachers, "evaluate", lambda taught, dataset, model, ipc, *words, **options: tried.append(
        (taught.source, ipc)) or SimpleNamespace(mean=1.0))
    stored, real = PixelSet(size=8, channels=1, num_classes=10, ipc=1), RealImages(digits.full_train, 10)
    labels, most = Labels(labels=("rows",), teacher=pool.dir, teacher_snapshots="auto"), real.max_ipc
    for sources in ((stored, Prototypes()), (stored, real)):
        tried.clear()
        chosen = Teachers(labels, [], sources, digits, engine=EAGER, protocol=PROTOCOLS["default"], seed=0)
        chosen.teach(sources[1], "rows", most, "fixed")
        source, ipc = tried[0]
        if sources[1] is real:
            assert source.max_ipc == ipc < most  # of the images that a pool may see
        else:
            assert (source, ipc) == (sources[1], most)


def test_a_teacher_that_was_chosen_stays_when_the_evaluation_goes_on(digits, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "evaluate", lambda taught, *words, **options: SimpleNamespace(
        mean=float(taught.teacher.networks[0] is chosen.pool[best[0]])))
    best, labels = [0], Labels(labels=("teacher",), teacher=pool.dir, teacher_snapshots="auto")
    rows = [{"source": "one", "labels": kind, "ipc": 2, "sampling": "fresh"} for kind in ("hard", "teacher")]
    run, config, other = SimpleNamespace(is_main=True, dir=tmp_path), tmp_path / "config.json", pool.dir.with_name("other")
    write_json(config, {})
    for best[0], before, answers in ((0, None, 0), (1, pool.dir, 0), (1, other, 1)):  # another device would choose another
        known = before and [[["teacher", 2, "fresh"], [0], before.name]]
        chosen = Teachers(labels, [], [Prototypes()], digits, engine=EAGER, protocol=PROTOCOLS["default"], seed=0, chosen=known)
        chosen.settle(rows, {"one": Prototypes()}, ["fresh"], run)
        assert read_json(config)["teachers_chosen"] == [[["teacher", 2, "fresh"], [answers], pool.dir.name]]


def test_members_of_one_length_are_told_apart(digits, tmp_path):
    settings = {**SETTINGS, "members": 2, "snapshots": 1, "epochs": 1}
    pool = ClassifierPool(digits, tmp_path, Accelerator(cpu=True, mixed_precision="no"), **settings)
    labels = Labels(labels=("rows",), teacher=pool.dir)
    chosen = Teachers(labels, [], [Prototypes()], digits, engine=EAGER, protocol=PROTOCOLS["default"], seed=0)
    words = []
    for index in range(2):
        taught = Taught(Prototypes(), Teacher.of(pool, (index,)), 2.0, stored=True)
        words.append(chosen.describe(taught))
        score = Teacher.of(pool, (index,)).accuracy(digits.held_out)
        assert words[-1].endswith(f", member {index}, {score:.1f} % of the held-out images, temperature 2")
    assert "member" not in Teacher.of(pool).name


def as_scored(pool):
    """The teacher of a pool in the precision that the scripts choose on this machine."""
    return Teacher.of(pool, engine=Engine(make_accelerator("auto")))


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    command(pool_match, "--output-dir", folder, "--tag", "pixels", "--method", "herding", "--ipc", 3, "--pool-members", 1,
            "--pool-epochs", 2, "--pool-snapshots", 2, "--eval-epochs", 1)
    return folder / "pixels"


def test_a_report_keeps_kinds_of_labels_apart(command, run):
    shared = ("--output-dir", run.parent, "--tag", "test", "--overwrite", "--ipc", 2, "--epochs", 2, "--min-steps", 2)
    command(validate, *shared, "--pretrain-weight", run, "--labels", "teacher", "hard", "rows", "--sampling", "fixed", "fresh",
            "--compare", "random", "--num-eval", 2, "--temperature", 3)
    rows = json.loads((run.parent / "test" / "report.json").read_text())
    assert [(row["labels"], row["source"], row["sampling"]) for row in rows] == [
        ("hard", "pixels", "fixed"), ("hard", "random real images", "fixed"), ("hard", "random real images", "fresh"),
        ("rows", "pixels", "fixed"), ("rows", "random real images", "fixed"),
        ("teacher", "pixels", "fixed"), ("teacher", "random real images", "fixed")]  # stored images are one set
    entries = map(json.loads, (run.parent / "test" / "metrics.jsonl").read_text().splitlines())
    assert len({(entry["step"], name) for entry in entries for name in entry if name.startswith("accuracy/")}) == len(rows)
    bytes_ = {(row["labels"], row["source"]): row["bytes"] for row in rows if "bytes" in row}
    assert [(row["source"], row["sampling"]) for row in rows if "bytes" not in row] == [("random real images", "fresh")]
    assert bytes_["rows", "pixels"] == bytes_["hard", "pixels"] + 2 * 10 * 20
    assert all(("teacher" in row) == (row["labels"] != "hard") for row in rows)
    text = (run.parent / "test" / "report.md").read_text()
    parts = text.split("**labels of a teacher** (convnet of step ")
    assert len(parts) == 3
    assert "% of the held-out images, temperature 3; a row is kept with every image)" in parts[1]
    assert "temperature 3, asked about images as students see them; it is kept with the images)" in parts[2]


@pytest.mark.parametrize(("words", "named"), [
    (("--labels", "rows", "--sampling", "fresh"), "--labels rows needs --sampling fixed or representative"),
    (("--labels", "teacher", "--held-out", "0.2"), "--teacher"),
    (("--labels", "teacher", "--teacher", "nowhere"), "nowhere"),
    (("--teacher", "nowhere"), "--teacher is for labels of a teacher: add --labels"),
    (("--temperature", "2"), "--temperature is for labels of a teacher: add --labels"),
    (("--compare", "none", "whole"), "--compare none whole: none goes with no other"),
    (("--labels", "hard", "--teacher-snapshots", "last"), "--teacher-snapshots is for labels of a teacher: add --labels"),
    (("--labels", "teacher", "--compare", "random", "--data", "digits", "--pretrain-weight"), "--teacher"),
])
def test_labels_that_nobody_can_give(fails, run, words, named):
    source = () if words[-1] == "--pretrain-weight" else ("--pretrain-weight", run)
    words = words[:-1] if words[-1] == "--pretrain-weight" else words
    error = fails(2, validate, "--output-dir", run.parent, "--tag", "wrong", "--ipc", 1, *source, *words)
    assert named in error
    assert error.count("\n") == 1
    assert not (run.parent / "wrong").exists()


def test_a_set_is_written_with_the_rows_of_a_teacher(command, run, pool, tmp_path):
    command(sample, "--pretrain-weight", run, "--ipc", 2, "--teacher", pool.dir, "--output-dir", tmp_path)
    kept = load_file(tmp_path / "set.safetensors")
    assert kept["logits"].dtype == torch.float16
    assert torch.equal(kept["logits"], Teacher.of(pool).logits(kept["images"]).half())


def test_a_file_that_describes_no_pool_is_named(tmp_path):
    (tmp_path / "pool.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe a pool"):
        ClassifierPool.open(tmp_path)


@pytest.fixture(scope="module")
def students(command, run):
    """The folder of the students that an evaluation of the run, of random real images and of all of them kept."""
    command(validate, "--output-dir", run.parent, "--tag", "kept", "--ipc", 1, "--pretrain-weight", run, "--compare",
            "--sampling", "fixed", "--epochs", 1, "--min-steps", 2, "--num-eval", 2, "--full-epochs", 2, "--keep-students")
    return run.parent / "kept" / "students"


def test_the_first_student_of_every_row_is_kept(digits, students):
    rows = json.loads((students.parent / "report.json").read_text())
    assert [row["student"] for row in rows] == [
        "00-pixels-fixed-ipc1-convnet-hard", "01-random_real_images-fixed-ipc1-convnet-hard",
        "02-training_set_without_its_held-out_images-all-convnet-hard"]
    assert sorted(path.name for path in students.iterdir()) == sorted(row["student"] for row in rows)
    assert rows[2]["images"] == len(digits.train)
    for row in rows:
        pool = ClassifierPool.open(students / row["student"])
        teacher = as_scored(pool)
        assert pool.learned_from(digits.train)
        assert teacher.name == f"convnet of step {row['steps']}, a student of {row['source']}"
        assert teacher.accuracy(digits.test) == pytest.approx(row["accuracies"][0])
        assert teacher.accuracy(digits.held_out) == pytest.approx(pool.table()[0]["held_out_accuracy"])


def test_a_kept_student_is_a_teacher(command, fails, run, students, tmp_path):
    student = next(students.glob("02-*"))
    words = ("--output-dir", tmp_path, "--ipc", 1, "--epochs", 1, "--min-steps", 1, "--num-eval", 1, "--labels", "teacher",
             "--teacher", student, "--pretrain-weight", run)
    command(validate, *words)
    row, beside = json.loads((tmp_path / "test" / "report.json").read_text())
    assert (beside["source"], beside["sampling"], beside["teacher"]) == ("random real images", "fixed", row["teacher"])
    assert row["teacher"].startswith("convnet of step ")
    assert "a student of training set without its held-out images" in row["teacher"]
    command(sample, "--pretrain-weight", run, "--ipc", 1, "--teacher", student, "--output-dir", tmp_path / "set")
    kept = load_file(tmp_path / "set" / "set.safetensors")
    assert torch.equal(kept["logits"], Teacher.of(ClassifierPool.open(student)).logits(kept["images"]).half())
    assert "and those alone" in fails(2, validate, *words, "--tag", "other", "--held-out", 0.3)


def test_a_student_of_unknown_images_is_no_teacher(command, fails, run, tmp_path):
    shutil.copytree(run / "pixels", tmp_path / "alone")  # without the config that says what it was distilled from
    words = ("--output-dir", tmp_path, "--ipc", 1, "--epochs", 1, "--min-steps", 1, "--num-eval", 1, "--pretrain-weight",
             tmp_path / "alone", "--data", "digits")
    command(validate, *words, "--tag", "kept", "--keep-students")
    student, = (tmp_path / "kept" / "students").iterdir()
    error = fails(2, validate, *words, "--tag", "test", "--labels", "teacher", "--teacher", student)
    assert "has not learned from the training images of digits" in error
    words = ("--pretrain-weight", run, "--output-dir", tmp_path / "set", "--teacher")
    assert "was a student of images that are not known" in fails(2, sample, *words, student)


def test_sample_refuses_teachers_of_other_images_and_damaged_ones(command, fails, run, pool, students, tmp_path):
    words = ("--pretrain-weight", run, "--output-dir", tmp_path / "set", "--teacher")
    shutil.copytree(pool.dir, tmp_path / "letters")
    record = json.loads((tmp_path / "letters" / "pool.json").read_text())
    record["data"].update(name="letters", classes=list("abcdefghij"))
    (tmp_path / "letters" / "pool.json").write_text(json.dumps(record))
    error = fails(2, sample, *words, tmp_path / "letters")
    assert "has learned from images of letters, and not from those of digits" in error
    assert "give --teacher" in error
    shutil.copytree(next(students.glob("02-*")), tmp_path / "student")
    (tmp_path / "student" / "weights.safetensors").write_bytes(b"half")
    assert "holds no weights of a convnet" in fails(2, sample, *words, tmp_path / "student")
    assert not (tmp_path / "set").exists()


MATCH = ("--ipc", 2, "--match-batch", 4, "--steps", 2, "--eval-epochs", 1, "--eval-ipc", 1)


@pytest.fixture(scope="module", params=["pixels", "latents"])
def taught_run(command, pool, tmp_path_factory, request):
    """A run whose stored images have the rows of a pool beside them."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ("--method", "dm", "--factor", 2)
    if request.param == "latents":
        command(gen_condense, "--output-dir", folder, "--tag", "gan", "--width", 8, "--batch-size", 8, "--steps", 2)
        words = ("--method", "inversion", "--chunk-steps", 1, "--weight", folder / "gan")
    command(pool_match, "--output-dir", folder, "--tag", request.param, "--teacher", pool.dir, *words,
            *(MATCH if request.param == "pixels" else MATCH[:2] + MATCH[6:]))
    return folder / request.param


def test_rows_are_those_of_the_images_beside_them(digits, pool, taught_run):
    source, teacher = load_source(taught_run), as_scored(pool)
    images, labels = draw_set(source, 2, 0)
    assert source.rows.values.shape == (10, source.decoded(2), 10)
    assert source.rows.values.dtype == torch.float16
    torch.testing.assert_close(source.rows.logits(images, labels), teacher.logits(images), rtol=2e-3, atol=2e-3)
    order = torch.randperm(20, generator=stream(0, "order"))
    some = labels[order]
    assert torch.equal(source.rows.logits(None, some)[some == 3], source.rows.values[3, : (some == 3).sum()].float())
    assert source.rows.held_out_accuracy == pytest.approx(teacher.accuracy(digits.held_out))
    namesake = Teacher(teacher.networks, teacher.spec, source.rows.name, digests=["another"])  # of a pool of the same kind
    assert source.rows.of(Teacher.of(pool))
    assert not source.rows.of(namesake)


def test_stored_rows_need_no_teacher(command, taught_run, pool, monkeypatch, capsys):
    shared = ("--output-dir", taught_run.parent, "--ipc", 1, 2, "--epochs", 1, "--min-steps", 1, "--num-eval", 1, "--labels",
              "hard", "rows", "--sampling", "fixed", "--pretrain-weight", taught_run)
    command(validate, *shared, "--tag", "with", "--teacher", pool.dir, "--compare", "random")
    command(validate, *shared, "--tag", "beside")  # its classifier is there, so random images are too
    beside = json.loads((taught_run.parent / "beside" / "report.json").read_text())
    monkeypatch.setattr(KeptClassifiers, "open", lambda *args: pytest.fail("the pool was opened"))
    monkeypatch.setattr(validation, "named_teachers", lambda runs: ["gone"])
    command(validate, *shared, "--tag", "without")
    assert "no random real images beside" in capsys.readouterr().err
    rows, named = (json.loads((taught_run.parent / tag / "report.json").read_text()) for tag in ("without", "with"))
    assert [(row["source"], row["accuracies"]) for row in beside] == [(row["source"], row["accuracies"]) for row in named]
    named = [row for row in named if row["source"] == taught_run.name]
    assert [row["teacher"] for row in rows[2:]] == [row["teacher"] for row in named[2:]]
    assert "% of the held-out images" in rows[2]["teacher"]
    assert [row["accuracies"] for row in rows] == [row["accuracies"] for row in named]
    decoded = load_source(taught_run).decoded
    assert [rows[2 + place]["bytes"] - rows[place]["bytes"] for place in (0, 1)] == [2 * 100 * decoded(1), 2 * 100 * decoded(2)]


def test_stored_rows_are_exported(command, taught_run, tmp_path):
    command(sample, "--pretrain-weight", taught_run, "--ipc", 1, "--output-dir", tmp_path)
    kept, source = load_file(tmp_path / "set.safetensors"), load_source(taught_run)
    assert torch.equal(kept["logits"].unflatten(0, (10, -1)), source.rows.values[:, : source.decoded(1)])
    assert torch.equal(kept["labels"], torch.arange(10).repeat_interleave(source.decoded(1)))


def test_rows_are_those_of_a_finished_run(command, fails, pool, tmp_path):
    words = ("--output-dir", tmp_path, "--tag", "dm", "--method", "dm", *MATCH)
    command(pool_match, *words)
    assert load_source(tmp_path / "dm").rows is None
    command(pool_match, *words, "--resume", "--teacher", pool.dir)
    assert load_source(tmp_path / "dm").rows is not None
    file = tmp_path / "dm" / "pixels" / ROWS
    file.write_bytes(b"half")
    assert f"{ROWS} holds no rows of these images" in fails(2, sample, "--pretrain-weight", tmp_path / "dm", "--output-dir",
                                                            tmp_path / "set")
    command(pool_match, *words, "--resume", "--teacher", pool.dir)
    command(pool_match, *words, "--resume")  # takes no step
    before = load_source(tmp_path / "dm").rows.values
    command(pool_match, *words, "--resume", "--steps", 3, "--lr", 1000)  # the images are others, the teacher is the same
    source = load_source(tmp_path / "dm")
    images, _ = draw_set(source, 2, 0)
    assert not torch.equal(source.rows.values, before)
    torch.testing.assert_close(source.rows.values.flatten(0, 1).float(), as_scored(pool).logits(images), rtol=2e-3, atol=2e-3)
    error = fails(2, pool_match, "--output-dir", tmp_path, "--tag", "gen", "--weight", "x", "--teacher", pool.dir)
    assert "--teacher is not for --method default" in error
    error = fails(2, pool_match, *words[:2], "--tag", "wrong", *words[4:], "--teacher", pool.dir, "--held-out", 0.3)
    assert "and those alone" in error
    assert not (tmp_path / "wrong").exists()
