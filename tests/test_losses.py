"""Each loss against a closed form."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from losses import PerceptualLoss, adversarial_loss, critic_terms, gradient_penalty, spread


def test_adversarial_loss():
    fake = torch.tensor([[1.0], [3.0]])
    assert adversarial_loss(fake).item() == -2
    assert adversarial_loss(fake.bfloat16()).dtype == torch.float32


class LinearCritic(nn.Module):
    """<w, x>: its gradient is w everywhere."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x * self.weight).flatten(1).sum(dim=1, keepdim=True)


def test_gradient_penalty_of_a_linear_critic():
    critic = LinearCritic(torch.full((3, 4, 4), 0.5))
    norm = (48 * 0.25) ** 0.5
    penalty = gradient_penalty(critic, torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5))
    assert penalty.item() == pytest.approx((norm - 1) ** 2, rel=1e-6)
    penalty.backward()  # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    assert torch.allclose(critic.weight.grad, torch.full((3, 4, 4), 2 * (norm - 1) * 0.5 / norm), rtol=1e-5)


def test_critic_terms_of_a_linear_critic():
    critic = LinearCritic(torch.ones(1, 1, 1))
    fake, real = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([5.0, 7.0]).view(2, 1, 1, 1)
    terms = critic_terms(critic, fake, real, torch.rand(2))
    assert {name: value.item() for name, value in terms.items()} == {
        "critic_loss": -4, "wasserstein": 4, "gradient_penalty": 0}  # fmt: skip


def test_the_spread_is_the_mean_over_all_pairs():
    features = torch.randn(5, 3, 2, 2)
    pairs = [(features[i] - features[j]).square().sum(dim=0).mean() for i in range(5) for j in range(i)]
    assert spread(features).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)


class QuadraticCritic(nn.Module):
    """|x|^2 / 2: its gradient is x itself."""

    def forward(self, x):
        return x.square().flatten(1).sum(dim=1, keepdim=True) / 2


def test_gradient_penalty_mixes_each_sample_by_its_own_number():
    real, fake, mix = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.tensor([0.0, 1.0, 0.25, 0.5])
    points = mix.view(-1, 1, 1, 1) * real + (1 - mix.view(-1, 1, 1, 1)) * fake
    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    assert gradient_penalty(QuadraticCritic(), fake, real, mix).item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_penalty_is_finite_where_the_gradient_is_zero():
    critic = LinearCritic(torch.zeros(3, 2, 2))
    penalty = gradient_penalty(critic, torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), torch.rand(2))
    penalty.backward()
    assert penalty.item() == 1
    assert torch.isfinite(critic.weight.grad).all()


def test_perceptual_loss_is_l1_of_normalised_conv3_1():
    loss = PerceptualLoss()
    x, target = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1

    def features(images):  # VGG as torchvision writes it down: two convolutions, pool, two, pool, one
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = ((images + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        layers = loss.convolutions
        images = functional.max_pool2d(functional.relu(layers["2"](functional.relu(layers["0"](images)))), 2)
        images = functional.max_pool2d(functional.relu(layers["7"](functional.relu(layers["5"](images)))), 2)
        return layers["10"](images)

    expected = (features(x) - features(target)).abs().mean()
    assert loss(x, target).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(x, x).item() == 0
    assert (features(x) < 0).any()  # before the ReLU


def test_perceptual_gradient_reaches_the_output_alone():
    loss = PerceptualLoss()
    x, target = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16, requires_grad=True)
    loss(x, target).backward()
    assert x.grad.abs().sum() > 0
    assert target.grad is None
