"""Halve an inference file (h2l.pth, sr.pth) for publication, and write into it what it was trained on and its terms.

python export.py Trained_Models/sr.pth weights/sr.pth --trained-on "LFW, 10,837 faces" --licence "research only"

test.py, evaluate.py and train.py read the result like the original, and the first two print what was written into it.
"""

import argparse
from pathlib import Path

import torch

import utils


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="h2l.pth or sr.pth of a run")
    parser.add_argument("target", metavar="TARGET", help="the file to write")
    parser.add_argument("--trained-on", required=True, metavar="TEXT", help="the data and the length of the training")
    parser.add_argument("--licence", required=True, metavar="TEXT", help="the terms under which others may use the weights")
    return parser


def half(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix or kernel in fp16 if every value fits its range, else the tensor as it was: vectors, BatchNorm's counters."""
    fits = tensor.is_floating_point() and tensor.abs().max() < torch.finfo(torch.float16).max
    return tensor.half() if fits and tensor.dim() > 1 else tensor.clone()  # vectors are few, and the most sensitive


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    source, target = Path(options.source), Path(options.target)
    remedy = "name an h2l.pth or sr.pth that a training run has written"
    content = utils.load_tensors(source, remedy)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("h2l", "sr"):
        raise utils.UserError(f"{source} is not an inference file of this project: {remedy}")
    content = utils.load_checkpoint(source, kind, remedy)
    content["weights"] = {
        name: {key: half(tensor) for key, tensor in weights.items()} for name, weights in content["weights"].items()
    }
    content["about"] = {"trained on": options.trained_on, "licence": options.licence}
    target.parent.mkdir(parents=True, exist_ok=True)
    utils.save_checkpoint(target, kind, content)
    print(f"{utils.describe(target, content)}; {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    utils.run_script(main)
