"""A degradation without a network: faces blurred, reduced, exposed, noised and compressed at random.

The paper does not have it; it is this project's. train.py can show E such faces as a further version of each face (x_s), and
evaluate.py measures it beside the degradation generator G, which has to beat it.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

HR_SIZE, LR_SIZE = 64, 16
UNIFORMS = 8  # random numbers a face, beside the noise: blur, exposure, contrast, three of the tint, noise, JPEG
LARGEST_BLUR = 3.2  # px of the HR face, standard deviation
LARGEST_NOISE = 12.0  # of 255, standard deviation, on the LR face
LOWEST_QUALITY = 30  # of JPEG, on the LR face
DARKEST, BRIGHTEST = 0.45, 1.15  # factor on all values, 0 being black
FLATTEST, STEEPEST = 0.7, 1.1  # factor on the distance from the face's mean colour
STRONGEST_TINT = 0.1  # each channel has its own factor in 1 -+ this


def draw_degradations(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The random numbers of `degrade` for so many faces: uniform [N, 8] in [0, 1) and normal [N, 3, 16, 16]; on the CPU."""
    return torch.rand(count, UNIFORMS, generator=generator), torch.randn(count, 3, LR_SIZE, LR_SIZE, generator=generator)


@torch.no_grad()
def degrade(y: Tensor, uniform: Tensor, normal: Tensor, strength: float = 1.0) -> Tensor:
    """Random blur, bicubic reduction, exposure, contrast, tint, noise and JPEG, in this order.

    y: HR faces [N, 3, 64, 64] in [-1, 1], on any device. uniform, normal: as `draw_degradations` gives them. strength: how far
    every part may go; 0: bicubic reduction and JPEG of quality 100, 1: the constants above, more: further. A face depends on
    its own random numbers alone, not on its batch.
    Returns x_s [N, 3, 16, 16] in [-1, 1], fp32, on y's device; its values are those of 8-bit pictures, and no gradient passes.
    """
    uniform, normal = uniform.to(y.device), normal.to(y.device)
    blur, exposure, contrast, *tint, noise, quality = uniform.T
    matrix = reduction(strength * LARGEST_BLUR * blur)[:, None]
    faces = (matrix @ y.float() @ matrix.mT + 1) / 2  # [N, 3, 16, 16], black is 0
    gain = 1 + strength * (between(DARKEST, BRIGHTEST, exposure) - 1)
    colour = 1 + strength * STRONGEST_TINT * (2 * torch.stack(tint, dim=1) - 1)
    faces = faces * gain.clamp(min=0).view(-1, 1, 1, 1) * colour.clamp(min=0)[..., None, None]
    mean = faces.mean(dim=(2, 3), keepdim=True)
    slope = 1 + strength * (between(FLATTEST, STEEPEST, contrast) - 1)
    faces = mean + (faces - mean) * slope.clamp(min=0).view(-1, 1, 1, 1)
    faces = faces + strength * LARGEST_NOISE / 255 * noise.view(-1, 1, 1, 1) * normal
    qualities = (100 - strength * (100 - LOWEST_QUALITY) * quality).clamp(1, 100)
    pictures = (faces.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    pictures = np.stack([compress(picture, round(number)) for picture, number in zip(pictures, qualities.tolist())])
    return torch.from_numpy(pictures).to(y.device).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def degrade_at_random(y: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """`degrade` with random numbers from a generator: y [N, 3, 64, 64] in [-1, 1] -> x_s [N, 3, 16, 16] in [-1, 1]."""
    return degrade(y, *draw_degradations(len(y), generator), strength)


def between(low: float, high: float, uniform: Tensor) -> Tensor:
    """From [0, 1] to [low, high]."""
    return low + (high - low) * uniform


def reduction(sigma: Tensor) -> Tensor:
    """The matrix that blurs a row of 64 px by a Gaussian and reduces it to 16 px by Pillow's bicubic filter.

    sigma: standard deviations in px of the HR face, [N] -> [N, 16, 64], each row's sum 1. At 0 the filter is bicubic alone.
    """
    places = torch.arange(HR_SIZE, device=sigma.device, dtype=torch.float32)
    squares = (places[:, None] - places).square()
    blur = torch.exp(squares / (-2 * sigma.view(-1, 1, 1).clamp(min=1e-3).square()))
    blur = blur / blur.sum(dim=2, keepdim=True)  # beyond the edge there is nothing: the weights are those within the face
    identity = torch.eye(HR_SIZE, device=sigma.device)[None, None]
    return functional.interpolate(identity, size=(LR_SIZE, HR_SIZE), mode="bicubic", antialias=True)[0, 0] @ blur


def compress(picture: np.ndarray, quality: int) -> np.ndarray:
    """What JPEG keeps of an 8-bit picture [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))
