"""How a network runs: in which precision, in which memory format, compiled or as it is. The one place that decides it."""

import contextlib
import copy
import functools
import logging
import os

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.nn.parallel import DistributedDataParallel

from gendistil.common.cli import first_line, say
from gendistil.common.device import user_cache
from gendistil.common.errors import UserError

# Pixels that networks see in a run: of fewer, a minute of compiling would not save another minute. On two cores that was
# measured; a GPU is taken to be a hundred times as fast.
_PAYS = {"cpu": 10**8, "cuda": 10**10}
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_GRAPHS = 64  # of one function: a network in training, in use, with gradients, by its depth, its norm, ...


class Engine:
    """Runs networks in the accelerator's precision, in the memory format that suits them, and compiled if asked to.

    Args: accelerator, an Accelerate `Accelerator`, or None for the precision of the inputs. What is compiled gives what it
    gives otherwise but for the last bits of a float.
    """

    def __init__(self, accelerator=None):
        self.accelerator, self.compiled, self.required = accelerator, False, False

    def choose(self, choice, pixels=0):
        """Compile from now on, or not, as `--compile` says: "on", "off", or "auto" in a run whose networks see so many pixels
        that it pays.

        Where compiling fails, "auto" says so and goes on without. `pixels` follows from the command line alone, so that a run
        that is resumed to its end decides as it did before.
        """
        device = "cpu" if self.accelerator is None else self.accelerator.device.type
        self.compiled = choice == "on" or (choice == "auto" and pixels >= _PAYS.get(device, _PAYS["cuda"]))
        self.required = choice == "on"

    @property
    def precision(self):
        """Of the networks, as Accelerate calls it: "no", "bf16" or "fp16"."""
        return "no" if self.accelerator is None else self.accelerator.mixed_precision

    def autocast(self):
        """The accelerator's mixed precision as a context."""
        if self.precision == "no":
            return contextlib.nullcontext()
        return self.accelerator.autocast()

    def loss_scaler(self, device):
        """The gradient scaler that float16 needs; for other precisions one that changes nothing."""
        with self.autocast():
            half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
        return torch.amp.GradScaler(device.type, enabled=half)

    def __call__(self, network, *inputs, view="forward"):
        """`network(*inputs)`, or its method `view`, where every tensor's first axis counts images."""
        if has_batch_norm(network):
            inputs = [channels_last(x) if x.dim() == 4 else x for x in inputs]
        if self.compiled and compiles(network):
            return self.run(getattr(type(network), view), network, *inputs)
        with self.autocast():
            return network(*inputs) if view == "forward" else getattr(network, view)(*inputs)

    def run(self, function, *args):
        """`function(*args)`: a function of its own name, which is compiled once for tensors of any length."""
        with self.autocast():
            if not self.compiled:
                return function(*args)
            for x in args:
                if isinstance(x, torch.Tensor) and x.dim():
                    torch._dynamo.maybe_mark_dynamic(x, 0)
            try:
                return _compile(function)(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = first_line(error)
                if self.required:
                    raise UserError(f"--compile on: {reason}: is there a C++ compiler? Else give --compile off") from None
                say(f"networks are not compiled ({reason})")
                self.compiled = False
                return function(*args)


def resume_optimizer(optimizer, saved):
    """Give an optimiser a copy of what another, of the state dict `saved`, remembers; its rates and other settings stay.

    It lies in memory as its weight does: the kernels of fused optimisers go through both entry by entry.
    """
    optimizer.load_state_dict({**optimizer.state_dict(), "state": copy.deepcopy(saved["state"])})
    for weight, memory in optimizer.state.items():
        for name, value in memory.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                memory[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


@functools.cache
def _compile(function):
    if os.environ.get(_FOLDER) in (None, default_cache_dir()):  # which torch sets itself, and which a reboot may empty
        os.environ[_FOLDER] = str(user_cache() / "compiled")
    if not _compile.cache_info().currsize:
        say(f"compiling networks: a minute or two the first time, seconds from then on (kept in {os.environ[_FOLDER]})")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where there is none
    torch._dynamo.config.recompile_limit = _GRAPHS
    return torch.compile(function)


def compiles(network):
    """Whether a network gains from being compiled.

    One in training whose batch norms look at the batch does not: it is as fast in the format channels_last, and takes the
    longest to compile; nor one that says that it is written for that format. One that is wrapped for several processes is not
    compiled either, nor one that says that it stays eager.
    """
    if isinstance(network, DistributedDataParallel) or getattr(network, "eager", False):
        return False
    return not getattr(network, "channels_last", False) and not (network.training and has_batch_norm(network))


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def has_batch_norm(network):
    return bool(batch_norms(network))


def norms_in_float32(network):
    """Show the batch norms of a network images in float32, the only ones that their kernels take beside float32 statistics
    under `vmap`. Returns the hooks, whose `remove` ends this."""
    return [norm.register_forward_pre_hook(lambda norm, images: tuple(x.float() for x in images))
            for norm in batch_norms(network)]


def channels_last(images):
    """A copy of `images` [B, C, H, W] in that format; of grey images too, which count as being in it already."""
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


EAGER = Engine()
"""Runs networks as they are."""
