"""Training unrolled in constant memory: how what a trained network is depends on the images of each of its steps."""

import contextlib
import math

import torch

from gendistil.common.device import process_first, process_sums, twice_differentiable


class SGD:
    """Steps of SGD with momentum, as `torch.optim.SGD` takes them, as a function of all that they depend on."""

    def __init__(self, momentum=0.0):
        self.momentum = momentum

    def begin(self, weights):
        """What it remembers before the first step: a list of tensors."""
        return [torch.zeros_like(x) for x in weights] if self.momentum else []

    def __call__(self, weights, memory, gradients, rate, step):
        """Weights and memory after step `step` (from 0) at the 0-dim learning rate: two lists in one."""
        memory = [self.momentum * m + g for m, g in zip(memory, gradients)]
        return [*(w - rate * d for w, d in zip(weights, memory or gradients)), *memory]


class Adam:
    """Steps of Adam, as `torch.optim.Adam` takes them but for the root, which is differentiable where a gradient is zero."""

    beta1, beta2, epsilon, tiny = 0.9, 0.999, 1e-8, 1e-16

    def begin(self, weights):
        return [torch.zeros_like(x) for x in weights] * 2

    def __call__(self, weights, memory, gradients, rate, step):
        count = len(weights)
        first = [m + (1 - self.beta1) * (g - m) for m, g in zip(memory[:count], gradients)]
        second = [v + (1 - self.beta2) * (g * g - v) for v, g in zip(memory[count:], gradients)]
        shares = (1 - self.beta1 ** (step + 1), 1 - self.beta2 ** (step + 1))
        moved = [w - rate * (m / shares[0]) / ((v / shares[1] + self.tiny).sqrt() + self.epsilon)
                 for w, m, v in zip(weights, first, second)]
        return [*moved, *first, *second]


UNROLLED = {"sgd": SGD, "adam": lambda momentum: Adam()}
"""What takes the steps of a training, by the names that --unroll-optimizer knows, for a momentum, which SGD alone has."""


@contextlib.contextmanager
def exact(device):
    """The precision of the tensors, without autocast and TF32, by convolutions that give the same bits again. (On a GPU the
    gradients of pooling, and of crops and rotations, add in any order.)"""
    with torch.autocast(device.type, enabled=False), twice_differentiable(), torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


class _Training:
    """The steps of a training, onward and back, as functions of all that they depend on.

    Args: loss and optimizer, as `unroll` has them; learned, the inputs and behind them the rates; count, how many weights there
    are. A state is the list of the weights and, behind them, of what the optimiser remembers.
    """

    def __init__(self, loss, optimizer, learned, count):
        self.loss, self.optimizer, self.count = loss, optimizer, count
        *self.inputs, self.rates = learned

    def descent(self, weights, inputs, step, graph=False):
        """The gradient of this process's part of a step's loss by the weights, itself differentiable with `graph`."""
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(weights, inputs, step), weights, create_graph=graph, materialize_grads=True)

    def advance(self, weights, memory, gradients, rates, step):
        """The state after step `step`, which goes down these gradients of all processes."""
        return self.optimizer(weights, memory, gradients, rates[step % len(rates)], step)

    def onward(self, state, step):
        """The state after step `step`, without a graph."""
        weights, memory = state[:self.count], state[self.count:]
        gradients = process_sums(self.descent(_leaves(weights), self.inputs, step))
        return self.advance(weights, memory, gradients, self.rates, step)

    def backward(self, state, adjoint, step):
        """From `adjoint`, the gradient by the state after step `step`: that by the `state` before it, and those by what is
        learned, of the inputs this process's part."""
        weights, inputs = _leaves(state[:self.count]), _leaves(self.inputs)
        mine = self.descent(weights, inputs, step, graph=True)
        before = _leaves([*state, *process_sums(mine), self.rates])
        with torch.enable_grad():
            after = self.advance(before[:self.count], before[self.count:len(state)], before[len(state):-1], before[-1], step)
        *found, of_rates = torch.autograd.grad(after, before, adjoint, materialize_grads=True)  # back through the optimiser
        through = torch.autograd.grad(mine, [*weights, *inputs], found[len(state):], materialize_grads=True)
        of_weights = torch._foreach_add(found[:self.count], process_sums(through[:self.count]))
        return [*of_weights, *found[self.count:len(state)]], [*through[self.count:], of_rates]


def unroll(loss, optimizer, weights, inputs, rates, steps, terminal, window=0, useless=None):
    """Train from `weights` for `steps` steps, and differentiate what `terminal` says of the end through the last `window`.

    Args:
        loss: `loss(weights, inputs, step)` is what step `step` (from 0) descends, a 0-dim function of its arguments and of
            nothing else, because every step is taken again. Several processes give a part each, whose sum is descended.
        optimizer: an `SGD` or `Adam`.
        weights, inputs: lists of float tensors; inputs are images, soft labels, or whatever else is learned.
        rates: float [r], the learning rates; step i takes entry i modulo r.
        terminal: `terminal(weights)` is 0-dim.
        window: steps at the end that are differentiated, 0 for all.
        useless: `useless(value)` says whether nobody wants the gradients, which then are None.
    Returns (terminal's value, the list of its gradients with respect to `inputs` and `rates`), without graphs, the same in
    all processes.

    Exact: reverse-mode differentiation of the whole training, but with the graph of one step at a time. Weights and the
    optimiser's memory are kept at every s-th of n steps, s² ≈ n, and those in between are found again, so that memory
    hardly grows with n (Griewank, 1992; Maclaurin et al., arXiv 1502.03492).
    """
    count, learned = len(weights), [x.detach() for x in (*inputs, rates)]
    training = _Training(loss, optimizer, learned, count)

    with exact(weights[0].device), torch.no_grad():
        first = steps - (window or steps)
        spacing = max(1, math.isqrt(steps - first))
        state, marks = [x.detach() for x in (*weights, *optimizer.begin(weights))], []
        for step in range(steps):
            if step >= first and (step - first) % spacing == 0:
                marks.append(state)
            state = training.onward(state, step)

        final = _leaves(state[:count])
        with torch.enable_grad():
            value = terminal(final)
        told = process_first(value.detach())
        if useless and useless(told):
            return told, None
        adjoint = [*torch.autograd.grad(value, final, materialize_grads=True), *map(torch.zeros_like, state[count:])]
        gradients = [torch.zeros_like(x) for x in learned]
        for begin in reversed(range(first, steps, spacing)):
            end = min(begin + spacing, steps)
            between = [marks.pop()]
            for step in range(begin, end - 1):
                between.append(training.onward(between[-1], step))
            for step in reversed(range(begin, end)):
                adjoint, found = training.backward(between.pop(), adjoint, step)
                torch._foreach_add_(gradients, found)
    return told, [*process_sums(gradients[:-1]), process_first(gradients[-1])]


def _leaves(tensors):
    return [x.detach().requires_grad_() for x in tensors]


class WithGradients(torch.autograd.Function):
    """`WithGradients.apply(loss, gradients, *inputs)`: a 0-dim loss without a graph, whose gradients are known: a list."""

    @staticmethod
    def forward(ctx, loss, gradients, *inputs):
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx, outer):
        return None, None, *(outer * gradient for gradient in ctx.saved_tensors)
