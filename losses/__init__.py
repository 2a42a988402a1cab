"""The losses of the method, one formula a function."""

from .perceptual import PerceptualLoss
from .sinkhorn import alignment_loss, feature_points, sinkhorn_distance
from .wasserstein import adversarial_loss, critic_loss, gradient_penalty

__all__ = [
    "PerceptualLoss",
    "adversarial_loss",
    "alignment_loss",
    "critic_loss",
    "feature_points",
    "gradient_penalty",
    "sinkhorn_distance",
]
