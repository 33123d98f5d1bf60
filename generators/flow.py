"""Flow matching: a velocity field in training, and one that also learns to take long steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from gendistil.common.cli import FRACTION, WEIGHT, number
from gendistil.common.device import own_rows, send
from gendistil.common.errors import UserError
from gendistil.common.flags import option
from generators.networks import NETWORKS
from generators.trainer import GROUP, Recipe, Trainer, flip_option
from generators.unet import FINEST, FlowGenerator

_SOME = 0.1  # of the times of `logit_normal` are uniform
_BOUND = 4.0  # on what a shortcut learns from its own steps


def uniform(count, generator):
    """Times [count] anywhere between image and noise."""
    return torch.rand(count, generator=generator)


def logit_normal(count, generator):
    """Times [count] that are mostly halfway (Esser et al., arXiv 2403.03206); one in ten is uniform, for the ends."""
    often, rare, chance = (draw(count, generator=generator) for draw in (torch.randn, torch.rand, torch.rand))
    return torch.where(chance < _SOME, rare, often.sigmoid())


TIMES = {"logit-normal": logit_normal, "uniform": uniform}


@dataclass(frozen=True, kw_only=True)
class FlowRecipe(Recipe):
    """The values of a training by flow matching."""

    trainer: ClassVar[str] = "flow"

    times: str = option("at which times the network learns: mostly halfway between image and noise, or anywhere", choices=TIMES,
                        group=GROUP)
    label_dropout: float = option("fraction of the images that are shown without their class, which guidance needs",
                                  type=FRACTION, group=GROUP)
    warmup: float = option("fraction of stage 1 over which the learning rate rises", type=FRACTION, group=GROUP)
    sample_steps: int = option("Euler steps from noise to an image", type=number(int, 1, 1000), group=GROUP)
    guidance: float = option("classifier-free guidance of the images, 1 for none; a shortcut learns it", type=WEIGHT,
                             group=GROUP)
    flip: bool = flip_option()


class FlowTrainer(Trainer):
    """A velocity field, its optimiser and the averaged field, which draws the images."""

    recipe_class = FlowRecipe
    beta1, max_norm = 0.9, 1.0

    def networks(self, shape):
        kind, recipe = NETWORKS[self.recipe.generator][0], self.recipe
        if recipe.guidance != 1 and not recipe.label_dropout:
            raise UserError(f"--guidance {recipe.guidance:g} is learned by --label-dropout, now 0: give both or --guidance 1")
        if not issubclass(kind, FlowGenerator):
            raise UserError(f"--generator {recipe.generator} has no velocity for --recipe {recipe.trainer}: use unet")
        network = kind(**shape, dim_noise=recipe.dim_noise, width=recipe.width, sample_steps=recipe.sample_steps,
                       guidable=recipe.label_dropout > 0, **self.network_options())
        return {"generator": (network, recipe.lr)}

    def network_options(self):
        """What else the network is built with."""
        return {"guidance": self.recipe.guidance}

    def pace(self, progress):
        super().pace(progress)
        if progress < self.recipe.warmup:
            for group in self.optim_g.param_groups:
                group["lr"] *= progress / self.recipe.warmup

    def step(self, images, labels, global_step, term=None):
        """One update of the field, see `Trainer.step`."""
        *shown, target = self.examples(self.mirrored(images, global_step), labels, global_step)
        loss = (self.engine(self.generator, *shown).float() - target).square().mean()
        return self.update(loss, {"flow": loss}, global_step, term)

    def examples(self, images, labels, step):
        """What the field is asked, (x [B, C, H, W], labels [B], times [B]), and the velocity that it is to answer."""
        total = len(labels) * self.accelerator.num_processes
        velocity = self.noise((total,), "flow", step).view_as(images) - images
        time = self.shard(TIMES[self.recipe.times](total, self.stream("times", step)))
        hidden = self.shard(torch.rand(total, generator=self.stream("dropout", step)) < self.recipe.label_dropout)
        return moved(images, velocity, time), labels.masked_fill(hidden, self.spec.num_classes), time, velocity


def moved(images, velocity, time):
    """`images` [B, C, H, W] after the times [B] at this velocity."""
    return torch.addcmul(images, velocity, time.view(-1, 1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class ShortcutRecipe(FlowRecipe):
    """The values of a flow whose network knows the length of its step."""

    trainer: ClassVar[str] = "shortcut"

    long_steps: float = option("fraction of the images on which a step is to equal two half as long",
                               type=number(float, 0.01, 0.99), group=GROUP)


class ShortcutTrainer(FlowTrainer):
    """A field that knows the length of its step (Frans et al., arXiv 2410.12557).

    On most images it learns by flow matching at the shortest length. On the others, a step is to lead where two steps half as
    long lead by the averaged weights; the shortest of those are guided, so that all longer ones learn to be.
    """

    recipe_class = ShortcutRecipe

    def network_options(self):
        return {"shortcut": True}

    def examples(self, images, labels, step):
        """As `FlowTrainer.examples`, with the spans [B] before the velocity."""
        x, shown, time, velocity = super().examples(images, labels, step)
        total, draws = len(labels) * self.accelerator.num_processes, self.stream("long steps", step)
        longer = torch.randperm(total, generator=draws) < self.recipe.long_steps * total
        span = torch.randint(FINEST, (total,), generator=draws).masked_fill(~longer, FINEST)
        place = (1 + (torch.rand(total, generator=draws) * 2**span).floor()) / 2**span  # where steps of that length start
        rows = send(own_rows(self.accelerator, longer).nonzero()[:, 0], images.device)
        longer, span, place = self.shard(longer), self.shard(span), self.shard(place)
        time, shown = torch.where(longer, place, time), torch.where(longer, labels, shown)
        x = moved(images, velocity, time)
        if len(rows):
            velocity[rows] = self.two_steps(x[rows], labels[rows], time[rows], span[rows] + 1)
        return x, shown, time, span, velocity

    @torch.no_grad()
    def two_steps(self, x, labels, time, span):
        """The mean velocity over two steps of 2^-span from x [b, C, H, W] on, by the averaged weights."""
        length = 0.5**span
        guidance = torch.where(span == FINEST, self.recipe.guidance, 1.0).view(-1, 1, 1, 1)
        field = lambda x, time: self.engine(self.source, x, labels, time, guidance, span, view="guided").float()
        first = field(x, time)
        second = field(moved(x, first, -length).clamp(-_BOUND, _BOUND), time - length)
        return ((first + second) / 2).clamp(-_BOUND, _BOUND)
