"""Datasets/degradations.py: the degradation without a network, in closed form."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from Datasets import degradations
from Datasets.images import prepare_lr
from metrics.inputs import from_images, to_images
from utils import to_bytes, to_unit_range


def smooth_faces(count, seed=0):
    """Smooth grey patches [N, 3, 64, 64] in [-1, 1]: mild JPEG keeps them, but would halve colours' resolution."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.7
    return nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1).expand(-1, 3, -1, -1)


def test_degrading_at_random_depends_on_a_faces_own_numbers_alone():
    y = smooth_faces(5)
    generator = torch.Generator().manual_seed(1)
    uniform, normal = torch.rand(5, 11, generator=generator), torch.randn(5, 3, 16, 16, generator=generator)
    whole = degradations.degrade(y, uniform, normal)
    assert whole.shape == (5, 3, 16, 16) and whole.dtype == torch.float32 and whole.abs().max() <= 1
    assert torch.equal(to_unit_range(to_bytes(whole)), whole)
    assert torch.equal(degradations.degrade(y[3:], uniform[3:], normal[3:]), whole[3:])
    assert torch.equal(degradations.degrade_at_random(y, torch.Generator().manual_seed(1)), whole)
    assert not torch.equal(degradations.degrade_at_random(y, torch.Generator().manual_seed(2)), whole)


# Random numbers at which nothing but a blur of 0.3 px happens, in the order of degrade()
IDLE = {"severity": 0.0, "blur": 0.0, "ratio": 0.5, "gain": 0.5, "offset": 0.5, "red": 0.5, "green": 0.5, "blue": 0.5,
        "noise": 0.0, "compressed": 0.99, "quality": 0.0}  # fmt: skip


def degrade_by(y, exposure=1.0, **numbers):
    uniform = torch.tensor([list({**IDLE, **numbers}.values())]).expand(len(y), -1)
    assert uniform.shape[1] == degradations.UNIFORMS
    return (degradations.degrade(y, uniform, torch.randn(len(y), 3, 16, 16), exposure=exposure) + 1) * 127.5


def test_an_idle_degradation_is_pillows_reduction_and_strength_0_nearly_so():
    y = smooth_faces(4)
    pillows = from_images(prepare_lr(image) for image in to_images(to_bytes(y)))
    assert (degrade_by(y) - pillows).abs().max() <= 2
    x_s = degradations.degrade(y, torch.rand(4, 11), torch.randn(4, 3, 16, 16), strength=0)
    assert (to_bytes(x_s).int() - pillows.int()).abs().max() <= 5


def test_the_random_blur_of_an_edge_is_the_normal_distributions_integral():
    edge = torch.full((1, 3, 64, 64), 0.8)
    edge[..., 32:] = -0.8
    places = torch.arange(16) * 4 + 1.5 - 31.5
    expected = (1 - 0.8 * torch.erf(places / (degradations.MOST_BLUR * 2**0.5))) * 127.5
    blurred = degrade_by(edge, severity=1.0, blur=1.0)
    assert (blurred[0, 0] - expected).abs().max() < 5  # the bicubic filter is not quite a Gaussian's neighbour
    assert (blurred.mT - degrade_by(edge.mT, severity=1.0, blur=1.0)).abs().max() <= 1


def test_the_random_exposure_tint_noise_and_jpeg():
    y = smooth_faces(8)
    plain = degrade_by(y, severity=1.0)
    dark = degrade_by(y, severity=1.0, gain=0.0)
    assert (dark - np.exp(-degradations.GAIN) * plain).abs().max() <= 1
    less = degrade_by(y, severity=1.0, gain=0.0, exposure=0.3)
    assert (less - np.exp(-0.3 * degradations.GAIN) * plain).abs().max() <= 1
    assert (degrade_by(y, severity=1.0, offset=0.0) - (plain - degradations.OFFSET).clamp(min=0)).abs().max() <= 1
    tinted = degrade_by(y, severity=1.0, green=0.0)
    assert torch.equal(tinted[:, 0], plain[:, 0]) and torch.equal(tinted[:, 2], plain[:, 2])
    assert (tinted[:, 1] - np.exp(-degradations.TINT) * plain[:, 1]).abs().max() <= 1
    grey = torch.zeros(64, 3, 64, 64)
    noise = degrade_by(grey, noise=1.0) - degrade_by(grey)
    assert noise.std().item() == pytest.approx(degradations.NOISE, rel=0.02) and abs(noise.mean().item()) < 1
    pictures = to_bytes(degrade_by(y) / 127.5 - 1)
    files = [io.BytesIO() for _ in pictures]
    for file, image in zip(files, to_images(pictures)):
        image.save(file, "JPEG", quality=degradations.LOWEST_QUALITY)
    compressed = degrade_by(y, compressed=0.0, quality=1.0).round().to(torch.uint8)
    assert torch.equal(compressed, from_images(map(Image.open, files))) and not torch.equal(compressed, pictures)
