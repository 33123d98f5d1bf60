"""Latents of a frozen generator: BigGAN, sets of vectors, inversion, and IT-GAN by its command line."""

import copy
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from parity_fixtures import assert_close, fixture, fixture_input, fixture_state
from PIL import Image
from prototypes import matcher_for
from safetensors.torch import load_file

import gen_condense
import pool_match
import sample
import validate
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, read_json, write_json
from gendistil.data import Dataset, Split, to_uint8
from gendistil.matching import LatentLearner, initial
from gendistil.sources import LatentSet, diversity, load_source
from generators import NETWORKS, load_published
from generators.biggan import BigGANCritic, BigGANGenerator
from generators.pyramid import PyramidGenerator
from pools import RandomPool


@pytest.mark.parametrize("variant", ["hash", "sin"])
def test_biggan_computes_what_the_published_one_does(variant, tmp_path):
    name = "itgan_biggan_generator"
    state = dict(fixture_state(name, variant))
    generator, labels = load_published(state, "state"), torch.arange(4)
    torch.save(state, tmp_path / "G_Pretrained_CIFAR10_exp0.pth")
    again = load_source(tmp_path / "G_Pretrained_CIFAR10_exp0.pth")
    for network in (generator, again):
        with torch.no_grad():
            images = network(fixture_input(name, variant), labels)
        for output in fixture(name).json["outputs"]:
            if output["variant"] == variant:
                assert_close(images, fixture(name).arrays[output["npz_key"]], output["tol"])
    assert sum(value.numel() for value in generator.parameters()) == fixture(name).json["parameters"]


def test_spectral_norm_bounds_every_layer_and_follows_training():
    critic = BigGANCritic(16, 3, 4, width=8).train()
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    for _ in range(100):
        critic(images, labels)
    for layer in critic.modules():
        if hasattr(layer, "normalised"):
            assert torch.linalg.matrix_norm(layer.normalised().detach().flatten(1), 2) == pytest.approx(1, abs=0.02)
    before = [value.clone() for value in critic.buffers()]
    critic.eval()(images, labels)
    assert all(torch.equal(*pair) for pair in zip(before, critic.buffers()))


def test_spectral_norm_divides_in_float32_under_autocast():
    critic = BigGANCritic(16, 3, 4, width=64).eval()
    for layer in critic.modules():
        if hasattr(layer, "normalised"):
            with torch.autocast("cpu", torch.bfloat16):
                under = layer.normalised()
            assert torch.equal(under, layer.normalised())


def fill(latents):
    latents.vectors.data.copy_(torch.stack([latents.draw(label, latents.max_ipc, 0) for label in range(latents.num_classes)]))


@pytest.mark.parametrize("space", ["noise", "grid"])
@pytest.mark.parametrize("name", ["pyramid", "dim", "biggan"])
def test_a_set_keeps_half_floats_and_gives_back_what_it_scored(name, space, tmp_path):
    generator = NETWORKS[name][0](size=12, channels=3, num_classes=4, dim_noise=9, width=16).eval()
    latents = LatentSet.of(generator, 5, space)
    fill(latents)
    labels = torch.tensor([2, 0, 2, 3])
    images = latents.sample(labels)
    torch.testing.assert_close(images[2], latents(torch.tensor([2]), torch.tensor([1]))[0, 0], atol=0.02, rtol=0)
    latents.save_pretrained(tmp_path)
    stored = load_file(next(tmp_path.glob("*.safetensors")))
    assert stored["vectors"].dtype == torch.float16
    assert latents.vectors.dtype == torch.float32
    again = load_source(tmp_path)
    assert torch.equal(again.sample(labels), images)
    assert latents.stored_bytes(5) == sum(value.nbytes for value in stored.values())
    assert latents.stored_bytes(5) - latents.stored_bytes(2) == 2 * 4 * 3 * latents.vectors[0, 0].numel()
    with pytest.raises(UserError, match="--ipc"):
        latents.sample(torch.zeros(6, dtype=torch.int64))


class Negative(PyramidGenerator):
    """What its parent makes of the same weights, with the other sign."""

    def paint(self, grid, labels):
        return -super().paint(grid, labels)


def test_the_generator_of_a_set_is_of_its_own_class_and_not_of_its_parents(monkeypatch):
    generator = Negative(size=8, channels=1, num_classes=2, dim_noise=9, width=8).eval()
    with pytest.raises(UserError, match="of a generator 'Negative', which is not there"):
        LatentSet.of(generator, 2)
    monkeypatch.setitem(NETWORKS, "negative", (Negative, None))
    latents, noise, labels = LatentSet.of(generator, 2), torch.randn(2, 9), torch.arange(2)
    assert torch.equal(latents.paint(noise, labels), generator(noise, labels))


def make_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PyramidGenerator(8, 1, 10, 12, width=16).eval()


def made_digits(digits, generator):
    """The digits with images that the generator can make in place of the real ones."""
    labels = torch.arange(10).repeat_interleave(6)
    split = Split(to_uint8(generator.sample(labels, 1)), labels)
    return Dataset(digits.spec, split, split, split)


def learner_of(dataset, generator, **options):
    latents, partners = initial.latents(generator, dataset, 6, "noise", 0)
    settings = {"lr": 0.1, "batch": 3, "chunk_steps": 20, **options}
    return LatentLearner(Accelerator(cpu=True), dataset.spec, latents, 0, real=dataset.train, partners=partners, **settings)


def matcher_of(learner, dataset, match="paired", **options):
    return matcher_for(learner, dataset, RandomPool(dataset), match, match_batch=4, **options)


def test_each_latent_starts_from_an_image_like_its_own(digits):
    generator = make_generator()
    labels = torch.arange(10).repeat_interleave(20)
    noise = LatentSet.of(generator, 20).draw(3, 500, 7)[:20]  # among the candidates of that seed
    images = generator.sample(labels, 0)
    with torch.no_grad():
        images[60:80] = generator(noise, labels[60:80])
    split = Split(to_uint8(images), labels)
    latents, partners = initial.latents(generator, Dataset(digits.spec, split, split, split), 5, "noise", 7)
    torch.testing.assert_close(latents.vectors[3], noise[partners[3] - 60])


def test_inversion_finds_images_chunk_by_chunk_and_resumes(digits):
    generator = make_generator()
    dataset = made_digits(digits, generator)
    learner = learner_of(dataset, generator)
    start, weights = learner.parameter.detach().clone(), [value.clone() for value in learner.source.generator.parameters()]
    matcher = matcher_of(learner, dataset)
    losses = []
    for step in range(40):
        losses.append(float(learner.step(step, matcher)["matching"]))
        if step == 19:
            assert not torch.equal(learner.parameter[:, :3], start[:, :3])
            assert torch.equal(learner.parameter[:, 3:], start[:, 3:])
            first = learner.parameter[:, :3].detach().clone()
        if step == 29:
            halfway = copy.deepcopy(learner.state_dict())
    assert losses[19] < 0.5 * losses[0]
    assert losses[39] < 0.5 * losses[20]
    assert torch.equal(learner.parameter[:, :3], first)
    assert all(torch.equal(*pair) for pair in zip(weights, learner.source.generator.parameters()))
    real = dataset.train.images[learner.pairs(torch.arange(10), 39)]
    assert torch.equal(real, dataset.train.images[learner.partners[:, 3:]])

    again = learner_of(dataset, generator)
    again.load_state_dict(halfway, "checkpoint.pt")
    for step in range(30, 40):
        again.step(step, matcher_of(again, dataset))
    torch.testing.assert_close(again.parameter, learner.parameter)


def test_the_regulariser_keeps_images_of_a_class_apart(digits):
    generator = make_generator()
    dataset = made_digits(digits, generator)
    spread = {}
    for paired_weight in (0.0, 1.0):
        learner = learner_of(dataset, generator, chunk_steps=0, batch=6, lr=30.0)
        matcher = matcher_of(learner, dataset, "mean", paired_weight=paired_weight)
        for step in range(60):
            learner.step(step, matcher)
        own = to_uint8(learner.source.sample(torch.arange(10).repeat_interleave(6))).float()
        real = dataset.train.images[learner.partners.flatten()].float()
        spread[paired_weight] = float((own - real).square().mean())
    assert spread[1.0] < 0.8 * spread[0.0]


def test_chunks_of_classes_give_the_joint_result(digits):
    generator = make_generator()
    dataset = made_digits(digits, generator)
    moved = []
    for at_once in (0, 3):
        learner = learner_of(dataset, generator, chunk_steps=0, lr=1.0)
        learner.step(0, matcher_of(learner, dataset, "mean", paired_weight=0.5, class_batch=at_once))
        moved.append(learner.parameter.detach())
    torch.testing.assert_close(*moved, atol=1e-5, rtol=1e-4)


def test_diversity_falls_as_images_become_alike(digits):
    generator = make_generator()
    latents = LatentSet.of(generator, 8)
    fill(latents)
    apart = diversity(latents, 8)
    latents.vectors.data.lerp_(latents.vectors.data[:, :1], 0.9)
    assert 0 < diversity(latents, 8) < 0.5 * apart
    assert diversity(latents, 1) is None


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("itgan")
    shared = ("--output-dir", folder, "--log-interval", 1)
    command(gen_condense, *shared, "--tag", "gan", "--generator", "biggan", "--width", 8, "--steps", 2)
    command(pool_match, *shared, "--tag", "itgan", "--method", "itgan", "--weight", folder / "gan", "--ipc", 6,
            "--syn-batch", 4, "--chunk-steps", 2, "--steps", 3, "--match-batch", 4, "--eval-epochs", 1)
    return folder


def test_itgan_inverts_first_and_is_judged_beside_its_parts(command, runs):
    assert load_checkpoint(runs / "itgan-inversion" / "checkpoint.pt")["step"] == 4  # two chunks of two steps
    found, learned = (load_source(runs / tag) for tag in ("itgan-inversion", "itgan"))
    assert found.max_ipc == learned.max_ipc == 6
    assert not torch.equal(found.vectors, learned.vectors)
    command(validate, "--output-dir", runs, "--tag", "test", "--pretrain-weight", f"gan={runs / 'gan'}",
            f"gan-inversion={runs / 'itgan-inversion'}", f"itgan={runs / 'itgan'}", "--compare", "random", "--ipc", 1, 6,
            "--sampling", "fixed", "--num-eval", 1, "--epochs", 1, "--min-steps", 1)
    rows = {(row["source"], row["ipc"]): row for row in json.loads((runs / "test" / "report.json").read_text())}
    assert rows["random real images", 6]["bytes"] == 10 * 6 * 64
    assert rows["gan", 1]["bytes"] == rows["gan", 6]["bytes"]
    assert rows["itgan", 6]["bytes"] == rows["gan", 6]["bytes"] + 2 * 10 * 6 * 100
    assert rows["itgan", 1]["diversity"] is None
    assert rows["itgan", 6]["diversity"] > 0
    report = (runs / "test" / "report.md").read_text()
    assert f"{rows['itgan', 6]['bytes']:,}" in report
    command(sample, "--pretrain-weight", runs / "itgan", "--ipc", 6, "--output-dir", runs / "export")
    assert len(list((runs / "export").rglob("images/*/*.png"))) == 60


def test_the_phases_run_apart_on_dream_batches_and_resume(command, runs):
    shared = ("--output-dir", runs, "--method", "itgan", "--weight", runs / "itgan-inversion", "--match-batch", 4,
              "--select", "dream", "--select-candidates", 20, "--eval-epochs", 1)
    command(pool_match, *shared, "--tag", "whole", "--steps", 4)
    command(pool_match, *shared, "--tag", "halves", "--steps", 2)
    command(pool_match, *shared, "--tag", "halves", "--steps", 4, "--resume")
    one, two = (load_checkpoint(runs / tag / "checkpoint.pt")["latents"]["vectors"] for tag in ("whole", "halves"))
    torch.testing.assert_close(two, one)
    assert not (runs / "whole-inversion").exists()


def test_itgan_resumes_within_its_inversion(command, runs):
    shared = ("--output-dir", runs, "--weight", runs / "gan", "--ipc", 6, "--syn-batch", 4, "--chunk-steps", 2,
              "--eval-epochs", 1)
    command(pool_match, *shared, "--tag", "late-inversion", "--method", "inversion", "--steps", 3)
    command(pool_match, *shared, "--tag", "late", "--method", "itgan", "--steps", 3, "--match-batch", 4, "--resume")
    steps = [load_checkpoint(runs / tag / "checkpoint.pt")["step"] for tag in ("late-inversion", "late")]
    assert steps == [4, 3]
    found = [load_source(runs / tag).vectors for tag in ("late-inversion", "itgan-inversion")]
    torch.testing.assert_close(*found)
    inversion, second = (runs / tag / "checkpoint.pt" for tag in ("late-inversion", "late"))
    before = inversion.stat().st_mtime_ns
    second.unlink()  # killed before it had one: it begins anew, and the inversion stays
    command(pool_match, *shared, "--tag", "late", "--method", "itgan", "--steps", 3, "--match-batch", 4, "--resume")
    assert load_checkpoint(second)["step"] == 3
    assert inversion.stat().st_mtime_ns == before
    words = ("--tag", "late", "--method", "itgan", "--match-batch", 4, "--resume")
    kept = shutil.copytree(runs / "late", runs / "kept")
    command(pool_match, *shared, *words, "--steps", 5)
    ends = [load_checkpoint(second)["latents"]["vectors"]]
    shutil.rmtree(runs / "late")
    shutil.rmtree(runs / "late-inversion")  # once the second has a checkpoint, nothing needs it
    shutil.move(kept, runs / "late")
    command(pool_match, *shared, *words, "--steps", 5)
    ends.append(load_checkpoint(second)["latents"]["vectors"])
    torch.testing.assert_close(*ends)
    assert not (runs / "late-inversion").exists()


def test_the_first_of_two_runs_goes_on_by_itself(command, runs):
    command(pool_match, "--output-dir", runs, "--tag", "itgan-inversion", "--resume")
    config = read_json(runs / "itgan-inversion" / "config.json")
    assert config["given"] == {"method": "inversion", "weight": str(runs / "gan"), "ipc": 6, "syn_batch": 4, "chunk_steps": 2,
                               "eval_epochs": 1, "log_interval": 1}
    assert read_json(runs / "itgan-inversion" / "summary.json")["ended"]


def test_two_runs_go_on_where_they_were_moved_to(command, fails, runs, tmp_path):
    words = ("--output-dir", tmp_path / "here", "--tag", "itgan", "--method", "itgan", "--resume", "--steps", 4)
    shutil.copytree(runs, tmp_path / "here")
    config, before = tmp_path / "here" / "itgan" / "config.json", tmp_path / "before" / "itgan-inversion"
    write_json(config, {**read_json(config), "weight": str(before), "output_dir": str(before.parent)})
    before.mkdir(parents=True)  # still there, so that the run beside is another
    assert "--weight is not what the run was started with" in fails(2, pool_match, *words)
    before.rmdir()
    command(pool_match, *words)
    assert load_checkpoint(tmp_path / "here" / "itgan" / "checkpoint.pt")["step"] == 4


def test_latents_that_have_not_had_their_turn_are_not_matched(fails, runs, tmp_path):
    shutil.copytree(runs / "itgan-inversion", tmp_path / "cut")
    summary = tmp_path / "cut" / "summary.json"
    write_json(summary, {**read_json(summary), "ended": False})
    words = ("--output-dir", tmp_path, "--tag", "itgan", "--method", "itgan", "--weight", tmp_path / "cut", "--steps", 1)
    assert f"--weight {tmp_path / 'cut'} is not finished: continue it with --resume" in fails(2, pool_match, *words)


def test_two_runs_neither_begin_by_resume_nor_replace_another(command, fails, runs):
    words = ("--output-dir", runs, "--method", "itgan", "--weight", runs / "gan", "--ipc", 2, "--chunk-steps", 1, "--steps", 1,
             "--eval-epochs", 1, "--match-batch", 4)
    assert "typo hold no checkpoint: check --tag" in fails(2, pool_match, *words, "--tag", "typo", "--resume")
    assert not (runs / "typo-inversion").exists()
    for tag in ("coreset", "other-inversion"):
        command(pool_match, "--output-dir", runs, "--tag", tag, "--method", "random", "--ipc", 1, "--eval-epochs", 1)
    assert "coreset is another run" in fails(2, pool_match, *words, "--tag", "coreset", "--resume")
    assert "other-inversion is another run" in fails(2, pool_match, *words, "--tag", "other", "--overwrite")
    command(pool_match, "--output-dir", runs, "--tag", "cut-inversion", "--method", "inversion", "--weight", runs / "gan",
            "--ipc", 2, "--steps", 0, "--eval-epochs", 1)
    error = fails(2, pool_match, "--output-dir", runs, "--tag", "cut", "--resume")
    assert "cut was stopped in cut-inversion: repeat the flags" in error


def test_a_second_run_that_is_older_than_the_first_begins_anew(tmp_path, monkeypatch, capsys):
    """As a kill leaves them while --overwrite replaces both, the first by now."""
    called = []
    monkeypatch.setattr(pool_match, "match", lambda run: called.append((run.tag, run.resume, run.overwrite)))
    words = ["--output-dir", str(tmp_path), "--tag", "x", "--method", "itgan", "--weight", "gan", "--resume"]
    for first, second in ((10, {"begun": 9, "started": 11}), (10, {"started": 9}), (10, {"begun": 11, "started": 12})):
        for tag, method, times in (("x-inversion", "inversion", {"begun": first, "started": 20}), ("x", "itgan", second)):
            (tmp_path / tag).mkdir(exist_ok=True)
            times = {name: f"2026-01-02T{hour:02d}:00:00Z" for name, hour in times.items()}
            write_json(tmp_path / tag / "config.json", {"commands": [], "method": method, **times})
            (tmp_path / tag / "checkpoint.pt").touch()
        pool_match.main(words)
    anew = [("x-inversion", True, False), ("x", False, True)]
    assert called == [*anew, *anew, ("x", True, False)]  # which a resumed inversion does not change
    assert capsys.readouterr().err.count("x was begun before ") == 2


@pytest.mark.parametrize(("words", "said"), [
    (("--method", "itgan"), "--weight"),
    (("--method", "itgan", "--weight", "{gan}", "--ipc", 999), "--ipc"),
    (("--method", "itgan", "--weight", "{inversion}", "--ipc", 3), "--ipc"),
    (("--method", "itgan", "--weight", "{inversion}", "--latent-space", "grid"), "--latent-space"),
    (("--method", "itgan", "--weight", "{inversion}", "--match", "grad", "--steps", 1), "--paired-weight"),
    (("--method", "itgan", "--weight", "{alone}", "--steps", 1), "name the run of --method inversion"),
    (("--method", "itgan", "--weight", "{inversion}", "--chunk-steps", 3), "--chunk-steps"),
    (("--method", "inversion", "--weight", "{gan}", "--ipc", 3, "--steps", 300), "after 200 steps: leave --steps out"),
    (("--method", "inversion", "--weight", "{gan}", "--ipc", 3, "--chunk-steps", 0), "--chunk-steps 0 compares other latents"),
    (("--method", "itgan", "--weight", "{gan}", "--chunk-steps", 0), "give 1 or more, or run --method inversion by itself"),
    (("--method", "dm", "--match", "paired", "--steps", 1), "--method inversion"),
    (("--method", "dm", "--paired-weight", 1), "--paired-weight"),
    (("--method", "itgan", "--weight", "{inversion}", "--data", "{other}"), "--data"),
])
def test_bad_input_is_named_in_one_line(fails, runs, tmp_path, words, said):
    other = tmp_path / "other"
    for split in ("train", "test"):
        for label in "ab":
            (other / split / label).mkdir(parents=True)
            for index in range(12):
                Image.new("L", (8, 8), index).save(other / split / label / f"{index}.png")
    shutil.copytree(runs / "itgan-inversion" / "latents", tmp_path / "alone")
    places = {"gan": runs / "gan", "inversion": runs / "itgan-inversion", "other": other, "alone": tmp_path / "alone"}
    error = fails(2, pool_match, "--output-dir", tmp_path, "--tag", "bad", *(str(word).format(**places) for word in words))
    assert said in error.splitlines()[-1]
    assert not (tmp_path / "bad").exists()


def test_latents_of_a_plugins_generator_ask_for_it(runs, tmp_path):
    shutil.copytree(runs / "itgan-inversion" / "latents", tmp_path / "latents")
    config = json.loads((tmp_path / "latents" / "config.json").read_text())
    (tmp_path / "latents" / "config.json").write_text(json.dumps({**config, "network": "mine"}))
    with pytest.raises(UserError, match="'mine', which is not there: give the --plugin"):
        load_source(tmp_path / "latents")


def test_a_set_that_cannot_be_drawn_leaves_the_earlier_one(command, fails, runs, tmp_path):
    words = ("--pretrain-weight", runs / "itgan-inversion", "--output-dir", tmp_path / "set", "--ipc")
    command(sample, *words, 1)
    before = sorted(path for path in (tmp_path / "set").rglob("*"))
    for sampling in ("fixed", "representative"):
        assert "lower --ipc" in fails(2, sample, *words, 999, "--sampling", sampling)
        assert sorted(path for path in (tmp_path / "set").rglob("*")) == before


def test_biggan_of_a_checkpoint_samples(tmp_path):
    generator = BigGANGenerator(20, 3, 4, dim_noise=9, width=8).train()
    generator(torch.randn(8, 9), torch.arange(8) % 4)
    generator.save_pretrained(tmp_path)
    labels = torch.tensor([0, 3, 3])
    assert torch.equal(load_source(tmp_path).sample(labels, 0), generator.sample(labels, 0))
