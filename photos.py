"""Whole photographs for `test.py --photos`: their small faces are cut out, super-resolved and pasted back."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import utils
from Datasets.boxes import Box, face_square, is_inside, read_boxes
from Datasets.detectors import Detect, detect_faces, find_detector
from Datasets.images import ImageError, load_image, prepare_lr
from Datasets.make_faces import is_dark_or_flat
from utils import SuperResolver, plural

ENLARGED = 4  # times, as the network enlarges a face
SMALLEST, HIGHEST = 10, 24  # px of height; a higher face has more detail than the 16 px that the network takes
# Side of a face's square in heights: as LFW's faces, which the network was trained with, lie in its 64 px. By the PSNR of 44
# faces of Wider Face, reduced four times, 1.0 is 0.6 dB better than 1.2 and 0.3 better than 1.1
FRAMING = 1.0
FEATHER = 0.2  # part of a face's square, at each edge, over which it fades into the photograph
LARGEST = 32_000_000  # px of a photograph; enlarged, this one takes 1.5 GB
COMPARED = 64  # faces on the --compare sheet

Boxes = dict[str, list[Box]]  # absolute path of a photograph -> its faces


def read_known_boxes(given: list[Path], boxes: str) -> tuple[list[Path], Boxes | None]:
    """The photographs and their boxes, as far as files say where the faces are; None: a detector is to find them.

    given: photographs and their folders, or a folder that make_faces.py made, whose faces.csv names
    photographs and boxes. boxes: --boxes, a file with paths relative to the first folder.
    """
    if boxes:
        folder = given[0] if given[0].is_dir() else given[0].parent
        named = {os.path.abspath(folder / name): found for name, found in read_boxes(Path(boxes)).items()}
        if not any(os.path.exists(path) for path in named):
            raise utils.UserError(f"{boxes} names no photograph that is there, such as {next(iter(named))}: check --input")
        return given, named
    tables = [path / "faces.csv" for path in given if (path / "faces.csv").is_file()]
    if not tables:
        return given, None
    if len(tables) < len(given):
        raise utils.UserError(f"{tables[0]} has boxes of its photographs alone: give other folders in a run of their own")
    known: Boxes = {}
    for table in tables:
        for name, found in read_boxes(table).items():
            if any(box.size <= HIGHEST for box in found):  # not the pictures of one large face each
                known[os.path.abspath(table.parent / name)] = found
    if not known:
        raise utils.UserError(f"{tables[0]} has no face of at most {HIGHEST} px: give a folder of photographs")
    return [Path(path) for path in known], known


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


def choose_faces(image: Image.Image, boxes: list[Box]) -> tuple[list[tuple[int, int, int]], Counter]:
    """The squares (left, top, side) to super-resolve, and how many faces stay as they are, by reason."""
    squares, left_alone = [], Counter()
    for box in boxes:
        left, top, side = square = face_square(box, FRAMING)
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


# --- all photographs ---------------------------------------------------------------------------------------------


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    utils.write_atomic(path, lambda temporary: image.save(temporary, "PNG", compress_level=1), flush=False)


def load_photograph(path: Path) -> Image.Image:
    """A photograph, upright; raises ImageError if it does not decode or is too large to enlarge."""
    image = load_image(path)
    if image.width * image.height > LARGEST:
        raise ImageError(f"has {image.width}x{image.height} px: enlarged four times it takes too much memory; reduce it first")
    return image


def super_resolve_photographs(
    pairs: list[tuple[Path, Path]], plain: dict[Path, Path], known: Boxes | None, resolver: SuperResolver,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Write the enlargement of each photograph with super-resolved faces, and the plain one beside it.

    plain: from `plain_outputs`. known: the photographs' boxes, or None to find them. Says for each
    photograph what became of its faces. Raises UserError if there is no usable one.
    """
    detect: Detect | None = None
    if known is None:
        name, detect = find_detector(options.detector)
        print(f"faces are found by {name}", flush=True)
    total, compared, skipped = Counter(), [], 0
    for path, output in tqdm(pairs, "photographs", unit="photograph", leave=False):
        try:
            image = load_photograph(path)
        except ImageError as error:
            skipped += 1
            tqdm.write(f"skipped: {path} {error}", file=sys.stderr)
            continue
        boxes = known.get(os.path.abspath(path), []) if detect is None else detect_faces(image, detect)
        squares, left_alone = choose_faces(image, boxes)
        canvas = enlarge(image)
        save(canvas, plain[output])
        if squares:
            paste_faces(canvas, image, squares, super_resolve_faces(image, squares, resolver, options))
        save(canvas, output)
        for square in squares[: COMPARED - len(compared)]:
            left, top, side = (ENLARGED * value for value in square)
            compared.append((enlarge(image, square), canvas.crop((left, top, left + side, top + side))))
        tqdm.write(f"{path}: {describe(len(squares), left_alone)}", file=sys.stdout)
        total.update({"faces": len(squares), "photographs": 1})
    if not total["photographs"] and not options.skip_existing:
        raise utils.UserError(f"no usable photograph ({plural(skipped, 'file')} skipped): name photographs with --input")
    if options.compare and compared:
        save_comparison(compared, Path(options.output) / "compare.png")
    print(
        f"{plural(total['faces'], 'face')} super-resolved in {plural(total['photographs'], 'photograph')}, {skipped} skipped; "
        f"in {options.output}, each with its plain enlargement as .bicubic.png"
    )


def describe(count: int, left_alone: Counter) -> str:
    """What became of a photograph's faces, in words."""
    if not count and not left_alone:
        return "no face found"
    text = f"{plural(count, 'face')} super-resolved"
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_alone.most_common())
    return f"{text}; as in the plain enlargement: {reasons}" if reasons else text


def save_comparison(compared: list[tuple[Image.Image, Image.Image]], path: Path) -> None:
    """A sheet of faces as in the plain enlargement and as in the result, eight pairs a row."""
    tiles = [np.asarray(tile.resize((96, 96), Image.Resampling.BICUBIC)) for pair in compared for tile in pair]
    images = utils.to_unit_range(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2))
    utils.save_sheet(path, {"plain, super-resolved | plain, super-resolved | ...": images}, columns=12)
    print(f"plain and super-resolved faces side by side: {path}")
