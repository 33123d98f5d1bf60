"""DD-Ranking: its scores by hand and by its own package, the rows and the table, and what its package reads."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from picture_folders import write_folder

import sample
import validate
from benchmarks import document, ranking
from gendistil.common.errors import UserError
from gendistil.common.run import CONFIG
from gendistil.data import standardise, to_signed
from gendistil.evaluation.ranking import RankingExport, augmentation_robust, label_robust, rankings, score
from gendistil.evaluation.report import told_apart
from gendistil.evaluation.rows import read_report
from gendistil.evaluation.tables import tables
from gendistil.sources import PixelSet, Source, draw_set


def make_row(source, accuracies, **changes):
    return {"source": source, "data": "digits", "sampling": "fixed", "ipc": 10, "model": "convnet", "std": None, "ci95": None,
            "mean": sum(accuracies) / len(accuracies), "n": len(accuracies), "seconds": 1.0, "accuracies": accuracies,
            "labels": "hard", **changes}


REAL, WHOLE = "random real images", "whole training set"
ROWS = [make_row("dm", [60.0, 64.0]), make_row(REAL, [40.0, 44.0]), make_row(WHOLE, [85.0, 85.0], sampling="all", ipc=None),
        make_row("dm", [50.0, 54.0], augmentation="none"), make_row(REAL, [38.0, 34.0], augmentation="none")]


def test_the_scale_has_its_ends_at_0_and_100():
    assert [score(points) for points in (-100, 100)] == pytest.approx([0, 100])
    assert score(0) == pytest.approx(26.894, abs=1e-3)  # (1 - 1/e) / (e - 1/e)


def test_the_leaderboards_scores():
    # HLR, IOR and LRS of DC and DSA on CIFAR-10 at IPC 1 and of DATM at 10.
    for hlr, ior, lrs in ((52.66, 12.40, 19.1), (58.93, 13.16, 18.2), (26.84, 35.05, 28.7)):
        assert label_robust(hlr, 0, ior, 0) == pytest.approx(lrs, abs=0.05)


def test_the_scores_of_rows():
    found, = rankings(ROWS)
    assert (found["source"], found["ipc"], found["labels"], found["n"]) == ("dm", 10, "hard", 2)
    assert (found["hlr"], found["ior"]) == (23.0, 20.0)
    each = [score(0.5 * 20 - 0.5 * 25), score(0.5 * 20 - 0.5 * 21)]  # students of one seed are compared
    assert found["lrs"] == pytest.approx(sum(each) / 2)
    assert found["lrs_std"] == pytest.approx(abs(each[0] - each[1]) / math.sqrt(2))
    assert found["ars"] == pytest.approx((score(0.5 * 20 + 0.5 * 12) + score(0.5 * 20 + 0.5 * 20)) / 2)


def test_students_of_other_seeds_are_no_pairs():
    alike, = rankings(ROWS)
    found, = rankings([*ROWS[:2], {**ROWS[2], "seed": 7}, *ROWS[3:]])
    assert (found["lrs_std"], found["ars_std"]) == (None, None)
    assert (found["n"], found["hlr"], found["lrs"]) == (2, 23.0, pytest.approx(alike["lrs"], abs=0.1))


@pytest.mark.parametrize("missing", range(1, 5))
def test_a_score_needs_all_of_its_rows(missing):
    assert rankings(ROWS[:missing] + ROWS[missing + 1:]) == []
    assert "DD-Ranking" not in tables(ROWS[:missing] + ROWS[missing + 1:])


def test_labels_of_a_teacher_are_scored_beside_random_images_with_such():
    rows = [*ROWS, *({**row, "labels": "rows", "teacher": "t", "accuracies": [value + 10 for value in row["accuracies"]]}
                     for row in ROWS if row["ipc"])]
    hard, rows = rankings(rows)
    assert (rows["labels"], rows["hard"], rows["own"], rows["random"]) == ("rows", 62.0, 72.0, 52.0)
    assert rows["lrs"] == pytest.approx(hard["lrs"])


def test_sets_of_several_reports_are_scored_by_their_own_rows():
    worse = [{**row, "mean": row["mean"] - 5, "accuracies": [value - 5 for value in row["accuracies"]]} for row in ROWS]
    both = told_apart({Path("a/report.json"): ROWS, Path("b/report.json"): worse})
    found = rankings([row for rows in both.values() for row in rows])
    assert [each["source"] for each in found] == ["dm of a", "dm of b"]
    alone = [*rankings(ROWS), *rankings(worse)]
    assert [(each["ior"], each["lrs"]) for each in found] == [(each["ior"], each["lrs"]) for each in alone]
    labelled = [[*ROWS, *({**row, "labels": "rows", "teacher": teacher, "accuracies": [value + more for value in
                 row["accuracies"]]} for row in ROWS if row["ipc"])] for teacher, more in (("T", 10), ("U", 20))]
    both = told_apart({Path("a/report.json"): labelled[0], Path("b/report.json"): labelled[1]})
    found = rankings([row for rows in both.values() for row in rows])
    assert [(each["labels"], each["teacher"], each["own"]) for each in found] == [
        ("hard", None, 62.0), ("rows", "T", 72.0), ("rows", "U", 82.0)]
    assert "| rows (U) " in tables([row for rows in both.values() for row in rows])


def test_the_table_has_the_reference_accuracies_beside_the_scores():
    better = [{**row, "source": "idc", "accuracies": [70.0, 70.0]} if row["source"] == "dm" else row for row in ROWS]
    text = tables([*ROWS, *better]).split("**DD-Ranking of sets of digits**")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0][4:] == ["students", "all real, hard", "set, hard", "set", "random", "set, no augmentation",
                            "random, no augmentation", "HLR", "IOR", "LRS", "ARS"]
    assert [line[0] for line in lines[2:]] == ["idc", "dm"]
    assert lines[3][5:13] == ["85.00", "62.00", "62.00", "42.00", "52.00", "36.00", "23.00", "20.00"]
    assert "**without augmentation**, accuracy on the test set" in tables(ROWS)


def package_metric(name):
    """A metric of the package without its data sets."""
    metrics = pytest.importorskip("ddranking.metrics")
    metric = object.__new__(getattr(metrics, name))
    vars(metric).update(num_eval=2, ipc=1, num_classes=2, use_dist=False, rank=0, eval_full_data=True, label_type="hard",
                        _get_random_data_helper=lambda eval_iter: (None,) * (3 if name.startswith("Label") else 4))
    return metric


def test_the_label_robust_score_is_that_of_the_package(monkeypatch):
    metric, accuracies = package_metric("LabelRobustScoreHard"), iter([0.6, 0.85, 0.4, 0.64, 0.85, 0.44])
    # It keeps every score twice, which its own writer of tables refuses.
    monkeypatch.setattr("ddranking.metrics.hard_label.save_results", lambda results, path: None)
    metric.save_path, metric._compute_hard_label_metrics_helper = None, lambda **_: (next(accuracies), 0.01)
    theirs = metric.compute_metrics(image_tensor=torch.zeros(2))
    assert 100 * theirs["label_robust_score_mean"] == pytest.approx(rankings(ROWS)[0]["lrs"])


def test_the_augmentation_robust_score_is_that_of_the_package(tmp_path):
    metric = package_metric("AugmentationRobustScore")
    augmented, plain = iter([0.6, 0.4, 0.64, 0.44]), iter([0.5, 0.38, 0.54, 0.34])
    metric.save_path = tmp_path / "scores.csv"
    metric._compute_with_aug_metrics_helper = lambda **_: (next(augmented), 0.01)
    metric._compute_without_aug_metrics_helper = lambda **_: (next(plain), 0.01)
    theirs = metric.compute_metrics(image_tensor=torch.zeros(2))
    assert 100 * theirs["augmentation_robust_score_mean"] == pytest.approx(rankings(ROWS)[0]["ars"])
    ours = augmentation_robust(60, 40, 50, 38), augmentation_robust(64, 44, 54, 34)
    assert rankings(ROWS)[0]["ars"] == pytest.approx(sum(ours) / 2)


@pytest.fixture
def stored(tmp_path):
    """A folder with stored digits."""
    PixelSet(size=8, channels=1, num_classes=10, ipc=2).save_pretrained(tmp_path / "stored")
    return tmp_path / "stored"


def test_validate_ranks_sets(command, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--pretrain-weight", stored, "--ipc", 2, "--sampling", "fixed", "--ranking", "--epochs", 1, "--min-steps", 1,
             "--full-epochs", 1, "--num-eval", 1)
    command(validate, *words)
    rows = read_report(tmp_path / "results/test/report.json")
    assert [(row["source"], row.get("augmentation")) for row in rows] == [
        ("stored", None), (REAL, None), ("stored", "none"), (REAL, "none"), (WHOLE, None)]
    assert rows[0]["accuracies"] != rows[2]["accuracies"]
    scores = json.loads((tmp_path / "results/test/ranking.json").read_text())
    assert scores == rankings(rows)
    assert "DD-Ranking of sets of digits" in (tmp_path / "results/test/report.html").read_text()
    command(validate, *words[:-1], 2, "--resume")
    assert [each["n"] for each in rankings(read_report(tmp_path / "results/test/report.json"))] == [2]


def test_only_sets_are_ranked(fails, stored):
    for sampling in (("fresh",), ("representative",), ("fixed", "fresh")):
        assert "use --sampling fixed" in fails(2, validate, "--pretrain-weight", stored, "--ranking", "--sampling", *sampling)
    for words in (("--aug-type", "none"), ("--protocol", "dc")):
        assert "give --aug-type" in fails(2, validate, "--pretrain-weight", stored, "--ranking", "--sampling", "fixed", *words)


class Noise(Source):
    """Images of CIFAR-10's shape."""

    num_classes, channels, size = 10, 3, 32

    def sample(self, labels, seed=0):
        return labels[:, None, None, None].float().expand(-1, 3, 32, 32) / 5 - 1


def test_a_set_is_written_as_the_package_reads_it(command, tmp_path):
    run = tmp_path / "run"
    pixels = PixelSet(size=32, channels=3, num_classes=10, ipc=2)
    torch.nn.init.uniform_(pixels.pixels, -1, 1)
    pixels.save_pretrained(run / "pixels")
    classes = [f"class{label}" for label in range(10)]
    (run / CONFIG).write_text(json.dumps(
        {"commands": [["pool_match.py"]], "dataset": {"name": "cifar10-jpeg", "classes": classes}}))
    for _ in range(2):  # the second replaces the first
        command(sample, "--pretrain-weight", run, "--ipc", 2, "--format", "ddranking", "--output-dir", tmp_path / "set")
    folder = tmp_path / "set" / "ddranking"
    read = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
    drawn, labels = draw_set(pixels, 2, 0)
    moments = SimpleNamespace(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    assert torch.equal(read["images"], standardise(to_signed(drawn), moments))
    assert (read["labels"].tolist(), read["lr"].item()) == (labels.tolist(), pytest.approx(0.05))
    config = json.loads((folder / "config.json").read_text())
    assert (config["dataset"], config["ipc"], config["im_size"], config["model_name"]) == ("CIFAR10", 2, [32, 32], "ConvNet-3")


def test_rows_of_a_teacher_are_soft_labels(tmp_path):
    logits, images = torch.randn(40, 10), torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    labels, learned = torch.arange(10).repeat_interleave(4), Noise()
    learned.step_size = 0.3
    RankingExport({"name": "cifar10"}, learned).write(tmp_path / "learned", 1, images, labels, logits, learned=True)
    assert torch.load(tmp_path / "learned" / "lr.pt", weights_only=True) == pytest.approx(0.3)
    assert json.loads((tmp_path / "learned" / "config.json").read_text())["loss_fn_kwargs"]["temperature"] == 1
    with pytest.raises(UserError, match="name a run without --whiten zca"):
        RankingExport({"name": "cifar10", "whitening": "zca"}, learned)
    with pytest.raises(UserError, match="in alphabetical order, and these are truck, ship, horse, "):
        RankingExport({"name": "cifar10", "classes": ["truck", "ship", "horse"]}, learned)
    RankingExport({"name": "cifar10"}, Noise()).write(tmp_path / "set", 1, images, labels, logits)
    assert json.loads((tmp_path / "set" / "config.json").read_text())["loss_fn_kwargs"]["temperature"] == 2
    assert torch.equal(torch.load(tmp_path / "set" / "soft_labels.pt", weights_only=True), logits)
    assert not (tmp_path / "set" / "labels.pt").exists()
    config = json.loads((tmp_path / "set" / "config.json").read_text())
    assert (config["ipc"], config["soft_label_mode"]) == (4, "S")  # it makes four labels of every class itself


def test_the_package_reads_its_config(tmp_path):
    package = pytest.importorskip("ddranking")
    RankingExport({"name": "cifar10"}, Noise()).write(tmp_path / "set", 1, torch.zeros(10, 3, 32, 32, dtype=torch.uint8),
                                                      torch.arange(10))
    config = package.Config.from_file(str(tmp_path / "set" / "config.json"))
    assert (config.get("im_size"), config.get("custom_train_trans")) == ((32, 32), None)
    augment = package.DSA(config.get("aug_params"))
    for _ in range(20):
        assert augment(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("facts", [{}, {"name": "svhn"}, {"name": "cifar100"}])
def test_another_data_set_is_refused(facts):
    with pytest.raises(UserError, match="its package knows cifar10, cifar100, tinyimagenet, and these are 10 classes"):
        RankingExport(facts, Noise())


def test_an_export_that_is_refused_leaves_nothing(fails, stored, tmp_path):
    assert "--format ddranking" in fails(2, sample, "--pretrain-weight", stored, "--format", "ddranking", "--output-dir",
                                         tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.fixture
def ranked(tmp_path):
    """A run that ranks `dm`, and a set of that name for the package, whose students see it for one epoch."""
    folder = write_folder(tmp_path / "cifar10-flat", "abcdefghij", "RGB", (32, 32), 12)
    run, exported = tmp_path / "run", tmp_path / "set" / "ddranking"
    run.mkdir()
    (run / CONFIG).write_text(json.dumps({"commands": [], "data": str(folder), "data_dir": str(tmp_path / "cache")}))
    (run / "report.json").write_text(json.dumps([{**row, "ipc": row["ipc"] and 2} for row in ROWS]))
    exported.parent.mkdir()
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    RankingExport({"name": "cifar10"}, Noise()).write(exported, 2, images, torch.arange(10).repeat_interleave(2))
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "num_epochs": 1}))
    return run


def test_the_package_ranks_beside_us(command, ranked, tmp_path):
    pytest.importorskip("ddranking")
    command(ranking, "--run", ranked, "--sets", f"dm={tmp_path / 'set'}", "--num-eval", 1, "--test-interval", 1, "--output",
            tmp_path / "out.json")
    row, = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["source"] == "dm"
    own = 85 - row["package"]["hlr"]["mean"]  # all real images are those of the run
    assert 0 <= own <= 100
    assert own - 100 <= row["package"]["ior"]["mean"] <= own
    assert (row["here"]["hlr"], row["here"]["ior"], row["here"]["n"]) == (23, 20, 2)


def test_the_scores_of_both_programs_are_a_table(command, tmp_path):
    theirs = {"hlr": {"mean": 30.0}, "ior": {"mean": 10.0}, "lrs": {"mean": -0.1565}}
    rows = [{"source": name, "package": theirs, "here": {"hlr": 23.0, "ior": 20.0, "lrs": lrs, "n": 2}}
            for name, lrs in (("dm", 26.0), ("idc", 27.0))]
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "out.json").write_text(json.dumps({"device": "abacus", "torch": "3.1", "students": 1, "rows": rows}))
    (tmp_path / "page.md").write_text("<!-- ranking: out.json -->\n<!-- /ranking -->\n")
    command(document, tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    cells = ["idc", "30.00", "23.00", "10.00", "20.00", "-15.65", f"{score(-10):.2f}", "27.00"]
    assert lines[3] == f"| {' | '.join(cells)} |"
    assert lines[4].startswith("| dm |")
    assert "2 here. abacus, torch 3.1" in lines[6]


def test_sets_that_no_run_ranks_are_refused(fails, ranked, tmp_path):
    words = ("--run", ranked, "--output", tmp_path / "out.json", "--sets")
    assert "ranks no fixed set of this name and size" in fails(2, ranking, *words, f"idc={tmp_path / 'set'}")
    assert "--sets" in fails(2, ranking, *words, f"dm={tmp_path / 'nowhere'}")
