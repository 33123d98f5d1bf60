"""Named random streams: every draw of the suite comes from a generator derived from the run's seed and a name."""

import hashlib
import math

import torch


def stream(seed, *name, device="cpu"):
    """A `torch.Generator` that depends on `seed` and on `name` (strings and integers) and on nothing else.

    On a CPU it takes 32 bits of them, so that among tens of thousands of streams some are the same. Raises TypeError for a name
    of anything else, whose text may say where a tensor lies.
    """
    if not all(isinstance(key, (str, int)) for key in (seed, *name)):
        raise TypeError(f"a stream is named by strings and integers, not by {(seed, *name)}")
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def seed_of(seed, *name):
    """A seed below 2^31 that depends on `seed` and on `name`, as `stream` does."""
    return stream(seed, *name).initial_seed() % 2**31


def has_float64(device):
    """Whether `device` computes with float64: Apple's GPUs do not."""
    return device.type != "mps"


def _mix(x):
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64 tensors that wrap around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, None)):
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        x = x if factor is None else x * factor
    return x


def counter_normal(seed, labels, indices, dim):
    """Standard normal noise that is a pure function of (seed, label, index within the class, coordinate).

    Args: seed, an int; labels and indices, int64 `[B]`; dim, an int. Returns float32 `[B, dim]` on the labels' device.
    No state and no order: any subset of the images can be drawn again, in any batch, on any number of processes.
    """
    if not has_float64(labels.device):
        return counter_normal(seed, labels.cpu(), indices.cpu(), dim).to(labels.device)
    golden = -0x61C8864680B583EB  # 2^64 / golden ratio, the increment of SplitMix64
    start = _mix(torch.full((), seed, dtype=torch.int64, device=labels.device) * golden + 1)
    key = _mix(_mix(start + labels * golden) + indices * golden)
    counter = torch.arange(1, 2 * dim + 1, device=labels.device)
    bits = _mix(key[:, None] + counter * golden)
    uniform = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / (1 << 53)
    radius, angle = uniform[:, :dim].log().mul(-2).sqrt(), uniform[:, dim:] * (2 * math.pi)
    return (radius * angle.cos()).float()  # Box-Muller


class Shuffle:
    """Endless passes over `count` items, each in an order of its own: a pure function of (seed, name, step)."""

    def __init__(self, count, batch_size, seed, *name):
        self.count, self.batch_size, self.seed, self.name = count, batch_size, seed, name
        self._orders = {}

    def _order(self, epoch):
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = torch.randperm(self.count, generator=stream(self.seed, *self.name, "epoch", epoch))
        return self._orders[epoch]

    def indices(self, step):
        """The items of batch `step` (from 0): int64 [batch_size] on the CPU. Batches run on across the end of a pass."""
        rows = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        parts = [self._order(int(epoch))[rows[rows // self.count == epoch] % self.count]
                 for epoch in (rows // self.count).unique()]
        return torch.cat(parts)
