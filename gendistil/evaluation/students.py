"""Students: classifiers trained on IPC images of every class and scored on real images that nothing has learned from."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import torch
import torch.nn.functional as F
from scipy.special import stdtrit

from gendistil.common.device import send
from gendistil.common.engine import EAGER
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import Augment, to_uint8
from gendistil.evaluation.protocols import PROTOCOLS
from gendistil.sources import CHOICES, Taught, check_fits, draw_set
from pools import SideBySide, accuracy, build_classifier, epoch_batches, train_classifier
from pools.training import count_batches, prepare_batch

SAMPLINGS = (*CHOICES, "fresh")
"""fixed: a student sees one set of IPC images of every class; representative: one too, chosen among 500 images of a class,
or 20 times as many where that is more; fresh: a new set every epoch."""


@dataclass(frozen=True)
class Result:
    """Accuracies of students that differ in nothing but their seeds."""

    accuracies: tuple  # per cent, one per student
    images: int        # training images an epoch
    epochs: int
    steps: int         # of each student
    seconds: float     # wall-clock, all students together, the drawing of their images included
    student: object = None  # the first of them, trained

    @property
    def n(self):
        return len(self.accuracies)

    @property
    def mean(self):
        return fmean(self.accuracies)

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

    @classmethod
    def of_rows(cls, *rows):
        """The students of rows that differ in nothing but the seeds, as one result."""
        first = rows[0]
        scores = tuple(value for row in rows for value in row["accuracies"])
        return cls(scores, first["images"], first["epochs"], first["steps"], math.fsum(row["seconds"] for row in rows))

    def row(self):
        """The numbers of a report's row."""
        return {"mean": self.mean, "std": self.std, "ci95": self.ci95, "n": self.n, "seconds": self.seconds,
                "accuracies": list(self.accuracies), "images": self.images, "epochs": self.epochs, "steps": self.steps}


def evaluate(source, dataset, model_name="convnet", ipc=50, sampling="fresh", *, protocol=PROTOCOLS["default"], engine=EAGER,
             **settings):
    """Train students on exactly `ipc` images of every class from `source`, and score each at its last step.

    Args: source, a `gendistil.sources.Source`; dataset, a `Dataset`, on whose device everything happens; sampling, one of
    `SAMPLINGS`; protocol, a `Protocol`; engine, the `Engine` that runs the students. Settings: num_eval, how many students (3);
    seed (0); scored_on, "test" (the default) or "held_out"; together, how many of them are trained side by side (default: all
    on a GPU, one elsewhere); on_epoch, called after each epoch of theirs with how many of them are done and how many there are.
    A source with a step size of its own gives the learning rate. Student i has the seed `seed + i`. Unless sampling is fresh it
    is trained on the set that `draw_set` gives for that seed. Where a teacher labels, it starts from other weights than a
    student of its seed does elsewhere, which may be that teacher.
    Returns a `Result`. Raises UserError where the source does not fit the data set or has too few images, and Diverged where a
    student's loss is no longer finite.
    """
    spec, device = dataset.spec, dataset.train.images.device
    check_fits(source, spec, "the source")
    if sampling not in SAMPLINGS:
        raise UserError(f"sampling is {sampling}: choose one of {', '.join(SAMPLINGS)}")
    protocol, lessons = settled(source, ipc, protocol), LESSONS[protocol.lessons]
    batches_of = functools.partial(lessons.batches, source, ipc, sampling, spec, protocol, engine, device)
    weights = "taught student's weights" if isinstance(source, Taught) else "student's weights"
    return _evaluate(batches_of, lessons.images(source, ipc, protocol), dataset, model_name, protocol=protocol, engine=engine,
                     weights=weights, temperature=source.temperature, **settings)


def _set_batches(source, ipc, sampling, spec, protocol, engine, device, seed):
    """Of the student of a seed: one set, or where it is fresh a new one every epoch."""
    once = None
    if sampling in CHOICES or not source.varies:
        once = draw_set(source, ipc, seed, device, sampling if sampling in CHOICES else "fixed")

    def images_of(epoch):
        if once:
            return once
        with engine.autocast():  # nobody else has the set of this epoch, so it need not be what another machine draws
            return draw_set(source, ipc, _epoch_stream(seed, epoch).initial_seed(), device)

    return student_batches(images_of, spec, protocol, seed, source.answers)


def _replayed_batches(source, ipc, sampling, spec, protocol, engine, device, seed):
    """Step i takes the i-th image of every class, modulo their number, as it is."""
    images, targets = (x.unflatten(0, (spec.num_classes, -1)) for x in draw_set(source, ipc, seed, device))
    place = lambda step: (slice(None), step % images.shape[1])
    return lambda step: [_answered(prepare_batch(images[place(step)], targets[place(step)], spec, None, None), source.answers,
                                   spec)]


def _random_batches(source, ipc, sampling, spec, protocol, engine, device, seed):
    """Whole batches of random labels, each of new images."""
    augment = Augment(protocol.aug_type, spec, protocol.aug_single)

    def batches(epoch):
        generator = _epoch_stream(seed, epoch)
        for step in range(steps_per_epoch(spec.num_classes * ipc, protocol)):
            labels = send(torch.randint(spec.num_classes, (protocol.batch_size,), generator=generator), device)
            drawn = stream(seed, "step", epoch, step).initial_seed()
            with engine.autocast():
                images = to_uint8(source.sample(labels, drawn))
            targets = source.targets(labels, drawn, images)
            yield _answered(prepare_batch(images, targets, spec, augment, generator, protocol.cutmix), source.answers, spec)

    return batches


def rate_of(source, protocol, name="the source"):
    """The first learning rate of a student of `source`: that of the source where it has one, else the protocol's.

    Raises UserError, which names the source, for one of its own where it is not SGD that takes the student's steps.
    """
    rates = [] if source.step_size is None else torch.as_tensor(source.step_size).view(-1).tolist()
    if len(rates) == 1 and protocol.optimizer != "sgd":
        raise UserError(f"{name} has learned a step size for SGD, and students take steps by {protocol.optimizer}: give --lr "
                        "or --no-own")
    return rates[0] if len(rates) == 1 else protocol.lr


def replayed(source, ipc, protocol):
    """The protocol with one epoch for each step size of `source`, which is that epoch's.

    Raises UserError for a source without them, and for another number of images than it has.
    """
    rates = torch.as_tensor(0.0 if source.step_size is None else source.step_size)
    if not rates.dim() or ipc != source.max_ipc:
        raise UserError("--protocol replay repeats the training that stored images were learned for, step by step: it takes "
                        "runs of --method dd, and as --ipc the number of images that they have")
    rates = rates.tolist()
    return replace(protocol, epochs=len(rates), batch_size=source.num_classes, lr=rates[0],
                   schedule=lambda epoch, epochs: rates[epoch] / rates[0])


def settled(source, ipc, protocol, name="the source"):
    """The protocol as students of `ipc` images of every class of `source` are trained by it: see `replayed` and `rate_of`."""
    settle = LESSONS[protocol.lessons].settle
    protocol = settle(source, ipc, protocol) if settle else protocol
    return replace(protocol, lr=rate_of(source, protocol, name))


@dataclass(frozen=True)
class Lessons:
    """What an epoch shows a student.

    `batches(source, ipc, sampling, spec, protocol, engine, device, seed)` makes those of one student, and
    `images(source, ipc, protocol)` says how many images an epoch has, in whole batches alone if `whole`. `samplings` are the
    values of --sampling that it takes. `settle(source, ipc, protocol)` is there where the source, and no flag, says how
    students are trained. `words` are what a command that asks for something else is told.
    """

    batches: Callable
    images: Callable
    whole: bool = False
    samplings: tuple = SAMPLINGS
    settle: Callable | None = None
    words: str = ""


LESSONS = {
    "set": Lessons(_set_batches, lambda source, ipc, protocol: source.num_classes * source.decoded(ipc)),
    # As many batches as fit into IPC times classes, at least one.
    "random": Lessons(
        _random_batches,
        lambda source, ipc, protocol: protocol.batch_size * steps_per_epoch(source.num_classes * ipc, protocol),
        whole=True, samplings=("fresh",), words="draws new images at every step: use --sampling fresh"),
    # The very training that the images were learned for.
    "replay": Lessons(
        _replayed_batches, lambda source, ipc, protocol: source.num_classes, samplings=("fixed",), settle=replayed,
        words="repeats the steps that images were learned for: use --sampling fixed, without --compare and without flags of "
              "how students are trained"),
}
"""What students are shown, by the names that protocols have for it."""


def lessons_of(name):
    """The `Lessons` of the protocol of this name."""
    return LESSONS[PROTOCOLS[name].lessons]


def evaluate_full(dataset, model_name="convnet", *, split=None, protocol=PROTOCOLS["default"], scored_on="test", **settings):
    """As `evaluate`, but each epoch is one pass over the real images of `split` (default: the whole training set, without the
    held-out part if that is scored)."""
    split = split or (dataset.full_train if scored_on == "test" else dataset.train)

    def batches_of(seed):
        return student_batches(lambda epoch: (split.images, split.labels), dataset.spec, protocol, seed)

    return _evaluate(batches_of, len(split), dataset, model_name, protocol=protocol, scored_on=scored_on, **settings)


def side_by_side(num_eval, device, engine, together=None):
    """How many of `num_eval` students are trained side by side: `together`, else all on a GPU and one elsewhere."""
    # In float16 they would share one scale of their losses.
    return 1 if engine.precision == "fp16" else together or (num_eval if device.type == "cuda" else 1)


def _evaluate(make_batches, images, dataset, model_name, *, protocol, num_eval=3, seed=0, scored_on="test", engine=EAGER,
              together=None, on_epoch=None, temperature=1.0, weights="student's weights"):
    """Train and score the students; `make_batches(seed)(epoch)` yields one epoch of a student's batches, `weights` names the
    stream of those that they start from."""
    start = time.perf_counter()
    spec, scored = dataset.spec, getattr(dataset, scored_on)
    protocol = long_enough(protocol, images)
    scores, device, student = [], scored.images.device, None
    for seeds in torch.arange(seed, seed + num_eval).split(side_by_side(num_eval, device, engine, together)):
        models = [build_classifier(model_name, spec.channels, spec.size, spec.num_classes,
                                   generator=stream(student_seed, weights)).to(device)
                  for student_seed in seeds.tolist()]
        batches = [make_batches(student_seed) for student_seed in seeds.tolist()]
        scores += train_students(models, batches, scored, spec, protocol, engine=engine, temperature=temperature,
                                 on_epoch=on_epoch).tolist()
        student = models[0] if student is None else student
    steps = protocol.epochs * steps_per_epoch(images, protocol)
    return Result(tuple(scores), images, protocol.epochs, steps, time.perf_counter() - start, student)


def train_student(model, batches, split, spec, protocol, *, engine=EAGER, temperature=1.0):
    """As `train_students` for one student: its accuracy in per cent, a 0-dim tensor on its device."""
    return train_students([model], [batches], split, spec, protocol, engine=engine, temperature=temperature)[0]


def train_students(models, batches, split, spec, protocol, *, engine=EAGER, temperature=1.0, on_epoch=None):
    """Train students side by side, in place, and score them: their accuracies in per cent, [S] on their device.

    Each learns what it learns alone. All that `evaluate` does for some of its students. An evaluation of another shape calls it
    or `train_student`: one that trains model after model on growing sets, say, passes for each of them the batches of
    `student_batches` and a split of the classes so far.

    Args:
        models: classifiers of one kind, already on the device.
        batches: of each of them, as `train_classifier` takes them; their lengths are the same for all.
        split: the real images (a `Split`) that it is scored on, after the last of the protocol's looks or at the best of them.
        spec: the data set's `Spec`.
        protocol: a `Protocol`, whose epochs are taken as they are: see `long_enough` for its `min_steps`.
        engine: the `Engine` that runs the models.
        temperature: of soft labels, see `train_classifier`.
        on_epoch: as `evaluate` has it.
    """
    look_after = {math.ceil(protocol.epochs * look / protocol.looks) for look in range(1, protocol.looks + 1)}
    scores = []
    if len(models) == 1:
        learning, batches = models[0], batches[0]
    else:
        learning, batches = SideBySide(models), _side_by_side(batches, spec.num_classes)

    def look(epochs_done, loss):
        if epochs_done in look_after:
            if len(models) > 1:
                learning.write_back()
            each = [accuracy(model, split.images, split.labels, spec, engine=engine) for model in models]
            scores.append(torch.stack(each))
        if on_epoch:
            on_epoch(epochs_done, protocol.epochs)

    train_classifier(learning, batches, epochs=protocol.epochs, optimizer=protocol.optimizer, lr=protocol.lr,
                     momentum=protocol.momentum, weight_decay=protocol.weight_decay, schedule=protocol.schedule,
                     temperature=temperature, engine=engine, on_epoch=look)
    return torch.stack(scores).amax(0)


def _side_by_side(batches, num_classes):
    """The batches of several students as one with a first axis for them; hard and CutMix's soft labels become soft ones."""
    def stacked(epoch):
        for parts in zip(*[of_student(epoch) for of_student in batches], strict=True):
            images, targets = zip(*parts)
            if any(labels.is_floating_point() for labels in targets):
                targets = [labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
                           for labels in targets]
            yield torch.stack(images), torch.stack(targets)

    return stacked


def student_batches(images_of, spec, protocol, seed, answers=None):
    """The batches of one student for `train_student`: a function of the epoch.

    Args: images_of, gives (uint8 images `[N, C, H, W]`, targets) of an epoch, all of which are seen once in it; targets are
    int64 `[N]` or float `[N, K]`; seed, the student's, of the order and of the augmentation; answers, as a `Source` has them,
    which take the place of the targets.
    """
    augment = Augment(protocol.aug_type, spec, protocol.aug_single)

    def batches(epoch):
        images, targets = images_of(epoch)
        for batch in epoch_batches(images, targets, spec, augment, protocol.batch_size, _epoch_stream(seed, epoch),
                                   protocol.cutmix):
            yield _answered(batch, answers, spec)

    return batches


def _answered(batch, answers, spec):
    """A pair (images as a student sees them, targets) with what a teacher answers to these images, if there is one to ask."""
    return batch if answers is None else (batch[0], answers(*batch, spec))


def _epoch_stream(seed, epoch):
    return stream(seed, "student's epoch", epoch)


def steps_per_epoch(images, protocol):
    """Steps in which a student passes over so many images: at least one."""
    if LESSONS[protocol.lessons].whole:
        return max(1, images // protocol.batch_size)
    return count_batches(images, protocol.batch_size)


def long_enough(protocol, images):
    """The protocol with as many epochs as its `min_steps` asks for, where an epoch has so many images."""
    epochs = math.ceil(protocol.min_steps / steps_per_epoch(images, protocol))
    return replace(protocol, epochs=max(protocol.epochs, epochs))
