"""What is stored image by image, perhaps with labels and a step size that were learned with the images."""

import math

import torch

from gendistil.common.source import Source


def check_rates(step_size):
    """A step size as a config.json has it, or ValueError: a positive number, one for each step, or None."""
    for rate in step_size if isinstance(step_size, list) else [] if step_size is None else [step_size]:
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise ValueError(f"a step size of {rate!r}")
    return step_size


def forget(source, labels=True, step_size=True):
    """Leave out what a `Source` has learned with its images, its labels and its step size, in place; a teacher's rows stay."""
    if labels and source.soft:
        source.rows = None
    if step_size:
        source.step_size = None


class StoredSource(Source):
    """The base of pixels and latents, models of diffusers, that keeps both with them.

    `step_size` is the learning rate of SGD that the images were learned for, a number, or one for each step of a training in
    which step i takes the i-th image of every class, modulo their number; None if there is none. It is kept in config.json.
    Learned rows are what `targets` gives, and count in `stored_bytes`.
    """

    varies = False

    @property
    def soft(self):
        return self.rows is not None and self.rows.learned

    def targets(self, labels, seed=0, images=None):
        return self.rows.logits(images, labels).softmax(1) if self.soft else labels

    def label_bytes(self, ipc):
        """Bytes of the learned rows of the first `ipc` stored images of every class."""
        return 2 * self.num_classes**2 * self.decoded(ipc) if self.soft else 0

    def save_pretrained(self, folder, **options):
        if self.step_size is not None:
            self.register_to_config(step_size=torch.as_tensor(self.step_size).tolist())
        super().save_pretrained(folder, **options)
        if self.soft:
            self.rows.save(folder)
