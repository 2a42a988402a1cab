"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, "Improved training of Wasserstein GANs")."""

import torch
from torch import Tensor, nn


def _mean(scores: Tensor) -> Tensor:
    """Batch mean, in fp32 at least."""
    return scores.mean(dtype=torch.promote_types(scores.dtype, torch.float32))


def critic_loss(fake_scores: Tensor, real_scores: Tensor) -> Tensor:
    """D(fake) - D(real), batch means: minus the critic's estimate of the Wasserstein-1 distance.

    fake_scores, real_scores: [N, 1], unbounded.
    """
    return _mean(fake_scores) - _mean(real_scores)


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """-D(fake), the generator's part of the game, batch mean. fake_scores: [N, 1], unbounded."""
    return -_mean(fake_scores)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(|grad D(x)| - 1)^2 at x = mix * real + (1 - mix) * fake, batch mean; the norm is taken in x's dtype.

    real, fake: [N, 3, H, W], fp32 or float64, without a graph. mix: [N], uniform in [0, 1], one for each sample (the
    reference draws one for the batch). Weight it (10 in the paper) and add it to the critic's loss.
    """
    mix = mix[:, None, None, None]
    x = (mix * real.detach() + (1 - mix) * fake.detach()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
