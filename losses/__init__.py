"""The losses of the method, one formula a function."""

from .alignment import alignment_loss, feature_points, scaled_alignment_loss, spread
from .perceptual import PerceptualLoss
from .sinkhorn import sinkhorn_distance
from .wasserstein import adversarial_loss, critic_terms, gradient_penalty

__all__ = [
    "PerceptualLoss",
    "adversarial_loss",
    "alignment_loss",
    "critic_terms",
    "feature_points",
    "gradient_penalty",
    "scaled_alignment_loss",
    "sinkhorn_distance",
    "spread",
]
