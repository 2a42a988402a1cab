"""The weighted mean of the weights of several sr.pth: how weights/sr.pth came to be.

    python recipes/average.py --weights a/sr.pth b/sr.pth --amounts 0.55 0.45 --out sr.pth

For states that are near to each other only: before and after a short phase at a low learning rate, between what the one and the
other are better at. The mean of two trainings of their own is worse than both (docs/RESULTS.md); measure it with evaluate.py.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

import utils
from models import Decoder, FeatureExtractor


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__)
    parser.option("weights", [], "sr.pth files, all of one width", nargs="+", metavar="PATH", required=True)
    parser.option("amounts", [], "of each, of their sum", nargs="+", metavar="X", type=float, required=True)
    parser.option("out", "sr.pth", "the file to write")
    return parser


def mean(tensors: list[Tensor], amounts: list[float]) -> Tensor:
    """The weighted mean of tensors of one shape; of integers, BatchNorm's counters, the first."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return sum(amount * tensor for amount, tensor in zip(amounts, tensors)) / sum(amounts)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if (count := len(options.amounts)) != len(options.weights):
        parser.error(f"--amounts: {count} for {utils.plural(len(options.weights), 'file')} of --weights; give one to each")
    if min(options.amounts) < 0 or not 0 < sum(options.amounts) < math.inf:
        parser.error(f"--amounts {' '.join(map(str, options.amounts))}: must be at least 0, finite, and not all 0")
    kinds, remedy = {"extractor": FeatureExtractor, "decoder": Decoder}, "train.py writes such files"
    loaded = [utils.load_networks(Path(path), "sr", kinds, remedy) for path in options.weights]
    contents = [networks["content"] for networks in loaded]
    width = utils.common_width(contents, "--weights", "files")
    utils.make_folder(Path(options.out).parent, "--out")
    weights = {}
    for name in kinds:
        states = [networks[name].state_dict() for networks in loaded]
        weights[name] = {key: mean([state[key] for state in states], options.amounts) for key in states[0]}
    settings = contents[0].get("settings", {}) | vars(options)  # those that say how faces were framed, too
    utils.save_checkpoint(Path(options.out), "sr", {"width": width, "settings": settings, "weights": weights})
    print(f"written: {options.out}")


if __name__ == "__main__":
    utils.run_script(main)
