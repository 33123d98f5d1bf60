"""Unrolled training: its gradients against those of the whole graph, its memory, and the methods that are made of it."""

import pytest
import torch
from torch.nn import functional as F

from gendistil.matching.unroll import SGD, Adam, Known, unroll

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


def whole_graph(loss, optimizer, weights, inputs, rates, steps, terminal, window=0):
    inputs, rates = [x.clone().requires_grad_() for x in inputs], rates.clone().requires_grad_()
    state, count = [*weights, *optimizer.begin(weights)], len(weights)
    for step in range(steps):
        if step < steps - (window or steps):
            state = [x.detach() for x in state]
        weights = [x if x.requires_grad else x.requires_grad_() for x in (y.clone() for y in state[:count])]
        gradients = torch.autograd.grad(loss(weights, inputs, step), weights, create_graph=True)
        if step < steps - (window or steps):
            gradients = [x.detach() for x in gradients]
            state = [x.detach() for x in optimizer(weights, state[count:], gradients, rates[step % len(rates)].detach(), step)]
        else:
            state = optimizer(weights, state[count:], gradients, rates[step % len(rates)], step)
    value = terminal(state[:count])
    return value.detach(), torch.autograd.grad(value, [*inputs, rates])


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
    loss = 2 * Known.apply(torch.tensor(5.0), start * 4, gradient)
    loss.backward()
    assert float(loss.detach()) == 10
    assert torch.equal(start.grad, 8 * gradient)
