"""The super-resolution network of stage 2: the feature extractor E and the decoder S, x4 from 16x16 to 64x64."""

import torch
from torch import Tensor, nn

HR_SIZE = 64  # px, the side of an HR face
LR_SIZE = 16  # px, the side of an LR face


def convolution(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, BatchNorm, PReLU: [N, in, H, W] -> [N, out, H/stride, W/stride]."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2),
        nn.BatchNorm2d(channels_out),
        nn.PReLU(),
    )


def three_convolutions(channels_in: int, channels_out: int) -> nn.Sequential:
    """Three times [conv3x3, BatchNorm, PReLU]; the first one changes the width."""
    return nn.Sequential(
        convolution(channels_in, channels_out),
        convolution(channels_out, channels_out),
        convolution(channels_out, channels_out),
    )


class ChannelGate(nn.Module):
    """One weight in (0, 1) for each channel, from the channels' global averages: [N, n, H, W] -> [N, n, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.PReLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean(dim=(2, 3)))[:, :, None, None]


class ChannelAttention(nn.Module):
    """RCA(n), residual channel attention: x + gate(b) * b with b = three convolutions of x; keeps [N, n, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = three_convolutions(channels, channels)
        self.gate = ChannelGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body(x)
        return x + self.gate(body) * body


class ChannelAttentionProjection(nn.Module):
    """RCA projection(n->m): p + gate(b) * b with two separate branches p and b: [N, n, H, W] -> [N, m, H, W]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.projection = three_convolutions(channels_in, channels_out)
        self.body = three_convolutions(channels_in, channels_out)
        self.gate = ChannelGate(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body(x)
        return self.projection(x) + self.gate(body) * body


class FeatureExtractor(nn.Module):
    """E: an LR face to the features that the alignment makes smooth; 16 -> 8 -> 4 -> 2 -> 1 -> 2 -> 4 px.

    BatchNorm also works on 1x1 maps here, so that training needs at least two images in a batch.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.PReLU())
        self.down = nn.ModuleList(nn.Sequential(ChannelAttention(width), convolution(width, width, stride=2)) for _ in range(4))
        self.up = nn.ModuleList(
            nn.Sequential(ChannelAttention(width), nn.Upsample(scale_factor=2, mode="nearest"), convolution(width, width))
            for _ in range(2)
        )
        self.tail = nn.Sequential(nn.Conv2d(width, width, 1), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, 3, 16, 16] in [-1, 1] -> features [N, width, 4, 4]."""
        x = self.head(x)
        downs = []
        for down in self.down:
            x = down(x)
            downs.append(x)
        for up, skip in zip(self.up, (downs[2], downs[1])):  # the 2x2 map, then the 4x4 map
            x = skip + 0.2 * up(x)
        return self.tail(x)


class DenseBlock(nn.Module):
    """Dense block(n): h_k = RCA projection(kn->n)(RCA(kn)([x, h_1, ..., h_{k-1}])), k = 1..5; x + 0.2 * h_5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(ChannelAttention(k * channels), ChannelAttentionProjection(k * channels, channels))
            for k in range(1, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(torch.cat(maps, dim=1)))
        return x + 0.2 * maps[-1]


def upsampling(width: int) -> nn.Sequential:
    """PixelShuffle(2), conv5x5, BatchNorm, PReLU: [N, width, H, W] -> [N, width, 2H, 2W]."""
    return nn.Sequential(nn.PixelShuffle(2), convolution(width // 4, width, 5))


class Decoder(nn.Module):
    """S: features to the SR face; dense block at 4x4, up to 16x16, dense block, up to 64x64."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            DenseBlock(width),
            upsampling(width),
            upsampling(width),
            DenseBlock(width),
            upsampling(width),
            upsampling(width),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """features: [N, width, 4, 4] -> [N, 3, 64, 64], about [-1, 1]; clamp it to show, save or score it."""
        return self.layers(features)
