"""What is learned: the weights of a generator, pixels, or the latents of a frozen generator."""

import functools
from dataclasses import asdict

import torch

from gendistil.common.device import own_rows, process_first, send
from gendistil.common.engine import Engine, resume_optimizer
from gendistil.common.errors import UserError
from gendistil.common.rng import Shuffle, stream
from gendistil.data import Whitened, take, to_signed
from gendistil.matching import initial
from gendistil.sources import LATENTS_FOLDER, MODEL_FOLDER, PIXELS_FOLDER, draw_set
from pools import OPTIMIZERS

SPACES = ("standardised", "unit")
"""Units in which pixels are learned: of standardised images, without bounds, or of images in [0, 1], clamped to that."""

_COLUMNS = 10  # of a grid, at most


class Learner:
    """What is learned, as runs, matching terms and pools ask for it.

    It has `source`, the distilled `Source`, which a run keeps in `folder`; `accelerator`; `engine`, the `Engine` that runs its
    networks and the pool's; and for random draws `seed` and `stream(*name)`, as a `Trainer` has them. Where `has_pairs`,
    `pairs(labels, step)` names the real images that its own images of a step are paired with.
    """

    folder, has_pairs = None, False

    @property
    def usual_ipc(self):
        """Images of a class by which it is scored, and from which a network of the pool learns: 10, or as many as are there."""
        return min(10, self.source.max_ipc or 10)

    def begin(self, dataset, method, pool):
        """What happens before the first step of a run, once the networks are there: nothing."""

    def step(self, step, matching):
        """One update; a dict of 0-dim losses. `matching` is a `Matcher`, or None where nothing is matched."""
        raise NotImplementedError

    def images_per_class(self, real):
        """Synthetic images of a class in a step, beside so many real ones."""
        raise NotImplementedError

    def images(self, labels, positions, shape, step):
        """The synthetic images of `labels`, int64 [k], for the matching term: float [k, m, C, H, W], differentiable.

        Args: positions, int64 [k], the places of the labels among the classes of all processes; shape, how many classes these
        are, and how many real images each has.
        """
        raise NotImplementedError

    def training_set(self):
        """Images from which a network of the pool learns, uint8 [N, C, H, W], and their targets."""
        return draw_set(self.source, self.usual_ipc, self.seed, self.accelerator.device)

    def grid(self):
        """Images to look at, signed float [N, C, H, W], and in how many columns, one for each of the first classes."""
        raise NotImplementedError

    def check(self, step):
        """Raise UserError if what is learned is NaN or infinite after `step` steps."""

    def state_dict(self):
        """Everything that continuing needs, as nested dicts of tensors and plain values."""
        raise NotImplementedError

    def load_state_dict(self, state, path):
        """Continue from `state`, read from `path`, which a UserError names where it does not fit."""
        raise NotImplementedError


class GeneratorLearner(Learner):
    """The weights of a generator, beside its own training: DiM's second stage.

    Args: trainer, a `Trainer`; dataset, a `Dataset` on the device; steps_before, steps that it has taken in earlier stages;
    recipe, that of stage 1, if flags of this stage changed the trainer's: it is saved, and a later stage 2 starts from it.
    """

    folder = MODEL_FOLDER

    def __init__(self, trainer, dataset, steps_before=0, recipe=None):
        self.recipe = recipe or trainer.recipe
        self.trainer, self.real, self.steps_before = trainer, dataset.train, steps_before
        self.accelerator, self.seed, self.stream = trainer.accelerator, trainer.seed, trainer.stream
        self.engine, self._noise = trainer.engine, None
        self.shuffle = Shuffle(len(self.real), trainer.recipe.batch_size, trainer.seed, "real of stage 2")
        self.grid, self.check = trainer.grid, trainer.check
        self.load_state_dict = trainer.load_state_dict

    @property
    def source(self):
        return self.trainer.source

    def state_dict(self):
        return {**self.trainer.state_dict(), "recipe": asdict(self.recipe)}

    def step(self, step, matching):
        images, labels = self.real.batch(own_rows(self.accelerator, self.shuffle.indices(step)))
        term = matching and functools.partial(matching.parts, step)
        # Averaging and random streams go on where the earlier stage stopped.
        return self.trainer.step(to_signed(images), labels, self.steps_before + step, term)

    def images_per_class(self, real):
        return real

    def images(self, labels, positions, shape, step):
        """New images of the generator, as many as there are real ones, see `Learner.images`."""
        if self._noise is None or self._noise[0] != (shape, step):  # the parts of a step share it
            self._noise = (shape, step), self.trainer.noise(shape, "matching", step)
        noise = self._noise[1][positions // self.accelerator.num_processes]  # k,n,Z
        made = self.trainer.images(noise.flatten(0, 1), labels.repeat_interleave(shape[1]))
        return made.unflatten(0, noise.shape[:2])


class StoredLearner(Learner):
    """What is stored image by image, learned by SGD or Adam: pixels and latents.

    Args: source, a `PixelSet` or `LatentSet` with its starting values, on the accelerator's device; parameter, what of it is
    learned, [K, ipc, ...]; seed, of all draws; lr and optimizer, "sgd", which takes the momentum, or
    "adam"; batch, images of a class that are compared in one step, None for all; engine, an `Engine` (default: that of the
    accelerator). A subclass has `folder`, `images` and `images_per_class`, and may scale the gradient and bound the values.
    """

    def __init__(self, accelerator, spec, source, parameter, seed, *, lr, momentum, batch, optimizer="sgd", engine=None):
        self.accelerator, self.spec, self.source, self.parameter = accelerator, spec, source, parameter
        self.engine = engine or Engine(accelerator)
        self.seed, self.batch = seed, batch
        if spec.num_classes % accelerator.num_processes:
            raise UserError(f"{accelerator.num_processes} processes cannot share {spec.num_classes} classes evenly: launch "
                            "another number of them")
        self.optimizer = OPTIMIZERS[optimizer]([parameter], lr, momentum, 0.0)
        self.scaler = self.engine.loss_scaler(accelerator.device)

    def stream(self, *name):
        return stream(self.seed, self.folder, *name)

    def step(self, step, matching):
        total = self.differentiate(step, matching)
        if self.parameter.grad is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.bound()
        return {"matching": total}

    def differentiate(self, step, matching):
        """Leave the gradient of a step's loss, that of all processes together, in `parameter.grad`: None where no part of the
        loss has one. Returns this process's loss, 0-dim; the mean over the processes is that of the step."""
        self.optimizer.zero_grad()
        total = 0
        for part in matching.parts(step):
            loss = part * matching.summed
            if loss.requires_grad:
                self.scaler.scale(loss).backward()
            total = total + loss.detach() * self.accelerator.num_processes
        if self.parameter.grad is not None:
            self.parameter.grad = self.rescale(self.accelerator.reduce(self.parameter.grad, "sum"))
        return total

    def rescale(self, gradient):
        """The gradient in the units of the learning rate: as it is."""
        return gradient

    def bound(self):
        """Put values back that a step has moved too far: none."""

    def check(self, step):
        if not self.parameter.isfinite().all():
            raise UserError(f"a value of {self.folder} was NaN or infinite after step {step}: lower --lr or use "
                            "--precision fp32")

    def state_dict(self):
        return {self.folder: self.source.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state, path):
        try:
            self.source.load_state_dict(state[self.folder])
            resume_optimizer(self.optimizer, state["optimizer"])
            if state.get("scaler"):  # empty unless it was written under float16
                self.scaler.load_state_dict(state["scaler"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold these {self.folder} ({type(error).__name__}): check --data, --ipc and "
                            "--factor") from None


class PixelLearner(StoredLearner):
    """Stored pixels: DC, DSA, DM (in units of standardised images) and IDC, DREAM (in units of images in [0, 1]).

    Args: pixels, a `PixelSet`; space, one of `SPACES`: learning rates count in its units (of images standardised as the
    published code does it, where that divides by another std than the images' own, or whitened if `spec` is a `Whitened`, but
    for Adam's); batch counts decoded images; the others as `StoredLearner` has them.
    """

    folder = PIXELS_FOLDER

    @property
    def usual_ipc(self):
        """All that are stored."""
        return self.source.max_ipc

    def __init__(self, accelerator, spec, pixels, seed, *, lr, momentum=0.5, space="standardised", batch=None, optimizer="sgd",
                 **settings):
        super().__init__(accelerator, spec, pixels, pixels.pixels, seed, lr=lr, momentum=momentum, batch=batch,
                         optimizer=optimizer, **settings)
        self.space, self.whitened = space, isinstance(spec, Whitened) and (space, optimizer) == ("standardised", "sgd")
        std = torch.tensor(spec.published_std or spec.std)
        unit = std * 2 if space == "standardised" else torch.full((spec.channels,), 2.0)
        # `unit` signed units are one of the space. A step of x there is one of unit * x here, and the gradient 1 / unit of it.
        self.scale = unit.view(-1, 1, 1).to(accelerator.device).square()

    def begin(self, dataset, method, pool):
        """Fill the pixels with what the method starts from, the same in all processes."""
        initial.start(self.source, dataset, method.init, self.seed, pool)
        self.parameter.data = process_first(self.parameter.data)

    def images_per_class(self, real):
        """As many, however many real ones there are."""
        decoded = self.source.decoded(self.source.max_ipc)
        return min(decoded, self.batch or decoded)

    def images(self, labels, positions, shape, step):
        """The images of `labels` [k] as they are, [k, m, C, H, W], or `batch` of each drawn at random."""
        images = self.source(labels)
        if self.batch is None or images.shape[1] <= self.batch:
            return images
        chosen = torch.randperm(images.shape[1], generator=self.stream("subset", step))[: self.batch]
        return images[:, send(chosen, images.device)]

    def rescale(self, gradient):
        return self.spec.steepest(gradient) if self.whitened else gradient * self.scale

    def bound(self):
        if self.space == "unit":
            with torch.no_grad():
                self.parameter.clamp_(-1, 1)

    def grid(self):
        columns, rows = min(_COLUMNS, self.spec.num_classes), min(8, self.source.max_ipc)
        return self.source.pixels.detach()[:columns, :rows].transpose(0, 1).flatten(0, 1).clamp(-1, 1), columns


class LatentLearner(StoredLearner):
    """Vectors of a frozen generator, each of which is paired with one real image (IT-GAN, arXiv 2204.07513).

    Args: latents, a `LatentSet`; real, the `Split` whose images the vectors are paired with; partners, int64 [K, ipc], which of
    them; chunk_steps, 0 to compare vectors drawn at random in every step, else GAN inversion: `batch` vectors of every class
    are fitted by Adam for that many steps, then the next ones; the others as `StoredLearner` has them.
    """

    folder, has_pairs = LATENTS_FOLDER, True

    def __init__(self, accelerator, spec, latents, seed, *, real, partners, lr, momentum=0.0, batch=None, chunk_steps=0,
                 **settings):
        super().__init__(accelerator, spec, latents, latents.vectors, seed, lr=lr, momentum=momentum,
                         batch=min(batch or latents.max_ipc, latents.max_ipc), **settings)
        self.parameter.data, partners = process_first(self.parameter.data), process_first(partners.to(self.parameter.device))
        self.real, self.partners, self.chunk_steps = real, partners.cpu(), chunk_steps
        if chunk_steps:
            self._start_chunk()

    def _start_chunk(self):
        """An optimiser that has seen nothing: it moves only those vectors that have a gradient from now on."""
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer = torch.optim.Adam([self.parameter], lr, betas=(0.9, 0.99))

    def step(self, step, matching):
        if self.chunk_steps and step % self.chunk_steps == 0:
            self._start_chunk()
        return super().step(step, matching)

    def images_per_class(self, real):
        """As many, however many real ones there are."""
        return self.batch

    def _chosen(self, step):
        if self.chunk_steps:
            first = step // self.chunk_steps * self.batch
            return torch.arange(first, min(first + self.batch, self.source.max_ipc))
        if self.batch == self.source.max_ipc:  # in their order, which labels of their own go by
            return torch.arange(self.batch)
        return torch.randperm(self.source.max_ipc, generator=self.stream("subset", step))[: self.batch]

    def images(self, labels, positions, shape, step):
        """The images of this step's vectors of `labels` [k]: [k, m, C, H, W]."""
        return self.source(labels, send(self._chosen(step), labels.device))

    def pairs(self, labels, step):
        """Rows of the real images that these vectors are paired with, on the CPU as `labels` are: int64 [k, m]."""
        return self.partners[labels[:, None], self._chosen(step)]

    def grid(self):
        """Real images above those of their vectors."""
        columns, rows = min(_COLUMNS, self.spec.num_classes), min(4, self.source.max_ipc)
        labels = torch.arange(columns, device=self.accelerator.device).repeat(rows)
        made = self.source.sample(labels).unflatten(0, (rows, columns))
        real = to_signed(take(self.real.images, self.partners[:columns, :rows].T))
        return torch.stack([real, made], 1).flatten(0, 2), columns

    def state_dict(self):
        return {**super().state_dict(), "rows": self.partners}

    def load_state_dict(self, state, path):
        super().load_state_dict(state, path)
        self.partners = state["rows"]

