"""One conditional GAN in training: the steps that `gen_condense.py` and `pool_match.py` share, and what a checkpoint holds."""

import copy

import torch

from common.device import autocast
from common.errors import UserError
from common.rng import stream
from data import Augment
from generators.losses import CRITIC_LOSSES, PENALTIES, auxiliary
from generators.recipes import NETWORKS


class GAN:
    """A generator, its critic, their optimisers and the averaged generator, ready for any number of processes.

    Every random draw is made for the global batch from (seed, purpose, step), and each process keeps its own rows. So the
    weights after a step do not depend on how many processes took it, and resuming needs no random state.
    """

    def __init__(self, accelerator, spec, recipe, seed):
        self.accelerator, self.spec, self.recipe, self.seed = accelerator, spec, recipe, seed
        make_generator, make_critic = NETWORKS[recipe.generator]
        shape = {"size": spec.size, "channels": spec.channels, "num_classes": spec.num_classes}
        with torch.random.fork_rng(devices=[]):  # the layers of torch initialise from the global stream only
            torch.manual_seed(stream(seed, "weights").initial_seed())
            generator = make_generator(**shape, dim_noise=recipe.dim_noise, width=recipe.width)
            critic = make_critic(**shape, width=recipe.width)
        self.ema = copy.deepcopy(generator).requires_grad_(False).eval().to(accelerator.device)
        fused = accelerator.device.type in ("cpu", "cuda")
        optim_g = torch.optim.Adam(generator.parameters(), recipe.lr, betas=(0.0, recipe.beta2), fused=fused)
        optim_d = torch.optim.Adam(critic.parameters(), recipe.lr_critic, betas=(0.0, recipe.beta2), fused=fused)
        self.generator, self.critic, self.optim_g, self.optim_d = accelerator.prepare(generator, critic, optim_g, optim_d)
        self.augment = Augment(recipe.gan_aug, spec)

    def stream(self, *name):
        """The run's random stream of this name, the same in every process."""
        return stream(self.seed, "gan", *name)

    def mine(self, rows):
        """This process's rows of something drawn for the global batch."""
        return rows[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)

    def noise(self, shape, *name):
        """This process's part of the noise drawn for a global `shape` (n, ...): [n / processes, ..., Z]."""
        return self.mine(torch.randn(*shape, self.recipe.dim_noise, generator=self.stream("noise", *name)))

    def _augment(self, images, step, player):
        """`images` [n·B, C, H, W] of this process, augmented image by image; the n parts get draws of their own."""
        total = len(images) * self.accelerator.num_processes
        params = self.augment.draw(total, self.stream("augment", player, step))
        return self.augment.apply(images, params._replace(uniform=self.mine(params.uniform)))

    def critic_step(self, real, labels, step):
        """One update of the critic on this process's `real` signed images [B, C, H, W]; a dict of 0-dim losses."""
        total = len(real) * self.accelerator.num_processes
        fake_labels = self.mine(torch.randint(self.spec.num_classes, (total,), generator=self.stream("labels", step)))
        with autocast(self.accelerator):
            with torch.no_grad():
                fake = self.generator(self.noise((total,), "critic", step), fake_labels)
            both = self._augment(torch.cat([real, fake.float()]), step, "critic")
            scores, logits = self.critic(both, torch.cat([labels, fake_labels]))
            on_real, on_fake = scores.float().chunk(2)
            loss = CRITIC_LOSSES[self.recipe.loss](on_real, on_fake)
            report = {"critic": loss, "score_gap": on_real.mean() - on_fake.mean()}
            if logits is not None:
                classes = auxiliary(logits, torch.cat([labels, fake_labels])) * 2  # the sum of the two batches' means
                report["critic_classes"] = classes
                loss = loss + classes
            if self.recipe.gradient_penalty and step % self.recipe.penalty_interval == 0:
                alpha = self.mine(torch.rand(total, 1, 1, 1, generator=self.stream("alpha", step)))
                penalty = PENALTIES[self.recipe.penalty](self.critic, *both.chunk(2), labels, alpha)
                report["penalty"] = penalty
                loss = loss + self.recipe.gradient_penalty * self.recipe.penalty_interval * penalty
        self.optim_d.zero_grad()
        self.accelerator.backward(loss)
        self.optim_d.step()
        return report

    def generator_step(self, labels, step, matching=None):
        """One update of the generator on images of `labels` [B]; a dict of 0-dim losses.

        `matching`, if given, is called with the step and returns one more 0-dim loss that depends on the generator.
        """
        critic = self.accelerator.unwrap_model(self.critic).requires_grad_(False)
        total = len(labels) * self.accelerator.num_processes
        with autocast(self.accelerator):
            fake = self.generator(self.noise((total,), "generator", step), labels)
            scores, logits = critic(self._augment(fake.float(), step, "generator"), labels)
            loss = -scores.float().mean()
            report = {"generator": loss}
            if logits is not None:
                report["generator_classes"] = auxiliary(logits, labels)
                loss = loss + report["generator_classes"]
            if matching is not None:
                report["matching"] = matching(step)
                loss = loss + report["matching"]
        self.optim_g.zero_grad()
        self.accelerator.backward(loss)
        self.optim_g.step()
        critic.requires_grad_(True)
        self._average(step)
        return report

    @torch.no_grad()
    def _average(self, step):
        """Move the averaged weights towards the current ones, faster at the start; buffers are copied."""
        live = self.accelerator.unwrap_model(self.generator)
        decay = min(self.recipe.ema, (1 + step) / (10 + step)) if self.recipe.ema else 0.0
        torch._foreach_lerp_(list(self.ema.parameters()), list(live.parameters()), 1 - decay)
        for average, current in zip(self.ema.buffers(), live.buffers()):
            average.copy_(current)

    def grid(self, rows=8, columns=10):
        """Images of the averaged generator, one column per class, and how many columns: the same noise at every call."""
        columns = min(self.spec.num_classes, columns)
        return self.ema.sample(torch.arange(columns, device=self.accelerator.device).repeat(rows), seed=0), columns

    def check(self, step):
        """Raise UserError if a weight of the generator or the critic is NaN or infinite after `step` steps."""
        sizes = torch._foreach_norm([*self.generator.parameters(), *self.critic.parameters()])
        if not torch.stack(sizes).isfinite().all():
            raise UserError(f"a weight was NaN or infinite after step {step}: lower --lr or use --precision fp32 "
                            "(the last checkpoint, if there is one, is kept: --resume continues from it)")

    def state_dict(self):
        """Everything that continuing needs, as nested dicts of tensors and numbers."""
        return {"generator": self.accelerator.unwrap_model(self.generator).state_dict(), "ema": self.ema.state_dict(),
                "discriminator": self.accelerator.unwrap_model(self.critic).state_dict(),
                "optim_g": self.optim_g.state_dict(), "optim_d": self.optim_d.state_dict()}

    def load_state_dict(self, state, path):
        """Continue from `state`, read from `path`; the learning rates stay those of this GAN's recipe."""
        generator, critic = (self.accelerator.unwrap_model(part) for part in (self.generator, self.critic))
        try:
            load_weights(generator, state["generator"])
            load_weights(critic, state["discriminator"])
            load_weights(self.ema, state.get("ema", state["generator"]))
            for optimizer, name in ((self.optim_g, "optim_g"), (self.optim_d, "optim_d")):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state[name]["state"]})
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit this generator and critic ({error}): check --data and --image-size") from None


def load_weights(module, state):
    """Load a state dict by position, as far as shapes agree: names differ between projects, the order of layers does not."""
    own = module.state_dict()
    if len(own) != len(state):
        raise ValueError(f"{len(state)} tensors where {type(module).__name__} has {len(own)}")
    for (name, tensor), (other, value) in zip(own.items(), state.items()):
        if tensor.shape != value.shape:
            raise ValueError(f"'{other}' is {list(value.shape)} where '{name}' is {list(tensor.shape)}")
    module.load_state_dict(dict(zip(own, state.values())))
