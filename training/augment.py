"""Augmentation of HR faces together with their clean LR faces; this project's, the paper has none."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from models import LR_SIZE
from utils import to_bytes, to_unit_range

AUGMENTATIONS = ("none", "mirror", "framing")
UNIFORMS = 6  # random numbers for each face
FRAMED = 0.5  # the share of faces whose framing changes
SMALLEST_WINDOW = 0.8  # of the side
LARGEST_ANGLE = 12.0  # degrees
MARGIN = 0.025  # of the side, that a window may reach over the picture's edge, which is mirrored


@torch.no_grad()
def augment(y: Tensor, x_c: Tensor, uniform: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mirror half of the faces; kind "framing": also replace half of all by a turned, enlarged window.

    y: [N, 3, 64, 64], x_c: [N, 3, 16, 16], in [-1, 1]. uniform: random numbers [N, 6] in [0, 1).
    x_c stays the bicubic reduction of that very y, on 8-bit pixels: a window's is computed anew.
    """
    mirror, framed, side, angle, *place = uniform.to(y).T
    mirrored = (mirror < 0.5).view(-1, 1, 1, 1)
    y, x_c = torch.where(mirrored, y.flip(-1), y), torch.where(mirrored, x_c.flip(-1), x_c)
    if kind == "mirror":
        return y, x_c
    side, angle = SMALLEST_WINDOW + (1 - SMALLEST_WINDOW) * side, math.radians(LARGEST_ANGLE) * (2 * angle - 1)
    upper, lower = torch.stack([angle.cos(), -angle.sin()], dim=1), torch.stack([angle.sin(), angle.cos()], dim=1)
    affine = side.view(-1, 1, 1) * torch.stack([upper, lower], dim=1)
    centre = (1 - side + 2 * MARGIN)[:, None] * (2 * torch.stack(place, dim=1) - 1)
    grid = functional.affine_grid(torch.cat([affine, centre[:, :, None]], dim=2), list(y.shape), align_corners=False)
    window = functional.grid_sample(y, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    window = to_unit_range(to_bytes(window)).to(y.dtype)
    reduced = functional.interpolate(window, size=(LR_SIZE, LR_SIZE), mode="bicubic", antialias=True)
    framed = (framed < FRAMED).view(-1, 1, 1, 1)
    return torch.where(framed, window, y), torch.where(framed, to_unit_range(to_bytes(reduced)).to(y.dtype), x_c)
