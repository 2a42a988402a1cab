"""Draw the consistency of the ablations over their perceptual distance: docs/plane.png.

python docs/make_plane.py runs/ablations/metrics.json    # the file that recipes/ablations.sh wrote; several are drawn together

Blur raises both, so that a row is more robust than another only where it lies above that other's way along this diagonal.
Needs matplotlib.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

PANELS = {
    "consistency_blur_noise_jpeg_bilinear": "blur, noise, JPEG, bilinear",
    "consistency_z": "four draws of G",
    "consistency_held_out": "held-out kinds",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="what evaluate.py --out wrote")
    rows = {}
    for file in parser.parse_args().files:
        rows |= json.loads(file.read_text())["rows"]
    points: dict[str, list[dict[str, float]]] = {}  # by ablation, a point a seed
    for row, measures in rows.items():
        if "consistency_z" in measures:
            points.setdefault(Path(row).parent.name.rpartition("_")[0] or row, []).append(measures)
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items()):
        for number, (name, seeds) in enumerate(points.items()):
            x, y = [[seed[key] for seed in seeds] for key in ("perceptual_clean", column)]
            axis.plot(x, y, color=f"C{number % 10}", marker="osD^v"[number // 10], markersize=5)
            axis.annotate(name, (x[0], y[0]), xytext=(5, 3), textcoords="offset points", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("perceptual distance of clean faces' SR")
        axis.set_ylabel("consistency, dB")
        axis.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_name("plane.png"), dpi=80)


if __name__ == "__main__":
    main()
