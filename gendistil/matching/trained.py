"""The matching term of methods that train a network on the synthetic images and look at what it has become.

MTT and DATM compare its weights with an expert's, Dataset Distillation and RaT-BPTT what it answers to real images. The images
are pixels, those of latents or those of a generator: the term gives their gradient to whatever made them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.func import functional_call
from torch.nn import functional as F

from gendistil.common.device import own_rows, process_first, process_sums, send
from gendistil.common.engine import resume_optimizer
from gendistil.common.errors import UserError
from gendistil.common.rng import Shuffle
from gendistil.data import standardise, to_signed
from gendistil.matching.matcher import Matcher
from gendistil.matching.unroll import UNROLLED, WithGradients, unroll
from gendistil.sources import LEARNED_LABELS, Rows, Teacher, balanced_labels, draw_set
from gendistil.sources.stored import StoredSource

ORDERS = ("passes", "steps")
"""Which images a step of training takes: the next ones of a shuffled pass, or in step i the i-th of every class, modulo IPC."""

_SMALLEST = 1e-6  # of step sizes
_LABEL_MOMENTUM = 0.9
_MEMORY = 0.9  # of the running mean of the gradient's length


def _sgd(values, lr, momentum=0.5):
    return torch.optim.SGD(values, lr, momentum=momentum)


@dataclass(frozen=True)
class Reference:
    """What an objective compares a trained network with.

    start, target: weights, lists of tensors, before the training and, of an expert, later. logits(weights, images [B, C, H, W])
    gives those of the network, [B, K]. real, labels: real images as the network is shown them, [B, C, H, W], and theirs, int64
    [B].
    """

    logits: Callable
    start: list
    target: list | None = None
    real: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class TrainingMatcher(Matcher):
    """Trains networks of a pool on the synthetic images of all classes, and compares what they have become.

    Args: those of a `Matcher`; what the method says of classes in a step and of pairs means nothing here. Beside what the
    learner learns it learns the step size of the training, and label logits for stored images, and lets a stored source know of
    them.
    """

    shared = True

    def __init__(self, learner, dataset, method):
        super().__init__(learner, dataset, replace(method, match_classes=0, aug_setting="class"))
        options, device, source = self.options, learner.accelerator.device, learner.source
        own, processes = options["unroll_order"] == "steps", learner.accelerator.num_processes
        if 0 < options["unroll_batch"] < processes:
            raise UserError(f"--unroll-batch {options['unroll_batch']}: {processes} processes share these images: give "
                            f"{processes} or more")
        self.optimizer = UNROLLED[options["unroll_optimizer"]](options["unroll_momentum"])
        self.rates = torch.full((options["unroll"] if own else 1,), options["step_size"], device=device)
        stored = isinstance(source, StoredSource)
        some = stored and learner.images_per_class(self.per_class) != source.decoded(source.max_ipc)
        if some and (own or options["label_lr"]):
            raise UserError("--label-lr and --unroll-order steps are for all stored images at once: leave out --syn-batch")
        self.logits = self.labelling = None
        # Adam where the step sizes are many: their gradients differ by orders of magnitude.
        self.learning = (torch.optim.Adam if own else _sgd)([self.rates], options["step_size_lr"])
        self.length = torch.zeros((), device=device)
        if stored and options["step_size_lr"] and options["unroll_optimizer"] == "sgd":
            source.step_size = self.rates if own else self.rates[0]

    def begin(self, pool, state=None):
        super().begin(pool, state)
        images, steps = self.learner.images_per_class(self.per_class), self.options["unroll"]
        if not state and self.options["unroll_order"] == "steps" and steps < images:
            raise UserError(f"--unroll {steps}: each step takes another image of a class, and there are {images}: raise it")
        if self.options["label_lr"]:
            self.logits = state["logits"].to(self.rates.device) if state else self._first_logits()
            self.labelling = _sgd([self.logits], self.options["label_lr"], _LABEL_MOMENTUM)
            self.learner.source.rows = Rows(self.logits, LEARNED_LABELS, None, learned=True)
        if state:
            self.rates.copy_(state["rates"])
            self.length.copy_(state["length"])
            resume_optimizer(self.learning, state["learning"])
            if self.labelling:
                resume_optimizer(self.labelling, state["labelling"])
        return self

    def _check(self, match, spec):
        super()._check(match, spec)
        options = self.options
        if options.get("window", 0) > options["unroll"]:
            raise UserError(f"--window {options['window']} is longer than the training of --unroll {options['unroll']} steps")
        if not self.objective.expert:
            return
        if options["first_max_start"] > options["max_start"]:
            raise UserError(f"--first-max-start {options['first_max_start']} is above --max-start {options['max_start']}, to "
                            "which it grows: lower it")
        if options["min_start"] >= (options["first_max_start"] or options["max_start"]):
            raise UserError(f"--min-start {options['min_start']} leaves no epoch to start at below --max-start or "
                            "--first-max-start: lower it")

    def _first_logits(self):
        """Mean logits of the pool's trained networks that classify an image rightly, of all where none does: [K, m, K]."""
        learner, source = self.learner, self.learner.source
        if not self.pool.finished():
            raise UserError("--label-lr starts from what trained networks answer: add --pool-training expert or pretrained")
        images, _ = draw_set(source, source.max_ipc, learner.seed, learner.accelerator.device)
        classes = balanced_labels(self.classes, source.decoded(source.max_ipc), images.device)
        each = torch.stack([Teacher.of(self.pool, [index]).logits(images) for index in self.pool.finished()])  # n,N,K
        right = (each.argmax(-1) == classes).float()
        share = torch.where(right.any(0), right, torch.ones_like(right))
        mean = (each * share.unsqueeze(-1)).sum(0) / share.sum(0).unsqueeze(-1)
        return process_first(mean.unflatten(0, (self.classes, -1)))

    def parts(self, step):
        """Yield the loss of one training, whose gradient reaches what made the images. The step size and the label logits take
        their own step here.

        Each process makes the images of its classes, and computes its share of every step of the training.
        """
        learner, options, device = self.learner, self.options, self.learner.accelerator.device
        reference = self._reference(step)
        mine = send(own_rows(learner.accelerator, torch.arange(self.classes)), device)
        with learner.engine.autocast():
            made = learner.images(mine, mine, (self.classes, self.per_class), step).float()  # k,m,C,H,W
        count = made.shape[1]
        classes = balanced_labels(self.classes, count, device)
        own = standardise(made.flatten(0, 1), self.dataset.spec)
        images = self._of_all(own.detach())
        window, length = options.get("window", 0), options["unroll"]
        if window:
            length = int(torch.randint(window, length + 1, (), generator=learner.stream("window", step)))
        batches = self._batches(count, length, step)
        settings = [self._setting(len(rows), "unrolled", step, inner) for inner, rows in enumerate(batches)]

        def loss(weights, inputs, inner):
            rows = own_rows(learner.accelerator, batches[inner])
            targets = classes[rows] if self.logits is None else inputs[1][rows].softmax(1)
            setting = settings[inner]._replace(uniform=own_rows(learner.accelerator, settings[inner].uniform))
            logits = reference.logits(weights, self.augment.apply(inputs[0][rows], setting))
            return F.cross_entropy(logits, targets, reduction="sum") / len(batches[inner])

        inputs = [images] if self.logits is None else [images, self.logits.flatten(0, 1)]
        limit = options.get("skip_above")
        value, gradients = unroll(loss, self.optimizer, reference.start, inputs, self.rates, length,
                                  lambda weights: self.objective.function(reference, weights), window,
                                  limit and (lambda value: not value <= limit))  # the host waits, once after a whole training
        if gradients is None:
            yield self.weight * value.nan_to_num(limit, limit)  # nobody learns from it, and it may have diverged
            return
        gradients = self._within(gradients)
        self._learn(*gradients[1:])
        of_own = own_rows(learner.accelerator, gradients[0].unflatten(0, (self.classes, -1))).flatten(0, 1)
        yield self.weight * WithGradients.apply(value, [of_own * learner.accelerator.num_processes], own)

    def _of_all(self, own):
        """The images of all classes, [K * m, C, H, W], in every process; `own` are those of its classes."""
        count = len(own) * self.learner.accelerator.num_processes
        images = own.new_zeros(count, *own.shape[1:])
        own_rows(self.learner.accelerator, images.unflatten(0, (self.classes, -1))).copy_(own.unflatten(
            0, (-1, count // self.classes)))
        return process_sums([images])[0]

    def _reference(self, step):
        """The network of a step, its start, and what it is compared with."""
        learner, options, target, real, labels = self.learner, self.options, None, None, None
        self.pool.prepare(step, learner)
        generator = learner.stream("member", step)
        if self.objective.expert:
            starts = range(options["min_start"], self.max_start(step))
            network, expert = self.pool.segment(generator, starts, options["expert_epochs"])
            target = [x.detach() for x in expert.parameters()]
        else:
            rows = self.selector.indices(torch.arange(self.classes), step).flatten()  # which may draw a network of its own
            network = self.pool.draw(generator)
            images, labels = self.dataset.train.batch(rows)
            real = self.augment.apply(standardise(to_signed(images), self.dataset.spec),
                                      self._setting(len(rows), "outcome", step))
        names, start = zip(*((name, x.detach()) for name, x in network.named_parameters()))

        def logits(weights, images):
            return functional_call(network, dict(zip(names, weights)), (images,))

        return Reference(logits, list(start), target, real, labels)

    def max_start(self, step):
        """The epoch of an expert below which step `step` starts: it grows linearly to its final value (DATM)."""
        first, last = self.options["first_max_start"], self.options["max_start"]
        return last if not first else min(last, first + (last - first) * step // self.options["start_grows"])

    def _batches(self, count, length, step):
        """Which of `count` images of every class each of the `length` steps of a training takes: a list of int64 [B]."""
        everything, device = self.classes * count, self.learner.accelerator.device
        if self.options["unroll_order"] == "steps":
            rows = [torch.arange(self.classes) * count + inner % count for inner in range(length)]
        else:
            batch = min(self.options["unroll_batch"] or everything, everything)
            shuffle = Shuffle(everything, batch, self.learner.seed, "unrolled", step)
            rows = [shuffle.indices(inner) for inner in range(length)]
        return [send(each, device) for each in rows]

    def _setting(self, count, *name):
        return self.augment.draw(count, self.learner.stream("augment", *name), self.learner.accelerator.device)

    def _within(self, gradients):
        """The gradients of a training, shortened where the options say so."""
        if self.options["clip"]:
            norm = gradients[0].norm()
            limit = torch.where(self.length > 0, self.options["clip"] * self.length, norm)
            shorter = torch.minimum(norm, limit)
            gradients = [x * (shorter / norm.clamp_min(1e-30)) for x in gradients]
            self.length = torch.where(self.length > 0, _MEMORY * self.length + (1 - _MEMORY) * shorter, norm)
        return gradients

    @torch.no_grad()
    def _learn(self, *gradients):
        """One step of the label logits, if they are learned, and of the step size: gradients in the order of `unroll`."""
        self.rates.grad = gradients[-1]
        if self.logits is not None:
            self.logits.grad = gradients[0].view_as(self.logits)
            self.labelling.step()
        self.learning.step()
        self.rates.clamp_(min=_SMALLEST)

    def check(self, step):
        """Raise UserError if what is learned is NaN or infinite after `step` steps: also where all trainings are skipped."""
        super().check(step)
        for values, flag in ((self.rates, "--step-size-lr"), (self.logits, "--label-lr")):
            if values is not None and not values.isfinite().all():
                raise UserError(f"what {flag} learns was NaN or infinite after step {step}: lower it")

    def state_dict(self):
        labels = {} if self.logits is None else {"logits": self.logits, "labelling": self.labelling.state_dict()}
        return {**super().state_dict(), "rates": self.rates, "learning": self.learning.state_dict(), "length": self.length,
                **labels}
