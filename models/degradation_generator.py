"""The degradation generator G of stage 1: a clean LR face and noise in, a degraded LR face out."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelPairNorm(nn.Module):
    """nn.LocalResponseNorm(2), x_i / (1 + 1e-4 * mean(x_(i-1)^2, x_i^2))^0.75, computed in fp32 without its 3-D pooling."""

    def forward(self, x: Tensor) -> Tensor:
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
        before = functional.pad(squares[:, :-1], (0, 0, 0, 0, 1, 0))
        root = (1 + 5e-5 * (squares + before)).sqrt()
        return x / (root * root.sqrt()).to(x.dtype)


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, LocalResponseNorm over 2 channels, PReLU: [N, in, H, W] -> [N, out, H/stride, W/stride]."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2),
        ChannelPairNorm(),
        nn.PReLU(),
    )


class BottleneckBlock(nn.Module):
    """x + 0.2 * body(x), the body narrowing to a quarter of the channels and widening again; keeps [N, n, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels, 3),
            convolution(channels, channels // 4, 3),
            convolution(channels // 4, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.body(x)


class DegradationGenerator(nn.Module):
    """G, a U-Net 16 -> 8 -> 4 -> 2 -> 4 -> 8 -> 16 px: x_d = G(x_c, z).

    Trained to make clean bicubic LR faces look like real LR faces. The raw output is not bounded;
    stage 2 clamps it to [-1, 1] before it mixes.
    """

    noise_channels = 16  # of z

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3 + self.noise_channels, width, 1), nn.PReLU())
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(nn.Sequential(BottleneckBlock(n), convolution(n, 2 * n, 5, stride=2)) for n in widths[:-1])
        self.up = nn.ModuleList(
            nn.Sequential(BottleneckBlock(n), nn.Upsample(scale_factor=2, mode="nearest"), convolution(n, n // 2, 5))
            for n in reversed(widths[1:])
        )
        self.tail = nn.Conv2d(width, 3, 1)

    def forward(self, clean: Tensor, z: Tensor) -> Tensor:
        """clean: [N, 3, 16, 16] in [-1, 1]; z: [N, 16] from N(0, I) -> [N, 3, 16, 16], about [-1, 1], not clamped."""
        noise = z[:, :, None, None].expand(-1, -1, *clean.shape[2:])
        x = self.head(torch.cat([clean, noise], dim=1))
        skips = []
        for down in self.down:
            skips.append(x)  # what enters a down step is the skip of that size
            x = down(x)
        for up in self.up:
            x = skips.pop() + 0.2 * up(x)
        return self.tail(x)
