"""Students: classifiers trained on IPC images of every class and scored on real images that nothing has learned from."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit

from common.rng import stream
from data import Augment, standardise, to_signed, to_uint8
from evaluation.sources import CHOICES, check_fits, draw_set, images_per_class
from pools import accuracy, build_classifier, epoch_batches, train_classifier
from pools.training import split_batches

SAMPLINGS = (*CHOICES, "fresh")
"""fixed: a student sees one set of IPC images of every class; representative: one too, chosen among 20 times as many images;
fresh: a new set every epoch."""


@dataclass(frozen=True)
class Protocol:
    """How a student is trained, by SGD with momentum, and scored."""

    epochs: int = 300
    min_steps: int = 300         # epochs are added until a student has taken this many steps
    batch_size: int = 64         # images a step
    lr: float = 0.05             # learning rate of the first epoch
    schedule: str = "cosine"     # a key of pools.training.SCHEDULES
    momentum: float = 0.9
    weight_decay: float = 5e-4
    aug_type: str = "color_crop_cutout"
    looks: int = 1               # how often the student is scored, evenly spaced; the best counts, so only 1 is honest
    random_labels: bool = False  # whole batches of random labels, as many as fit into IPC times classes, at least one


PROTOCOLS = {
    "default": Protocol(),
    # That of DiM's validate.py, but for scoring in eval mode and training at IPC so small that it takes no step at all.
    "dim": Protocol(epochs=1000, min_steps=0, batch_size=128, lr=0.01, schedule="constant", aug_type="color_crop", looks=5,
                  random_labels=True),
}


@dataclass(frozen=True)
class Result:
    """Accuracies of students that differ in nothing but their seeds."""

    accuracies: tuple  # per cent, one per student
    images: int        # training images an epoch
    epochs: int
    steps: int         # of each student
    seconds: float     # wall-clock, all students together, the drawing of their images included

    @property
    def n(self):
        return len(self.accuracies)

    @property
    def mean(self):
        return math.fsum(self.accuracies) / self.n

    @property
    def std(self):
        """Sample standard deviation, n - 1 in the denominator; None for a single student."""
        if self.n > 1:
            return math.sqrt(math.fsum((a - self.mean) ** 2 for a in self.accuracies) / (self.n - 1))

    @property
    def ci95(self):
        """Half the width of the 95 % confidence interval of the mean, by Student's t; None for a single student."""
        if self.n > 1:
            return float(stdtrit(self.n - 1, 0.975)) * self.std / math.sqrt(self.n)

    def row(self):
        """The numbers of a report's row."""
        return {"mean": self.mean, "std": self.std, "ci95": self.ci95, "n": self.n, "seconds": self.seconds,
                "accuracies": list(self.accuracies), "images": self.images, "epochs": self.epochs, "steps": self.steps}


def evaluate(source, dataset, model_name="convnet", ipc=50, sampling="fresh", *, num_eval=3, seed=0,
             protocol=PROTOCOLS["default"], scored_on="test", autocast=nullcontext):
    """Train `num_eval` students on exactly `ipc` images of every class from `source`, and score each at its last step.

    Args: source, see `evaluation.sources`; dataset, a `data.Dataset`, on whose device everything happens; sampling, one of
    `SAMPLINGS`; scored_on, "test" or "held_out"; autocast, makes the context of each forward pass.
    Student i has the seed `seed + i`. Unless sampling is fresh it is trained on the set that `draw_set` gives for that seed.
    Returns a `Result`. Raises UserError where the source does not fit the data set or has too few images.
    """
    spec, device = dataset.spec, dataset.train.images.device
    check_fits(source, spec, "the source")
    augment = Augment(protocol.aug_type, spec)

    def batches_of(seed):
        once = draw_set(source, ipc, seed, device, sampling) if sampling in CHOICES else None

        def batches(epoch):
            images, labels = once or draw_set(source, ipc, _epoch_stream(seed, epoch).initial_seed(), device)
            return epoch_batches(images, labels, spec, augment, protocol.batch_size, _epoch_stream(seed, epoch))

        return batches

    def random_batches_of(seed):
        def batches(epoch):
            generator = _epoch_stream(seed, epoch)
            for step in range(steps):
                labels = torch.randint(spec.num_classes, (protocol.batch_size,), generator=generator).to(device)
                images = to_uint8(source.sample(labels, stream(seed, "step", epoch, step).initial_seed()))
                yield augment(standardise(to_signed(images), spec), generator), labels

        return batches

    if protocol.random_labels:
        steps = max(1, spec.num_classes * ipc // protocol.batch_size)
        images, make_batches = steps * protocol.batch_size, random_batches_of
    else:
        images, make_batches = spec.num_classes * images_per_class(source, ipc), batches_of
    return _train(make_batches, images, dataset, model_name, num_eval, seed, protocol, scored_on, autocast)


def evaluate_full(dataset, model_name="convnet", *, num_eval=3, seed=0, protocol=PROTOCOLS["default"], scored_on="test",
                  autocast=nullcontext):
    """As `evaluate`, but each epoch is one pass over the whole training set (without the held-out part if that is scored)."""
    split = dataset.full_train if scored_on == "test" else dataset.train
    augment = Augment(protocol.aug_type, dataset.spec)

    def batches_of(seed):
        return lambda epoch: epoch_batches(split.images, split.labels, dataset.spec, augment, protocol.batch_size,
                                           _epoch_stream(seed, epoch))

    return _train(batches_of, len(split), dataset, model_name, num_eval, seed, protocol, scored_on, autocast)


def _epoch_stream(seed, epoch):
    return stream(seed, "student's epoch", epoch)


def steps_per_epoch(images, batch_size):
    """Steps in which `pools.epoch_batches` passes over so many images: at least one."""
    return len(split_batches(torch.empty(images), batch_size))


def _train(make_batches, images, dataset, model_name, num_eval, seed, protocol, scored_on, autocast):
    """Train and score the students; `make_batches(seed)(epoch)` yields one epoch of a student's batches."""
    start = time.perf_counter()
    per_epoch = steps_per_epoch(images, protocol.batch_size)
    protocol = replace(protocol, epochs=max(protocol.epochs, math.ceil(protocol.min_steps / per_epoch)))
    accuracies = tuple(_train_student(make_batches(student_seed), dataset, model_name, student_seed, protocol, scored_on,
                                      autocast).item() for student_seed in range(seed, seed + num_eval))
    return Result(accuracies, images, protocol.epochs, protocol.epochs * per_epoch, time.perf_counter() - start)


def _train_student(batches, dataset, model_name, seed, protocol, scored_on, autocast):
    """The accuracy of one student as a 0-dim tensor."""
    spec, scored = dataset.spec, getattr(dataset, scored_on)
    model = build_classifier(model_name, spec.channels, spec.size, spec.num_classes,
                             generator=stream(seed, "student's weights")).to(scored.images.device)
    look_after = {math.ceil(protocol.epochs * look / protocol.looks) for look in range(1, protocol.looks + 1)}
    scores = []

    def look(epochs_done, loss):
        if epochs_done in look_after:
            scores.append(accuracy(model, scored.images, scored.labels, spec, autocast=autocast))

    train_classifier(model, batches, epochs=protocol.epochs, lr=protocol.lr, momentum=protocol.momentum,
                     weight_decay=protocol.weight_decay, schedule=protocol.schedule, autocast=autocast, on_epoch=look)
    return torch.stack(scores).max()
