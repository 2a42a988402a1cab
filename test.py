"""Super-resolve faces: every image in LR/, reduced to 16x16 px if it is larger, becomes a 64x64 PNG in Results/.

python test.py
python test.py --input my_faces --output my_results --compare --self-ensemble
python test.py --input a.png b.jpg "more/*.png" --output my_results
python test.py --input face.jpg --output face_sr.png

Whole photographs with small faces in them: photos.py.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import numpy as np
import torch
from PIL import Image

import inference
import utils
from Datasets import framing
from Datasets.images import LARGE, ImageError, load_image, notes, prepare_lr
from inference import Pair, Tally
from models import HR_SIZE, LR_SIZE
from utils import SuperResolver, plural, to_unit_range

COMPARED = 64  # faces on the --compare sheet
# What there is to say of "1 image ...", and after a colon: see Notes
TOO_LARGE = (
    f"much larger than {LR_SIZE} px: the central square was reduced to that, and its detail is lost; "
    "photos.py takes whole photographs with small faces in them"
)
OBLONG = "far from square: only the central square was used"


class Face(NamedTuple):
    """An input and what test.py makes of it: the LR face of 16 px, what there is to say, and where its SR goes."""

    face: Image.Image
    notes: tuple[str, ...]
    output: Path


# --- from files to files -----------------------------------------------------------------------------------------


def decode(pair: Pair) -> Face | ImageError:
    """(input, output) -> the face, or why the input cannot be used."""
    try:
        image = load_image(pair[0], LR_SIZE)
    except ImageError as error:
        return error
    said = notes(image)
    said += (TOO_LARGE,) if min(image.size) > LARGE else ()
    said += (OBLONG,) if max(image.size) > 2 * min(image.size) else ()
    return Face(prepare_lr(image), said, pair[1])


def usable_faces(
    pairs: list[Pair], pool: Executor, count: int, tally: Tally, sample: list[Image.Image]
) -> Iterator[Face]:  # fmt: skip
    """The inputs that decode, in order; the first go into the sample, too."""
    for (file, _), face in zip(pairs, utils.ahead(pool, decode, pairs, count)):
        if isinstance(face, ImageError):
            tally.skip(file, face)
            continue
        tally.notes.add(file, face.notes)
        if len(sample) < framing.SAMPLE:
            sample.append(face.face)
        yield face


def super_resolve(pairs: list[Pair], resolver: SuperResolver, options: argparse.Namespace) -> Tally:
    """Super-resolve input -> output, and warn of inputs that may not be what they should be.

    While a batch is computed, the next one is decoded and the one before is written.
    """
    tally, sample, size = Tally(), [], options.batch_size
    writing: Iterable[str | None] = ()
    with ThreadPoolExecutor(utils.thread_count()) as pool:
        faces = usable_faces(pairs, pool, 2 * size, tally, sample)
        while batch := list(islice(faces, size)):
            x = torch.from_numpy(np.stack([np.asarray(face.face) for face in batch])).permute(0, 3, 1, 2)
            sr = resolver.pictures(x, options.self_ensemble).permute(0, 2, 3, 1).cpu().numpy()
            for reason in writing:
                tally.count(reason)
            writing = pool.map(inference.write, map(Image.fromarray, sr), [face.output for face in batch])
        for reason in writing:
            tally.count(reason)
    tally.warn()
    if (warning := framing.check_framing(sample)) and TOO_LARGE not in tally.notes.files:
        print(f"warning: {warning}", file=sys.stderr)
    return tally


def compare(pairs: list[Pair], path: Path) -> None:
    """A sheet of input, bicubic and SR of the first 64 faces that have a result, four faces a row."""
    faces = (decode(pair) for pair in pairs if os.path.isfile(pair[1]))
    shown = [(face.face, inference.read_result(face.output)) for face in islice(
        (face for face in faces if isinstance(face, Face)), COMPARED)]  # fmt: skip
    if not shown:
        return
    tiles = []
    for face, sr in shown:
        pictures = ((face, Image.Resampling.NEAREST), (face, Image.Resampling.BICUBIC), (sr, Image.Resampling.NEAREST))
        tiles += [np.asarray(image.resize((HR_SIZE, HR_SIZE), filter)) for image, filter in pictures]
    tiles = np.stack(tiles).repeat(2, axis=1).repeat(2, axis=2)  # twice the size, each pixel a square
    images = to_unit_range(torch.from_numpy(tiles).permute(0, 3, 1, 2))
    utils.save_sheet(path, {"input, bicubic, SR | input, bicubic, SR | ...": images}, columns=12)
    print(f"input, bicubic and SR side by side: {path}")


# --- the script --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = inference.build_parser(__doc__, "LR", "low-resolution faces", "input, bicubic, SR")
    if "--photos" in (sys.argv[1:] if argv is None else argv):
        parser.error("photographs have a script of their own: python photos.py --input PHOTOGRAPHS")
    options = parser.parse_args(argv)
    given = inference.expand(options.input)
    pairs, folder = inference.plan(given, options)
    resolver = inference.open_resolver(parser, options)
    waiting = inference.leave_out_existing(pairs, folder, options)

    began = time.perf_counter()
    with utils.explain_out_of_memory(options.batch_size, "lower --batch-size, or use --device cpu"):
        tally = super_resolve(waiting, resolver, options)
    seconds = time.perf_counter() - began
    if not tally.written and not tally.unwritten and len(waiting) == len(pairs):
        places, skipped = ", ".join(map(str, given)), plural(tally.skipped, "file")
        raise utils.UserError(f"no usable image in {places} ({skipped} skipped): put face images into it")
    if options.compare:
        compare(pairs, folder / "compare.png")
    print(
        f"{plural(tally.written, 'image')} super-resolved to {options.output}, {tally.skipped} skipped; "
        f"{tally.written / seconds:.1f} images/s"
    )
    tally.check()


if __name__ == "__main__":
    utils.run_script(main)
