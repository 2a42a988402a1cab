"""The five networks of the method; every one takes `width`, 64 in the paper and a multiple of 4."""

from .critics import HRCritic, LRCritic
from .degradation_generator import DegradationGenerator
from .super_resolution import HR_SIZE, LR_SIZE, Decoder, FeatureExtractor

__all__ = ["HR_SIZE", "LR_SIZE", "Decoder", "DegradationGenerator", "FeatureExtractor", "HRCritic", "LRCritic"]
