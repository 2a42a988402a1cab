"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, "Improved training of Wasserstein GANs")."""

from collections.abc import Callable

import torch
from torch import Tensor

GRADIENT_PENALTY_WEIGHT = 10.0  # Gulrajani et al. 2017 and reference

Critic = Callable[[Tensor], Tensor]


def _mean(scores: Tensor) -> Tensor:
    """Batch mean, in fp32 at least."""
    return scores.mean(dtype=torch.promote_types(scores.dtype, torch.float32))


def critic_terms(critic: Critic, fake: Tensor, real: Tensor, mix: Tensor) -> dict[str, Tensor]:
    """The critic's loss D(fake) - D(real) + 10 * gradient penalty, and its parts, batch means.

    fake, real: [N, 3, H, W], without a graph. mix: as for `gradient_penalty`. "wasserstein" is the critic's estimate of the
    Wasserstein-1 distance. Fake and real samples share a batch: the critics do not normalise over it.
    """
    fake_scores, real_scores = critic(torch.cat([fake, real])).chunk(2)
    wasserstein, penalty = _mean(real_scores) - _mean(fake_scores), gradient_penalty(critic, fake, real, mix)
    loss = GRADIENT_PENALTY_WEIGHT * penalty - wasserstein
    return {"critic_loss": loss, "wasserstein": wasserstein, "gradient_penalty": penalty}


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """-D(fake), the generator's part of the game, batch mean. fake_scores: [N, 1], unbounded."""
    return -_mean(fake_scores)


def gradient_penalty(critic: Critic, fake: Tensor, real: Tensor, mix: Tensor) -> Tensor:
    """(|grad D(x)| - 1)^2 at x = mix * real + (1 - mix) * fake, batch mean; the norm is taken in x's dtype.

    fake, real: [N, 3, H, W], fp32 or float64, without a graph. mix: [N], uniform in [0, 1], one for each sample (the
    reference draws one for the batch).
    """
    mix = mix[:, None, None, None]
    x = (mix * real.detach() + (1 - mix) * fake.detach()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
