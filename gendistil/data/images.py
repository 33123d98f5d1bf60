"""The three ranges that images live in, and the functions that convert between them.

* stored: uint8 `[N, C, H, W]`, 0 to 255;
* signed: float in [-1, 1], what generators emit;
* standardised: float, minus the training images' mean and divided by their standard deviation, what classifiers take; of a
  `Whitened` data set, whitened instead.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from gendistil.common.device import send


class HostImages:
    """Stored images that are too many for a device: they stay in the host's memory, and what is taken of them moves there.

    They have what is asked of a split's images elsewhere, a tensor on the device: `shape`, `len`, `device`, `cpu` and `to`, and
    indexing and `split`, which give tensors on the device.
    """

    def __init__(self, images, device):
        self.device = torch.device(device)
        self.pixels = images.pin_memory() if self.device.type == "cuda" else images
        self.shape = images.shape

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, rows):
        """Images at the rows of a slice or a tensor; one that lies on the device makes the host wait, see `take`."""
        return send(self.pixels[_of_host(rows)], self.device)

    def split(self, size):
        return (send(part, self.device) for part in self.pixels.split(size))

    def part(self, rows):
        """The images at these rows, as `HostImages`."""
        return HostImages(self.pixels[_of_host(rows)], self.device)

    def cpu(self):
        return self.pixels

    def to(self, device):
        return HostImages(self.pixels, device)


def _of_host(rows):
    return rows.cpu() if isinstance(rows, torch.Tensor) else rows


def take(images, rows):
    """`images[rows]` for int64 rows of the host, on the images' device, wherever they lie; the host does not wait for it."""
    return images[rows] if isinstance(images, HostImages) else images[send(rows, images.device)]


def join(parts):
    """Stored images of several parts, which lie alike, as one."""
    if isinstance(parts[0], HostImages):
        return HostImages(torch.cat([part.pixels for part in parts]), parts[0].device)
    return torch.cat(parts)


def to_signed(images):
    """Stored images (uint8, any shape) as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(signed):
    """Signed images (float, any shape) as uint8, rounded to the nearest level and clamped: the inverse of `to_signed`."""
    return ((signed.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def standardise(signed, spec):
    """Signed images `[B, C, H, W]` as float32 standardised by `spec`'s mean and std (which are those of images in [0, 1]), or
    whitened if it is a `Whitened`."""
    if hasattr(spec, "whiten"):
        return spec.whiten(signed)
    scale, shift = _affine(spec.mean, spec.std, signed.device)
    return signed * scale + shift


def restandardise(batch, spec, other):
    """A batch [B, C, H, W] that `spec` standardised, or whitened, as `other` would have: itself where they agree."""
    whitened = hasattr(spec, "whiten")
    if (whitened, spec.mean, spec.std) == (hasattr(other, "whiten"), other.mean, other.std):
        return batch
    if whitened:
        return standardise(spec.unwhiten(batch), other)
    scale, shift = _affine(spec.mean, spec.std, batch.device)
    return standardise((batch - shift) / scale, other)


@functools.lru_cache(maxsize=32)
def _affine(mean, std, device):
    """float32 `[C, 1, 1]` scale and shift that take [-1, 1] to standardised values.

    Kept, because building a tensor from numbers makes the host wait for a GPU; never an inference tensor, because the kept one
    may be saved for a later backward pass.
    """
    with torch.inference_mode(False):
        mean, std = torch.tensor([mean, std], dtype=torch.float64)[:, :, None, None]
        return (0.5 / std).float().to(device), ((0.5 - mean) / std).float().to(device)


def resize(images, size):
    """Stored images `[N, C, H, W]` as `[N, C, size, size]`: bilinear, antialiased, uint8; unchanged if they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    resized = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for part, target in zip(images.split(4096), resized.split(4096)):  # in parts: floats take four times the memory
        part = F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        target.copy_(part.round().clamp(0, 255))
    return resized


def moments(images):
    """Mean and std per channel of stored images `[N, C, H, W]`, in units of [0, 1]: two tuples of C floats.

    Taken from a histogram of the levels, so they are exact whatever the order of the sums. A constant channel gets one level,
    1/255, as its std.
    """
    levels = np.arange(256)
    histogram = np.zeros((images.shape[1], 256), np.int64)
    for part in images.split(2048):
        for channel, pixels in enumerate(part.numpy().swapaxes(0, 1)):
            histogram[channel] += np.bincount(pixels.ravel(), minlength=256)
    count = images.numel() // images.shape[1]
    mean = histogram @ levels / count
    std = np.sqrt(np.maximum(histogram @ levels**2 / count - mean**2, 1))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
