"""The kinds of input that networks are measured on, all made from the same HR faces; baselines; hand-crafted degradation."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from Datasets import degradations
from Datasets.images import prepare_lr
from models import HR_SIZE, LR_SIZE, DegradationGenerator
from utils import to_bytes, to_unit_range

DRAWS = 4  # of z, and of the hand_crafted degradation, for each face
BLUR = 3.0  # px of the HR face, standard deviation
NOISE = 15.0  # of 255, standard deviation, on the LR face
JPEG_QUALITY = 30
MOTION = 11  # px of the HR face, the length of the movement
CONTRAST = 0.5  # of the faded faces, about the middle grey
MOSAIC = 2  # LR px, the side of a tile of one colour
COLOURS = 8  # that the palette leaves

DRAWN = [f"z {draw}" for draw in range(1, DRAWS + 1)]  # made by the degradation generator
FIXED = ["blur", "noise", "jpeg", "bilinear"]  # made by no network
DEGRADATIONS = [*DRAWN, *FIXED]
HELD_OUT = ["motion", "faded", "nearest", "mosaic", "palette"]  # made by no network, and in no training
INPUTS = ["clean", "mixed", *DEGRADATIONS, *HELD_OUT]


def bicubic(faces: Tensor) -> Tensor:
    """The baseline: Pillow's bicubic filter x4, uint8 [N, 3, 16, 16] -> [N, 3, 64, 64] in about [-1, 1]."""
    # antialias selects Pillow's filter (a = -0.5); it has no other effect on an enlargement
    return functional.interpolate(to_unit_range(faces), size=(HR_SIZE, HR_SIZE), mode="bicubic", antialias=True)


def lanczos(faces: Tensor) -> Tensor:
    """The second baseline: Pillow's Lanczos filter x4, rounded to 8 bits; shapes and range are those of `bicubic`."""
    size, filter = (HR_SIZE, HR_SIZE), Image.Resampling.LANCZOS
    return to_unit_range(from_images(image.resize(size, filter) for image in to_images(faces)))


def to_images(faces: Tensor) -> Iterator[Image.Image]:
    """uint8 [N, 3, H, W] -> Pillow's images."""
    return map(Image.fromarray, faces.permute(0, 2, 3, 1).contiguous().numpy())


def from_images(images: Iterable[Image.Image]) -> Tensor:
    """Pillow's images of one size -> uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def blur_by_motion(y: Tensor, angles: Tensor) -> Tensor:
    """Blur along a line: uint8 [N, 3, 64, 64], directions in radians [N] -> uint8 [N, 3, 64, 64]."""
    half = MOTION // 2
    steps = torch.linspace(-half, half, 4 * MOTION)
    across = torch.arange(-half, half + 1.0)
    # Each point of the line is shared by the pixels around it (bilinear)
    rows = (1 - (angles.sin()[:, None, None] * steps[:, None] - across).abs()).clamp(min=0)
    columns = (1 - (angles.cos()[:, None, None] * steps[:, None] - across).abs()).clamp(min=0)
    kernels = rows.mT @ columns
    kernels = kernels / kernels.sum(dim=(1, 2), keepdim=True)
    padded = functional.pad(y.float(), (half,) * 4, mode="reflect").flatten(0, 1)[None]
    blurred = functional.conv2d(padded, kernels[:, None].repeat_interleave(3, dim=0), groups=3 * len(y))
    return blurred.view(y.shape).round().clamp(0, 255).to(torch.uint8)


def mosaic(image: Image.Image) -> Image.Image:
    """Tiles of one colour, their mean."""
    size = (LR_SIZE // MOSAIC, LR_SIZE // MOSAIC)
    return image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def make_held_out(y: Tensor, clean: Tensor, angles: Tensor) -> dict[str, Tensor]:
    """The kinds of HELD_OUT, of HR faces y, uint8 [N, 3, 64, 64], and x_c, uint8 [N, 3, 16, 16]."""
    faded = 127.5 + CONTRAST * (clean.float() - 127.5)
    nearest = (image.resize((LR_SIZE, LR_SIZE), Image.Resampling.NEAREST) for image in to_images(y))
    return {
        "motion": from_images(map(prepare_lr, to_images(blur_by_motion(y, angles)))),
        "faded": faded.round().to(torch.uint8),
        "nearest": from_images(nearest),
        "mosaic": from_images(map(mosaic, to_images(clean))),
        "palette": from_images(image.quantize(COLOURS).convert("RGB") for image in to_images(clean)),
    }


def make_fixed(y: Tensor, clean: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The kinds of FIXED; noise: [N, 3, 16, 16] from N(0, I)."""
    blurred = transforms.gaussian_blur(y, kernel_size=6 * int(BLUR) + 1, sigma=BLUR)
    bilinear = (image.resize((LR_SIZE, LR_SIZE), Image.Resampling.BILINEAR) for image in to_images(y))
    return {
        "blur": from_images(map(prepare_lr, to_images(blurred))),
        "noise": (clean + NOISE * noise).round().clamp(0, 255).to(torch.uint8),
        "jpeg": from_images(degradations.compress(image, JPEG_QUALITY) for image in to_images(clean)),
        "bilinear": from_images(bilinear),
    }


def draw_z(draws: list[np.random.Generator]) -> Tensor:
    """DRAWS draws of z for each face [N, DRAWS, 16], the first that is drawn of its generator."""
    size = (DRAWS, DegradationGenerator.noise_channels)
    return torch.from_numpy(np.stack([rng.standard_normal(size, np.float32) for rng in draws]))


def make_inputs(
    y: Tensor, clean: Tensor, indices: np.ndarray, seed: int, alpha: float,
    degrade: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """Every kind of INPUTS, from HR faces y, uint8 [N, 3, 64, 64], and x_c, uint8 [N, 3, 16, 16].

    indices: the faces' places in their list; an image's draws depend on the seed and on these alone.
    degrade: G, from x_c in [-1, 1] and z [N, 16] to x_d. Every input is rounded to 8 bits, as files are.
    """
    draws = [np.random.default_rng([seed, index]) for index in indices]
    z = draw_z(draws)
    noise = torch.from_numpy(np.stack([rng.standard_normal((3, LR_SIZE, LR_SIZE), np.float32) for rng in draws]))
    angles = torch.tensor([rng.uniform(0, np.pi) for rng in draws], dtype=torch.float32)
    x_c = to_unit_range(clean)
    x_d = [degrade(x_c, z[:, draw]).clamp(-1, 1) for draw in range(DRAWS)]
    inputs = {
        "clean": clean,
        "mixed": to_bytes(alpha * x_c + (1 - alpha) * x_d[0]),
        **dict(zip(DRAWN, map(to_bytes, x_d))),
        **make_fixed(y, clean, noise),
        **make_held_out(y, clean, angles),
    }
    return {kind: inputs[kind] for kind in INPUTS}


def make_hand_crafted(y: Tensor, indices: np.ndarray, seed: int, strength: float = 1.0, draws: int = DRAWS) -> list[Tensor]:
    """HR faces, uint8 [N, 3, 64, 64], degraded at random without a network: `draws` times uint8 [N, 3, 16, 16]."""
    versions = []
    for draw in range(draws):
        sources = [np.random.default_rng([seed, index, draw]) for index in indices]
        uniform = torch.from_numpy(np.stack([rng.random(degradations.UNIFORMS, np.float32) for rng in sources]))
        shape = (3, LR_SIZE, LR_SIZE)
        normal = torch.from_numpy(np.stack([rng.standard_normal(shape, np.float32) for rng in sources]))
        versions.append(to_bytes(degradations.degrade(to_unit_range(y), uniform, normal, strength)))
    return versions
