"""Makes docs/trade_off.png: how sharp and how consistent E's training with x_s makes a network, by x_s' weight and strength.

Usage:
    bash recipes/ablations.sh FACES WIDE VGG MOBILENET     # writes runs/ablations/metrics.json
    python docs/make_trade_off.py                          # pip install matplotlib

Its rows are those that recipes/ablations.sh names x_s_WEIGHT_STRENGTH; those of further seeds are left out.
"""

import argparse
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import utils  # noqa: E402

MEASURES = {"psnr_clean": "PSNR, clean (dB)", "psnr_four": "PSNR, four (dB)"}
ROW = re.compile(r"x_s_([\d.]+)_([\d.]+)/sr\.pth$")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", default="runs/ablations/metrics.json", help="what evaluate.py wrote")
    parser.add_argument("--out", default=str(DOCS / "trade_off.png"), help="the picture")
    return parser


def read_rows(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """weight -> strength -> a row's measures. Raises UserError if the file cannot be read or has no such row."""
    try:
        rows = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise utils.UserError(f"cannot read {path} ({error!r}): run recipes/ablations.sh first, or name --metrics") from error
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, measures in rows.items():
        if match := ROW.search(name):
            weight, strength = match.groups()
            found.setdefault(weight, {})[strength] = measures
    if not found:
        raise utils.UserError(f"{path} has no row named x_s_WEIGHT_STRENGTH/sr.pth: run recipes/ablations.sh with those rows")
    return found


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    rows = read_rows(Path(options.metrics))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(MEASURES), figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, (key, title) in zip(panels, MEASURES.items()):
        for weight, points in sorted(rows.items()):
            x, y = ([point[name] for point in points.values()] for name in (key, "consistency"))
            panel.plot(x, y, "o-", label=f"weight {weight}" if float(weight) else "without x_s")
            for strength, *place in zip(points, x, y):
                if float(weight):
                    panel.annotate(strength, place, xytext=(4, 4), textcoords="offset points", fontsize=7)
        panel.set_xlabel(title)
    panels[0].set_ylabel("consistency (dB)")
    panels[0].legend(fontsize=8, title="numbers: strength of x_s", title_fontsize=8)
    figure.savefig(options.out, dpi=110)
    print(f"written: {options.out}")


if __name__ == "__main__":
    utils.run_script(main)
