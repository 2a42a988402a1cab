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

from models import HR_SIZE, LR_SIZE

# At strength 1:
LEAST_BLUR, MOST_BLUR = 0.3, 3.6  # px of the HR face, standard deviation
ANISOTROPY = 0.25  # the logarithm of the ratio of the blur's two standard deviations is at most twice this
GAIN = 0.35  # the logarithm of the factor on all values, 0 being black, is at most this
TINT = 0.14  # and, of the factor on each channel alone, at most this
OFFSET = 19.0  # of 255, at most this is added to all values
NOISE = 22.0  # of 255, the largest standard deviation; that of most faces is much smaller
COMPRESSED = 0.6  # the share of faces that go through JPEG
LOWEST_QUALITY, HIGHEST_QUALITY = 20, 95
UNIFORMS = 11  # random numbers a face, beside the noise: those that `degrade` names


@torch.no_grad()
def degrade(y: Tensor, uniform: Tensor, normal: Tensor, strength: float = 1.0, exposure: float = 1.0) -> Tensor:
    """Random blur, bicubic reduction, exposure, noise and JPEG, in this order; a face's blur and exposure are strong together.

    y: HR faces [N, 3, 64, 64] in [-1, 1], on any device. uniform: [N, 11] in [0, 1), normal: [N, 3, 16, 16]. strength: how far
    each part may go; 0: a blur of 0.3 px and JPEG of quality 95 at most, 1: the constants above, more: further. exposure: a
    factor on how far the exposure may go. A face depends on its own random numbers alone, not on its batch.
    Returns x_s [N, 3, 16, 16] in [-1, 1], fp32, on y's device; its values are those of 8-bit pictures, and no gradient passes.
    """
    uniform, normal = uniform.to(y.device), normal.to(y.device)
    severity, blur, ratio, gain, offset, *tint, noise, compressed, quality = uniform.T
    severity = strength * severity**0.7
    sigma = LEAST_BLUR + severity * (0.2 + 0.8 * blur) * (MOST_BLUR - LEAST_BLUR)
    ratio = torch.exp(ANISOTROPY * signed(ratio))
    faces = reduction(sigma * ratio)[:, None] @ y.float() @ reduction(sigma / ratio)[:, None].mT
    faces = (faces + 1) * 127.5
    severity = exposure * severity
    factor = torch.exp(severity[:, None] * (GAIN * signed(gain)[:, None] + TINT * signed(torch.stack(tint, dim=1))))
    shift = OFFSET * severity * signed(offset)
    grain = strength * NOISE * noise.square()
    faces = faces * factor[..., None, None] + shift.view(-1, 1, 1, 1) + grain.view(-1, 1, 1, 1) * normal
    pictures = faces.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    qualities = HIGHEST_QUALITY - strength * (HIGHEST_QUALITY - LOWEST_QUALITY) * quality
    for index in (compressed < COMPRESSED).nonzero().flatten().tolist():
        pictures[index] = compress(Image.fromarray(pictures[index]), max(1, round(qualities[index].item())))
    return torch.from_numpy(pictures).to(y.device).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def degrade_at_random(y: Tensor, generator: torch.Generator, exposure: float = 1.0) -> Tensor:
    """`degrade` with random numbers from a generator: y [N, 3, 64, 64] in [-1, 1] -> x_s [N, 3, 16, 16] in [-1, 1]."""
    uniform = torch.rand(len(y), UNIFORMS, generator=generator)
    return degrade(y, uniform, torch.randn(len(y), 3, LR_SIZE, LR_SIZE, generator=generator), exposure=exposure)


def signed(uniform: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1)."""
    return 2 * uniform - 1


def reduction(sigma: Tensor) -> Tensor:
    """The matrix that blurs a row of 64 px by a Gaussian and reduces it to 16 px by Pillow's bicubic filter.

    sigma: standard deviations in px of the HR face, [N] -> [N, 16, 64], each row's sum 1. Beyond its edge the face goes on
    with its last pixel.
    """
    places = torch.arange(HR_SIZE, device=sigma.device, dtype=torch.float32)
    margin = HR_SIZE // 2  # px beyond each edge that a blur may still reach
    sources = torch.arange(-margin, HR_SIZE + margin, device=sigma.device, dtype=torch.float32)
    squares = (places[:, None] - sources).square()
    weights = torch.exp(squares / (-2 * sigma.view(-1, 1, 1).clamp(min=1e-3).square()))
    before, blur, after = (weights / weights.sum(dim=2, keepdim=True)).split((margin, HR_SIZE, margin), dim=2)
    blur[..., 0] += before.sum(dim=2)
    blur[..., -1] += after.sum(dim=2)
    identity = torch.eye(HR_SIZE, device=sigma.device)[None, None]
    return functional.interpolate(identity, size=(LR_SIZE, HR_SIZE), mode="bicubic", antialias=True)[0, 0] @ blur


def compress(image: Image.Image, quality: int) -> np.ndarray:
    """What JPEG keeps of an RGB image: uint8 [H, W, 3]. By Pillow: torchvision's function is deprecated."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))
