"""Stage 1: what its recipes can change, and that a run ends by its scores, resumes to the bit and reads older checkpoints."""

import json
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from checkpoints import assert_same_weights, contents
from conftest import SMALL_CLASSIFIER, SMALL_POOL

import gen_condense
import pool_match
from gendistil.common.errors import Diverged
from gendistil.common.files import load_checkpoint, read_json, save_checkpoint, write_json
from gendistil.common.loop import Interruptible
from gendistil.data import Split, load_asked, to_signed
from gendistil.evaluation import selection
from gendistil.matching import GeneratorLearner
from generators import GAN, RECIPES, GANRecipe
from generators.losses import PENALTIES
from generators.trainer import DECAYS

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SMALL = ("--width", 8, "--batch-size", 8, "--log-interval", 1, "--sample-interval", 100)
TINY = replace(RECIPES["pyramid"], width=8, batch_size=16)


@pytest.fixture
def batch(digits):
    return to_signed(digits.train.images[:16]), digits.train.labels[:16]


def trainer(spec, **values):
    return GAN(Accelerator(cpu=True), spec, replace(TINY, **values), seed=0)


def scores(run):
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(entry["step"], entry["held_out_accuracy"]) for entry in entries if "held_out_accuracy" in entry]


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_only_a_loss_of_pairs_shows_the_generator_real_images(digits, batch, loss):
    images, labels = batch
    made = []
    for real in (images, -images):
        gan = trainer(digits.spec, loss=loss)
        gan.generator_step(real, labels, 0)
        made.append(gan.source.sample(labels, 0))
    assert torch.equal(*made) == (loss == "hinge")


def test_pairs_are_of_one_class(digits, batch, monkeypatch):
    seen = []
    monkeypatch.setitem(PENALTIES, "r1+r2", lambda critic, real, fake, labels, fake_labels, alpha: (
        seen.append((labels, fake_labels)), real.new_zeros(()))[1])
    for loss in ("relativistic", "hinge"):
        trainer(digits.spec, loss=loss, penalty="r1+r2").critic_step(*batch, 0)
    assert torch.equal(*seen[0])
    assert not torch.equal(*seen[1])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_pairs_and_both_penalties_train(digits, batch, precision):
    recipe = replace(TINY, loss="relativistic", penalty="r1+r2", penalty_interval=2, gan_aug="color_crop_cutout")
    gan = GAN(Accelerator(cpu=True, mixed_precision=precision), digits.spec, recipe, seed=0)
    reports = [gan.step(*batch, step) for step in range(3)]
    assert ["penalty" in report for report in reports] == [True, False, True]
    assert all(value.isfinite() for report in reports for value in report.values())
    gan.check(3)


def test_flips_mirror_some_real_images_by_draws_of_their_own(digits, batch, monkeypatch):
    images, labels = batch
    seen = []
    monkeypatch.setattr(GAN, "critic_step", lambda self, real, labels, step: seen.append(real) or {})
    may = replace(digits.spec, flip=True)
    for spec, flip, step in ((may, True, 0), (may, True, 0), (may, True, 1), (may, False, 0), (digits.spec, True, 0)):
        trainer(spec, flip=flip).step(images, labels, step)
    first, again, later, without, digit = seen
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(first, images)])
    assert torch.equal(first, torch.where(mirrored[:, None, None, None], images.flip(3), images))
    assert 0 < mirrored.sum() < len(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(without, images)
    assert torch.equal(digit, images)  # a mirrored digit is another one


@pytest.mark.parametrize(("ema", "decays"), [(0.9, {0: 0.1, 200: 0.9}), (0.0, {200: 0.0})])
def test_the_averaged_weights_follow_faster_at_the_start(digits, ema, decays):
    gan = trainer(digits.spec, ema=ema)
    for step, decay in decays.items():
        before = [weight.clone() for weight in gan.source.parameters()]
        for weight in gan.generator.parameters():
            weight.data.add_(1)
        gan.average(step)
        for old, live, new in zip(before, gan.generator.parameters(), gan.source.parameters()):
            torch.testing.assert_close(new, decay * old + (1 - decay) * live)


def test_stage_2_counts_on_where_stage_1_stopped(digits, monkeypatch):
    gan, seen = trainer(digits.spec), []
    monkeypatch.setattr(gan, "step", lambda images, labels, step, term: seen.append(step) or {})
    GeneratorLearner(gan, digits, steps_before=50).step(3, None)
    assert seen == [53]


def test_what_a_step_of_a_gan_adds_up(digits, batch, monkeypatch):
    gan, losses = trainer(digits.spec, generator="dim", dim_noise=20, loss="wgan", penalty="wgan-gp", gradient_penalty=10.0,
                          penalty_interval=2), []
    backward = gan.accelerator.backward
    monkeypatch.setattr(gan.accelerator, "backward", lambda loss: (losses.append(float(loss.detach())), backward(loss)))
    report = {**gan.critic_step(*batch, 0), **gan.generator_step(*batch, 0)}
    found = {name: float(value.detach()) for name, value in report.items()}
    assert losses == pytest.approx([found["critic"] + found["critic_classes"] + 20 * found["penalty"],
                                    found["generator"] + found["generator_classes"]], rel=1e-5)


def test_the_critic_sees_augmented_images_in_both_steps(digits, batch):
    gan, shown = trainer(digits.spec, gan_aug="cutout"), []
    gan.critic.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    gan.critic_step(*batch, 0)
    gan.generator_step(*batch, 0)
    assert len(shown) >= 3
    assert all((images == 0).flatten(1).sum(1).min() >= 4 for images in shown)


@pytest.mark.parametrize(("name", "expected"), [("none", [1, 1, 1, 1]), ("linear", [1, 1, 0.5, 0.1]),
                                                ("cosine", [1, 1, 0.5, 0.0244717])])
def test_rates_fall_over_the_second_half(digits, name, expected):
    gan = trainer(digits.spec, lr_decay=name)
    rates = []
    for progress in (0, 0.5, 0.75, 0.95):
        gan.pace(progress)
        rates.append((gan.optim_g.param_groups[0]["lr"] / TINY.lr, gan.optim_d.param_groups[0]["lr"] / TINY.lr_critic))
    assert rates == [pytest.approx((value, value), rel=1e-5) for value in expected]


def test_a_run_goes_on_at_its_own_rates_and_to_its_own_length(command, tmp_path):
    words = (*SMALL, "--output-dir", tmp_path)
    command(gen_condense, *words, "--lr", 1e-6, "--steps", 3)
    file = tmp_path / "gan" / "config.json"
    write_json(file, {**read_json(file), "refinement": {"noise_std": 1.2}})
    for more, steps, lr in (((), 3, 1e-6), (("--steps", 4, "--lr", 1e-5), 4, 1e-5), ((), 4, 1e-5)):
        command(gen_condense, *words, "--resume", *more)
        state, config = load_checkpoint(tmp_path / "gan" / "checkpoint.pt"), read_json(file)
        assert (state["step"], config["steps"], config["recipe_values"]["lr"]) == (steps, steps, lr)
        assert config["refinement"] == {"noise_std": 1.2}


@pytest.mark.parametrize("decay", sorted(set(DECAYS) - {"none"}))
def test_a_decay_resumes_exactly_and_stage_2_has_none(command, fails, tmp_path, monkeypatch, decay):
    words = (*SMALL, "--output-dir", tmp_path, "--lr-decay", decay, "--steps", 6, "--tag")
    command(gen_condense, *words, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Interruptible, "requested", lambda self, step: step == 4)
        fails(130, gen_condense, *words, "cut")
    command(gen_condense, *words, "cut", "--resume")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    state = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")
    rate = DECAYS[decay](2 * 5 / 6 - 1)
    assert state["optim_g"]["param_groups"][0]["lr"] == pytest.approx(RECIPES["pyramid"].lr * rate)
    command(pool_match, "--output-dir", tmp_path, "--weight", tmp_path / "cut", "--match", "none", "--steps", 1,
            "--eval-epochs", 1, "--eval-ipc", 1)
    state = load_checkpoint(tmp_path / "match" / "checkpoint.pt")
    assert state["optim_g"]["param_groups"][0]["lr"] == RECIPES["pyramid"].lr


def test_checkpoints_without_the_newer_values_go_on(command, tmp_path):
    words = (*SMALL, "--output-dir", tmp_path, "--tag")
    command(gen_condense, *words, "whole", "--steps", 4)
    command(gen_condense, *words, "old", "--steps", 2)
    newer = {field.name for field in fields(GANRecipe) if field.default is not MISSING}
    assert newer >= {"lr_decay", "flip"}
    state = load_checkpoint(tmp_path / "old" / "checkpoint.pt")
    state["recipe"] = {name: value for name, value in state["recipe"].items() if name not in newer}
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", state)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    later = {*newer, *(field.name for field in fields(selection.Stopping))}
    write_json(tmp_path / "old" / "config.json", {name: value for name, value in config.items() if name not in later})
    command(gen_condense, *words, "old", "--steps", 4, "--resume")
    assert_same_weights(tmp_path / "whole", tmp_path / "old")


@pytest.fixture
def scripted(monkeypatch):
    """Let the students of a run have these accuracies, one after another: `scripted(*accuracies)`."""

    def script(*accuracies):
        left = iter(accuracies)
        monkeypatch.setattr(selection, "evaluate", lambda *args, **options: SimpleNamespace(mean=next(left)))

    return script


def test_a_run_ends_when_scores_no_longer_rise(command, fails, tmp_path, monkeypatch, capsys, scripted):
    words = (*SMALL, "--output-dir", tmp_path, "--steps", 40, "--auto-stop", "--eval-interval", 2, "--save-interval", 3,
             "--tag")
    accuracies = (20.0, 30.0, 25.0, 30.0, 10.0)  # an equal score replaces what is kept and is no rise
    scripted(*accuracies)
    command(gen_condense, *words, "whole")
    line = "ended at step 10 (no rise above 30.00 % in 3 held-out scores); the generator of step 8 is kept"
    assert line in capsys.readouterr().out
    assert scores(tmp_path / "whole") == [*zip((2, 4, 6, 8, 10), accuracies)]
    assert load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["step"] == 10

    scripted(*accuracies)
    with monkeypatch.context() as patch:
        patch.setattr(Interruptible, "requested", lambda self, step: step == 7)
        fails(130, gen_condense, *words, "cut")
    command(gen_condense, *words, "cut", "--resume")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")

    saved = []
    scripted(20.0, 30.0, 25.0, 30.0, 10.0)
    with monkeypatch.context() as patch:
        patch.setattr(gen_condense.Run, "save", lambda run, state: saved.append((state["step"], state["summary"]["best_step"])))
        command(gen_condense, *words, "saved")
    assert dict(saved) == {2: 2, 3: 2, 4: 4, 6: 4, 8: 8, 9: 8, 10: 8}  # what a score keeps goes with a checkpoint

    capsys.readouterr()
    command(gen_condense, *words, "cut", "--resume")  # nothing left to do
    assert line in capsys.readouterr().out
    scripted(40.0, 35.0)
    started = (*SMALL, "--output-dir", tmp_path, "--tag", "cut", "--resume", "--patience", 4, "--steps", 14)
    assert "--no-auto-stop would lose what scored best so far" in fails(2, gen_condense, *started, "--no-auto-stop")
    command(gen_condense, *started)  # by --auto-stop and --eval-interval, as it was started
    assert "ended at step 14 (its length); the generator of step 12 is kept" in capsys.readouterr().out

    command(gen_condense, *SMALL, "--output-dir", tmp_path, "--steps", 8, "--tag", "unjudged")
    assert contents(tmp_path / "unjudged" / "generator") == contents(tmp_path / "whole" / "generator")
    assert not scores(tmp_path / "unjudged")
    assert "summary" not in load_checkpoint(tmp_path / "unjudged" / "checkpoint.pt")


def test_a_student_that_diverges_scores_nothing_and_ends_nothing(command, tmp_path, monkeypatch, capsys):
    def diverged(*args, **settings):
        raise Diverged("the loss of a classifier is nan")

    monkeypatch.setattr(selection, "evaluate", diverged)
    command(gen_condense, *SMALL, "--output-dir", tmp_path, "--tag", "run", "--steps", 2, "--auto-stop", "--eval-interval", 1)
    assert scores(tmp_path / "run") == [(1, 0.0), (2, 0.0)]
    assert "step 1: the loss of the student that scores it was not finite" in "".join(capsys.readouterr())


@pytest.mark.parametrize("part", ["test", "held_out"])
def test_no_stage_learns_from_images_that_are_kept_from_it(command, tmp_path, monkeypatch, part):
    """Nor chooses by those of the test set: inverted, with other labels, they change nothing that is made."""

    def load(*args, **options):
        data = load_asked(*args, **options)
        split = getattr(data, part)
        return replace(data, **{part: Split(255 - split.images, split.labels.roll(1))})

    chosen = part == "test"
    stop = ("--auto-stop", "--eval-interval", 1, "--eval-epochs", 1, "--eval-model", SMALL_CLASSIFIER) if chosen else ()
    small = ("--match-batch", 4, "--steps", 2, "--eval-epochs", 1, "--pool", SMALL_CLASSIFIER, "--eval-model", SMALL_CLASSIFIER)
    matching = ("--weight", tmp_path / "plain", *SMALL_POOL, "--eval-ipc", 1, *small)
    pixels = ("--ipc", 1, "--eval-interval", 1, "--keep", "best" if chosen else "last", *small)
    for kind in ("plain", "other"):
        if kind == "other":
            for script in (gen_condense, pool_match):
                monkeypatch.setattr(script, "load_asked", load)
        command(gen_condense, *SMALL, "--output-dir", tmp_path, "--steps", 2, *stop, "--tag", kind)
        command(pool_match, "--output-dir", tmp_path, *matching, "--tag", f"{kind}-match")
        command(pool_match, "--output-dir", tmp_path, "--method", "dream", *pixels, "--tag", f"{kind}-dream")
    for run, model in (("", "generator"), ("-match", "generator"), ("-dream", "pixels")):
        assert contents(tmp_path / f"plain{run}" / model) == contents(tmp_path / f"other{run}" / model)
