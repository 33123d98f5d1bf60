"""How networks run: what is compiled computes the same, is compiled once, and does without where nothing can be compiled."""

import json

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL_POOL
from torch import nn
from torch.nn import functional as F

import gen_condense
import pool_match
import validate
from gendistil.common import device
from gendistil.common import engine as engines
from gendistil.common.engine import EAGER, Engine, resume_optimizer
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint
from gendistil.matching.objectives import Eyes
from pools import build_classifier


@pytest.fixture
def compiled():
    engine = Engine(Accelerator(cpu=True))
    engine.choose("on")
    yield engine
    torch._dynamo.reset()


def network(name, seed=0):
    return build_classifier(name, 3, 8, 10, generator=torch.Generator().manual_seed(seed))


def step(engine, model, images):
    """The loss of one step and the gradient of all weights."""
    model.zero_grad()
    loss = F.cross_entropy(engine(model, images), torch.arange(len(images)) % 10)
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters()]


def test_one_graph_computes_batches_of_any_length_for_any_network_of_a_kind(compiled, monkeypatch):
    graphs = []
    inductor = torch._dynamo.lookup_backend("inductor")
    make = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: make(f, backend=lambda g, x: graphs.append(g) or inductor(g, x)))
    engines._compile.cache_clear()
    for seed, count in enumerate((6, 4, 9)):
        model, images = network("convnet", seed), torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for ours, exact in zip(step(compiled, model, images), step(EAGER, model, images)):
            torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    engines._compile.cache_clear()


def test_embeddings_and_gradients_of_classes_are_those_of_the_network_as_it_is(compiled):
    model, images = network("convnet").eval().requires_grad_(False), torch.randn(2, 5, 3, 8, 8)
    with torch.no_grad():
        ours, exact = (Eyes(model, engine).embed(images[0]) for engine in (compiled, EAGER))
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    for one, other in zip(Eyes(model, compiled).gradients(images, torch.arange(2)),
                          Eyes(model).gradients(images, torch.arange(2))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_embeddings_in_bf16_are_those_of_the_network_as_it_is():
    model, images = network("convnet").eval(), torch.randn(5, 3, 8, 8)
    exact, engine = Engine(Accelerator(cpu=True, mixed_precision="bf16")), Engine(Accelerator(cpu=True))
    engine.choose("on")
    with torch.no_grad():
        expected, ours = exact(model, images, view="embed"), engine(model, images, view="embed")
    torch._dynamo.reset()
    assert ours.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_with_batch_norms_trains_in_the_format_channels_last(channels, monkeypatch):
    formats = []
    model = build_classifier("resnet10", channels, 16, 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: formats.append(output.stride(1) == 1))
    engine = Engine()
    engine.choose("on")
    monkeypatch.setattr(engines, "_compile", None)  # and is not compiled
    engine(model, torch.randn(4, channels, 16, 16))
    assert all(formats)
    assert formats


def broken(function):
    def call(*args):
        raise torch._dynamo.exc.TorchDynamoException("no working C++ compiler\nand much more")

    return call


def test_without_a_compiler_networks_run_as_they_are_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(engines, "_compile", broken)
    model, images, engine = network("convnet").eval(), torch.randn(4, 3, 8, 8), Engine()
    engine.choose("auto", pixels=10**12)
    for _ in range(2):
        assert torch.equal(engine(model, images), model(images))
    assert capsys.readouterr().err == "networks are not compiled (no working C++ compiler)\n"


def test_without_a_compiler_the_flag_on_is_refused(monkeypatch):
    monkeypatch.setattr(engines, "_compile", broken)
    engine = Engine()
    engine.choose("on")
    with pytest.raises(UserError, match="--compile on: no working C"):
        engine(network("convnet"), torch.randn(4, 3, 8, 8))


def test_auto_compiles_where_a_run_is_long_enough():
    engine = Engine()
    for choice, pixels, expected in (("auto", 10**6, False), ("auto", 10**9, True), ("off", 10**9, False), ("on", 0, True)):
        engine.choose(choice, pixels)
        assert engine.compiled == expected


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    """A generator and its matching by each value of --compile, on the folder they are in."""
    folder = tmp_path_factory.mktemp("engine")
    for how in ("off", "on"):
        shared = ("--output-dir", folder / how, "--precision", "fp32", "--compile", how, "--log-interval", 1)
        command(gen_condense, *shared, "--tag", "gan", "--width", 16, "--batch-size", 16, "--steps", 4)
        command(pool_match, *shared, "--tag", "match", "--weight", folder / how / "gan", "--steps", 2, "--match-batch", 4,
                "--match-classes", 2, *SMALL_POOL, "--eval-epochs", 1, "--eval-ipc", 1, "--batch-size", 16)
        command(validate, *shared[:-2], "--tag", "test", "--pretrain-weight", folder / how / "match", "--ipc", 2, "--epochs", 2,
                "--min-steps", 2, "--num-eval", 1)
    return folder


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "critic" in name or "matching" in name} for row in rows]


@pytest.mark.parametrize("tag", ["gan", "match"])
def test_compiled_runs_compute_what_others_do(runs, tag):
    for one, other in zip(losses(runs / "off" / tag), losses(runs / "on" / tag), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert [json.loads((runs / how / tag / "config.json").read_text())["compiled"] for how in ("off", "on")] == [False, True]


def test_a_compiled_run_that_is_resumed_ends_where_the_whole_one_does(runs, command):
    shared = ("--output-dir", runs / "on", "--precision", "fp32", "--compile", "on", "--log-interval", 1, "--tag", "parts",
              "--width", 16, "--batch-size", 16)
    command(gen_condense, *shared, "--steps", 2)
    torch._dynamo.reset()
    command(gen_condense, *shared, "--steps", 4, "--resume")
    whole, parts = (load_checkpoint(runs / "on" / tag / "checkpoint.pt")["generator"] for tag in ("gan", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_optimiser_takes_a_copy_of_what_another_remembers():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    saved, again = optimizer.state_dict(), torch.optim.Adam([weight])
    resume_optimizer(again, saved)
    again.step()
    assert int(saved["state"][0]["step"]) == 1
    assert int(again.state_dict()["state"][0]["step"]) == 2


def test_what_an_optimiser_remembers_is_laid_out_as_its_weights_are():
    """A published checkpoint knows no other format than the usual one, and a fused optimiser does not look."""
    steps = []
    for layout in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
        for weight in conv.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        saved = optimizer.state_dict()
        for name in ("exp_avg", "exp_avg_sq"):
            saved["state"][0][name] = saved["state"][0][name].contiguous(memory_format=layout)
        again = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
        resume_optimizer(again, saved)
        assert again.state[conv.weight]["exp_avg"].stride() == conv.weight.stride()
        again.step()
        steps.append(conv.weight.detach().clone())
    assert torch.equal(*steps)


@pytest.mark.parametrize(("launched", "threads"), [(True, 1), (True, 4), (False, 1)])
def test_who_launches_with_one_thread_is_told_how_to_take_all(on_the_cpu, monkeypatch, capsys, launched, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(device, "_cores", lambda: 8)
    device._say_once.cache_clear()
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for _ in range(2):
        device.make_accelerator("fp32")
    assert capsys.readouterr().err.count("--num_cpu_threads_per_process 8") == (launched and threads == 1)
