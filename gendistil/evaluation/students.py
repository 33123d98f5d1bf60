"""Students: classifiers trained on IPC images of every class and scored on real images that nothing has learned from."""

import functools
import math
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy.special import stdtrit

from gendistil.common.cli import COUNT, FRACTION, NATURAL, POSITIVE, WEIGHT, number
from gendistil.common.device import send
from gendistil.common.engine import EAGER
from gendistil.common.errors import UserError
from gendistil.common.flags import Idle, option
from gendistil.common.rng import stream
from gendistil.data import Augment, original, to_uint8
from gendistil.data.augment import augmentations
from gendistil.sources import CHOICES, Taught, check_fits, draw_set
from pools import OPTIMIZERS, SCHEDULES, SideBySide, accuracy, base_name, build_classifier, epoch_batches, train_classifier
from pools.training import count_batches, prepare_batch

SAMPLINGS = (*CHOICES, "fresh")
"""fixed: a student sees one set of IPC images of every class; representative: one too, chosen among 500 images of a class,
or 20 times as many where that is more; fresh: a new set every epoch."""

GROUP = "students (a flag that is not given takes the protocol's value)"


@dataclass(frozen=True)
class Protocol:
    """How a student is trained and scored; the fields with a text are flags of `validate.py`.

    The others say what a score means, so no flag changes them and a report can tell by the protocol's name.
    """

    epochs: int = option("passes over the --ipc images of every class", 300, type=COUNT, group=GROUP)
    min_steps: int = option("steps that a student takes at least, in more --epochs if need be", 300, type=NATURAL, group=GROUP)
    batch_size: int = option("images a step", 64, type=number(int, 2), group=GROUP)
    optimizer: str = option("what takes the steps (--lr suits one of them)", "sgd", choices=OPTIMIZERS, group=GROUP)
    lr: float = option("learning rate of the first epoch", 0.05, type=POSITIVE, group=GROUP)
    schedule: str = option("how the learning rate falls; half: to a tenth after half of the epochs; step: to a fifth after two "
                           "thirds and again after five sixths; fifths: to a half after each fifth", "cosine",
                           choices=SCHEDULES, group=GROUP)
    momentum: float = option("momentum of SGD", 0.9, type=number(float, 0, 0.9999), group=GROUP)
    weight_decay: float = option("weight decay", 5e-4, type=WEIGHT, group=GROUP)
    aug_type: str = option("augmentation of every image of a batch, joined by _, or none", "color_crop_cutout",
                           type=augmentations, group=GROUP)
    aug_single: bool = option("only one of the named augmentations at a time, drawn for every batch", False, group=GROUP)
    cutmix: float = option("probability that a batch's images are mixed in pairs (CutMix)", 0.0, type=FRACTION, group=GROUP)
    looks: int = 1               # how often the student is scored, evenly spaced; the best counts, so only 1 is honest
    replay: bool = False         # the very training that the images were learned for, see `replayed`
    random_labels: bool = False  # whole batches of random labels, as many as fit into IPC times classes, at least one
    source: str = ""             # whose it is, as a heading calls them


IDLE = (
    Idle(lambda protocol: protocol.optimizer != "sgd", "is for SGD, and students take steps by {optimizer}: leave it out, "
         "or add --optimizer sgd", {"momentum"}),
    Idle(lambda protocol: protocol.aug_type == "none", "does nothing beside --aug-type none: leave it out", {"aug_single"}),
)
"""Flags of a protocol that do nothing beside other values."""


# The code of DC, DSA and DM.
_VICO = Protocol(epochs=1001, min_steps=0, batch_size=256, lr=0.01, schedule="half", momentum=0.9, weight_decay=5e-4)

PROTOCOLS = {
    "default": Protocol(),
    # That of DiM's validate.py, but for scoring in eval mode and training at IPC so small that it takes no step at all.
    "dim": Protocol(source="DiM", epochs=1000, min_steps=0, batch_size=128, lr=0.01, schedule="constant", aug_type="color_crop",
                    looks=5, random_labels=True),
    # Their loop runs one epoch more than the 300 or 1000 that it is told.
    "dc": replace(_VICO, source="DC", epochs=301, aug_type="none"),
    "dsa": replace(_VICO, source="DSA and DM", aug_type="color_crop_cutout_flip_scale_rotate", aug_single=True),
    # Their scores are the best of four looks at the test set; here the last step alone is scored.
    "idc": Protocol(source="IDC and DREAM", epochs=1000, min_steps=0, batch_size=64, lr=0.01, schedule="step", momentum=0.9,
                    weight_decay=5e-4, aug_type="color_crop_flip_scale_rotate", cutmix=0.5),
    # Its authors score every 100th epoch on the test set, and the best counts. The decay is that which AdamW has by itself.
    "ncfm": Protocol(source="NCFM", epochs=2000, min_steps=0, batch_size=128, optimizer="adamw", lr=1e-3, schedule="fifths",
                     momentum=0.0, weight_decay=0.01, aug_type="color_crop_flip_scale_rotate", cutmix=0.5),
    # 3,000 steps are the last of the four places where its authors look at the test set.
    "bptt": Protocol(source="RaT-BPTT", epochs=1, min_steps=3000, batch_size=100, optimizer="adam", lr=1e-3,
                     schedule="constant", momentum=0.0, weight_decay=0.0, aug_type="flip_rotate", aug_single=True),
    # Of Dataset Distillation (2018): each step takes its own images at its own step size.
    "replay": Protocol(epochs=1, min_steps=0, momentum=0.0, weight_decay=0.0, aug_type="none", schedule="constant",
                       replay=True),
}
"""Every protocol by the name that --protocol knows."""

OF_DATA_SETS = {
    # DC draws an operation for every image and not for every batch, and rotates by up to 45 degrees and not 15.
    "dc": {"mnist": {"epochs": 1001, "aug_type": "crop_scale_rotate", "aug_single": True}},
    "idc": {"mnist": {"cutmix": 0.0}},  # with images of several parts, which --method idc and dream have
    "bptt": {"tinyimagenet": {"batch_size": 50}},
}
"""What a protocol's authors set otherwise for a data set."""

OF_ARCHITECTURES = {
    "vgg11": {"lr": 0.01},  # at the usual rate it answers one class
    "mlp": {"lr": 0.01},
}
"""What the default protocol does otherwise for an architecture: fields of a `Protocol` by its name. Published ones do nothing.

A row is also that of its variants (`vgg11_bn` is trained as `vgg11`) unless they have one of their own. Measured on held-out
images of CIFAR-10: docs/results/students.md.
"""


def protocol_for(name, data, model="convnet"):
    """The protocol of this name, with what its authors set for the data set called `data` or for its `original`.

    model, the name of the students, of which `OF_ARCHITECTURES` may say more.
    """
    base = base_name(model)
    own = OF_ARCHITECTURES.get(base, OF_ARCHITECTURES.get(base.partition("_")[0], {})) if name == "default" else {}
    return replace(PROTOCOLS[name], **own, **OF_DATA_SETS.get(name, {}).get(original(data), {}))


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
    Returns a `Result`. Raises UserError where the source does not fit the data set or has too few images.
    """
    spec, device = dataset.spec, dataset.train.images.device
    check_fits(source, spec, "the source")
    if protocol.replay:
        protocol = replayed(source, ipc, protocol)
    protocol = replace(protocol, lr=rate_of(source, protocol))
    images = spec.num_classes * source.decoded(ipc)
    make_batches = _set_batches
    if protocol.replay:
        images, make_batches = spec.num_classes, _replayed_batches
    elif protocol.random_labels:
        images = protocol.batch_size * steps_per_epoch(spec.num_classes * ipc, protocol)
        make_batches = _random_batches
    batches_of = functools.partial(make_batches, source, ipc, sampling, spec, protocol, engine, device)
    weights = "taught student's weights" if isinstance(source, Taught) else "student's weights"
    return _evaluate(batches_of, images, dataset, model_name, protocol=protocol, engine=engine, weights=weights,
                     temperature=source.temperature, **settings)


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
    return rates[0] if protocol.replay or len(rates) == 1 else protocol.lr


def replayed(source, ipc, protocol):
    """The protocol with one epoch for each step size of `source`, which is that epoch's.

    Raises UserError for a source without them, and for another number of images than it has.
    """
    rates = torch.as_tensor(0.0 if source.step_size is None else source.step_size)
    if not rates.dim() or ipc != source.max_ipc:
        raise UserError("--protocol replay repeats the training that stored images were learned for, step by step: it takes "
                        "runs of --method dd, and as --ipc the number of images that they have")
    rates = rates.tolist()
    return replace(protocol, epochs=len(rates), batch_size=source.num_classes,
                   schedule=lambda epoch, epochs: rates[epoch] / rates[0])


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
    if protocol.random_labels:
        return max(1, images // protocol.batch_size)
    return count_batches(images, protocol.batch_size)


def long_enough(protocol, images):
    """The protocol with as many epochs as its `min_steps` asks for, where an epoch has so many images."""
    epochs = math.ceil(protocol.min_steps / steps_per_epoch(images, protocol))
    return replace(protocol, epochs=max(protocol.epochs, epochs))
