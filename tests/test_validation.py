"""What an evaluation judges, and how it goes on: which students share a row, and which images may score them."""

import re
import shutil
from types import SimpleNamespace

import pytest
from conftest import SMALL_POOL

import gen_condense
import pool_match
import validate
from gendistil.common.errors import UserError
from gendistil.common.files import read_json, write_json
from gendistil.common.run import amend
from gendistil.data import Spec
from gendistil.evaluation import Result, students
from gendistil.evaluation.rows import read_report
from gendistil.evaluation.settings import data_words, with_more_students
from gendistil.evaluation.validation import list_rows
from gendistil.sources import PixelSet

QUICK = ("--epochs", 1, "--min-steps", 2, "--num-eval", 2, "--aug-type", "color_crop")
RESULT = Result((90.0, 92.0), images=10, epochs=1, steps=1, seconds=1.0)


def test_an_evaluation_that_was_stopped_goes_on_student_by_student(call, gan, tmp_path, monkeypatch):
    words = ("--pretrain-weight", f"g={gan}", "--ipc", 2, *QUICK)
    call(validate, "--tag", "whole", *words, "--num-eval", 3, "--sampling", "fixed", "fresh", "--compare", "random")
    trained = []
    train = students.train_students

    def interrupted(*args, **kwargs):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(students, "train_students", interrupted)
    with pytest.raises(SystemExit):
        call(validate, "--tag", "parts", *words, "--num-eval", 3, "--sampling", "fixed", "fresh", "--compare", "random")
    rows = read_report(tmp_path / "results" / "parts" / "report.json")
    assert [row["n"] for row in rows] == [3, 1]
    monkeypatch.setattr(students, "train_students", train)
    call(validate, "--tag", "parts", *words, "--num-eval", 2, "--sampling", "fixed", "fresh", "--resume")
    call(validate, "--tag", "parts", *words, "--num-eval", 3, "--sampling", "fixed", "fresh", "--compare", "random", "--resume")
    same = ("source", "sampling", "ipc", "accuracies", "mean", "std", "ci95", "n", "steps", "bytes", "diversity")
    parts, whole = ([{key: row.get(key) for key in same} for row in read_report(tmp_path / "results" / tag / "report.json")]
                    for tag in ("parts", "whole"))
    assert parts == whole


def test_an_evaluation_is_not_continued_with_what_would_not_fit_its_rows(call, gan, tmp_path, capsys):
    words, source = ("--tag", "t", "--ipc", 1, *QUICK), ("--pretrain-weight", f"g={gan}")
    call(validate, *words, *source)
    other = shutil.copytree(gan, tmp_path / "other")
    call(validate, *words, "--pretrain-weight", f"g={gan / '..' / gan.name}", "--resume")  # the same one
    for change, message in ((("--lr", 0.01), "--lr is not what the run was started with"),
                            (("--seed", 4), "--seed is not what the run was started with"),
                            (("--no-own",), "--own is not what the run was started with"),
                            (("--pretrain-weight", f"g={other}"), "give .*other another name")):
        with pytest.raises(SystemExit) as error:
            call(validate, *words, *(() if change[0] in source else source), *change, "--resume")
        assert error.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_real_images_and_teachers_are_those_of_the_first_part_of_an_evaluation(call, tmp_path, capsys):
    words = ("--tag", "whole", "--compare", "whole", "--epochs", 4, "--min-steps", 0)
    call(validate, *words, "--ipc", 1, "--num-eval", 1)
    call(validate, *words, "--ipc", 1, 50, "--num-eval", 2, "--resume")
    (row,) = read_report(tmp_path / "results" / "whole" / "report.json")
    assert (row["n"], row["epochs"]) == (2, 1)

    short = ("--ipc", 2, "--eval-epochs", 1)
    pool = (*SMALL_POOL, "--pool", "convnet:depth=1,width=8")
    for seed in (0, 1):
        call(pool_match, "--tag", f"h{seed}", "--method", "herding", "--seed", seed, *short, *pool)
    assert len([*(tmp_path / "results" / "pools").iterdir()]) == 1  # runs of all seeds share it
    a, b = (tmp_path / "results" / f"h{seed}" for seed in (0, 1))
    words = ("--tag", "taught", "--ipc", 1, "--sampling", "fixed", "--labels", "teacher", *QUICK)
    call(validate, *words, "--pretrain-weight", a, "--num-eval", 1)
    log = tmp_path / "results" / "taught" / "metrics.jsonl"
    before = log.read_text()
    call(validate, *words, "--pretrain-weight", b, a, "--resume")
    rows = {row["source"]: row for row in read_report(tmp_path / "results" / "taught" / "report.json")}
    assert rows["h0"]["n"] == rows["h1"]["n"] == 2
    assert log.read_text().startswith(before)  # no entry of the first part is lost


@pytest.mark.parametrize("fact", ["epochs", "lr", "teacher"])
def test_students_of_two_trainings_are_not_one_row(fact):
    row = {**RESULT.row(), "source": "gan", "device": "cpu", "lr": 0.1, "teacher": "A"}
    assert with_more_students(row, row)["n"] == 4
    with pytest.raises(UserError, match=f"gan that are there have {fact} "):
        with_more_students(row, {**row, fact: 7})


def test_a_teacher_is_the_same_in_another_precision():
    row = {**RESULT.row(), "source": "gan", "device": "cpu"}
    one, other = ({**row, "teacher": f"A, {score} % of the held-out images, temperature 2"} for score in (33.7, 33.8))
    assert with_more_students(one, other)["teacher"] == one["teacher"]
    with pytest.raises(UserError, match="have teacher A"):
        with_more_students(one, {**other, "teacher": "B, 33.7 % of the held-out images, temperature 2"})


@pytest.mark.parametrize("scored_on", ["test", "held_out"])
def test_an_evaluation_of_before_goes_on_by_the_seeds_that_it_had(call, gan, tmp_path, scored_on):
    words = ("--scored-on", scored_on)
    call(validate, "--pretrain-weight", gan, "--ipc", 1, *QUICK, *words)
    folder = tmp_path / "results" / "test"
    rows = [{**row, "seed": 3407} for row in read_report(folder / "report.json")]
    for row in rows:
        del row["flags"], row["precision"]
    write_json(folder / "report.json", rows)
    call(validate, "--ipc", 1, 2, "--num-eval", 3, "--resume", *words)
    found = read_report(folder / "report.json")
    assert [(row["n"], row["seed"], row["flags"]) for row in found] == [(3, 3407, "--aug-type color_crop")] * 2
    assert (folder / "report.md").read_text().count("**convnet on digits**") == 1


def test_images_that_a_source_has_learned_from_are_not_held_out(call, gan, tmp_path, capsys):
    call(pool_match, "--tag", "few", "--method", "random", "--ipc", 1, "--held-out", 0.1, "--eval-epochs", 1)
    few = tmp_path / "results" / "few"
    with pytest.raises(SystemExit):
        call(validate, "--pretrain-weight", few, "--ipc", 1, "--scored-on", "held_out", "--held-out", 0.3, *QUICK)
    assert "few has learned from images that --held-out 0.3 holds out: give --held-out 0.1" in capsys.readouterr().err
    assert not (tmp_path / "results" / "test").exists()
    call(validate, "--pretrain-weight", few, "--ipc", 1, "--scored-on", "held_out", "--held-out", 0.05, *QUICK)


def test_stored_images_that_are_too_few_are_no_reason_to_stop(call, gan, tmp_path, capsys):
    call(pool_match, "--tag", "few", "--method", "random", "--ipc", 2, "--eval-epochs", 1)
    few = tmp_path / "results" / "few"
    call(validate, "--pretrain-weight", few, gan, "--ipc", 1, 3, *QUICK)
    assert "no row of few above --ipc 2: it keeps no more" in capsys.readouterr().err
    rows = read_report(tmp_path / "results" / "test" / "report.json")
    assert [(row["source"], row["ipc"]) for row in rows] == [("few", 1), ("gan", 1), ("gan", 3)]
    for words, message in ((("--ipc", 3), "--ipc 3: few has 2 images of a class: lower it"),
                           (("--protocol", "dim", "--ipc", 1), "--protocol dim draws new images at every step")):
        with pytest.raises(SystemExit):
            call(validate, "--tag", "no", "--pretrain-weight", few, *words)
        assert message in capsys.readouterr().err


def test_all_real_images_take_as_many_steps_as_the_largest_set_shows(call, tmp_path):
    call(pool_match, "--tag", "four", "--method", "random", "--factor", 2, "--ipc", 6, "--eval-epochs", 1)
    call(validate, "--pretrain-weight", tmp_path / "results" / "four", "--ipc", 6, "--sampling", "fixed", "--epochs", 12,
         "--min-steps", 0, "--compare", "whole", "--num-eval", 1)
    few, whole = read_report(tmp_path / "results" / "test" / "report.json")
    assert few["steps"] == 12 * 4  # 240 images, in batches of 64
    assert whole["steps"] >= few["steps"]


def test_classes_of_one_source_are_not_those_of_another(call, tmp_path, capsys):
    for first in (0, 2):
        call(pool_match, "--tag", f"of{first}", "--method", "random", "--ipc", 1, "--classes", first, first + 1,
             "--eval-epochs", 1)
    with pytest.raises(SystemExit):
        call(validate, "--pretrain-weight", *(tmp_path / "results" / f"of{first}" for first in (0, 2)), "--ipc", 1, *QUICK)
    assert "of2 learned the classes 2 3, and 0 1 are judged: judge them apart" in capsys.readouterr().err
    call(pool_match, "--tag", "turned", "--method", "random", "--ipc", 1, "--classes", *range(9, -1, -1), "--eval-epochs", 1)
    call(gen_condense, "--tag", "threes", "--classes", 0, 1, 2, "--width", 8, "--batch-size", 4, "--steps", 1)
    turned, threes = (tmp_path / "results" / tag for tag in ("turned", "threes"))
    for words, said in (((validate, "--data", "digits", "--pretrain-weight", turned, "--ipc", 1, *QUICK), "8 9 are judged"),
                        ((pool_match, "--data", "digits", "--classes", 3, 4, 5, "--weight", threes), "and 3 4 5 are learned")):
        with pytest.raises(SystemExit):
            call(*words)
        assert said in capsys.readouterr().err
    call(validate, "--tag", "own", "--pretrain-weight", turned, "--ipc", 1, *QUICK)
    assert read_report(tmp_path / "results/own/report.json")[0]["data"] == "digits, classes 9 8 7 6 5 4 3 2 1 0"


def test_a_student_of_a_long_name_is_kept(call, gan, tmp_path):
    call(validate, "--pretrain-weight", f"{'g' * 250}={gan}", "--ipc", 1, "--keep-students", *QUICK)
    row, = read_report(tmp_path / "results" / "test" / "report.json")
    assert (tmp_path / "results" / "test" / "students" / row["student"]).is_dir()


def test_students_of_two_models_are_not_one_row(call, gan, tmp_path, capsys):
    model = shutil.copytree(gan, tmp_path / "model")
    words = ("--tag", "t", "--pretrain-weight", f"g={model}", "--ipc", 1, *QUICK)
    call(validate, *words)
    call(validate, *words, "--num-eval", 3, "--resume")  # the same
    report = tmp_path / "results/t/report.json"
    before = report.read_bytes()
    assert read_report(report)[0]["n"] == 3
    weights, = model.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SystemExit):
        call(validate, *words, "--num-eval", 4, "--resume")
    assert "holds another model than 'g' was when the evaluation was started" in capsys.readouterr().err
    assert report.read_bytes() == before
    page = (tmp_path / "results/t/report.html").read_text()
    assert page.count("validate.py --tag t") == 2  # both commands have measured it


def test_all_real_images_are_passed_as_often_as_is_asked(call, tmp_path):
    call(validate, "--compare", "whole", "--full-epochs", 2, "--num-eval", 1, "--ipc", 1)
    row, = read_report(tmp_path / "results/test/report.json")
    assert (row["epochs"], row["steps"]) == (2, 2 * 23)  # fewer steps than the protocol has at least


def test_a_size_that_a_flag_gave_stands_beside_the_data_set(call, tmp_path):
    call(validate, "--image-size", 12, "--compare", "random", "--ipc", 1, *QUICK)
    assert read_report(tmp_path / "results/test/report.json")[0]["data"] == "digits, 12 pixels"
    folder = Spec("pets", ("cat", "dog"), 1, 16, (0.5,), (0.2,), True)
    words = [data_words(SimpleNamespace(image_size=size, classes=None), folder) for size in (16, None)]
    assert words == ["pets, 16 pixels", "pets"]


def test_larger_images_are_seen_by_a_deeper_network(call, tmp_path):
    words = ("--compare", "random", "--sampling", "fixed", "--ipc", 1, "--epochs", 1, "--min-steps", 1, "--num-eval", 1)
    for size, name in ((16, "convnet"), (64, "convnet4")):
        call(validate, "--tag", name, "--image-size", size, "--classes", 0, 1, *words)
        assert read_report(tmp_path / "results" / name / "report.json")[0]["model"] == name


def test_flags_that_change_nothing_are_refused(call, gan, capsys):
    words = ("--pretrain-weight", gan, "--ipc", 1, *QUICK)
    call(validate, "--tag", "there", *words)
    for tag, flags, said in (("there", ("--resume", "--overwrite"), "give one of them"),
                             ("new", ("--no-own",), "--no-own: no run of --pretrain-weight has learned labels"),
                             ("new", ("--sampling", "fixed", "--ranking", "--compare", "none"), "leave out --compare none")):
        with pytest.raises(SystemExit):
            call(validate, "--tag", tag, *words, *flags)
        assert said in capsys.readouterr().err


def test_snapshots_are_not_chosen_by_what_a_source_has_learned_from(call, tmp_path, capsys):
    small = (*SMALL_POOL, "--pool", "convnet:depth=1,width=8")
    call(pool_match, "--tag", "h", "--method", "herding", "--ipc", 2, "--held-out", 0.1, "--eval-epochs", 1, *small)
    run, (pool, *_) = tmp_path / "results/h", (tmp_path / "results/pools").iterdir()
    with pytest.raises(SystemExit):
        call(validate, "--pretrain-weight", run, "--ipc", 1, "--sampling", "fixed", "--labels", "rows", "--teacher", pool,
             "--teacher-snapshots", "auto", "--held-out", 0.2, *QUICK)
    assert "has learned from images that --held-out 0.2 holds out" in capsys.readouterr().err


def test_a_generator_its_stage_2_and_their_control_are_kin(call, tmp_path):
    small = ("--batch-size", 4, "--eval-epochs", 1, "--eval-ipc", 1, "--match-batch", 4, "--select", "random", "--steps", 1,
             *SMALL_POOL, "--pool", "convnet:depth=1,width=8")
    call(gen_condense, "--tag", "gan", "--width", 8, "--batch-size", 4, "--steps", 1)
    call(gen_condense, "--tag", "other", "--width", 8, "--batch-size", 4, "--steps", 1, "--seed", 1)
    results = tmp_path / "results"
    call(pool_match, "--tag", "match", "--weight", results / "gan", *small)
    call(pool_match, "--tag", "again", "--weight", results / "match", *small)
    call(pool_match, "--tag", "control", "--control-of", results / "match", "--eval-epochs", 1, "--eval-ipc", 1)
    names = ("gan", "match", "again", "control", "other")
    call(validate, "--pretrain-weight", *(results / name for name in names), "--compare", "random", "--ipc", 1, *QUICK)
    kin = {row["source"]: row["kin"] for row in read_report(results / "test" / "report.json")}
    assert kin["gan"] == kin["match"] == kin["again"] == kin["control"]
    assert len({kin["gan"], kin["other"], kin["random real images"]}) == 3
    shutil.rmtree(results / "gan")
    shutil.move(results / "other", results / "gan")  # another generator lies there by now
    call(pool_match, "--tag", "match", "--resume", "--steps", 2)
    assert read_json(results / "match" / "config.json")["kin"] == kin["gan"]


def test_a_teacher_that_a_run_names_is_not_overwritten(call, tmp_path, capsys):
    results = tmp_path / "results"
    call(validate, "--tag", "taught", "--compare", "random", "--ipc", 1, *QUICK, "--num-eval", 1, "--keep-students")
    (student,) = (results / "taught" / "students").iterdir()
    call(pool_match, "--tag", "set", "--method", "random", "--ipc", 1, "--eval-epochs", 1, "--teacher", student)
    with pytest.raises(SystemExit) as leaving:
        call(validate, "--tag", "taught", "--overwrite", "--pretrain-weight", results / "set", "--labels", "teacher", *QUICK)
    assert leaving.value.code == 2
    assert "lies in the folder that --tag taught writes" in capsys.readouterr().err
    assert student.is_dir()


def test_another_data_set_than_a_run_learned_is_named(call, gan, tmp_path, capsys):
    call(gen_condense, "--tag", "pets", "--width", 8, "--batch-size", 4, "--steps", 1)
    amend(tmp_path / "results" / "pets", dataset={"name": "pets", "classes": [f"pet {index}" for index in range(10)]})
    call(validate, "--data", "digits", "--pretrain-weight", tmp_path / "results" / "pets", "--ipc", 1, *QUICK)
    assert "pets learned pets, and this is digits: give --data if that is not meant" in capsys.readouterr().err


def test_parts_of_several_sizes_are_not_chosen_from():
    """Nobody could tell how many bytes the chosen ones take."""
    def rows(decoder, *ipc):
        source = PixelSet(8, 1, 10, ipc=3, factor=2, decoder=decoder)
        args = SimpleNamespace(sampling=["representative"], ipc=list(ipc), labels=("hard",), eval_model=["convnet"], compare=(),
                               ranking=False)
        return list_rows(args, {"parts": source})

    assert [row["ipc"] for row in rows("single", 2, 3) + rows("multi", 3)] == [2, 3, 3]
    with pytest.raises(UserError, match=r"parts has parts of several sizes .* or --ipc 3 alone"):
        rows("multi", 2, 3)
