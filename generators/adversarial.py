"""A conditional GAN in training."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from gendistil.common.cli import COUNT, POSITIVE, WEIGHT
from gendistil.common.errors import UserError
from gendistil.common.flags import Idle, option
from gendistil.data import Augment
from gendistil.data.augment import augmentations
from generators.losses import LOSSES, PENALTIES, auxiliary
from generators.networks import NETWORKS
from generators.trainer import GROUP, Recipe, Trainer, flip_option


@dataclass(frozen=True, kw_only=True)
class GANRecipe(Recipe):
    """The values of an adversarial training."""

    trainer: ClassVar[str] = "gan"
    idle: ClassVar[tuple] = (Idle(lambda recipe: not recipe.gradient_penalty, "does nothing where --gradient-penalty is 0",
                                  {"penalty", "penalty_interval"}),)

    loss: str = option("loss of the critic and of the generator; relativistic: in pairs of one class (R3GAN, arXiv 2501.05441)",
                       choices=LOSSES, group=GROUP)
    penalty: str = option("penalty on the critic's gradient: at points between real and generated images (wgan-gp), at real "
                          "ones (r1), or at both (r1+r2)", choices=PENALTIES, group=GROUP)
    gradient_penalty: float = option("its weight, 0 for none", type=WEIGHT, group=GROUP)
    penalty_interval: int = option("steps between penalties; each counts for all of them (Karras et al., CVPR 2020)",
                                   type=COUNT, group=GROUP)
    lr_critic: float = option("learning rate of the critic (Adam)", type=POSITIVE, group=GROUP)
    gan_aug: str = option("augmentation of what the critic sees, joined by _, or none (Zhao et al., NeurIPS 2020)",
                          type=augmentations, group=GROUP)
    flip: bool = flip_option()


class GAN(Trainer):
    """A generator and its critic, their optimisers and the averaged generator."""

    recipe_class = GANRecipe
    parts: ClassVar[dict] = {**Trainer.parts, "discriminator": "optim_d"}

    def __init__(self, accelerator, spec, recipe, seed, engine=None):
        super().__init__(accelerator, spec, recipe, seed, engine)
        self.critic, self.optim_d = self.trained["discriminator"]
        self.loss = LOSSES[recipe.loss]
        self.augment = Augment(recipe.gan_aug, spec)

    def networks(self, shape):
        _, make_critic = NETWORKS[self.recipe.generator]
        if make_critic is None:
            raise UserError(f"--generator {self.recipe.generator} has no critic, so it is not for a GAN: use --recipe flow")
        return {**super().networks(shape),
                "discriminator": (make_critic(**shape, width=self.recipe.width), self.recipe.lr_critic)}

    def step(self, images, labels, global_step, term=None):
        """One update of the generator and one of the critic, see `Trainer.step`."""
        images = self.mirrored(images, global_step)
        return {**self.generator_step(images, labels, global_step, term), **self.critic_step(images, labels, global_step)}

    def critic_step(self, real, labels, step):
        """One update of the critic on this process's `real` signed images [B, C, H, W]; a dict of 0-dim losses."""
        total, fake_labels = len(real) * self.accelerator.num_processes, labels
        if not self.loss.paired:
            fake_labels = self.shard(torch.randint(self.spec.num_classes, (total,), generator=self.stream("labels", step)))
        with torch.no_grad():
            fake = self.engine(self.generator, self.noise((total,), "critic", step), fake_labels)
        both = self.augmented(torch.cat([real, fake.float()]), self.augment, "augment", "critic", step)
        scores, logits = self.engine(self.critic, both, torch.cat([labels, fake_labels]))
        on_real, on_fake = scores.float().chunk(2)
        loss = self.loss.critic(on_real, on_fake)
        report = {"critic": loss, "score_gap": on_real.mean() - on_fake.mean()}
        if logits is not None:
            classes = auxiliary(logits, torch.cat([labels, fake_labels])) * 2  # the sum of the two batches' means
            report["critic_classes"] = classes
            loss = loss + classes
        if self.recipe.gradient_penalty and step % self.recipe.penalty_interval == 0:
            alpha = self.shard(torch.rand(total, 1, 1, 1, generator=self.stream("alpha", step)))
            with self.engine.autocast():  # not compiled: its own gradient is taken
                penalty = PENALTIES[self.recipe.penalty](self.critic, *both.chunk(2), labels, fake_labels, alpha)
            report["penalty"] = penalty
            loss = loss + self.recipe.gradient_penalty * self.recipe.penalty_interval * penalty
        self.optim_d.zero_grad()
        self.accelerator.backward(loss)
        self.optim_d.step()
        return report

    def generator_step(self, real, labels, step, term=None):
        """One update of the generator on images of `labels` [B]; a dict of 0-dim losses. `term` as in `Trainer.step`.

        The `real` images [B, C, H, W] of these labels are looked at by a loss of pairs alone.
        """
        critic = self.accelerator.unwrap_model(self.critic).requires_grad_(False)
        total = len(labels) * self.accelerator.num_processes
        fake = self.engine(self.generator, self.noise((total,), "generator", step), labels)
        on_fake, logits = self.engine(critic, self.augmented(fake.float(), self.augment, "augment", "generator", step), labels)
        on_real = None
        if self.loss.paired:
            on_real, _ = self.engine(critic, self.augmented(real, self.augment, "augment", "generator's real", step), labels)
            on_real = on_real.float()
        loss = self.loss.generator(on_real, on_fake.float())
        report = {"generator": loss}
        if logits is not None:
            report["generator_classes"] = auxiliary(logits, labels)
            loss = loss + report["generator_classes"]
        self.update(loss, report, step, term)
        critic.requires_grad_(True)
        return report
