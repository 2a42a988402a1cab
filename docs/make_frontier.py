"""Makes docs/degradation.png and prints its numbers: "looks real" against "still the same face", for several degradations.

Usage:
    pip install torchmetrics torch-fidelity matplotlib
    python docs/make_frontier.py --data FACES --features mobilenet_v2.pth --h2l old.pth new.pth

Each generator of --h2l is also measured at parts and multiples of what it changes, x_c + s (G(x_c, z) - x_c), and the
degradation that nothing learns (degradations.py) at several strengths. PSNR is against x_c, and once more with each face's
mean colour put right; distances are to the real faces of LR_test, as evaluate.py measures them.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import utils  # noqa: E402
from evaluate import choose, prepare_lists  # noqa: E402
from metrics.faces import psnr_apart_from_colour  # noqa: E402
from metrics.frechet import Frechet  # noqa: E402
from metrics.inputs import bicubic, draw_z, make_unlearnt  # noqa: E402
from models import DegradationGenerator  # noqa: E402
from utils import to_bytes, to_unit_range  # noqa: E402

AMOUNTS = (0.5, 1.0, 1.25, 1.5, 1.75)  # of what a generator changes
STRENGTHS = (0.5, 1.0, 1.5, 2.0)  # of degradations.py
MEASURES = {"psnr_colour": psnr_apart_from_colour, "psnr": utils.psnr}
TITLES = {"psnr_colour": "PSNR to x_c, mean colour put right (dB)", "psnr": "PSNR to x_c (dB)"}
BATCH = 64  # faces


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="Datasets", help="folder of the four lists")
    parser.add_argument("--cache", default="", help="folder of the prepared faces; empty: .cache in the data folder")
    parser.add_argument("--resize", type=int, default=100, help="as for evaluate.py")
    parser.add_argument("--crop", type=int, default=64, help="as for evaluate.py")
    parser.add_argument("--h2l", nargs="+", default=["weights/h2l.pth"], metavar="PATH", help="degradation generators")
    parser.add_argument("--features", default="inception", help="as for evaluate.py")
    parser.add_argument("--limit", type=int, default=0, help="measure on at most this many faces of each list; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the degradations and of the faces")
    parser.add_argument("--out", default=str(DOCS / "degradation.png"), help="the picture")
    return parser


def batches(faces: Tensor) -> Iterator[Tensor]:
    """uint8 LR faces -> batches of their bicubic enlargements, as evaluate.py measures them."""
    for batch in faces.split(BATCH):
        yield to_bytes(bicubic(batch))


@torch.inference_mode()
def degrade(generator: DegradationGenerator, x_c: Tensor, chosen: np.ndarray, seed: int) -> Tensor:
    """G(x_c, z) with evaluate.py's first draw of z, not clamped. chosen: the faces' places in their list."""
    z = draw_z([np.random.default_rng([seed, index]) for index in chosen])[:, 0]
    return torch.cat([generator(*part) for part in zip(x_c.split(BATCH), z.split(BATCH))])


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    lists = prepare_lists(options)
    chosen = {name: choose(len(lists[name]), options.limit, options.seed) for name in ("HR_test", "LR_test")}
    y, clean = lists["HR_test"][chosen["HR_test"]]
    (real,) = lists["LR_test"][chosen["LR_test"]]
    floor = lists["LR_train"][choose(len(lists["LR_train"]), len(y), options.seed)][0]
    frechet = Frechet(options.features, torch.device("cpu"))
    reference = frechet.reference(batches(real), title="LR_test")

    def distance(faces: Tensor, title: str) -> float:
        return frechet.distances([reference], batches(faces), title)[0]

    levels = {"real LR faces of training": distance(floor, "floor"), "x_c": distance(clean, "x_c")}
    for name, level in levels.items():
        print(f"{name}: FD {level:.1f}", flush=True)
    curves: dict[str, list[dict[str, float]]] = {}

    def measure(name: str, at: float, faces: Tensor) -> None:
        point = {"at": at, "fd": distance(faces, f"{name}, {at}")}
        point |= {key: psnr(to_unit_range(faces), to_unit_range(clean)).mean().item() for key, psnr in MEASURES.items()}
        curves.setdefault(name, []).append(point)
        psnr = f"PSNR {point['psnr']:.2f}, apart from colour {point['psnr_colour']:.2f}"
        print(f"{name}, {at}: FD {point['fd']:.1f}, {psnr}", flush=True)

    for path in options.h2l:
        generator, _ = utils.load_degradation(Path(path), utils.NO_WEIGHTS)
        x_c = to_unit_range(clean)
        x_d = degrade(generator, x_c, chosen["HR_test"], options.seed)
        for amount in AMOUNTS:
            measure(path, amount, to_bytes(x_c + amount * (x_d - x_c)))
    for strength in STRENGTHS:
        measure("nothing learnt", strength, make_unlearnt(y, chosen["HR_test"], options.seed, strength, draws=1)[0])
    draw(Path(options.out), levels, curves)


def draw(path: Path, levels: dict[str, float], curves: dict[str, list[dict[str, float]]]) -> None:
    """The picture: a panel for each PSNR, a line for each degradation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TITLES), figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, (key, title) in zip(panels, TITLES.items()):
        for name, points in curves.items():
            panel.plot([point[key] for point in points], [point["fd"] for point in points], "o-", label=name)
            for point in points:
                place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
                panel.annotate(f"{point['at']:g}", (point[key], point["fd"]), **place)
        for (name, level), style in zip(levels.items(), (":", "--")):
            panel.axhline(level, color="grey", linestyle=style, linewidth=1, label=name)
        panel.set_xlabel(title)
    panels[0].set_ylabel("distance to real LR faces (FD)")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    utils.run_script(main)
