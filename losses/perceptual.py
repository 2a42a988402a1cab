"""Perceptual distance (Johnson et al. 2016): L1 between the features of a trained network at conv3_1."""

import torch
from torch import Tensor, nn
from torch.nn import functional

# (channels in, channels out, index in torchvision's vgg19().features) of conv1_1, conv1_2, conv2_1, conv2_2, conv3_1
VGG_CONVOLUTIONS = ((3, 64, 0), (64, 64, 2), (64, 128, 5), (128, 128, 7), (128, 256, 10))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualLoss(nn.Module):
    """Mean absolute difference of VGG features at conv3_1, before its ReLU; frozen, cut off after five convolutions.

    `weights` holds torchvision's names, "0.weight" ... "10.bias"; without it the weights are random, the same for the
    same seed (He et al. 2015), which does for smoke runs: random features still compare edges and textures.
    """

    def __init__(self, weights: dict[str, Tensor] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {str(index): nn.Conv2d(n_in, n_out, 3, padding=1) for n_in, n_out, index in VGG_CONVOLUTIONS}
        )
        if weights is None:
            generator = torch.Generator().manual_seed(seed)
            for convolution in self.convolutions.values():
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(convolution.bias)
        else:
            self.convolutions.load_state_dict(weights)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> Tensor:
        """x: [N, 3, H, W] in [-1, 1], fp32 or float64 -> conv3_1 before its ReLU [N, 256, H/4, W/4]."""
        x = ((x + 1) / 2 - self.mean) / self.std
        for index, convolution in self.convolutions.items():
            x = convolution(x)
            if index != "10":
                x = functional.relu(x)
            if index in ("2", "7"):
                x = functional.max_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x, target: [N, 3, H, W] in [-1, 1] -> the batch mean, a scalar in x's dtype; the target gets no gradient."""
        with torch.no_grad():
            target_features = self.features(target)
        return functional.l1_loss(self.features(x).to(x.dtype), target_features.to(x.dtype))
