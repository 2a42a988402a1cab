"""What is measured face by face, always in fp32, whatever precision the networks have; and the spectrum of LR faces."""

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import utils
from losses import PerceptualLoss, feature_points, sinkhorn_distance
from metrics.inputs import DEGRADATIONS, DRAWN, FIXED, HELD_OUT
from models import LR_SIZE
from utils import to_bytes, to_unit_range

EXPLODED = (0.2, 1.2)  # an image with more than this share of values beyond this, before clamping, has exploded
FIDELITY = {"clean": ["clean"], "degraded": DRAWN, "mixed": ["mixed"]}  # column -> kinds of inputs
SETS = {"eight": DEGRADATIONS, "z": DRAWN, "_".join(FIXED): FIXED, "held_out": HELD_OUT}
RINGS = ((1, 3), (3, 5), (5, 8), (8, 12))  # of radial frequency, in periods of an LR face: from, and under


def exploded(images: Tensor) -> Tensor:
    """Which images are lost: over 20 % of the values beyond 1.2 before clamping; [N, 3, H, W] -> bool [N]."""
    share, limit = EXPLODED
    return (~(images.abs() <= limit)).float().flatten(1).mean(dim=1) > share  # NaN is lost, too


def mean_of(columns: list[Tensor]) -> Tensor:
    """The mean of several measurements of the same faces: k times [N] -> [N]."""
    return torch.stack(columns).mean(dim=0)


def measure_fidelity(raw: dict[str, Tensor], y: Tensor, perceptual: PerceptualLoss) -> dict[str, Tensor]:
    """PSNR, SSIM and perceptual distance to y, uint8 [N, 3, 64, 64]: name, as in DEFINITIONS -> [N].

    raw: kind of input -> its SR [N, 3, 64, 64], before clamping. A measure whose kinds are not all there is left out.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    target = to_unit_range(y)
    target_features = perceptual.features(target)
    psnr = {kind: utils.psnr(images, target) for kind, images in raw.items()}
    columns = {**FIDELITY, **SETS, **{kind: [kind] for kind in [*FIXED, *HELD_OUT]}}
    table = {f"psnr_{name}": mean_of([psnr[kind] for kind in kinds]) for name, kinds in columns.items() if {*kinds} <= {*raw}}
    for column, kinds in FIDELITY.items():
        if not {*kinds} <= {*raw}:
            continue
        ssim, distances = [], []
        for kind in kinds:
            images = to_bytes(raw[kind])
            ssim.append(structural_similarity_index_measure(images.float(), y.float(), data_range=255.0, reduction="none"))
            difference = perceptual.features(to_unit_range(images)) - target_features
            distances.append(difference.abs().flatten(1).mean(dim=1))
        table |= {f"ssim_{column}": mean_of(ssim), f"perceptual_{column}": mean_of(distances)}
    return table


def measure_consistency(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far the SR of a face's degradations agrees: name, as in DEFINITIONS -> [N], dB; raw as above."""
    sets = {name: kinds for name, kinds in SETS.items() if {*kinds} <= {*raw}}
    psnr: dict[tuple[str, str], Tensor] = {}
    table = {}
    for name, kinds in sets.items():
        pairs = list(itertools.combinations(kinds, 2))
        psnr |= {pair: utils.psnr(raw[pair[0]], raw[pair[1]]) for pair in pairs if pair not in psnr}
        table["consistency" if name == "eight" else f"consistency_{name}"] = mean_of([psnr[pair] for pair in pairs])
    if "eight" in sets:
        for kind in FIXED:
            table[f"consistency_{kind}"] = mean_of([value for pair, value in psnr.items() if kind in pair])
    return table


def measure_gaps(extract: Callable[[Tensor], Tensor], inputs: dict[str, Tensor], others: Tensor) -> dict[str, Tensor]:
    """The two Sinkhorn distances of feature_gap, "gap_degraded" and "gap_others": [N] each.

    extract: uint8 LR -> E. inputs: kind -> uint8 [N, 3, 16, 16]. others: x_c of a different face for each face.
    """
    clean = feature_points(extract(inputs["clean"]).float())
    gaps = [sinkhorn_distance(clean, feature_points(extract(inputs[kind]).float())) for kind in DEGRADATIONS]
    far = sinkhorn_distance(clean, feature_points(extract(others).float()))
    return {"gap_degraded": mean_of(gaps), "gap_others": far}


def measure_faces(
    raw: dict[str, Tensor], extract: Callable[[Tensor], Tensor] | None, y: Tensor, inputs: dict[str, Tensor],
    others: Tensor, perceptual: PerceptualLoss,
) -> pd.DataFrame:  # fmt: skip
    """Everything that is measured face by face, one row a face; columns as in DEFINITIONS. What needs other kinds is left out.

    raw: the SR of each of the inputs, before clamping. extract: uint8 LR -> E, or None. others: x_c of a different face
    for each face. feature_gap comes as its two distances, "gap_degraded" and "gap_others".
    """
    table = measure_fidelity(raw, y, perceptual) | measure_consistency(raw)
    if extract is not None:
        table |= measure_gaps(extract, inputs, others)
    seen = [utils.saturated(images) for kind, images in raw.items() if kind not in HELD_OUT]
    if seen:
        table["saturated_test"] = mean_of(seen)
    table["exploded_test"] = mean_of([exploded(images).float() for images in raw.values()])
    return to_table(table)


def to_table(columns: dict[str, Tensor]) -> pd.DataFrame:
    """Name -> [N], a row a face."""
    return pd.DataFrame({name: values.double().cpu().numpy() for name, values in columns.items()})


def psnr_apart_from_colour(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR after each channel's mean is set to the target's: [N, 3, H, W] in [-1, 1] -> [N], dB.

    An image that is only darker or tinted is then as good as its target.
    """
    shift = (targets - images).mean(dim=(2, 3), keepdim=True)
    return utils.psnr(images + shift, targets)


def spectrum(faces: Tensor) -> list[float]:
    """The shares of RINGS in the power of the luminance under a Hann window: uint8 [N, 3, 16, 16] -> four shares, total 1."""
    weights = torch.tensor(utils.LUMINANCE, dtype=torch.float64).view(3, 1, 1)
    luminance = (faces.double() * weights).sum(dim=1)
    window = torch.hann_window(LR_SIZE, periodic=False, dtype=torch.float64)
    window = window * window[:, None]
    # Without the mean under the window: a brightness would leak into the lowest ring
    luminance = luminance - (luminance * window).sum(dim=(1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2(luminance * window).abs().square().mean(dim=0)
    frequencies = torch.fft.fftfreq(LR_SIZE, 1 / LR_SIZE)
    radius = torch.hypot(frequencies, frequencies[:, None])
    rings = np.array([power[(radius >= low) & (radius < high)].sum().item() for low, high in RINGS])
    return (rings / rings.sum()).tolist()
