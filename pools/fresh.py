"""Pools whose networks are made while matching: randomly initialised ones, and one that is trained between the steps."""

import math

import torch

from gendistil.common.device import process_first, send
from gendistil.common.engine import EAGER
from gendistil.common.rng import stream
from gendistil.data import Augment
from pools.base import Pool
from pools.classifiers import build_classifier
from pools.training import calibrated, embed_images, epoch_batches, train_classifier


class RandomPool(Pool):
    """A randomly initialised network for every draw (DM, arXiv 2110.04181).

    `embed` looks at just the images that are asked for, whatever `whole` says. Batch norms take their statistics from one batch
    of real images. Args: dataset, a `Dataset`; names, of classifiers, all equally likely; engine, the `Engine` that runs the
    networks.
    """

    def __init__(self, dataset, *, names=("convnet",), engine=EAGER):
        self.dataset, self.names, self.engine = dataset, tuple(names), engine

    def draw(self, generator):
        """A new network by the next draws of `generator`."""
        spec, real = self.dataset.spec, self.dataset.train
        name = self.names[int(torch.randint(len(self.names), (), generator=generator))]
        model = build_classifier(name, spec.channels, spec.size, spec.num_classes, generator=generator).requires_grad_(False)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = send(tensor.data, real.images.device)
        return calibrated(model, real, spec, generator).eval()

    def embed(self, network, rows, whole=False):
        return embed_images(network, self.dataset.train.images, self.dataset.spec, engine=self.engine, rows=rows)


class OnlinePool(RandomPool):
    """One network at a time: made anew every `outer` steps, and trained before each of the others.

    Args beside those of `RandomPool`: trained_on, "synthetic" (what is being learned, as DC and DSA do) or "real" (images, as
    IDC does); inner, passes of that training; images, real ones a pass (in whole batches); warmup, passes over all real images
    from which each new network learns first, by the same settings (DREAM+, arXiv 2310.15052); batch_size, lr, momentum,
    weight_decay of its SGD; aug_type; aug_single, one operation a batch; cutmix, the probability that a batch is mixed so;
    seed, of all draws.
    """

    def __init__(self, dataset, *, trained_on, outer, inner, names=("convnet",), images=500, warmup=0, batch_size=256,
                 lr=0.01, momentum=0.0, weight_decay=0.0, aug_type="none", aug_single=False, cutmix=0.0, seed=0, engine=EAGER):
        super().__init__(dataset, names=names, engine=engine)
        self.trained_on, self.outer, self.inner, self.warmup = trained_on, outer, inner, warmup
        self.images, self.batch_size = images, batch_size
        self.settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.augment, self.cutmix, self.seed = Augment(aug_type, dataset.spec, aug_single), cutmix, seed
        self._model, self._round = None, None

    def draw(self, generator):
        """The network of the step that was prepared."""
        return self._model

    def prepare(self, step, learner):
        """Make the network of step `step`, or train it on: `learner.training_set()` is (uint8 images, targets)."""
        real, (round_, position) = self.dataset.train, divmod(step, self.outer)
        if round_ != self._round:
            self._start(round_)
            if self.warmup:
                self._train(self.warmup, ("warm", round_), lambda generator: (real.images, real.labels))
        elif position:
            self._train(self.inner, (step,), self._shown(learner))
            if self.trained_on == "synthetic":  # whose batches are few images: batch norms take real ones, as DC's do
                self._model = calibrated(self._model, real, self.dataset.spec, stream(self.seed, "online norms", step)).eval()

    def _start(self, round_):
        self._model, self._round = super().draw(stream(self.seed, "online", round_)), round_
        self._optimizer = torch.optim.SGD(self._model.parameters(), **self.settings)
        self._scaler = self.engine.loss_scaler(self.dataset.train.images.device)

    def _shown(self, learner):
        """What gives the images of one pass between two steps of matching, and their targets, by the draws of a generator."""
        if self.trained_on == "synthetic":
            learned = learner.training_set()  # the same for all passes
            return lambda generator: learned
        real = self.dataset.train
        count = math.ceil(self.images / self.batch_size) * self.batch_size  # whole batches, as IDC takes them
        return lambda generator: real.batch(torch.randperm(len(real), generator=generator)[:count])

    def _train(self, epochs, name, shown):
        """Train the network for so many epochs on the images and targets of `shown(generator)`; `name` is of the draws."""
        def batches(epoch):
            generator = stream(self.seed, "online", *name, epoch)
            return epoch_batches(*shown(generator), self.dataset.spec, self.augment, self.batch_size, generator,
                                 cutmix=self.cutmix)

        self._model.requires_grad_(True)
        train_classifier(self._model, batches, epochs=epochs, optimizer=self._optimizer, scaler=self._scaler,
                         schedule="constant", lr=self.settings["lr"], engine=self.engine, flag="--pool-lr")
        self._model.eval().requires_grad_(False)
        for value in self._model.state_dict().values():  # each process has trained it for itself
            if (first := process_first(value)) is not value:
                value.copy_(first)

    def state_dict(self):
        """What resuming within a round needs."""
        if self._model is None:
            return {}
        return {"round": self._round, "model": self._model.state_dict(), "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state):
        if state:
            self._start(state["round"])  # whose architecture it is
            self._model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            if state.get("scaler"):  # empty unless it was written under float16
                self._scaler.load_state_dict(state["scaler"])
