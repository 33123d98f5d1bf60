"""What the rest of the suite needs to know of a data set, and how its images are whitened where that is asked for."""

import math
from dataclasses import asdict, dataclass

import torch

from gendistil.common.errors import UserError
from gendistil.data.images import to_signed

_EPS = 0.1  # added to the variances of images in [0, 1], as the published code of MTT has it
_LARGEST = 3 * 64**2  # values of an image, whose matrix then takes a gigabyte, and its eigenvectors some more


@dataclass(frozen=True)
class Spec:
    """What the rest of the suite needs to know of a data set. `mean` and `std` are per channel, of the whole training set's
    images in [0, 1]; `size` is the side in pixels; `flip` says whether a mirrored image still belongs to its class;
    `published_std` is what the code of DC, DSA and DM divides by, where that is something else than `std`."""

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    published_std: tuple[float, ...] | None = None

    @property
    def num_classes(self):
        return len(self.classes)

    @property
    def title(self):
        """What a report calls the data."""
        return self.name


@dataclass(frozen=True)
class Whitened(Spec):
    """A data set whose images networks see whitened by ZCA: less the mean image, times (covariance + 0.1)^(-1/2).

    What is stored and learned stays pixels: a distilled set is pictures as without it, and whoever trains on them has to whiten
    them likewise. The matrix follows from the data set's training images and is no field; a description that was read from a
    file has none, and asking it to whiten raises UserError.
    """

    whitening: str = "zca"

    @classmethod
    def of(cls, spec, images):
        """`spec` with the matrix of its stored training images [N, C, H, W]."""
        count, total, products = len(images), 0, 0
        values = math.prod(images.shape[1:])
        if values > _LARGEST:
            raise UserError(f"--whiten zca needs a matrix of {values} x {values} for these images, and {_LARGEST} is the most: "
                            "give a smaller --image-size")
        for part in images.split(4096):
            part = to_signed(part).flatten(1) / 2
            total, products = total + part.double().sum(0), products + (part.T @ part).double()
        mean = total / count
        values, vectors = torch.linalg.eigh((products - count * mean.outer(mean)) / max(count - 1, 1))
        variances = values.clamp(min=0) + _EPS
        matrix = (vectors * variances.rsqrt()) @ vectors.T
        maps = ((matrix / 2).float(), -(mean @ matrix).float(), (vectors * variances * 4 @ vectors.T).float())
        whitened = cls(**asdict(spec))
        object.__setattr__(whitened, "_maps", {"cpu": maps})
        return whitened

    @property
    def title(self):
        return f"{self.name}, whitened"

    def check(self):
        """Raise UserError where the matrix is not there."""
        self._map("cpu")

    def _map(self, device):
        """On a device: matrix [D, D] and shift [D] that take signed images to whitened ones, and the inverse of its square."""
        maps = getattr(self, "_maps", None)
        if maps is None:
            raise UserError(f"a classifier of whitened images of {self.name} needs these: only a command that loads the data "
                            "set can use it, with --whiten zca")
        if str(device) not in maps:
            with torch.inference_mode(False):  # what is kept may be saved for a later backward pass
                maps[str(device)] = tuple(part.to(device) for part in maps["cpu"])
        return maps[str(device)]

    def whiten(self, signed):
        """Signed images [B, C, H, W] as networks see them: float32 of that shape."""
        matrix, shift, _ = self._map(signed.device)
        with torch.autocast(signed.device.type, enabled=False):
            return torch.addmm(shift, signed.float().flatten(1), matrix).view(signed.shape)

    def unwhiten(self, batch):
        """The inverse of `whiten`."""
        matrix, shift, inverse = self._map(batch.device)
        with torch.autocast(batch.device.type, enabled=False):
            return ((batch.float().flatten(1) - shift) @ inverse @ matrix).view(batch.shape)

    def steepest(self, gradient):
        """By a gradient of signed images [..., C, H, W], the way that they move when they descend as whitened ones."""
        _, _, inverse = self._map(gradient.device)
        return (gradient.flatten(-3) @ inverse).view(gradient.shape)


def spec_of(values):
    """The `Spec` that `values`, a dict from a file, describe."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return (Whitened if "whitening" in values else Spec)(**values)
