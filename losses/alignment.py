"""The alignment of features: E(x_c) and E(x_d) are pulled towards E(x_m), the paper's smooth features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .sinkhorn import sinkhorn_distance


def feature_points(features: Tensor) -> Tensor:
    """Features [N, C, H, W] -> the alignment's points [N, H*W, C]: the positions, each a C-vector."""
    return features.flatten(2).mT


def alignment_loss(clean: Tensor, degraded: Tensor, mixed: Tensor, alpha: float | Tensor = 0.3) -> Tensor:
    """alpha * W(E(x_c), E(x_m)) + (1 - alpha) * W(E(x_d), E(x_m)), the batch mean, a scalar.

    clean, degraded, mixed: features [N, C, H, W] of one network; mixed is the target and gets no
    gradient. alpha: one number, or one for each face [N]. All 2 N problems are solved together:
    half the kernels on a GPU, two thirds of the time on a CPU.
    """
    points = torch.cat([feature_points(clean), feature_points(degraded)])
    target = feature_points(mixed.detach())
    to_clean, to_degraded = sinkhorn_distance(points, torch.cat([target, target])).chunk(2)
    return (alpha * to_clean + (1 - alpha) * to_degraded).mean()


def spread(target: Tensor) -> Tensor:
    """The mean squared distance between the features of two different faces, at the same position; a scalar.

    target: [N, C, H, W], N >= 2. The mean over all pairs is twice the variance.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    return 2 * feature_points(target).to(dtype).var(dim=0).sum(dim=-1).mean()


def scaled_alignment_loss(versions: Tensor, target: Tensor, weights: Sequence[float | Tensor]) -> Tensor:
    """The sum over k of w_k * W(E(x_k), T(x_m)), the batch mean, over the target's spread; a scalar.

    versions: features [K*N, C, H, W] of K versions of N faces, all of one version together.
    target: T(x_m) [N, C, H, W]; it gets no gradient. weights: w_1 ... w_K, each a number or one for each face [N].
    At a loss of their sum, versions of one face differ as much as faces do.
    """
    target = target.detach()
    count = len(versions) // len(target)
    distances = sinkhorn_distance(feature_points(versions), feature_points(target).repeat(count, 1, 1))
    weighted = [weight * part for weight, part in zip(weights, distances.chunk(count))]
    return sum(weighted).mean() / spread(target)
