"""Unrolled training: its gradients against those of the whole graph, its memory, and the methods that are made of it."""

import dataclasses
import functools
import json

import pytest
import torch
from accelerate import Accelerator
from prototypes import make_learner, matcher_for, reaches_the_generator
from safetensors import safe_open
from torch.nn import functional as F

import pool_match
import pools.pool
import sample
import validate
from benchmarks.memory import whole_graph
from gendistil.common.files import load_checkpoint
from gendistil.common.rng import stream
from gendistil.data import standardise, to_signed
from gendistil.evaluation import PROTOCOLS, evaluate
from gendistil.matching import PixelLearner, initial, objectives
from gendistil.matching.trained import Reference, TrainingMatcher
from gendistil.matching.unroll import SGD, Adam, WithGradients, unroll
from gendistil.sources import PixelSet, Taught, Teacher, draw_set, load_source
from pools import ClassifierPool, RandomPool, accuracy, build_classifier

OPTIMIZERS = {"sgd": SGD(), "momentum": SGD(0.9), "adam": Adam()}


def net(weights, images):
    return torch.tanh(images @ weights[0].T) @ weights[1].T + weights[2]


def problem(dtype=torch.float64, wide=16):
    """(loss, weights, inputs, terminal): 12 numbers an image, soft labels of 3 classes; step i sees 6 of 8 images."""
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=draw, dtype=dtype) / 2 for shape in ((wide, 12), (3, wide), (3,))]
    target = [w + torch.randn(w.shape, generator=draw, dtype=dtype) / 10 for w in weights]
    inputs = [torch.randn(8, 12, generator=draw, dtype=dtype), torch.randn(8, 3, generator=draw, dtype=dtype)]

    def loss(weights, inputs, step):
        rows = (torch.arange(6) + step) % 8
        return F.cross_entropy(net(weights, inputs[0][rows]), inputs[1][rows].softmax(1))

    return loss, weights, inputs, lambda final: sum((x - y).square().sum() for x, y in zip(final, target))


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("rates", [[0.01], [0.3], [1.0], [0.1, 0.5, 0.02]])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradients_are_those_of_the_whole_graph(name, rates, window):
    loss, weights, inputs, terminal = problem()
    rates = torch.tensor(rates, dtype=torch.float64) * (0.1 if name == "adam" else 1)
    value, gradients = unroll(loss, OPTIMIZERS[name], weights, inputs, rates, 11, terminal, window)
    expected, theirs = whole_graph(loss, OPTIMIZERS[name], weights, inputs, rates, 11, terminal, window)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    for ours, known in zip(gradients, theirs, strict=True):
        assert (ours - known).abs().max() <= 1e-10 * max(1, float(known.abs().max()))
        assert known.abs().max() > 0


@pytest.mark.parametrize(("name", "make"), [
    ("sgd", lambda weights: torch.optim.SGD(weights, 0.1)), ("momentum", lambda weights: torch.optim.SGD(weights, 0.1, 0.9)),
    ("adam", lambda weights: torch.optim.Adam(weights, 0.1))])
def test_the_steps_are_those_of_torch(name, make):
    loss, weights, inputs, terminal = problem()
    value, _ = unroll(loss, OPTIMIZERS[name], weights, inputs, torch.tensor([0.1]).double(), 9, terminal)
    theirs = [x.clone().requires_grad_() for x in weights]
    optimizer = make(theirs)
    for step in range(9):
        optimizer.zero_grad()
        loss(theirs, inputs, step).backward()
        optimizer.step()
    assert float(value) == pytest.approx(float(terminal(theirs).detach()), rel=1e-6)


def test_adam_has_a_gradient_where_that_of_the_training_is_zero():
    loss, weights, inputs, terminal = problem(torch.float32)
    dead = [weights[0], weights[1] * 0, weights[2]]  # the first layer learns nothing in the first step
    _, gradients = unroll(loss, Adam(), dead, inputs, torch.tensor([0.01]), 4, terminal)
    assert all(x.isfinite().all() for x in gradients)


def test_no_step_is_the_terminal_loss_of_the_start():
    loss, weights, inputs, terminal = problem()
    value, gradients = unroll(loss, SGD(), weights, inputs, torch.tensor([0.1]).double(), 0, terminal)
    assert torch.equal(value, terminal(weights))
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_memory_does_not_grow_with_the_steps(name):
    """The graph of one step, whatever their number; of states, twice the root of it."""
    def peak(steps):
        loss, weights, inputs, terminal = problem(torch.float32)
        alive, most = [0], [0]

        def pack(x):
            alive[0] += x.nbytes
            most[0] = max(most[0], alive[0])
            return Held(x, alive)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            unroll(loss, OPTIMIZERS[name], weights, inputs, torch.tensor([0.01]), steps, terminal)
        return most[0]

    few, many = peak(10), peak(100)
    assert 0 < many <= 1.01 * few


class Held:
    """A tensor that a graph has saved, whose bytes count as long as the graph lives."""

    def __init__(self, tensor, alive):
        self.tensor, self.alive = tensor, alive

    def __del__(self):
        self.alive[0] -= self.tensor.nbytes


def test_the_precision_is_that_of_the_tensors_under_autocast():
    loss, weights, inputs, terminal = problem(torch.float32)
    settings = (loss, SGD(), weights, inputs, torch.tensor([0.1]), 5, terminal)
    _, plain = unroll(*settings)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed = unroll(*settings)
    assert all(torch.equal(*pair) for pair in zip(plain, mixed))


def test_known_gradients_reach_what_made_the_images():
    start, gradient = torch.ones(3, requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
    loss = 2 * WithGradients.apply(torch.tensor(5.0), [gradient], start * 4)
    loss.backward()
    assert float(loss.detach()) == 10
    assert torch.equal(start.grad, 8 * gradient)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def run_of(command, results):
    """The folder of a method's run on the CPU, made when a test first asks for it: `run_of(method, tag, *words)`."""

    def run(method, tag, *words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "1")
            command(pool_match, "--output-dir", results, "--method", method, "--ipc", 2, *QUICK, *METHOD_FLAGS[method],
                    "--tag", f"{method}-{tag}", *words)
        return results / f"{method}-{tag}"

    return functools.cache(run)


QUICK = ("--pool", "convnet:depth=1,width=8", "--eval-epochs", 1, "--eval-interval", 100, "--log-interval", 1)
EXPERTS = ("--pool-members", 2, "--pool-epochs", 3, "--max-start", 2, "--expert-epochs", 1)
METHOD_FLAGS = {
    "mtt": (*EXPERTS, "--unroll", 3, "--unroll-batch", 5),
    "datm": (*EXPERTS, "--first-max-start", 1, "--start-grows", 2, "--unroll", 3),
    "bptt": ("--unroll", 4, "--window", 2, "--match-batch", 4, "--select", "dream", "--select-candidates", 8),
    "dd": ("--unroll", 4, "--match-batch", 4),
}


@pytest.mark.parametrize("method", METHOD_FLAGS)
def test_a_method_runs_resumes_to_the_same_bits_and_is_judged(command, results, run_of, on_the_cpu, method):
    run = run_of(method, "whole", "--steps", 4)
    run_of(method, "parts", "--steps", 2)
    resumed = run_of(method, "parts", "--steps", 4, "--resume")
    whole, parts = (load_checkpoint(folder / "checkpoint.pt") for folder in (run, resumed))
    assert torch.equal(whole["pixels"]["pixels"], parts["pixels"]["pixels"])
    assert torch.equal(whole["matching"]["rates"], parts["matching"]["rates"])
    source = load_source(run)
    own = source.targets(torch.arange(10))
    assert own.shape == ((10, 10) if method == "datm" else (10,))
    if method in ("mtt", "datm"):
        assert source.step_size == pytest.approx(float(whole["matching"]["rates"][0]))
        command(sample, "--pretrain-weight", run, "--ipc", 1, "--output-dir", results / f"{method}-set")
        with safe_open(results / f"{method}-set" / "set.safetensors", "pt") as file:
            assert json.loads(file.metadata()["set"])["step_size"] == source.step_size
    elif method == "dd":
        assert source.step_size == pytest.approx(whole["matching"]["rates"].tolist())
    else:
        assert source.step_size is None
    command(validate, "--output-dir", results, "--tag", f"{method}-test", "--pretrain-weight", run, "--ipc", 2, "--sampling",
            "fixed", "--num-eval", 1, "--epochs", 1, "--min-steps", 1)
    row, = json.loads((results / f"{method}-test" / "report.json").read_text())
    assert row["labels"] == ("learned" if method == "datm" else "hard")
    assert row["bytes"] == 10 * 2 * 64 + (10 * 2 * 20 if method == "datm" else 0)
    assert row["lr"] == (source.step_size if method in ("mtt", "datm") else 0.05)


def test_a_flag_leaves_out_what_was_learned_beside_the_images(command, fails, results, run_of):
    shared = ("--output-dir", results, "--pretrain-weight", run_of("datm", "whole", "--steps", 4), "--ipc", 1,
              "--sampling", "fixed")
    for name, words, expected in (("none", ["--no-own"], ("hard", 0.05)), ("rate", ["--lr", 0.02], ("learned", 0.02))):
        command(validate, *shared, "--tag", name, "--num-eval", 1, "--epochs", 1, "--min-steps", 1, *words)
        row, = json.loads((results / name / "report.json").read_text())
        assert (row["labels"], row["lr"]) == expected
    assert "has learned its own: add --no-own" in fails(2, validate, *shared, "--tag", "ranked", "--ranking")


def test_steps_with_images_of_their_own_are_replayed(command, fails, results, run_of, digits, tmp_path, monkeypatch):
    dd, mtt = (run_of(method, "whole", "--steps", 4) for method in ("dd", "mtt"))
    words = ("--output-dir", results, "--protocol", "replay", "--sampling", "fixed", "--num-eval", 1,
             "--precision", "fp32", "--seed", 0)
    command(validate, *words, "--tag", "replay", "--pretrain-weight", dd, "--ipc", 2)
    row, = json.loads((results / "replay" / "report.json").read_text())
    source = load_source(dd)
    assert (row["steps"], row["images"], row["lr"]) == (4, 10, source.step_size[0])
    model = build_classifier("convnet", 1, 8, 10, generator=stream(0, "student's weights"))
    images, labels = draw_set(source, 2, 0)
    for step, rate in enumerate(source.step_size):
        loss = F.cross_entropy(model(standardise(to_signed(images[step % 2 :: 2]), digits.spec)), labels[step % 2 :: 2])
        for value, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
            value.data -= rate * gradient
    expected = float(accuracy(model, digits.test.images, digits.test.labels, digits.spec))
    assert row["accuracies"][0] == pytest.approx(expected, abs=0.5)
    asked = []
    look = Teacher.look
    monkeypatch.setattr(Teacher, "look", lambda self, images, spec: asked.append(len(images)) or look(self, images, spec))
    taught = Taught(source, Teacher.of(experts(digits, tmp_path)), 1.0, stored=False)
    evaluate(taught, digits, "convnet", 2, "fixed", num_eval=1, protocol=PROTOCOLS["replay"])
    assert asked == [10] * 4
    for run, *more in ((mtt, "--ipc", 2), (dd, "--ipc", 1), (run_of("bptt", "whole", "--steps", 4), "--ipc", 2),
                       (dd, "--ipc", 2, "--no-own")):
        assert "it takes runs of --method dd" in fails(2, validate, *words, "--tag", "no", "--overwrite", "--pretrain-weight",
                                                       run, *more)
        assert not (results / "no").exists()


@pytest.mark.parametrize("match", ["trajectory", "outcome"])
@pytest.mark.parametrize("learn", ["generator", "latents"])
def test_what_makes_the_images_learns_from_the_trained_network(digits, tmp_path, learn, match):
    learner = make_learner(learn, digits, Accelerator(cpu=True))
    before = [value.clone() for value in learner.source.parameters()]
    pool = experts(digits, tmp_path) if match == "trajectory" else RandomPool(digits, names=["convnet:depth=1,width=8"])
    matcher = training_matcher(learner, digits, pool, match)
    for step in range(2):
        assert all(value.isfinite() for value in learner.step(step, matcher).values())
    assert learn != "generator" or reaches_the_generator(matcher)
    assert any(not torch.equal(*pair) for pair in zip(before, learner.source.parameters()))


def experts(digits, folder, **settings):
    return ClassifierPool(digits, folder, Accelerator(cpu=True), names=("convnet:depth=1,width=8",), snapshots="epochs", **{
        "members": 1, "epochs": 2, "batch_size": 256, "aug_type": "none", "momentum": 0.0, "weight_decay": 0.0,
        "schedule": "constant", **settings})


def training_matcher(learner, digits, pool, match, **options):
    values = {"match_batch": 3, "unroll": 3, "expert_epochs": 1, "max_start": 1, **options}
    return matcher_for(learner, digits, pool, match, TrainingMatcher, **values)


@pytest.mark.parametrize("match", ["trajectory", "outcome"])
def test_images_from_noise_learn_to_teach(digits, tmp_path, match):
    pixels = PixelSet(size=8, channels=1, num_classes=10, ipc=1)
    initial.start(pixels, digits, "noise", 0, None)
    learner = PixelLearner(Accelerator(cpu=True), digits.spec, pixels, 0, lr=0.05, optimizer="adam")
    pool = (experts(digits, tmp_path, lr=0.05) if match == "trajectory" else
            RandomPool(digits, names=["convnet:depth=1,width=8"]))
    matcher = training_matcher(learner, digits, pool, match, unroll=8, step_size=0.1)
    losses = torch.stack([learner.step(step, matcher)["matching"] for step in range(30)])
    assert losses[-5:].mean() < 0.9 * losses[:5].mean()


def test_experts_are_kept_from_their_start_on_and_found_again(digits, tmp_path):
    pool = experts(digits, tmp_path)
    steps = [row["step"] for row in pool.table()]
    assert steps == [0, steps[1], 2 * steps[1]]
    assert experts(digits, tmp_path).dir == pool.dir
    assert experts(digits, tmp_path, momentum=0.5).dir != pool.dir
    start, target = pool.segment(stream(0), range(0, 1), 2)
    known = (pool[0], pool[2])
    for network, of_pool in zip((start, target), known):
        assert all(torch.equal(*pair) for pair in zip(network.parameters(), of_pool.parameters()))


def test_a_piece_of_a_trajectory_is_of_any_member_from_any_start(digits, tmp_path):
    pool = experts(digits, tmp_path, members=2)
    same = lambda one, other: all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters()))
    find = lambda network: next(index for index in range(len(pool)) if same(network, pool[index]))
    assert {tuple(map(find, pool.segment(stream(draw), range(1, 2), 1))) for draw in range(20)} == {(1, 2), (4, 5)}


def test_the_experts_own_batches_lead_to_the_expert(digits, tmp_path):
    """Steps on the images, in the order and at the rate of an expert's epoch, end where it ended."""
    count = 20
    rows = torch.cat([torch.nonzero(digits.train.labels == label)[:count, 0] for label in range(10)])
    few = dataclasses.replace(digits, train=digits.train[rows])
    pool = experts(few, tmp_path, epochs=1, batch_size=10 * count, lr=0.05)
    learner = make_learner("pixels", few, Accelerator(cpu=True), ipc=count)
    learner.source.pixels.data.copy_(to_signed(few.train.images).unflatten(0, (10, count)))
    losses = [float(learner_loss(learner, few, pool, step_size=rate)) for rate in (0.05, 0.01)]
    assert losses[0] < 1e-6
    assert losses[1] == pytest.approx((1 - 0.01 / 0.05) ** 2, rel=1e-2)


def learner_loss(learner, digits, pool, **options):
    return next(training_matcher(learner, digits, pool, "trajectory", unroll=1, **options).parts(0)).detach()


def test_the_window_of_difficulty_grows(digits, tmp_path):
    matcher = training_matcher(make_learner("pixels", digits, Accelerator(cpu=True)), digits, experts(digits, tmp_path),
                               "trajectory", max_start=2, first_max_start=1, start_grows=10)
    assert [matcher.max_start(step) for step in (0, 9, 10, 50)] == [1, 1, 2, 2]


def test_gradients_that_nobody_wants_are_not_made():
    loss, weights, inputs, terminal = problem()
    rates = torch.tensor([0.1], dtype=torch.float64)
    value, gradients = unroll(loss, SGD(), weights, inputs, rates, 4, terminal, useless=lambda value: value > 0)
    assert gradients is None
    assert value == unroll(loss, SGD(), weights, inputs, rates, 4, terminal, useless=lambda value: value < 0)[0]


def test_a_training_that_leads_too_far_away_teaches_nothing(digits, tmp_path):
    learner = make_learner("pixels", digits, Accelerator(cpu=True))
    matcher = training_matcher(learner, digits, experts(digits, tmp_path), "trajectory", step_size_lr=1.0)
    learner.step(0, matcher)  # from now on there is momentum, by which a step without a gradient would move
    matcher.options["skip_above"] = 0.01
    pixels, rate, length = (x.clone() for x in (learner.source.pixels, matcher.rates, matcher.length))
    assert float(learner.step(1, matcher)["matching"]) > 0.01
    assert torch.equal(learner.source.pixels, pixels)
    assert (matcher.rates, matcher.length) == (rate, length)
    matcher.options["skip_above"] = 10.0
    learner.step(2, matcher)
    assert not torch.equal(learner.source.pixels, pixels)


def test_a_generator_learns_from_its_own_loss_alone_where_a_training_is_skipped(digits, tmp_path):
    learners = [make_learner("generator", digits, Accelerator(cpu=True)) for _ in range(2)]
    pool = experts(digits, tmp_path)
    for learner, skip in zip(learners, (0.01, 0.0)):
        matcher = training_matcher(learner, digits, pool, "trajectory", skip_above=skip)
        matching = matcher if skip else None
        learner.step(0, matching)
    assert all(torch.equal(*pair) for pair in zip(*(learner.source.parameters() for learner in learners)))


def test_real_images_are_seen_in_pieces_with_the_same_gradient(monkeypatch):
    images, labels = torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 3
    weights = [torch.randn(3, 6, dtype=torch.float64, requires_grad=True)]
    reference = Reference(lambda weights, images: images @ weights[0].T, weights, real=images, labels=labels)
    whole = F.cross_entropy(images @ weights[0].T, labels)
    monkeypatch.setattr(objectives, "_TAUGHT_PIECE", 4)
    value = objectives.outcome(reference, weights)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(*(torch.autograd.grad(each, weights)[0] for each in (value, whole)))


def test_gradients_are_shortened_to_a_multiple_of_their_running_mean(digits):
    learner = make_learner("pixels", digits, Accelerator(cpu=True))
    matcher = training_matcher(learner, digits, RandomPool(digits), "outcome", clip=2.0)
    lengths = [float(matcher._within([torch.full((4,), size)])[0].norm()) for size in (1.0, 1.0, 100.0)]
    assert lengths == pytest.approx([2.0, 2.0, 4.0])


@pytest.mark.parametrize(("words", "said"), [
    (["--method", "mtt", "--pool-training", "random"], "give --pool-training expert"),
    (["--method", "mtt", "--window", 3], "--window is not for --match trajectory"),
    (["--method", "mtt", "--select", "dream"], "--select is not for --match trajectory"),
    (["--method", "bptt", "--match-classes", 2], "--match-classes is not for --match outcome"),
    (["--method", "mtt", "--first-max-start", 9], "--first-max-start 9 is above --max-start 5, to which it grows: lower it"),
    (["--method", "mtt", "--pool", "convnet_bn"], "--pool convnet_bn: it has batch norms"),
    (["--method", "mtt", "--match-batch", 17], "which trains on the stored images: give --syn-batch or --unroll-batch"),
    (["--method", "mtt", "--start-grows", 5], "--start-grows does nothing beside --first-max-start 0"),
    (["--method", "mtt", "--pool-epochs", 2], "need experts of 6 epochs: raise --pool-epochs, now 2"),
    (["--method", "bptt", "--unroll-momentum", 0.5], "--unroll-momentum does nothing beside --unroll-optimizer adam"),
    (["--method", "dd", "--match-aug"], "--unroll-order steps is plain SGD without augmentation"),
    (["--method", "dd", "--unroll-batch", 5], "--unroll-batch does nothing beside --unroll-order steps"),
    (["--method", "bptt", "--window", 300], "--window 300 is longer than the training of --unroll 200 steps"),
    (["--method", "bptt", "--expert-epochs", 3], "--expert-epochs is not for networks of --pool-training random"),
    (["--method", "dm", "--unroll", 3], "--unroll is not for --match mean"),
    (["--method", "dd", "--syn-batch", 1], "leave out --syn-batch"),
    (["--method", "bptt", "--label-lr", 1], "add --pool-training expert or pretrained"),
    (["--method", "itgan", "--weight", "gan", "--match", "outcome"], "or --paired-weight 0"),
    (["--method", "ncfm", "--pool-training", "random", "--calibrate", 1], "--calibrate is not for networks of --pool-training"),
    (["--method", "dm", "--pool-training", "real", "--inner", 5], "where every step has a new network: give --outer"),
    (["--method", "dc", "--pool-lr", 1, "--ipc", 1], "--pool-lr does nothing where every step has a new network"),
])
def test_bad_flags(fails, tmp_path, words, said):
    error = fails(2, pool_match, "--output-dir", tmp_path, *(QUICK[2:] if "--pool" in words else QUICK), *words)
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "pools").exists()  # it is said before experts are trained


@pytest.mark.parametrize("method", ["mtt", "bptt"])
def test_the_precision_of_the_run_changes_nothing(run_of, monkeypatch, method):
    monkeypatch.setattr(pools.pool, "_precision", lambda engine: {})  # both follow the same experts
    monkeypatch.setitem(METHOD_FLAGS, "bptt", METHOD_FLAGS["bptt"][:6])  # without a choice, which is made in that precision
    runs = [run_of(method, precision, "--steps", 2, "--precision", precision) for precision in ("fp32", "bf16")]
    exact, mixed = (load_checkpoint(run / "checkpoint.pt") for run in runs)
    assert torch.equal(exact["pixels"]["pixels"], mixed["pixels"]["pixels"])
