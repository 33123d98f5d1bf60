"""Flows: the field, its steps and its guidance, what it learns, and a run of one through every stage."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from checkpoints import assert_same_weights
from conftest import SMALL_CLASSIFIER

import gen_condense
import pool_match
import sample
import validate
from gendistil.common.errors import UserError
from gendistil.data import to_signed
from gendistil.sources import LatentSet, Refined, Refinement, draw, draw_set, load_source
from generators import RECIPES, make_trainer
from generators.flow import TIMES
from generators.unet import FINEST, FlowGenerator

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TINY = {recipe: replace(RECIPES[recipe], width=8, batch_size=32) for recipe in ("flow", "shortcut")}
STAGE1 = ("--width", 8, "--batch-size", 16, "--log-interval", 1, "--sample-steps", 2)
STAGE2 = ("--pool-members", 1, "--pool-epochs", 1, "--pool-snapshots", 2, "--batch-size", 16, "--match-batch", 4,
          "--select-candidates", 20, "--select-interval", 2, "--eval-epochs", 1, "--eval-ipc", 1, "--pool",
          SMALL_CLASSIFIER, "--eval-model", SMALL_CLASSIFIER)


@pytest.fixture
def batch(digits):
    return to_signed(digits.train.images[:32]), digits.train.labels[:32]


def trainer(spec, recipe, precision="no", **values):
    return make_trainer(Accelerator(cpu=True, mixed_precision=precision), spec, replace(TINY[recipe], **values), seed=0)


def flow(size=8, channels=1, classes=3, **options):
    torch.manual_seed(0)
    return FlowGenerator(size, channels, classes, width=options.pop("width", 8), **options).eval()


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("size", "channels", "classes", "width"),
                         [(8, 1, 2, 8), (13, 3, 5, 9), (28, 1, 10, 20), (48, 4, 7, 8), (64, 3, 30, 16), (128, 3, 4, 8)])
def test_every_size_channel_and_class_count(size, channels, classes, width, shortcut):
    generator = flow(size, channels, classes, width=width, shortcut=shortcut, sample_steps=2)
    images = generator(3 * torch.randn(2, generator.dim_noise), torch.arange(2))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert generator.dim_noise == channels * size**2


def test_steps_follow_the_field(monkeypatch):
    """Along straight ways any number of steps leads to the same image; else it is Euler's."""
    generator, noise, labels = flow(), 0.1 * torch.randn(2, 64), torch.tensor([0, 2])
    monkeypatch.setattr(generator, "velocity", lambda x, labels, time, span: torch.full_like(x, 0.3))
    for steps in (1, 2, 5):
        torch.testing.assert_close(generator(noise, labels, sample_steps=steps), noise.view(2, 1, 8, 8) - 0.3)
    monkeypatch.setattr(generator, "velocity", lambda x, labels, time, span: x * time.view(-1, 1, 1, 1))
    torch.testing.assert_close(generator(noise, labels, sample_steps=2), noise.view(2, 1, 8, 8) * 0.5 * 0.75)


def test_guidance_leads_away_from_no_class(monkeypatch):
    generator, x, labels = flow(), torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])
    field = torch.tensor([0.3, 9.0, 0.2, 0.1])  # of each class, and of none
    monkeypatch.setattr(generator, "velocity", lambda x, labels, time, span: x + field[labels].view(-1, 1, 1, 1))
    made = generator.guided(x, labels, torch.ones(2), 2.0)[:, 0, 0, 0]
    torch.testing.assert_close(made, 0.1 + 2 * (field[labels] - 0.1))
    torch.testing.assert_close(generator(x.flatten(1), labels, sample_steps=1, guidance=2.0)[:, 0, 0, 0], -made)


def test_bounds_let_gradients_through():
    generator, noise = flow(sample_steps=2), 5 * torch.randn(2, 64)
    noise.requires_grad_()
    images = generator(noise, torch.tensor([0, 1]))
    assert (images.abs() == 1).any()
    images.sum().backward()
    assert (noise.grad != 0).all()


@pytest.mark.parametrize(("options", "sampling"), [({"guidance": 1.5}, {"sample_steps": 3, "guidance": 2.5}),
                                                   ({"shortcut": True}, {"sample_steps": 8})])
def test_images_depend_on_seed_class_and_index_alone(options, sampling, tmp_path):
    generator = flow(sample_steps=4, **options)
    labels, order = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([3, 0, 5, 1, 4, 2])
    images = generator.sample(labels, 5)
    torch.testing.assert_close(generator.sample(labels[order], 5), images[order])
    torch.testing.assert_close(generator.sample(torch.tensor([1]), 5), images[3:4], atol=1e-5, rtol=0)
    assert not torch.equal(generator.sample(labels, 6), images)
    generator.save_pretrained(tmp_path)
    again = load_source(tmp_path)
    assert torch.equal(again.sample(labels, 5), images)
    anew = Refined(again, Refinement(**sampling)).sample(labels, 5)
    assert not torch.allclose(anew, images)
    assert torch.equal(flow(**{**options, **sampling}).sample(labels, 5), anew)
    assert torch.equal(again.sample(labels, 5), images)  # it was not changed by that
    latents = LatentSet.of(again, 2, "grid")
    assert latents.vectors.shape == (3, 2, 1, 8, 8)
    assert torch.equal(latents.draw(1, 2, 0).flatten(1), LatentSet.of(again, 2, "noise").draw(1, 2, 0))


def test_a_representative_set_of_a_flow_is_chosen_among_its_own_images(monkeypatch):
    monkeypatch.setattr(draw, "_CANDIDATES", 50)
    source = flow(sample_steps=2)
    chosen, labels = draw_set(source, 2, 5, choice="representative")
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    among = draw_set(source, 50, 5)[0].unflatten(0, (3, 50))
    away = (chosen.unflatten(0, (3, 2))[:, :, None].int() - among[:, None].int()).abs().flatten(3).amax(3)
    assert (away.amin(2) <= 1).all()  # another batch may round otherwise
    assert (away.argmin(2).diff() != 0).all()


@pytest.mark.parametrize("times", TIMES)
def test_an_example_lies_on_the_way_from_image_to_noise(digits, batch, times):
    images, labels = batch
    x, shown, time, lead = trainer(digits.spec, "flow", times=times, label_dropout=0.3).examples(images, labels, 3)
    torch.testing.assert_close(x - time.view(-1, 1, 1, 1) * lead, images)
    assert 0.8 < (images + lead).std() < 1.2
    hidden = shown == 10
    assert 0 < hidden.sum() < 20
    assert torch.equal(shown[~hidden], labels[~hidden])
    drawn = TIMES[times](20_000, torch.Generator().manual_seed(0))
    middle = ((drawn - 0.5).abs() < 0.25).float().mean().item()
    # A normal is within ln 3 with probability 0.728; of one in ten it is half.
    assert middle == pytest.approx({"uniform": 0.5, "logit-normal": 0.9 * 0.728 + 0.05}[times], abs=0.02)


def test_a_shortcut_learns_its_long_steps_from_two_short_ones(digits, batch, monkeypatch):
    images, labels = batch
    learner = trainer(digits.spec, "shortcut", long_steps=0.5, label_dropout=1e-9, guidance=3.0)
    asked = []

    def guided(x, labels, time, guidance, span=None):
        asked.append((x, time, guidance.flatten(), span))
        return time.view(-1, 1, 1, 1).expand_as(x)

    monkeypatch.setattr(learner.source, "guided", guided)
    monkeypatch.setattr(type(learner.source), "guided", lambda self, *args: guided(*args))
    x, shown, time, span, lead = learner.examples(images, labels, 0)
    long = span < FINEST
    assert long.sum() == 16
    assert torch.equal(shown, labels)
    length = 0.5 ** span[long]
    assert torch.equal(time[long] / length, (time[long] / length).round())
    assert ((time[long] > 0) & (time[long] <= 1)).all()
    torch.testing.assert_close((x - time.view(-1, 1, 1, 1) * lead)[~long], images[~long])
    (first_x, first, guidance, half), (second_x, second, _, _) = asked
    assert torch.equal(first, time[long])
    assert torch.equal(first_x, x[long])
    assert torch.equal(half, span[long] + 1)
    torch.testing.assert_close(second, first - length / 2)
    torch.testing.assert_close(second_x, (first_x - (first * length / 2).view(-1, 1, 1, 1)).clamp(-4, 4))
    torch.testing.assert_close(lead[long], ((first + second) / 2).view(-1, 1, 1, 1).expand_as(first_x))
    assert torch.equal(guidance, torch.where(half == FINEST, 3.0, 1.0))


@pytest.mark.parametrize("recipe", TINY)
def test_two_processes_share_examples(digits, batch, recipe):
    images, labels = batch
    learner = trainer(digits.spec, recipe)
    whole, parts = learner.examples(images, labels, 1), []
    for index in (0, 1):
        learner.accelerator = SimpleNamespace(process_index=index, num_processes=2, device=torch.device("cpu"))
        parts.append(learner.examples(images[index::2], labels[index::2], 1))
    for value, *halves in zip(whole, *parts):
        torch.testing.assert_close(torch.stack(halves, 1).flatten(0, 1), value)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("recipe", TINY)
def test_the_loss_falls(digits, batch, recipe, precision):
    learner = trainer(digits.spec, recipe, precision, lr=5e-3)
    losses = [learner.step(*batch, step)["flow"].item() for step in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    learner.check(40)


def test_the_rate_rises_first(digits):
    learner, rates = trainer(digits.spec, "flow", warmup=0.1, lr_decay="linear"), []
    for progress in (0, 0.05, 0.2, 0.75):
        learner.pace(progress)
        rates.append(learner.optim_g.param_groups[0]["lr"] / learner.recipe.lr)
    assert rates == pytest.approx([0, 0.5, 1, 0.5])


def test_a_mirrored_image_is_learned_where_it_keeps_its_class(digits, batch, monkeypatch):
    learner, seen = trainer(replace(digits.spec, flip=True), "flow", flip=True), []
    monkeypatch.setattr(learner, "examples", lambda images, labels, step, examples=learner.examples: (
        seen.append(images), examples(images, labels, step))[1])
    learner.step(*batch, 0)
    mirrored = (seen[0] == batch[0].flip(3)).flatten(1).all(1)
    assert 0 < mirrored.sum() < 32
    assert torch.equal(seen[0][~mirrored], batch[0][~mirrored])


@pytest.mark.parametrize("recipe", TINY)
def test_a_flow_goes_through_every_stage_and_resumes_exactly(command, tmp_path, recipe):
    shared = ("--output-dir", tmp_path, "--tag")
    words = (*STAGE1, "--recipe", recipe)
    command(gen_condense, *shared, "whole", *words, "--steps", 4, "--warmup", 0, "--save-interval", 3)
    command(gen_condense, *shared, "cut", *words, "--steps", 3, "--warmup", 0)
    command(gen_condense, *shared, "cut", *words, "--steps", 4, "--warmup", 0, "--resume")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")

    words = ("--weight", tmp_path / "whole", *STAGE2, "--log-interval", 1)
    command(pool_match, *shared, "match", *words, "--steps", 3)
    command(pool_match, *shared, "part", *words, "--steps", 2)
    command(pool_match, *shared, "part", *words, "--steps", 3, "--resume")
    assert_same_weights(tmp_path / "match", tmp_path / "part")
    records = [json.loads(line) for line in (tmp_path / "match" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "flow" in record]
    assert len(steps) == 3
    assert all(record["matching"] > 0 for record in steps)
    command(pool_match, *shared, "one", *words, "--steps", 1, "--sample-steps", 1)
    command(pool_match, *shared, "control", "--control-of", tmp_path / "one", "--eval-epochs", 1, "--eval-ipc", 1)
    assert [load_source(tmp_path / tag).sample_steps for tag in ("whole", "match", "one", "control")] == [2, 2, 1, 1]

    guided = () if recipe == "shortcut" else ("--guidance", 2)
    command(validate, *shared, "test", "--pretrain-weight", tmp_path / "match", "--ipc", 1, "--epochs", 1, "--min-steps", 1,
            "--num-eval", 1, "--sample-steps", 4, "--noise-std", 1.1, *guided)
    row, = json.loads((tmp_path / "test" / "report.json").read_text())
    assert row["source"] == "match, noise 1.1, 4 steps" + (", guidance 2" if guided else "")
    command(sample, "--pretrain-weight", tmp_path / "match", "--ipc", 1, "--sample-steps", 1, "--output-dir", tmp_path / "set")
    assert (tmp_path / "set" / "set.safetensors").exists()


def test_latents_of_a_flow_are_learned(command, tmp_path):
    shared = ("--output-dir", tmp_path, "--tag")
    command(gen_condense, *shared, "flow", "--recipe", "flow", *STAGE1, "--steps", 2)
    for space in ("noise", "grid"):
        command(pool_match, *shared, space, "--method", "itgan", "--weight", tmp_path / "flow", "--ipc", 2, "--chunk-steps", 2,
                "--steps", 2, "--match-batch", 4, "--eval-epochs", 1, "--latent-space", space)
        latents = load_source(tmp_path / space)
        assert isinstance(latents, LatentSet)
        assert latents.stored_bytes(2) == latents.generator.stored_bytes(2) + 2 * 10 * 2 * 64


def test_bad_input_is_named_in_one_line(command, fails, tmp_path):
    shared = ("--output-dir", tmp_path, "--tag")
    for recipe, tag in (("pyramid", "gan"), ("shortcut", "short")):
        command(gen_condense, *shared, tag, "--recipe", recipe, "--width", 8, "--batch-size", 8, "--steps", 1)
    judged = ("--pretrain-weight", tmp_path / "gan", "--ipc", 1)
    for script, words, named in (
        (gen_condense, ("--generator", "unet"), "--generator unet has no critic"),
        (gen_condense, ("--recipe", "flow", "--generator", "dim"), "--generator dim has no velocity for --recipe flow"),
        (gen_condense, ("--recipe", "flow", "--dim-noise", 100), "--dim-noise 100"),
        (gen_condense, ("--recipe", "flow", "--long-steps", 0.1), "--long-steps is not for --recipe flow"),
        (gen_condense, ("--recipe", "flow", "--label-dropout", 0, "--guidance", 2), "--guidance 2 is learned by --label-drop"),
        (gen_condense, ("--recipe", "shortcut", "--long-steps", 0), "--long-steps: 0 is out of range"),
        (gen_condense, ("--sample-steps", 4), "--sample-steps is not for --recipe pyramid"),
        (gen_condense, ("--recipe", "shortcut", "--sample-steps", 3), "--sample-steps 3: a shortcut"),
        (pool_match, ("--weight", tmp_path / "gan", "--sample-steps", 2), "--sample-steps is for a flow"),
        (pool_match, ("--weight", tmp_path / "short", "--sample-steps", 3), "--sample-steps 3: a shortcut"),
        (pool_match, ("--weight", tmp_path / "short", "--lr-critic", 0.1), "--lr-critic is for a GAN"),
        (pool_match, ("--method", "dm", "--sample-steps", 2), "--sample-steps is not for --method dm"),
        (validate, (*judged, "--guidance", 2), "--guidance is for a flow"),
        (validate, ("--pretrain-weight", tmp_path / "short", "--guidance", 1), "--guidance 1: a shortcut"),
        (validate, ("--pretrain-weight", tmp_path / "short", "--guidance", 2), "--guidance 2: a shortcut"),
        (validate, ("--pretrain-weight", tmp_path / "short", "--sample-steps", 5), "--sample-steps 5: a shortcut"),
        (validate, ("--pretrain-weight", tmp_path / "short", "--sample-steps", 128), "1, 2, 4, ... or 64 steps"),
    ):
        error = fails(2, script, *shared, "wrong", *words)
        assert named in error
        assert error.count("\n") == 1
        assert not (tmp_path / "wrong").exists()
    with pytest.raises(UserError, match="--dim-noise"):
        FlowGenerator(8, 1, 10, dim_noise=32)
    with pytest.raises(UserError, match="was trained with --label-dropout 0"):
        FlowGenerator(8, 1, 10, width=8, guidable=False).check_sampling(guidance=2.0)
