"""Adversarial losses. Scores are [B], logits [B, K] or None for a critic without an auxiliary classifier."""

import torch
from torch.nn import functional as F


def hinge_critic(real, fake):
    """Hinge loss of a critic (Lim and Ye, 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wasserstein_critic(real, fake):
    """The critic's estimate of the Wasserstein distance, negated (Arjovsky et al., 2017)."""
    return fake.mean() - real.mean()


CRITIC_LOSSES = {"hinge": hinge_critic, "wgan": wasserstein_critic}


def auxiliary(logits, labels):
    """Cross-entropy of an auxiliary classifier (Odena et al., 2017); zero for a critic that has none."""
    return F.cross_entropy(logits.float(), labels) if logits is not None else torch.zeros((), device=labels.device)


def gradient_penalty(critic, real, fake, labels, alpha):
    """(|gradient of the score| - 1)² at random points between real and fake images (Gulrajani et al., 2017, eq. 3).

    real, fake [B, C, H, W]; alpha [B, 1, 1, 1] in [0, 1]. Returns the mean over the batch, unweighted.
    """
    between = torch.lerp(fake, real, alpha).requires_grad_()
    score, _ = critic(between, labels)
    gradient = torch.autograd.grad(score.sum(), between, create_graph=True)[0]
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()


def zero_centred_penalty(critic, real, fake, labels, alpha):
    """|gradient of the score|² at the real images (R1 of Mescheder et al., ICML 2018); fake and alpha are not looked at."""
    real = real.detach().requires_grad_()
    score, _ = critic(real, labels)
    gradient = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
    return gradient.float().square().sum((1, 2, 3)).mean()


PENALTIES = {"wgan-gp": gradient_penalty, "r1": zero_centred_penalty}
