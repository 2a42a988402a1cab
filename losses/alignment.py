"""The alignment of features: E(x_c) and E(x_d) are pulled towards E(x_m), the paper's smooth features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .sinkhorn import sinkhorn_distance


def feature_points(features: Tensor) -> Tensor:
    """Features [N, C, H, W] -> the alignment's points [N, H*W, C]: the positions, each a C-vector."""
    return features.flatten(2).mT


def paired_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over i of |x_i - y_i|^2, of x and y [B, n, d] -> [B], in fp32 at least.

    The transport cost of the plan that matches each point with that of the same position. It is
    at least that of the optimal plan, which W takes.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) - y.to(dtype)).square().sum(dim=2).mean(dim=1)


def alignment_loss(
    clean: Tensor,
    degraded: Tensor,
    mixed: Tensor,
    alpha: float | Tensor = 0.3,
    distance: Callable[[Tensor, Tensor], Tensor] = sinkhorn_distance,
) -> Tensor:
    """alpha * W(E(x_c), E(x_m)) + (1 - alpha) * W(E(x_d), E(x_m)), the batch mean, a scalar.

    clean, degraded, mixed: features [N, C, H, W] of one network; mixed is the target and gets no
    gradient. alpha: one number, or one for each face [N]. distance: W, of points [B, n, d] and
    [B, n, d] -> [B]: `sinkhorn_distance` or `paired_distance`. It is called once, for all 2 N
    problems together: half the kernels on a GPU, two thirds of the time on a CPU.
    """
    points = torch.cat([feature_points(clean), feature_points(degraded)])
    target = feature_points(mixed.detach())
    to_clean, to_degraded = distance(points, torch.cat([target, target])).chunk(2)
    return (alpha * to_clean + (1 - alpha) * to_degraded).mean()


def scaled_alignment_loss(
    versions: Tensor,
    target: Tensor,
    weights: Sequence[float],
    distance: Callable[[Tensor, Tensor], Tensor] = sinkhorn_distance,
) -> Tensor:
    """The sum over k of w_k * W(E(x_k), T(x_m)), the batch mean, over the target's spread; a scalar.

    versions: features [K*N, C, H, W] of K versions of N faces, all of one version together.
    target: T(x_m) [N, C, H, W]; it gets no gradient. weights: w_1 ... w_K. distance: as for
    `alignment_loss`, called once.
    The spread is the mean squared distance between the target's features of different faces, at
    the same position: a loss of 1 would mean that versions of one face differ as much as faces do.
    Raises ValueError for fewer than 2 faces, which have no spread.
    """
    if len(target) < 2:
        raise ValueError("the alignment needs 2 faces at least: the distance between faces is its unit")
    points = feature_points(target.detach())
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    spread = paired_distance(points, points.roll(1, dims=0)).mean()
    distances = distance(feature_points(versions), points.repeat(len(weights), 1, 1)).view(len(weights), -1).mean(dim=1)
    return (distances * distances.new_tensor(weights)).sum() / spread
