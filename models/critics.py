"""The two Wasserstein critics: D_l for 16x16 LR faces (stage 1) and D_h for 64x64 HR faces (stage 2).

Neither normalises over the batch, so that the gradient penalty, which is defined for each sample alone, makes sense.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# the gradients of a convolution by its input, its weight and its bias, as the mask asks
_gradients = torch.ops.aten.convolution_backward


class _InputGradient(torch.autograd.Function):
    """A convolution's gradient by its input: linear in the output's gradient and the weight."""

    @staticmethod
    def forward(ctx, gradient: Tensor, x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        return _gradients(gradient, x, weight, None, *geometry, (True, False, False))[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, second: Tensor):
        gradient, weight = ctx.saved_tensors
        by_gradient = by_weight = None
        if ctx.needs_input_grad[0]:
            by_gradient = torch.convolution(second, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[2]:  # a weight gradient as any other, with `second` in the input's place
            by_weight = _gradients(gradient, second, weight, None, *ctx.geometry, (False, True, False))[1]
        return by_gradient, None, by_weight, None


class _Convolution(torch.autograd.Function):
    """conv2d whose gradient by the input can be differentiated once more."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient penalty's first derivative
            return _InputGradient.apply(gradient, x, weight, ctx.geometry), None, None, None
        return *_gradients(gradient, x, weight, [len(weight)], *ctx.geometry, ctx.needs_input_grad[:3]), None


class Convolution(nn.Conv2d):
    """nn.Conv2d with padding kernel_size // 2, whose second derivative is fast on a GPU.

    [N, n, H, W] -> [N, m, H / stride, W / stride]. The gradient penalty differentiates the input's
    gradient by the weight. PyTorch computes that as a convolution whose kernel is the whole feature
    map and whose channels are the batch, for which cuDNN has no fast kernel (pytorch issues 22577
    and 54840). Here it is the weight gradient of an ordinary convolution, as in StyleGAN's
    conv2d_gradfix: the same values but for rounding.

    With create_graph=True there is a gradient by the input alone: torch.autograd.grad raises a
    RuntimeError ("not have been used in the graph") if asked for that of the weight or the bias.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride, kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):  # which does not look into autograd functions
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        # as PyTorch names them: stride, padding, dilation, transposed, output_padding, groups
        return _Convolution.apply(x, weight, bias, (self.stride, self.padding, self.dilation, False, (0, 0), 1))


class ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(LeakyReLU(x)))), 3x3, no normalisation; keeps [N, n, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(0.2),
            Convolution(channels, channels, 3),
            nn.LeakyReLU(0.2),
            Convolution(channels, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LRCritic(nn.Module):
    """D_l: how real a 16x16 face looks. [N, 3, 16, 16] in [-1, 1] -> [N, 1], unbounded."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Convolution(3, width, 3),
            nn.LeakyReLU(0.2),
            *[ResidualBlock(width) for _ in range(4)],
            *[layer for _ in range(2) for layer in (ResidualBlock(width), nn.AvgPool2d(2))],  # 16 -> 8 -> 4
        )
        self.score = nn.Linear(width * 4 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x).flatten(1))


class SmallMapConvolution(Convolution):
    """A convolution on the CPU by a matrix product: for many channels on 8x8 px, back-propagation takes half the time."""

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
        layers: list[nn.Module] = [Convolution(3, width, 3), nn.GroupNorm(4, width), nn.PReLU()]
        channels = width
        for size in (32, 16, 8, 4):
            convolution = SmallMapConvolution if size == 4 else Convolution
            layers += [convolution(channels, channels, 5, 2), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2)]
            if size > 4:
                layers += [Convolution(channels, 2 * channels, 3), nn.GroupNorm(4, 2 * channels)]
                layers += [nn.LeakyReLU(0.2)]
                channels *= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(16 * width)
        self.score = nn.Linear(16 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.pool(self.features(x).flatten(1)))
