"""The two Wasserstein critics: D_l for 16x16 LR faces (stage 1) and D_h for 64x64 HR faces (stage 2).

Neither normalises over the batch, so that the gradient penalty, which is defined for each sample alone, makes sense.
"""

from torch import Tensor, nn


def convolution(channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with bias: [N, in, H, W] -> [N, out, H / stride, W / stride]."""
    return nn.Conv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2)


class ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(LeakyReLU(x)))), 3x3, no normalisation; keeps [N, n, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(0.2),
            convolution(channels, channels, 3),
            nn.LeakyReLU(0.2),
            convolution(channels, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LRCritic(nn.Module):
    """D_l: how real a 16x16 face looks. [N, 3, 16, 16] in [-1, 1] -> [N, 1], unbounded."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, width, 3),
            nn.LeakyReLU(0.2),
            *[ResidualBlock(width) for _ in range(4)],
            *[layer for _ in range(2) for layer in (ResidualBlock(width), nn.AvgPool2d(2))],  # 16 -> 8 -> 4
        )
        self.score = nn.Linear(width * 4 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x).flatten(1))


class HRCritic(nn.Module):
    """D_h: how real a 64x64 face looks. [N, 3, 64, 64] in [-1, 1] -> [N, 1], unbounded."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, width, 3), nn.GroupNorm(4, width), nn.PReLU()]
        channels = width
        for size in (32, 16, 8, 4):
            layers += [convolution(channels, channels, 5, 2), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2)]
            if size > 4:
                layers += [convolution(channels, 2 * channels, 3), nn.GroupNorm(4, 2 * channels), nn.LeakyReLU(0.2)]
                channels *= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(16 * width)
        self.score = nn.Linear(16 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.pool(self.features(x).flatten(1)))
