"""The networks are those of the method: parameter counts, shapes, work, and independence of the batch."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from losses import PerceptualLoss
from models import Decoder, DegradationGenerator, FeatureExtractor, HRCritic, LRCritic
from models.degradation_generator import ChannelPairNorm
from models.super_resolution import MEAN, STD, begin_as_interpolation

NETWORKS = [
    # network, input shapes, output shape, parameters, GFLOP of one image
    (DegradationGenerator, [(1, 3, 16, 16), (1, 16)], (1, 3, 16, 16), 14_413_548, 0.564),
    (LRCritic, [(1, 3, 16, 16)], (1, 1), 445_953, 0.199),
    (FeatureExtractor, [(1, 3, 16, 16)], (1, 64, 4, 4), 908_096, 0.085),
    (Decoder, [(1, 64, 4, 4)], (1, 3, 64, 64), 16_234_293, 4.605),
    (HRCritic, [(1, 3, 64, 64)], (1, 1), 10_260_802, 1.306),
]


@pytest.mark.parametrize("network, inputs, output, parameters, gflop", NETWORKS)
def test_size_shape_and_work(network, inputs, output, parameters, gflop):
    module = network().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = module(*[torch.zeros(shape) for shape in inputs])
    assert result.shape == output
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.0006)


def test_perceptual_network_has_only_the_five_convolutions():
    loss = PerceptualLoss()
    assert loss.features(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 16, 16)
    assert sum(parameter.numel() for parameter in loss.parameters()) == 555_328
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    with FlopCounterMode(display=False) as counter:
        loss.features(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.920, abs=0.0006)


@pytest.mark.parametrize("critic, size", [(LRCritic, 16), (HRCritic, 64)])
def test_critics_score_each_sample_alone(critic, size):
    """So that real and fake faces can share a batch, and the gradient penalty is each sample's own."""
    module = critic(8).double()
    real, fake = torch.randn(3, 3, size, size).double(), torch.randn(3, 3, size, size).double()
    together = module(torch.cat([fake, real]))
    assert torch.allclose(together, torch.cat([module(fake), module(real)]), atol=1e-12)


def test_noise_changes_the_degradation():
    generator, clean = DegradationGenerator(8), torch.randn(1, 3, 16, 16)
    assert not torch.equal(generator(clean, torch.zeros(1, 16)), generator(clean, torch.ones(1, 16)))


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 1, 3, 3)])
def test_the_norm_over_channel_pairs_is_pytorchs(shape):
    x = torch.randn(shape, dtype=torch.float64) * 30
    assert torch.allclose(ChannelPairNorm()(x), torch.nn.LocalResponseNorm(2)(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("width", [48, 64])
def test_networks_begin_as_bicubic_interpolation(width):
    E, S, x = FeatureExtractor(width).eval(), Decoder(width).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    begin_as_interpolation(E, S)
    with torch.no_grad():
        sr = S(E(x))
    enlarged = functional.interpolate(x, scale_factor=2, mode="bicubic")
    enlarged = functional.interpolate(enlarged, scale_factor=2, mode="bicubic")
    expected = enlarged * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    inner = slice(12, -12)  # convolutions pad with 0, interpolation with the border
    assert torch.allclose(sr[..., inner, inner], expected[..., inner, inner], atol=1e-3)


def test_interpolation_leaves_room_to_learn():
    """What begins at 0 has a gradient; and another seed gives other networks."""
    networks = FeatureExtractor(48), Decoder(48)
    begin_as_interpolation(*networks)
    E, S = networks
    S(E(torch.rand(4, 3, 16, 16))).square().mean().backward()
    zeros = [p for n in networks for p in n.parameters() if p.ndim == 1 and len(p) > 1 and not p.any() and p.grad.any()]
    assert zeros
    other = FeatureExtractor(48)
    begin_as_interpolation(other, Decoder(48))
    assert not torch.equal(other.head[0].weight, E.head[0].weight)
