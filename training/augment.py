"""Augmentation of HR faces together with their clean LR faces; this project's, the paper has none."""

import torch
from torch import Tensor
from torch.nn import functional

from models import LR_SIZE
from utils import to_bytes, to_unit_range

AUGMENTATIONS = ("none", "mirror", "framing")
UNIFORMS = 5  # random numbers for each face
SMALLEST_WINDOW = 60 / 64  # of the side: zooms in by up to 7 % and shifts by up to 2 px


@torch.no_grad()
def augment(y: Tensor, x_c: Tensor, uniform: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mirror half of the faces; kind "framing": also replace half of them by an enlarged window.

    y [N, 3, 64, 64] and x_c [N, 3, 16, 16] in [-1, 1]. uniform: random numbers [N, 5] in [0, 1).
    x_c stays the bicubic reduction of that very y, on 8-bit pixels: a window's is computed anew.
    """
    mirror, framed, side, *place = uniform.to(y.device).T
    mirrored = (mirror < 0.5).view(-1, 1, 1, 1)
    y, x_c = torch.where(mirrored, y.flip(-1), y), torch.where(mirrored, x_c.flip(-1), x_c)
    if kind == "mirror":
        return y, x_c
    side = SMALLEST_WINDOW + (1 - SMALLEST_WINDOW) * side
    affine = torch.diag_embed(torch.stack([side, side], dim=1))
    centre = (1 - side)[:, None] * (2 * torch.stack(place, dim=1) - 1)
    grid = functional.affine_grid(torch.cat([affine, centre[:, :, None]], dim=2), list(y.shape), align_corners=False)
    window = functional.grid_sample(y, grid, mode="bicubic", padding_mode="border", align_corners=False)
    window = to_unit_range(to_bytes(window))
    reduced = functional.interpolate(window, size=(LR_SIZE, LR_SIZE), mode="bicubic", antialias=True)
    framed = (framed < 0.5).view(-1, 1, 1, 1)
    return torch.where(framed, window, y), torch.where(framed, to_unit_range(to_bytes(reduced)), x_c)
