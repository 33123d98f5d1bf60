"""Adversarial losses. Scores are [B], logits [B, K] or None for a critic without an auxiliary classifier."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F


def hinge_critic(real, fake):
    """Hinge loss of a critic (Lim and Ye, 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wasserstein_critic(real, fake):
    """The critic's estimate of the Wasserstein distance, negated (Arjovsky et al., 2017)."""
    return fake.mean() - real.mean()


def raise_score(real, fake):
    """The generator's loss beside either of these critics: the score of its images, negated; `real` is not looked at."""
    return -fake.mean()


def relativistic_critic(real, fake):
    """The critic scores each real image above the generated one that it is paired with (R3GAN, arXiv 2501.05441)."""
    return F.softplus(fake - real).mean()


def relativistic_generator(real, fake):
    """The mirror of `relativistic_critic`: each generated image is to score above its real one."""
    return F.softplus(real - fake).mean()


@dataclass(frozen=True)
class Loss:
    """An adversarial loss: that of the critic and that of the generator, each called as `(real, fake) -> scalar` with scores.

    Where `paired`, the two scores of a row belong to images of one class, and the generator's loss looks at real images too;
    elsewhere it gets None for their scores.
    """

    critic: Callable
    generator: Callable = raise_score
    paired: bool = False


LOSSES = {
    "hinge": Loss(hinge_critic),
    "wgan": Loss(wasserstein_critic),
    "relativistic": Loss(relativistic_critic, relativistic_generator, paired=True),
}
"""Adversarial losses by the name that --loss knows."""


def auxiliary(logits, labels):
    """Cross-entropy of an auxiliary classifier (Odena et al., 2017)."""
    return F.cross_entropy(logits.float(), labels)


def gradient_penalty(critic, real, fake, labels, fake_labels, alpha):
    """(|gradient of the score| - 1)² at random points between real and fake images (Gulrajani et al., 2017, eq. 3).

    real, fake [B, C, H, W]; their labels int64 [B], of which the real images' are looked at; alpha [B, 1, 1, 1] in [0, 1].
    Returns the mean over the batch, unweighted.
    """
    between = torch.lerp(fake, real, alpha).requires_grad_()
    score, _ = critic(between, labels)
    gradient = torch.autograd.grad(score.sum(), between, create_graph=True)[0]
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()


def zero_centred_penalty(critic, real, fake, labels, fake_labels, alpha):
    """|gradient of the score|² at the real images (R1 of Mescheder et al., ICML 2018); nothing else is looked at."""
    real = real.detach().requires_grad_()
    score, _ = critic(real, labels)
    gradient = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
    return gradient.float().square().sum((1, 2, 3)).mean()


def both_penalties(critic, real, fake, labels, fake_labels, alpha):
    """|gradient of the score|² at the real images plus that at the fake ones (R1 and R2 of R3GAN, arXiv 2501.05441).

    At images as the critic sees them, augmented; R3GAN's code takes it at those before, and weighs each by half of its γ.
    """
    both, labels = torch.cat([real, fake]), torch.cat([labels, fake_labels])
    return 2 * zero_centred_penalty(critic, both, None, labels, None, None)  # the sum of the two batches' means


PENALTIES = {"wgan-gp": gradient_penalty, "r1": zero_centred_penalty, "r1+r2": both_penalties}
