"""Every method by its command line, and every combination of the four choices."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_CLASSIFIER, SMALL_POOL
from prototypes import make_learner, matcher_for, reaches_the_generator

import gen_condense
import pool_match
import sample
import validate
from gendistil.common.engine import Engine
from gendistil.common.files import load_checkpoint, read_json
from gendistil.data import to_uint8
from gendistil.evaluation import Result, selection
from gendistil.matching import METHODS, OBJECTIVES, SELECTORS, choices, initial, method_for, networks
from gendistil.sources import PixelSet, load_source
from pools import OnlinePool, RandomPool

SCORED = ("--eval-epochs", 1, "--eval-interval", 100, "--log-interval", 1)
QUICK = ("--match-batch", 4, *SCORED)


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize(("learn", "match"), [
    (learn, match) for learn in ("generator", "pixels", "multi-formation", "latents") for match, row in OBJECTIVES.items()
    # Only latents are paired with real images, and tests/test_unroll.py has those that train networks.
    if row.per != "training" and (row.paired != "real" or learn == "latents")])
def test_every_combination(digits, learn, match, select):
    learner = make_learner(learn, digits, Accelerator(cpu=True), 4 if learn == "latents" else 2, started=True)
    before = [value.clone() for value in learner.source.parameters()]
    # Pairs, which the logit objective compares, need as many real images as decoded ones.
    per_class = 8 if learn == "multi-formation" else 2
    small = {"names": (SMALL_CLASSIFIER,)}
    for pool in (RandomPool(digits, **small), OnlinePool(digits, **small, trained_on="synthetic", outer=2, inner=1)):
        matcher = matcher_for(learner, digits, pool, match, match_weight=None, select=select, match_classes=2,
                              match_batch=per_class, aug_type="color_crop")
        for step in range(2):
            assert all(value.isfinite() for value in learner.step(step, matcher).values())
        assert learn != "generator" or reaches_the_generator(matcher)
    assert any(not torch.equal(*pair) for pair in zip(before, learner.source.parameters()))
    learner.check(2)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items()
                                    if row.learn == "pixels" and OBJECTIVES[row.match].per != "training"])
def test_every_preset_runs_and_is_judged(command, tmp_path, method):
    shared = ("--output-dir", tmp_path)
    steps = SCORED if METHODS[method].steps == 0 else (*QUICK, "--steps", 2)
    steps += SMALL_POOL if METHODS[method].pool_training == "pretrained" else ()
    command(pool_match, *shared, "--tag", "set", "--method", method, "--ipc", 2, *steps)
    source = load_source(tmp_path / "set")
    assert isinstance(source, PixelSet)
    assert source.decoded(2) == 2 * METHODS[method].factor ** 2
    config = read_json(tmp_path / "set" / "config.json")
    assert config["method_values"]["match"] == METHODS[method].match
    command(validate, *shared, "--tag", "test", "--pretrain-weight", tmp_path / "set", "--ipc", 1, 2, "--sampling", "fixed",
            "--num-eval", 1, "--epochs", 1, "--min-steps", 1)
    rows = json.loads((tmp_path / "test" / "report.json").read_text())
    assert [row["images"] for row in rows] == [10 * source.decoded(1), 10 * source.decoded(2)]
    command(sample, "--pretrain-weight", tmp_path / "set", "--ipc", 2, "--output-dir", tmp_path / "export")
    assert len(list((tmp_path / "export").rglob("images/*/*.png"))) == 10 * source.decoded(2)


def test_a_resumed_run_keeps_the_values_that_it_began_with(command, tmp_path, monkeypatch):
    words = ("--output-dir", tmp_path, "--method", "dm", "--ipc", 1, *QUICK)
    command(pool_match, *words, "--steps", 1)
    monkeypatch.setitem(METHODS, "dm", replace(METHODS["dm"], match="energy", lr=5.0, momentum=0.1))  # as a later version may
    command(pool_match, *words, "--steps", 2, "--resume")
    values = read_json(tmp_path / "match" / "config.json")["method_values"]
    assert [values[name] for name in ("match", "lr", "momentum", "steps")] == ["mean", 1.0, 0.5, 2]


def test_a_run_goes_on_with_its_pool_in_another_precision(command, tmp_path):
    words = ("--output-dir", tmp_path, "--method", "herding", "--ipc", 1, "--eval-epochs", 1, *SMALL_POOL)
    command(pool_match, *words, "--precision", "fp32")
    command(pool_match, *words, "--precision", "bf16", "--resume")
    assert len(list((tmp_path / "pools").iterdir())) == 1


def test_stage_2_hands_on_the_recipe_of_stage_1(command, tmp_path):
    shared = ("--output-dir", tmp_path, "--overwrite")
    command(gen_condense, *shared, "--width", 8, "--batch-size", 4, "--steps", 1, "--lr", 1e-3)
    quick = (*QUICK, *SMALL_POOL, "--steps", 1)
    command(pool_match, *shared, "--weight", tmp_path / "gan", *quick, "--lr", 1e-6, "--batch-size", 6)
    command(pool_match, *shared, "--tag", "again", "--weight", tmp_path / "match", *quick)
    recipes = [read_json(tmp_path / tag / "config.json")["recipe_values"] for tag in ("match", "again")]
    assert [(recipe["lr"], recipe["batch_size"]) for recipe in recipes] == [(1e-6, 6), (1e-3, 4)]


@pytest.mark.parametrize("method", ["dm", "dsa", "dream+"])
def test_resuming_pixels_gives_what_one_run_gives(command, tmp_path, on_the_cpu, method):
    words = ("--output-dir", tmp_path, "--method", method, "--ipc", 2, *QUICK)
    command(pool_match, *words, "--tag", "whole", "--steps", 5)
    command(pool_match, *words, "--tag", "parts", "--steps", 3)
    command(pool_match, *words, "--tag", "parts", "--steps", 5, "--resume")
    whole, parts = (load_checkpoint(tmp_path / tag / "checkpoint.pt")["pixels"]["pixels"] for tag in ("whole", "parts"))
    assert torch.equal(whole, parts)


def test_several_images_are_taken_around_a_centroid(command, tmp_path):
    command(pool_match, "--output-dir", tmp_path, "--method", "dream+", "--factor", 2, "--ipc", 10, "--select-nearest", 2,
            *QUICK, "--steps", 1)
    values = json.loads((tmp_path / "match" / "config.json").read_text())["method_values"]
    assert (values["select"], values["select_nearest"]) == ("dream", 2)
    assert load_source(tmp_path / "match").decoded(10) == 40


@pytest.mark.parametrize("words", [
    "--method ncfm --match outcome --calibrate 0 --pool-training random --unroll 1 --window 0 --factor 1",
    "--method ncfm --pool-training random --calibrate 0", "--method dream+ --match mean --mean-weight 0"])
def test_a_weight_of_the_method_can_be_left_out(command, tmp_path, words):
    command(pool_match, "--output-dir", tmp_path, *words.split(), "--ipc", 2, *QUICK, "--steps", 1)
    values = json.loads((tmp_path / "match" / "config.json").read_text())["method_values"]
    assert values["calibrate"] == values["mean_weight"] == 0


@pytest.mark.parametrize("words", ["--pool-training random", " ".join(map(str, ("--match grad", *SMALL_POOL)))])
def test_calibration_by_the_method_falls_away_where_it_means_nothing(command, tmp_path, words):
    command(pool_match, "--output-dir", tmp_path, "--method", "ncfm", *words.split(), "--ipc", 2, *QUICK, "--steps", 1)
    assert json.loads((tmp_path / "match" / "config.json").read_text())["method_values"]["calibrate"] == 0


def test_a_combination_that_no_paper_has(command, tmp_path):
    """Gradient matching of a generator's weights on DREAM batches, by flags alone."""
    command(gen_condense, "--output-dir", tmp_path, "--width", 8, "--batch-size", 4, "--steps", 1)
    command(pool_match, "--output-dir", tmp_path, "--weight", tmp_path / "gan", "--match", "grad", "--metric", "cos",
            "--select", "dream", "--pool-training", "real", "--outer", 2, *QUICK, "--steps", 3)
    values = json.loads((tmp_path / "match" / "config.json").read_text())["method_values"]
    assert [values[name] for name in ("learn", "match", "metric", "select", "pool_training")] == [
        "generator", "grad", "cos", "dream", "real"]
    assert (tmp_path / "match" / "generator").is_dir()


def test_held_out_images_choose_by_all_stored_pixels(command, tmp_path, monkeypatch):
    asked, seen, result = [], [], Result((90.0,), images=10, epochs=1, steps=1, seconds=1.0)
    monkeypatch.setattr(selection, "evaluate", lambda source, dataset, model, ipc, *args, **options: (
        asked.append(ipc), seen.append((options["scored_on"], options["seed"])), result)[2])
    for words in (["--ipc", 12], ["--ipc", 12, "--eval-ipc", 3], ["--ipc", 2]):
        command(pool_match, "--output-dir", tmp_path, "--overwrite", "--method", "random", "--seed", 7, *words)
    assert asked == [12, 3, 2]
    assert all(scored_on == "held_out" and seed != 7 for scored_on, seed in seen)  # 7: the first student that is reported


def test_what_scored_best_is_kept_where_a_method_says_so(command, tmp_path, monkeypatch):
    scores = iter((50.0, 40.0) * 2)
    monkeypatch.setattr(selection, "evaluate", lambda *args, **options: Result((next(scores),), 10, 1, 1, 1.0))
    for keep, best in (("best", 1), ("last", 2)):
        command(pool_match, "--output-dir", tmp_path, "--tag", keep, "--method", "dm", "--ipc", 1, "--match-batch", 4,
                "--pool", "convnet:depth=1,width=8", "--steps", 2, "--eval-interval", 1, "--keep", keep)
        assert json.loads((tmp_path / keep / "summary.json").read_text())["best_step"] == best
    assert not torch.equal(*(load_source(tmp_path / keep).pixels for keep in ("best", "last")))


@pytest.mark.parametrize(("words", "said"), [
    (["--method", "dm", "--weight", "x"], "--weight is not for --method dm, which learns pixels"),
    (["--method", "dm", "--match", "none"], "--match none is not for --method dm"),
    (["--method", "dsa", "--control-of", "x"], "--control-of is not for --method dsa"),
    (["--init", "real", "--weight", "x"], "--init is not for --method default, which learns the weights of a generator"),
    ([], "--method default starts from a generator: give --weight"),
    (["--method", "herding", "--ipc", "5000"], "fewer than the 5000 that --init herding asks for: lower --ipc"),
    (["--method", "dm", "--aug-setting", "image", "--steps", "1"], "use --aug-setting class"),
    (["--method", "dm", "--metric", "angle"], "invalid choice: 'angle'"),
    (["--method", "idc", "--pool", "mlp"], "--pool mlp: it has no convolutions"),
    (["--method", "ncfm", "--match", "grad", "--calibrate", 0.1], "--match mean, moments, energy, cf, or --calibrate 0"),
    (["--method", "ncfm", "--no-pool-initial"], "give --pool-snapshots 2 or more, or --pool-initial"),
    (["--method", "ncfm", "--momentum", 0.9], "--momentum does nothing beside --optimizer adam"),
    (["--method", "dc", "--aug-type", "crop"], "--aug-type does nothing beside --no-match-aug"),
    (["--method", "dm", "--decoder", "multi"], "--decoder does nothing beside --factor 1"),
    (["--method", "dm", "--select-interval", 5], "--select-interval does nothing beside --select random"),
    (["--method", "dream", "--select-candidates", 4], "--select-candidates 4 leaves no choice of the 4 images of a class"),
    (["--method", "inversion", "--weight", "x", "--momentum", 0.9], "--momentum does nothing beside --chunk-steps"),
    (["--method", "igd", "--weight", "x", "--match-weight", 2], "--match-weight does nothing beside --steer"),
    (["--method", "igd", "--weight", "x", "--pull-until", 0.3], "--pull-until does nothing beside --pull 0"),
    (["--method", "dm", "--pool-epochs", "3"], "--pool-epochs is not for networks of --pool-training random, which --method"),
    (["--method", "dsa", "--pool-images", "3"], "--pool-images is not for networks of --pool-training synthetic"),
    (["--method", "idc", "--pool-training", "random", "--inner", "3"], "--inner is not for networks of --pool-training random"),
])
def test_bad_flags(fails, tmp_path, words, said):
    error = fails(2, pool_match, "--output-dir", tmp_path, *(SCORED if "herding" in words else QUICK), *words)
    assert said in error
    assert len(error.splitlines()) == 1
    if "herding" not in words:
        assert not (tmp_path / "pools").exists()  # it is said before classifiers are trained


CORESET = "does nothing at --steps 0, where nothing is learned"


@pytest.mark.parametrize(("words", "said"), [
    *((f"--method random {flag}", f"{flag.split()[0].replace('--no-', '--')} {CORESET} (--method random)") for flag in (
        "--match logit", "--match-weight 2", "--match-classes 2", "--match-batch 4", "--no-match-aug", "--aug-type crop",
        "--aug-single", "--aug-setting image", "--class-batch 2", "--select dream", "--syn-batch 1", "--optimizer adam",
        "--momentum 0.9", "--lr 2", "--space unit", "--keep best")),
    ("--method herding --pool-mix", f"--pool-mix {CORESET}"),
    ("--weight x --steps 0 --ema 0.5", f"--ema {CORESET}"),
    ("--method herding --match-real 4", f"--match-real {CORESET}"),
    ("--method herding --calibrate 1", f"--calibrate {CORESET}"),
    ("--method dm --steps 0 --select-interval 5", f"--select-interval {CORESET}"),
    ("--method dream+ --steps 0 --mean-weight 2", f"--mean-weight {CORESET}"),
    ("--method idc --steps 0 --inner 2", f"--inner {CORESET}"),
    ("--method idc --steps 0 --pool-cutmix 1", f"--pool-cutmix {CORESET}"),
    ("--method dm --steps 0 --match energy", f"--match {CORESET}"),
    ("--method inversion --weight x --steps 0 --chunk-steps 2", f"--chunk-steps {CORESET}"),
    ("--weight x --steps 0 --match logit", f"--match {CORESET}"),
    *((f"--weight x --match none {flag}", f"{flag.split()[0].replace('--no-', '--')} is not for --match none") for flag in (
        "--metric dc", "--match-weight 2", "--select random", "--no-match-aug", "--aug-single", "--pool mlp",
        "--pool-training random", "--pool-members 1", "--pool-mix")),
    ("--method inversion --weight x --match-batch 4", "--match-batch is not for --match paired"),
    ("--method inversion --weight x --keep best", "--keep does nothing beside --chunk-steps"),
    ("--method dm --no-match-aug --aug-single", "--aug-single does nothing beside --no-match-aug or --aug-type none"),
    ("--method dm --aug-type none --aug-single", "--aug-single does nothing beside --no-match-aug or --aug-type none"),
    ("--method dm --aug-type none --aug-setting class", "--aug-setting does nothing beside --no-match-aug or --aug-type none"),
    ("--method dream+ --outer 1 --inner 2", "--inner does nothing beside --outer 1, where a network learns by --pool-warmup"),
    ("--method dream+ --outer 1 --pool-images 9", "--pool-images does nothing beside --outer 1"),
    ("--method datm --data cifar10 --ipc 1 --start-grows 5", "--start-grows does nothing beside --first-max-start 0"),
    ("--method dc --ipc 1 --inner 2", "--inner does nothing where every step has a new network"),
    *((f"--method mtt --steps 0 {flag}", f"{flag.split()[0]} does nothing at --steps 0, where nothing is learned") for flag in (
        "--clip 2", "--unroll-batch 5", "--skip-above 1", "--window 2", "--min-start 1")),
    ("--method datm --steps 0 --data cifar10 --ipc 1 --start-grows 5", "--start-grows does nothing at --steps 0"),
])
def test_flags_that_do_nothing_are_refused_before_data_are_loaded(fails, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(pool_match, "load_asked", None)
    error = fails(2, pool_match, "--output-dir", tmp_path, *words.split())
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("words", [
    "--method herding --pool mlp --pool-lr 0.1 --pool-aug none --calibrate 0",
    "--method random --pool-training expert --aug-single",
    "--method herding --pool-training real --pool-warmup 1 --pool-cutmix 0",
    "--method random --match trajectory --pool-training expert --label-lr 1 --step-size 0.1 --step-size-lr 0.1",
    "--method random --match outcome --pool-training pretrained --label-lr 1", "--weight x --steps 0 --match none",
    "--weight x --match none --match-classes 2 --match-batch 4", "--method dream --data cifar10 --outer 2 --inner 2",
    "--method mtt --no-match-aug --no-aug-single", "--method dsa --ipc 10 --no-match-aug --aug-single --pool-lr 0.1",
    "--method datm --data cifar10 --ipc 10 --start-grows 5", "--method dc --ipc 10 --inner 2"])
def test_flags_that_do_something_are_not(tmp_path, words):
    pool_match.parse_args(["--output-dir", str(tmp_path), *words.split()])


def test_the_table_of_methods_names_each_once_and_what_does_nothing_by_a_dash():
    header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in choices.table().splitlines())
    assert [line[0] for line in lines] == list(METHODS)
    found = {line[0]: dict(zip(header, line)) for line in lines}
    assert [found[name]["metric"] for name in ("dm", "dsa", "herding")] == ["–", "dc", "–"]
    assert [found[name]["aug_type"] for name in ("dc", "dd", "dsa")] == ["–", "–", METHODS["dsa"].aug_type]
    assert (found["dc"]["pool_training"], found["random"]["match"], found["mtt"]["select"]) == ("synthetic", "–", "–")


def test_a_row_of_a_plugin_keeps_its_own_loops(monkeypatch):
    monkeypatch.setitem(METHODS, "own", replace(METHODS["dm"], pool_training="synthetic", outer=5, inner=2, steps=300))
    monkeypatch.setitem(METHODS, "shorter", replace(METHODS["dc"], steps=300))
    monkeypatch.setitem(METHODS, "loops", replace(METHODS["dc"], outer=5, inner=2))
    rows = [method_for(name, "digits", 10) for name in ("own", "shorter", "loops", "dc")]
    assert [(row.outer, row.inner, row.steps) for row in rows] == [(5, 2, 300), (10, 50, 300), (5, 2, 10_000), (10, 50, 10_000)]


def test_what_a_plugin_adds_is_a_choice_and_told(command, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(initial.CHOOSERS, "first", lambda points, count, generator: torch.arange(count))
    monkeypatch.setitem(networks.POOLS, "one", replace(networks.POOLS["random"], words="never, and always the same"))
    command(pool_match, "--output-dir", tmp_path, "--method", "random", "--init", "first", "--ipc", 2, "--eval-epochs", 1)
    real = digits.train
    kept = to_uint8(load_source(tmp_path / "match").pixels.detach())
    assert all(torch.equal(images, real.images[real.labels == label][:2]) for label, images in enumerate(kept))
    with pytest.raises(SystemExit):
        pool_match.parse_args(["--help"])
    assert "one: never, and always the same" in " ".join(capsys.readouterr().out.split())


def test_steps_in_an_order_take_every_image(fails, tmp_path):
    words = ("--output-dir", tmp_path, "--method", "dd", "--ipc", 3, "--unroll", 2)
    assert "--unroll 2: each step takes another image of a class, and there are 3: raise it" in fails(2, pool_match, *words)
    assert [choices.method_of(pool_match.parse_args(["--method", "dd", "--ipc", ipc, *more])).unroll
            for ipc, *more in (("1",), ("20",), ("20", "--unroll", "25"))] == [3, 60, 25]


def test_a_coreset_keeps_the_labels_that_a_training_would_start_from(command, tmp_path):
    command(pool_match, "--output-dir", tmp_path, "--method", "random", "--ipc", 2, "--match", "outcome", "--label-lr", 1,
            "--pool-training", "pretrained", *SMALL_POOL, *SCORED)
    assert load_source(tmp_path / "match").soft


def test_flags_reach_the_pool_that_they_are_for(digits, tmp_path, monkeypatch):
    for name in ("OnlinePool", "ClassifierPool"):
        monkeypatch.setattr(networks, name, lambda *args, **given: given)
    of_training = {"pool_batch": 6, "pool_lr": 0.1, "pool_momentum": 0.2, "pool_decay": 0.3}
    method = replace(METHODS["dream+"], outer=2, inner=3, pool_images=4, pool_warmup=5, pool_cutmix=0.4, **of_training)
    given = networks.make_pool(method, tmp_path, 7, digits, Engine(Accelerator(cpu=True)))
    expected = {"outer": 2, "inner": 3, "images": 4, "warmup": 5, "batch_size": 6, "lr": 0.1, "momentum": 0.2,
                "weight_decay": 0.3, "cutmix": 0.4, "seed": 7, "trained_on": "real"}
    assert given.items() >= expected.items()
    method = replace(METHODS["mtt"], pool_members=2, pool_epochs=3, aug_single=True, **of_training)
    given = networks.make_pool(method, tmp_path, 7, digits, Engine(Accelerator(cpu=True)))
    expected = {"members": 2, "epochs": 3, "batch_size": 6, "lr": 0.1, "momentum": 0.2, "weight_decay": 0.3, "aug_single": True,
                "snapshots": "epochs", "schedule": "constant"}
    assert given.items() >= expected.items()
