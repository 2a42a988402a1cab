"""The super-resolution network of stage 2: the feature extractor E and the decoder S, x4 from 16x16 to 64x64."""

import torch
from torch import Tensor, nn
from torch.nn import functional

HR_SIZE = 64  # px, the side of an HR face
LR_SIZE = 16  # px, the side of an LR face
INTERPOLATION_WIDTH = 48  # channels that 4x4 px of 3 colours take
MEAN, STD = (0.10, -0.14, -0.28), (0.52, 0.46, 0.44)  # of the channels of HR faces in [-1, 1]


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


def begin_with(layer: nn.Module, weight: Tensor) -> None:
    """Make a convolution's first outputs depend on its first inputs alone, by `weight` [out, in, k, k].

    A PReLU behind it begins as the identity.
    """
    conv, *others = layer if isinstance(layer, nn.Sequential) else [layer]
    conv.weight[: len(weight)] = 0
    conv.weight[: len(weight), : weight.shape[1]] = weight
    conv.bias[: len(weight)] = 0
    for other in others:
        if isinstance(other, nn.PReLU):
            other.weight.fill_(1)


@torch.no_grad()
def begin_as_interpolation(E: FeatureExtractor, S: Decoder) -> None:
    """Make new networks begin as bicubic interpolation, in place: S(E(x)) is x enlarged, up to a contrast and a tint.

    48 channels of E(x) are the 4x4 px of x's tiles (pixel unshuffle, twice), which S puts back and enlarges twice by 2.
    What lies beside this path begins at 0, by its last BatchNorm (Goyal et al. 2017, section 5.1): training adds to the
    interpolation instead of finding it.
    """
    identity = nn.init.dirac_(torch.empty(INTERPOLATION_WIDTH, INTERPOLATION_WIDTH, 5, 5))
    tile = torch.zeros(4, 1, 3, 3)
    tile[:, 0, 1:, 1:] = torch.eye(4).view(4, 2, 2)  # the 2x2 px that a stride of 2 makes one
    impulse = identity[:1, :1]
    enlarged = functional.interpolate(impulse, scale_factor=2, mode="bicubic")
    enlarging = functional.pixel_unshuffle(enlarged, 2).transpose(0, 1).flip(2, 3)

    def for_each(channels: int, weight: Tensor) -> Tensor:
        """The same [4, 1, k, k] for each channel: [4 * channels, channels, k, k]."""
        return torch.kron(torch.eye(channels)[:, :, None, None], weight)

    for module in [*E.modules(), *S.modules()]:
        if isinstance(module, ChannelAttention):
            module.body[-1][1].weight.zero_()
        elif isinstance(module, DenseBlock):
            last = module.stages[-1][-1]
            last.projection[-1][1].weight.zero_()
            last.body[-1][1].weight.zero_()
    for up in E.up:
        up[-1][1].weight.zero_()
    begin_with(E.head, identity[:3, :3, 1:-1, 1:-1])
    begin_with(E.down[0][-1], for_each(3, tile))
    begin_with(E.down[1][-1], for_each(12, tile))
    begin_with(E.tail, identity[:, :, 2:3, 2:3])
    _, to_8px, to_16px, _, to_32px, to_64px, last = S.layers
    begin_with(to_8px[-1], identity[:12, :12])
    begin_with(to_16px[-1], for_each(3, enlarging))
    begin_with(to_32px[-1], for_each(3, enlarging))
    begin_with(to_64px[-1], identity[:3, :3])
    begin_with(last, identity[:3, :3, 1:-1, 1:-1] * torch.tensor(STD).view(3, 1, 1, 1))
    last.bias.copy_(torch.tensor(MEAN))
