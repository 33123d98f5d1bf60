"""What is learned: the weights of a generator, pixels, or the latents of a frozen generator.

A learner has `step(step, matching)`, one update that returns a dict of 0-dim losses; `images(labels, places, shape, step)`,
its synthetic images for the matching term, and `images_per_class(real)`, how many of them there are of a class;
`training_set()`, uint8 images and int64 labels for a network of the pool; `source`, the distilled source, which a run keeps in
`folder`; `grid()`, `check(step)`, `state_dict()` and `load_state_dict(state, path)`; and for random draws `seed`, `stream` and
`mine`, as a `GAN` has them.
"""

from dataclasses import asdict

import torch

from common.errors import UserError
from common.rng import Shuffle, stream
from data import to_signed, to_uint8
from generators import LATENTS, MODEL, PIXELS


class GeneratorLearner:
    """The weights of a generator, beside its adversarial training: DiM's second stage.

    Args: gan, a `GAN`; dataset, a `Dataset` on the device; steps_before, steps that the GAN has taken in earlier stages.
    """

    folder = MODEL

    def __init__(self, gan, dataset, steps_before=0):
        self.gan, self.real, self.steps_before = gan, dataset.train, steps_before
        self.accelerator, self.seed, self.mine, self.stream = gan.accelerator, gan.seed, gan.mine, gan.stream
        self.shuffle = Shuffle(len(self.real.labels), gan.recipe.batch_size, gan.seed, "real of stage 2")

    @property
    def source(self):
        return self.gan.ema

    def step(self, step, matching):
        rows = self.mine(self.shuffle.indices(step))
        images, labels = to_signed(self.real.images[rows]), self.real.labels[rows]
        turn = self.steps_before + step  # averaging and random streams go on where the earlier stage stopped
        term = matching and (lambda turn: matching(step))
        return {**self.gan.generator_step(labels, turn, term), **self.gan.critic_step(images, labels, turn)}

    def images_per_class(self, real):
        """Synthetic images of a class beside so many real ones."""
        return real

    def images(self, labels, places, shape, step):
        """New images of `labels` [k]: [k, n, C, H, W]; `shape` is (classes, n) of all processes, `places` those of `labels`."""
        noise = self.gan.noise(shape, "matching", step)[places // self.accelerator.num_processes]  # k,n,Z
        made = self.gan.generator(noise.flatten(0, 1), labels.repeat_interleave(shape[1]))
        return made.float().unflatten(0, noise.shape[:2])

    def training_set(self, ipc=10):
        """The first `ipc` images of every class of the averaged generator: uint8 [K * ipc, C, H, W], int64 labels."""
        labels = torch.arange(self.source.num_classes, device=self.accelerator.device).repeat_interleave(ipc)
        return to_uint8(self.source.sample(labels, self.seed)), labels

    def grid(self):
        return self.gan.grid()

    def check(self, step):
        self.gan.check(step)

    def state_dict(self):
        return {"recipe": asdict(self.gan.recipe), **self.gan.state_dict()}

    def load_state_dict(self, state, path):
        self.gan.load_state_dict(state, path)


class StoredLearner:
    """What is stored image by image, learned by SGD: pixels and latents.

    Args: source, a `PixelSet` or `LatentSet` with its starting values, on the accelerator's device; parameter, what of it is
    learned, [K, ipc, ...]; seed, of all draws; lr, momentum of the SGD; batch, images of a class that are compared in one step,
    None for all. A subclass has `folder`, `images` and `images_per_class`, and may scale the gradient and bound the values.
    """

    scale = 1.0

    def __init__(self, accelerator, spec, source, parameter, seed, *, lr, momentum, batch):
        self.accelerator, self.spec, self.source, self.parameter = accelerator, spec, source, parameter
        self.seed, self.batch = seed, batch
        if spec.num_classes % accelerator.num_processes:
            raise UserError(f"{accelerator.num_processes} processes cannot share {spec.num_classes} classes evenly: launch "
                            "another number of them")
        self.optimizer = torch.optim.SGD([parameter], lr, momentum=momentum)

    def mine(self, rows):
        return rows[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)

    def stream(self, *name):
        return stream(self.seed, self.folder, *name)

    def step(self, step, matching):
        self.optimizer.zero_grad()
        total = 0
        for part in matching.parts(step):
            loss = part * (self.spec.num_classes / self.accelerator.num_processes)  # the sum over classes
            self.accelerator.backward(loss)
            total = total + loss.detach()
        self.parameter.grad = self.accelerator.reduce(self.parameter.grad, "sum") * self.scale
        self.optimizer.step()
        self.bound()
        return {"matching": total}

    def bound(self):
        """Put values back that a step has moved too far: none."""

    def check(self, step):
        if not self.parameter.isfinite().all():
            raise UserError(f"a value of {self.folder} was NaN or infinite after step {step}: lower --lr or use "
                            "--precision fp32")

    def state_dict(self):
        return {self.folder: self.source.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state, path):
        try:
            self.source.load_state_dict(state[self.folder])
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]["state"]})
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold these {self.folder} ({type(error).__name__}): check --data, --ipc and "
                            "--factor") from None


class PixelLearner(StoredLearner):
    """Stored pixels: DC, DSA, DM (in units of standardised images) and IDC, DREAM (in units of images in [0, 1]).

    Args: pixels, a `PixelSet`; space, one of `SPACES`: learning rates count in its units; batch counts decoded images; the
    others as `StoredLearner` has them.
    """

    folder = PIXELS

    def __init__(self, accelerator, spec, pixels, seed, *, lr, momentum=0.5, space="standardised", batch=None):
        super().__init__(accelerator, spec, pixels, pixels.pixels, seed, lr=lr, momentum=momentum, batch=batch)
        self.space = space
        unit = torch.tensor(spec.std) * 2 if space == "standardised" else torch.full((spec.channels,), 2.0)
        # `unit` signed units are one of the space. A step of x there is one of unit * x here, and the gradient 1 / unit of it.
        self.scale = unit.view(-1, 1, 1).to(accelerator.device).square()

    def images_per_class(self, real):
        """Synthetic images of a class, however many real ones there are."""
        decoded = self.source.decoded(self.source.max_ipc)
        return min(decoded, self.batch or decoded)

    def images(self, labels, places, shape, step):
        """The images of `labels` [k] as they are, [k, m, C, H, W], or `batch` of each drawn at random."""
        images = self.source(labels)
        if self.batch is None or images.shape[1] <= self.batch:
            return images
        chosen = torch.randperm(images.shape[1], generator=self.stream("subset", step))[: self.batch]
        return images[:, chosen.to(images.device)]

    def bound(self):
        if self.space == "unit":
            with torch.no_grad():
                self.parameter.clamp_(-1, 1)

    def training_set(self):
        """All images as students see them: uint8 [N, C, H, W], int64 labels [N]."""
        count = self.source.decoded(self.source.max_ipc)
        labels = torch.arange(self.spec.num_classes, device=self.accelerator.device).repeat_interleave(count)
        return to_uint8(self.source.sample(labels)), labels

    def grid(self, rows=8, columns=10):
        """Stored images, one column per class, and how many columns."""
        columns, rows = min(columns, self.spec.num_classes), min(rows, self.source.max_ipc)
        return self.source.pixels.detach()[:columns, :rows].transpose(0, 1).flatten(0, 1).clamp(-1, 1), columns


class LatentLearner(StoredLearner):
    """Vectors of a frozen generator, each of which stands for one real image (IT-GAN, arXiv 2204.07513).

    Args: latents, a `LatentSet`; real, the `Split` whose images the vectors stand for; rows, int64 [K, ipc], which of them;
    chunk_steps, 0 to compare vectors drawn at random in every step, else GAN inversion: `batch` vectors of every class are
    fitted by Adam for that many steps, then the next ones; the others as `StoredLearner` has them.
    """

    folder = LATENTS

    def __init__(self, accelerator, spec, latents, seed, *, real, rows, lr, momentum=0.0, batch=None, chunk_steps=0):
        super().__init__(accelerator, spec, latents, latents.vectors, seed, lr=lr, momentum=momentum,
                         batch=min(batch or latents.max_ipc, latents.max_ipc))
        self.real, self.rows, self.chunk_steps = real, rows, chunk_steps
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
        """Synthetic images of a class, however many real ones there are."""
        return self.batch

    def _chosen(self, step):
        if self.chunk_steps:
            first = step // self.chunk_steps * self.batch
            return torch.arange(first, min(first + self.batch, self.source.max_ipc))
        return torch.randperm(self.source.max_ipc, generator=self.stream("subset", step))[: self.batch]

    def images(self, labels, places, shape, step):
        """The images of this step's vectors of `labels` [k]: [k, m, C, H, W]."""
        return self.source(labels, self._chosen(step).to(labels.device))

    def own(self, labels, step):
        """Rows of the real images that these vectors stand for: int64 [k, m] on the CPU."""
        return self.rows[labels.cpu()[:, None], self._chosen(step)]

    def training_set(self, ipc=10):
        """The images of the first `ipc` vectors of every class: uint8 [K * ipc, C, H, W], int64 labels."""
        labels = torch.arange(self.spec.num_classes, device=self.accelerator.device)
        labels = labels.repeat_interleave(min(ipc, self.source.max_ipc))
        return to_uint8(self.source.sample(labels)), labels

    def grid(self, rows=4, columns=10):
        """Real images above those of their vectors, one column per class, and how many columns."""
        columns, rows = min(columns, self.spec.num_classes), min(rows, self.source.max_ipc)
        labels = torch.arange(columns, device=self.accelerator.device).repeat(rows)
        made = self.source.sample(labels).unflatten(0, (rows, columns))
        real = to_signed(self.real.images[self.rows[:columns, :rows].T.to(self.real.images.device)])
        return torch.stack([real, made], 1).flatten(0, 2), columns

    def state_dict(self):
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state, path):
        super().load_state_dict(state, path)
        self.rows = state["rows"]


SPACES = ("standardised", "unit")
"""Units in which pixels are learned: of standardised images, without bounds, or of images in [0, 1], clamped to that."""
