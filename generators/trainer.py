"""What stage 1 and stage 2 ask of whatever trains a generator, and the parts that every such trainer shares."""

import copy
import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from gendistil.common.cli import COUNT, FRACTION, POSITIVE, number
from gendistil.common.device import own_rows, process_sums, send
from gendistil.common.engine import Engine, resume_optimizer
from gendistil.common.errors import UserError
from gendistil.common.flags import LENGTH_GROUP, option
from gendistil.common.rng import stream
from gendistil.data import Augment
from generators.networks import NETWORKS

TUNED = {"all": (nn.Module,), "norms": (nn.Embedding, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)}
"""Which of a generator's weights are learned: those of modules of these kinds."""

GROUP = "recipe (a flag that is not given takes the recipe's value)"

DECAYS = {
    "none": lambda late: 1.0,
    "linear": lambda late: 1 - late,
    "cosine": lambda late: (1 + math.cos(math.pi * late)) / 2,
}
"""Factor on the learning rates as a function of how much of the second half of stage 1 is over, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the table of recipes: the values of a training; the field names are the flags of `gen_condense.py`.

    A trainer with values of its own has a subclass, whose `trainer` is its name in `TRAINERS`. A field that is added later has
    a default, the value of the checkpoints that do not name it.
    """

    trainer: ClassVar[str]
    idle: ClassVar[tuple] = ()  # `Idle`: flags that do nothing beside other values

    generator: str = option("networks of the generator and its critic", choices=NETWORKS, group=GROUP)
    lr: float = option("learning rate of the generator (Adam)", type=POSITIVE, group=GROUP)
    lr_decay: str = option("how the learning rates fall to 0 over the second half of stage 1", "none", choices=DECAYS,
                           group=GROUP)
    beta2: float = option("Adam's second beta; the first is 0, of a flow 0.9", type=number(float, 0, 0.999999), group=GROUP)
    batch_size: int = option("images a step, over all processes", type=number(int, 2, 2**31 - 1), group=GROUP)
    width: int = option("channels of the widest layer", type=number(int, 8, 2048), group=GROUP)
    dim_noise: int | None = option("entries of the noise vector; a flow's has those of an image", type=COUNT, group=GROUP)
    ema: float = option("decay of the averaged weights, 0 for none", type=FRACTION, group=GROUP)
    epochs: int = option("passes over the real images (default: the recipe's)", type=COUNT, group=LENGTH_GROUP)
    tune: str = "all"  # a key of TUNED: which of the generator's weights stage 2 learns


def flip_option():
    """The flag of a trainer that shows its networks real images as `mirrored` gives them."""
    return option("mirror half of the real images, at random; nothing where a mirrored image changes class", False, group=GROUP)


class Trainer:
    """A generator in training, its optimiser and the averaged generator, ready for any number of processes.

    Every random draw is made for the global batch from (seed, purpose, step), and each process keeps its own shard. So the
    weights after a step do not depend on how many processes took it, and resuming needs no random state.

    A subclass has `recipe_class` and `step`; if it trains more than the generator, `parts` names all that it trains, and
    `networks` builds them. `trained` holds each, ready, with its optimiser.
    """

    recipe_class = Recipe
    parts: ClassVar[dict] = {"generator": "optim_g"}
    """The names of the networks in its state, and those of their optimisers."""
    beta1, max_norm = 0.0, None
    """Adam's first beta, and the norm to which the generator's gradient is cut, None for any."""

    def __init__(self, accelerator, spec, recipe, seed, engine=None):
        self.accelerator, self.spec, self.recipe, self.seed = accelerator, spec, recipe, seed
        self.engine = engine or Engine(accelerator)
        self.mirror = Augment("flip" if getattr(recipe, "flip", False) else "none", spec)
        shape = {"size": spec.size, "channels": spec.channels, "num_classes": spec.num_classes}
        with torch.random.fork_rng(devices=[]):  # the layers of torch initialise from the global stream only
            torch.default_generator.manual_seed(stream(seed, "weights").initial_seed())
            networks = self.networks(shape)
        generator, _ = networks["generator"]
        for module in generator.modules():
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(isinstance(module, TUNED[recipe.tune]))
        self.source = copy.deepcopy(generator).requires_grad_(False).eval().to(accelerator.device)
        self.trained = {name: self.prepare(network, lr) for name, (network, lr) in networks.items()}
        self.generator, self.optim_g = self.trained["generator"]

    def networks(self, shape):
        """What to train, by the names of `parts`: networks and learning rates; `shape` holds size, channels and num_classes."""
        recipe, (make_generator, _) = self.recipe, NETWORKS[self.recipe.generator]
        return {"generator": (make_generator(**shape, dim_noise=recipe.dim_noise, width=recipe.width), recipe.lr)}

    def prepare(self, network, lr):
        """A network and its Adam, ready for the device and the processes."""
        fused = self.accelerator.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(network.parameters(), lr, betas=(self.beta1, self.recipe.beta2), fused=fused)
        return self.accelerator.prepare(network, optimizer)

    def pace(self, progress):
        """Set the learning rates for the step that starts when this share of stage 1, from 0 to 1, is over.

        They are a function of it alone. Stage 2 does not call this: its rates are those of the recipe.
        """
        factor = DECAYS[self.recipe.lr_decay](max(0.0, 2 * progress - 1))
        for _, optimizer in self.trained.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor

    def step(self, images, labels, global_step, term=None):
        """One update on this process's shard of a batch; a dict of 0-dim losses, without a gradient or with one.

        Args: images, signed float [B, C, H, W]; labels, int64 [B]; global_step, counted over both stages; term, called
        without arguments, yields the parts of one more loss that depends on `images()`, the matching term of stage 2: 0-dim
        tensors, of which each is differentiated before the next is made.
        """
        raise NotImplementedError

    def update(self, loss, report, global_step, term=None):
        """Move the generator against `loss` and the matching `term`, and the averaged weights with it; the report of both."""
        apart = {}
        if term is not None:
            report["matching"], apart = self.differentiated(term())
        self.optim_g.zero_grad()
        self.accelerator.backward(loss)
        for weight, gradient in apart.items():
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        if self.max_norm:
            self.accelerator.clip_grad_norm_(self.generator.parameters(), self.max_norm)
        self.optim_g.step()
        self.average(global_step)
        return report

    def differentiated(self, losses):
        """The sum of `losses`, which are made one after the other, and its gradients: {weight: the mean over all processes}."""
        weights = [weight for weight in self.generator.parameters() if weight.requires_grad]
        sums, total, scaler = [torch.zeros_like(weight) for weight in weights], 0, self.accelerator.scaler
        for loss in losses:
            scaled = scaler.scale(loss) if scaler else loss
            if loss.requires_grad:  # not `backward`, at which several processes would exchange what is not complete yet
                torch._foreach_add_(sums, torch.autograd.grad(scaled, weights, materialize_grads=True))
            total = total + loss.detach()
        sums = process_sums(sums)
        torch._foreach_div_(sums, self.accelerator.num_processes)
        return total, dict(zip(weights, sums))

    def images(self, noise, labels):
        """Images for noise [B, Z] and labels int64 [B], as the generator makes them when it is used: float [B, C, H, W].

        Differentiable. Batch norms are in eval mode: they divide by running statistics, as when images are sampled, and
        their statistics stay those of the batches of `step`.
        """
        self.generator.eval()
        images = self.engine(self.generator, noise, labels).float()
        self.generator.train()
        return images

    def stream(self, *name):
        """The run's random stream of this name, the same in every process."""
        return stream(self.seed, self.recipe.trainer, *name)

    def shard(self, rows):
        """This process's rows of something drawn for the global batch."""
        return send(own_rows(self.accelerator, rows), self.accelerator.device)

    def noise(self, shape, *name):
        """This process's part of the noise drawn for a global `shape` (n, ...): [n / processes, ..., Z]."""
        return self.shard(torch.randn(*shape, self.source.dim_noise, generator=self.stream("noise", *name)))

    def augmented(self, images, augment, *name):
        """`images` [n·B, C, H, W] of this process, augmented image by image; the n parts get draws of their own."""
        params = augment.draw(len(images) * self.accelerator.num_processes, self.stream(*name))
        return augment.apply(images, params._replace(uniform=self.shard(params.uniform)))

    def mirrored(self, images, step):
        """`images` [B, C, H, W] of this process, half of them mirrored at random where the recipe says so."""
        return self.augmented(images, self.mirror, "flip", step) if self.mirror.names else images

    @torch.no_grad()
    def average(self, global_step):
        """Move the averaged weights towards the current ones, faster at the start; buffers are copied."""
        live = self.accelerator.unwrap_model(self.generator)
        decay = min(self.recipe.ema, (1 + global_step) / (10 + global_step)) if self.recipe.ema else 0.0
        torch._foreach_lerp_(list(self.source.parameters()), list(live.parameters()), 1 - decay)
        for average, current in zip(self.source.buffers(), live.buffers()):
            average.copy_(current)

    def grid(self):
        """Images of the averaged generator, one column for each of the first ten classes, and how many columns: the same noise
        at every call."""
        columns = min(self.spec.num_classes, 10)
        return self.source.sample(torch.arange(columns, device=self.accelerator.device).repeat(8), seed=0), columns

    def check(self, step):
        """Raise UserError if a trained weight is NaN or infinite after `step` steps."""
        sizes = torch._foreach_norm([weight for network, _ in self.trained.values() for weight in network.parameters()])
        if not torch.stack(sizes).isfinite().all():
            raise UserError(f"a weight was NaN or infinite after step {step}: lower --lr or use --precision fp32 "
                            "(the last checkpoint, if there is one, is kept: --resume continues from it)")

    def state_dict(self):
        """Everything that continuing needs, as nested dicts of tensors and plain values."""
        state = {"trainer": self.recipe.trainer, "recipe": asdict(self.recipe), "ema": self.source.state_dict(),
                 "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}}
        for name, (network, optimizer) in self.trained.items():
            state[name], state[self.parts[name]] = self.accelerator.unwrap_model(network).state_dict(), optimizer.state_dict()
        return state

    def load_state_dict(self, state, path):
        """Continue from `state`, read from `path`; the learning rates stay those of this trainer's recipe."""
        try:
            self.restore(state)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit these networks ({error}): check --data and --image-size") from None

    def restore(self, state):
        """What `load_state_dict` does with a state that fits."""
        for name, (network, optimizer) in self.trained.items():
            load_weights(self.accelerator.unwrap_model(network), state[name])
            resume_optimizer(optimizer, state[self.parts[name]])
        load_weights(self.source, state.get("ema", state["generator"]))
        with torch.no_grad():
            for live, averaged in zip(self.generator.parameters(), self.source.parameters()):
                if not live.requires_grad:  # by --tune: what does not learn stays what it was on average
                    live.copy_(averaged)
        if state.get("scaler") and self.accelerator.scaler:  # empty unless it was written under float16
            self.accelerator.scaler.load_state_dict(state["scaler"])


def load_weights(module, state):
    """Load a state dict by position, as far as shapes agree: names differ between projects, the order of layers does not."""
    own = module.state_dict()
    if len(own) != len(state):
        raise ValueError(f"{len(state)} tensors where {type(module).__name__} has {len(own)}")
    for (name, tensor), (other, value) in zip(own.items(), state.items()):
        if tensor.shape != value.shape:
            raise ValueError(f"'{other}' is {list(value.shape)} where '{name}' is {list(tensor.shape)}")
    module.load_state_dict(dict(zip(own, state.values())))
