"""Export an inference file: for publication, in half precision, or as an ONNX file for other programs.

python export.py Trained_Models/sr.pth weights/sr.pth --trained-on "LFW, 10,837 faces" --licence "research only"
python export.py Trained_Models/sr.pth face_sr.onnx    # pip install onnx onnxscript

test.py, evaluate.py and train.py read a .pth like the original, and the first two print what was written into it.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import torch
from torch import Tensor, nn

import utils
from models import LR_SIZE, Decoder, FeatureExtractor

OPSET, IR_VERSION = 18, 8  # of ONNX: what onnxruntime 1.16 (2023) and older programs still load


def build_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=os.path.expanduser, help="h2l.pth or sr.pth of a run; sr.pth for ONNX")
    parser.add_argument("target", metavar="TARGET", type=os.path.expanduser, help="the file to write, .pth or .onnx")
    parser.option("trained-on", "", ".pth: the data and the length of the training", metavar="TEXT")
    parser.option("licence", "", ".pth: the terms under which others may use the weights", metavar="TEXT")
    parser.option("pixels", "8-bit", ".onnx: input and output as uint8 or as fp32 in [-1, 1]", choices=("8-bit", "unit"))
    return parser


def half(tensor: Tensor) -> Tensor:
    """A matrix or kernel in fp16 if every value fits its range, else the tensor as it was: vectors, BatchNorm's counters."""
    fits = tensor.is_floating_point() and tensor.abs().max() < torch.finfo(torch.float16).max
    return tensor.half() if fits and tensor.dim() > 1 else tensor.clone()  # vectors are few, and the most sensitive


class SuperResolution(nn.Module):
    """S(E(x)) as one network, from and to 8-bit pixels or [-1, 1]; grey where the face is grey."""

    def __init__(self, extractor: FeatureExtractor, decoder: Decoder, eight_bit: bool) -> None:
        super().__init__()
        self.extractor, self.decoder, self.eight_bit = extractor, decoder, eight_bit

    def forward(self, faces: Tensor) -> Tensor:
        """RGB, both uint8 or both fp32; the latter is clamped to [-1, 1].

        [N, 3, 16, 16] -> [N, 3, 64, 64]
        """
        x = utils.to_unit_range(faces) if self.eight_bit else faces
        sr = utils.keep_grey(x, self.decoder(self.extractor(x)))
        return utils.to_bytes(sr) if self.eight_bit else sr.clamp(-1, 1)


def export_onnx(source: Path, target: Path, eight_bit: bool) -> None:
    """Write E and S of an sr.pth, BatchNorm folded, as one ONNX file for batches of any size, by PyTorch's exporter.

    Raises UserError without the packages onnx and onnxscript.
    """
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise utils.UserError(f"{target} needs {' and '.join(missing)}: pip install onnx onnxscript")
    resolver = utils.SuperResolver(source, torch.device("cpu"))
    faces = torch.zeros(2, 3, LR_SIZE, LR_SIZE, dtype=torch.uint8 if eight_bit else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; nobody who exports can act on them
        program = torch.onnx.export(
            SuperResolution(resolver.extractor, resolver.decoder, eight_bit).eval(), (faces,), dynamo=True, verbose=False,
            input_names=["faces"], output_names=["sr"], dynamic_shapes={"faces": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
        )  # fmt: skip
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter's stack traces, with paths of this machine
    about = resolver.content.get("about")
    program.model.metadata_props.update(about if isinstance(about, dict) else {})
    program.model.ir_version = IR_VERSION
    utils.write_atomic(target, lambda temporary: program.save(str(temporary), external_data=False))


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options, given = parser.parse(argv)
    source, target = Path(options.source), Path(options.target)
    if target.suffix not in (".pth", ".onnx"):
        parser.error(f"{target}: must end in .pth or .onnx")
    onnx = target.suffix == ".onnx"
    if not onnx and not (options.trained_on and options.licence):
        parser.error("a .pth needs --trained-on and --licence: whoever gets the weights is told both")
    for name in given & ({"trained_on", "licence"} if onnx else {"pixels"}):
        parser.error(f"--{name.replace('_', '-')} has no effect on a {target.suffix}: leave it out")
    remedy = f"{'an ONNX file is made of an sr.pth: ' if onnx else ''}name {'the' if onnx else 'an h2l.pth or'} sr.pth of a run"
    content = utils.load_tensors(source, remedy)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("h2l", "sr"):
        raise utils.UserError(f"{source} is not an inference file of this project: {remedy}")
    content = utils.load_checkpoint(source, "sr" if onnx else kind, remedy)
    utils.make_folder(target.parent, "TARGET")
    if onnx:
        export_onnx(source, target, options.pixels == "8-bit")
    else:
        content["weights"] = {
            name: {key: half(tensor) for key, tensor in weights.items()} for name, weights in content["weights"].items()
        }
        content["about"] = {"trained on": options.trained_on, "licence": options.licence}
        utils.save_checkpoint(target, kind, content)
    print(f"{utils.describe(target, content)}; {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    utils.run_script(main)
