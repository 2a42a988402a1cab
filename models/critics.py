"""The two Wasserstein critics: D_l for 16x16 LR faces (stage 1) and D_h for 64x64 HR faces (stage 2).

Neither normalises over the batch, so that the gradient penalty, which is defined for each sample alone, makes sense.
"""

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(LeakyReLU(x)))), 3x3, no normalisation; keeps [N, n, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LRCritic(nn.Module):
    """D_l: how real a 16x16 face looks. [N, 3, 16, 16] in [-1, 1] -> [N, 1], unbounded."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            *[ResidualBlock(width) for _ in range(4)],
            *[layer for _ in range(2) for layer in (ResidualBlock(width), nn.AvgPool2d(2))],  # 16 -> 8 -> 4
        )
        self.score = nn.Linear(width * 4 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x).flatten(1))


class SmallMapConvolution(nn.Conv2d):
    """nn.Conv2d on the CPU by a matrix product: for many channels on 8x8 px, back-propagation takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        patches = functional.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        size = [(side - 1) // self.stride[0] + 1 for side in x.shape[2:]]
        return (self.weight.flatten(1) @ patches + self.bias[:, None]).unflatten(2, size)


class HRCritic(nn.Module):
    """D_h: how real a 64x64 face looks. [N, 3, 64, 64] in [-1, 1] -> [N, 1], unbounded."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width), nn.PReLU()]
        channels = width
        for size in (32, 16, 8, 4):
            convolution = SmallMapConvolution if size == 4 else nn.Conv2d
            layers += [convolution(channels, channels, 5, 2, 2), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2)]
            if size > 4:
                layers += [nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.GroupNorm(4, 2 * channels)]
                layers += [nn.LeakyReLU(0.2)]
                channels *= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(16 * width)
        self.score = nn.Linear(16 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.pool(self.features(x).flatten(1)))
