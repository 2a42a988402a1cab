"""The Frechet distance between two sets of pictures, by torchmetrics, with Inception's or MobileNetV2's features."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

import utils
from losses.perceptual import IMAGENET_MEAN, IMAGENET_STD

INSTALL = "pip install torchmetrics torch-fidelity"


class MobileNetFeatures(nn.Module):
    """MobileNetV2's pooled features: uint8 [N, 3, H, W], resized to 224 px (bilinear) -> [N, 1280]."""

    num_features = 1280

    def __init__(self, path: Path) -> None:
        super().__init__()
        network = torchvision.models.mobilenet_v2()
        remedy = "--features takes inception or a state dict of torchvision's mobilenet_v2()"
        weights = utils.load_tensors(path, remedy)
        if not isinstance(weights, dict):
            raise utils.UserError(f"{path} is not a state dict: {remedy}")
        utils.load_weights(network, weights, path)
        self.layers = utils.fold_batchnorm(network.eval()).features.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        images = functional.interpolate(images.float() / 255, size=(224, 224), mode="bilinear", align_corners=False)
        images = transforms.normalize(images, IMAGENET_MEAN, IMAGENET_STD)
        return self.layers(images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))


class Frechet:
    """Frechet distances, in float64, with one feature network, in fp32, for all."""

    def __init__(self, features: str, device: torch.device) -> None:
        """features: "inception" or the path of MobileNetV2's state dict. Raises UserError with the remedy."""
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise utils.UserError(f"evaluate.py needs {error.name}: {INSTALL}") from error
        self.metric = FrechetInceptionDistance
        self.name = "FID" if features == "inception" else "FD-MobileNetV2"
        self.device = device
        self.network = load_inception() if features == "inception" else MobileNetFeatures(Path(features))
        self.network.to(device)

    @torch.inference_mode()
    def features(self, images: Iterable[Tensor], title: str) -> Tensor:
        """Batches of uint8 [N, 3, H, W] -> features [all, d]."""
        batches = utils.progress(images, desc=f"{self.name} features, {title}", unit="batch", leave=False)
        return torch.cat([self.network(batch.to(self.device)) for batch in batches])

    def distance(self, features: Tensor, others: Tensor) -> float:
        """Between the images of two sets of features [N, d] and [M, d]."""
        network = nn.Identity()  # the features come to the metric computed
        network.num_features = features.shape[1]
        metric = self.metric(network).to(self.device)
        metric.update(features, real=True)
        metric.update(others, real=False)
        return metric.compute().item()


def load_inception() -> nn.Module:
    """Inception's features, as FID is defined: the file in torch's download cache, or else a download.

    Raises UserError if torch-fidelity is missing, the download fails, or the cached file is damaged.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise utils.UserError(f"--features inception needs torch-fidelity: {INSTALL}") from error
    remedy = "without a network, give --features PATH, a state dict of torchvision's MobileNetV2"
    with utils.downloading(URL_INCEPTION_V3, "--features inception", "the FID network", remedy):
        return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
