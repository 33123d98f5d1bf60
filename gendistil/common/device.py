"""The hardware: its memory, its precision, a cache folder, and what several processes share."""

import atexit
import ctypes
import functools
import math
import os
import platform
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gendistil.common.cli import say
from gendistil.common.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory():
    """Tell glibc to keep freed memory instead of returning it to the kernel; elsewhere do nothing.

    A training step on a CPU frees and asks for the same hundreds of megabytes again and again, and the kernel clears every
    page that it hands out: often slower than the arithmetic done on it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 256 << 20)


def user_cache():
    """The folder of this suite in the user's cache; in that of temporary files for a user who has no home."""
    home = os.path.expanduser("~")
    usual = os.path.join(home, ".cache") if home != "~" else tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "dataset-distillation"


def native_bf16(device):
    """True where `device` multiplies bfloat16 in hardware: CUDA sm_80 and newer, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in (" amx_bf16", " avx512_bf16"))
    return False


def device_name(device):
    """The device in words: the GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] \
        if cpuinfo.exists() else []
    count = torch.get_num_threads()
    return f"{models[0]}, {count} thread{'s' * (count > 1)}" if models else device.type


def make_accelerator(precision="auto"):
    """An `Accelerator` for `precision` (see `common.cli.PRECISIONS`), with memory and kernels set up for training."""
    keep_freed_memory()
    try:
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    except ValueError:
        raise UserError(f"ACCELERATE_USE_CPU is '{os.environ['ACCELERATE_USE_CPU']}': set it to 1 or 0") from None
    # The other processes wait for hours, not minutes, while the main one pretrains a pool or scores a generator.
    state = PartialState(cpu=cpu, timeout=timedelta(hours=12))
    if state.num_processes < int(os.environ.get("WORLD_SIZE", 1)):
        raise UserError("the processes of this launch would each train alone: without GPUs, set ACCELERATE_USE_CPU=1")
    if state.backend == "gloo":
        atexit.register(_leave)
    device = state.device
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU: use bf16 or fp32 here")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and state.num_processes == 1
    if device.type == "cpu" and launched and torch.get_num_threads() == 1 < _cores():
        _say_once(f"one of {_cores()} cores is used: accelerate launch takes all by --num_cpu_threads_per_process {_cores()}, "
                  "and python by itself")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # Convolutions only: the products behind distances and clusterings keep all their digits.
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    return Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision))


def _cores():
    """How many cores of the machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_say_once = functools.cache(say)


def _leave():
    """End the processes' group before the interpreter: a thread of gloo's that still runs then aborts it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_bytes(device):
    """How much memory of a GPU is free, or kept by torch for whatever comes; infinite for what shares the host's memory."""
    if torch.device(device).type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def synchronise(device):
    """Wait until `device` has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def send(x, device):
    """A tensor of the host on `device`; on a GPU the host does not wait until it is there."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.contiguous().pin_memory().to(device, non_blocking=True)  # what is in pieces would be copied once more, unpinned


def own_rows(accelerator, x):
    """The rows of this process, of something that is the same in all of them."""
    return x[accelerator.process_index :: accelerator.num_processes]


def halve(x):
    """`F.avg_pool2d(x, 2)`, on CPUs in half its time: [B, C, H, W] -> [B, C, H // 2, W // 2]."""
    if x.device.type != "cpu" or not x.is_contiguous() or x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.avg_pool2d(x, 2)
    upper, lower = x.unflatten(2, (-1, 2)).unbind(3)
    left, right = (upper + lower).unflatten(3, (-1, 2)).unbind(4)
    return (left + right) * 0.25


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def process_sums(tensors):
    """The sums of tensors of one type over all processes, without a graph: a list. Where there is one, what is given."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(tensors)
    total = torch.cat([x.detach().flatten() for x in tensors])
    dist.all_reduce(total)
    return [part.view_as(x) for part, x in zip(total.split([x.numel() for x in tensors]), tensors)]


def twice_differentiable():
    """A context in which attention has a second derivative, which its fused kernels have not."""
    return sdpa_kernel(SDPBackend.MATH)


def process_first(x):
    """A tensor on the device as the first process has it: GPUs round, and break ties, each in its own way."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    x = x.contiguous()
    dist.broadcast(x, src=0)
    return x


def process_mean(x):
    """The mean of a tensor over all processes, differentiable; `x` itself where there is only one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Sum.apply(x) / dist.get_world_size()
