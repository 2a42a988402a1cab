"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, "Improved training of Wasserstein GANs")."""

import torch
from torch import Tensor, nn


def critic_loss(fake_scores: Tensor, real_scores: Tensor) -> Tensor:
    """D(fake) - D(real), batch means in fp32: minus the critic's estimate of the Wasserstein-1 distance.

    fake_scores, real_scores: [N, 1], unbounded.
    """
    return fake_scores.float().mean() - real_scores.float().mean()


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """-D(fake), the generator's part of the game, batch mean in fp32. fake_scores: [N, 1], unbounded."""
    return -fake_scores.float().mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(|grad D(x)| - 1)^2 at x = mix * real + (1 - mix) * fake, batch mean; the norm is taken in fp32.

    real, fake: [N, 3, H, W] without a graph. mix: [N], uniform in [0, 1], one for each sample (the reference draws one
    for the batch). Weight it (10 in the paper) and add it to the critic's loss.
    """
    mix = mix[:, None, None, None]
    x = (mix * real.detach().float() + (1 - mix) * fake.detach().float()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).float().sum(), x, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()
