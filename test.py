"""Super-resolve faces: every image in LR/, reduced to 16x16 px if it is larger, becomes a 64x64 PNG in Results/.

python test.py
python test.py --input my_faces --output my_results --compare --self-ensemble
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import utils
from Datasets.images import ImageError, load_image, prepare_lr, walk_files
from models import HR_SIZE, LR_SIZE
from utils import to_bytes, to_unit_range

COMPARED = 64  # faces on the --compare sheet
LARGE = 2 * LR_SIZE  # px; reducing a larger input than this throws much of it away


def build_parser() -> utils.Parser:
    parser = utils.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.option("input", "LR", "folder of low-resolution faces, with its sub-folders, or one image", metavar="PATH")
    parser.option("output", "Results", "folder of the results", metavar="DIR")
    parser.option("weights", "", "an sr.pth; empty: Trained_Models/sr.pth, or else the shipped weights/sr.pth")
    parser.option("batch-size", 64, "faces in a batch; the results do not depend on it")
    parser.option("device", "auto", "auto: the GPU if there is one", choices=("auto", "cuda", "cpu"))
    parser.option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out inputs whose result is there: to go on after a stop"
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="less grain, half as fast: the mean of the SR of a face and of its mirror image",
    )
    parser.add_argument("--compare", action="store_true", help="also write compare.png: input, bicubic, SR of the first 64")
    return parser


def output_names(names: list[str], reserved: set[str] = frozenset()) -> list[str]:
    """The PNG name of each input: its own, with the extension replaced; where that is taken, with the extension kept.

    names: relative paths, "/" between folders. Two names that differ in case alone count as equal, as on Windows and macOS.
    The same inputs get the same names at every run, in whatever order they come.
    """
    stems = {name: str(PurePath(name).with_suffix(".png")) for name in names}
    wanted = Counter(stem.lower() for stem in stems.values())
    # A file cannot have the name of a folder
    taken = {name.lower() for name in reserved} | {str(up).lower() for name in names for up in PurePath(name).parents}
    result = {}
    # A name that no other input wants is never given away: those come first
    for name in sorted(names, key=lambda name: (wanted[stems[name].lower()] > 1, name)):
        output, number = stems[name], 1
        if wanted[output.lower()] > 1 or output.lower() in taken:
            output = f"{name}.png"
        while output.lower() in taken:
            number += 1
            output = f"{name}.{number}.png"
        taken.add(output.lower())
        result[name] = output
    return [result[name] for name in names]


def super_resolve(extractor: torch.nn.Module, decoder: torch.nn.Module, faces: Tensor, ensemble: bool = False) -> Tensor:
    """uint8 [N, 3, 16, 16] -> S(E(x)), uint8 [N, 3, 64, 64], in the networks' dtype; ensemble: by utils.self_ensemble."""
    dtype = next(extractor.parameters()).dtype

    def upscale(faces: Tensor) -> Tensor:
        return decoder(extractor(to_unit_range(faces).to(dtype, memory_format=torch.channels_last)))

    with torch.inference_mode():
        return to_bytes(utils.self_ensemble(upscale, faces)[1] if ensemble else upscale(faces))


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: must be at least 1")
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    extractor, decoder = utils.load_super_resolution(utils.find_weights(options.weights, "sr"), device, dtype)
    print(f"computing on {device.type} in {str(dtype)[6:]}", flush=True)

    source, target = Path(options.input), Path(options.output)
    if not source.exists():
        raise utils.UserError(f"--input {source} does not exist: make the folder and put low-resolution faces into it")
    folder = source.parent if source.is_file() else source
    files = [source] if source.is_file() else walk_files(source, without=target)
    names = [file.relative_to(folder).as_posix() for file in files]
    outputs = [target / name for name in output_names(names, {"compare.png"} if options.compare else frozenset())]

    overwritten = {str(file.resolve()) for file in files} & {str(output.resolve()) for output in outputs}
    if overwritten or target.resolve() == source.resolve():
        raise utils.UserError(
            f"--output {target} would mix the results with the inputs"
            + (f" and overwrite {min(overwritten)}" if overwritten else "")
            + ": choose another folder"
        )

    waiting = [pair for pair in zip(files, outputs) if not (options.skip_existing and pair[1].exists())]
    existing = len(files) - len(waiting)
    if options.skip_existing:
        print(f"--skip-existing: {existing} results are there already, made with whatever options they were")

    skipped: list[str] = []
    large: list[str] = []
    oblong: list[str] = []
    count = 0
    began = time.perf_counter()

    def decode(file: Path) -> tuple[Image.Image, tuple[int, int]] | ImageError:
        try:
            image = load_image(file)
        except ImageError as error:
            return error
        return prepare_lr(image), image.size

    def save(image: np.ndarray, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise utils.UserError(f"cannot make the folder {path.parent} ({error}): choose another --output") from error
        utils.write_whole(path, lambda temporary: Image.fromarray(image).save(temporary, "PNG", compress_level=1), flush=False)

    def decoded_batches(pool: ThreadPoolExecutor) -> Iterator[list[tuple[Image.Image, Path]]]:
        """Batches of decodable inputs; the next batch is decoded while one is computed, and no more files are held."""
        queue = iter(waiting)
        batch: list[tuple[Image.Image, Path]] = []

        def start() -> tuple[list[tuple[Path, Path]], Iterator]:
            chunk = list(islice(queue, options.batch_size))
            return chunk, pool.map(decode, [file for file, _ in chunk])

        chunk, results = start()
        while chunk:
            following = start()
            for (file, output), result in zip(chunk, results):
                if isinstance(result, ImageError):
                    skipped.append(f"{file} {result}")
                    print(f"skipped: {file} {result}", file=sys.stderr)
                    continue
                face, size = result
                if min(size) > LARGE:
                    large.append(str(file))
                if max(size) > 2 * min(size):
                    oblong.append(str(file))
                batch.append((face, output))
                if len(batch) == options.batch_size:
                    yield batch
                    batch = []
            chunk, results = following
        if batch:
            yield batch

    remedy = "lower --batch-size, or use --device cpu"
    with ThreadPoolExecutor(os.cpu_count()) as pool, utils.explain_out_of_memory(options.batch_size, remedy):
        saved: Iterator = iter(())  # of the batch before: written while this one is computed
        for batch in decoded_batches(pool):
            faces = torch.from_numpy(np.stack([np.asarray(face) for face, _ in batch])).permute(0, 3, 1, 2)
            results = super_resolve(extractor, decoder, faces.to(device), options.self_ensemble)
            results = results.permute(0, 2, 3, 1).cpu().numpy()
            count += len(list(saved))
            saved = pool.map(save, results, [output for _, output in batch])
        count += len(list(saved))
    seconds = time.perf_counter() - began

    if large:
        print(
            f"warning: {len(large)} inputs are much larger than {LR_SIZE} px, such as {large[0]}. The network takes "
            f"{LR_SIZE}x{LR_SIZE} faces: each was cropped to its central square and reduced to that, and its detail is lost",
            file=sys.stderr,
        )
    if oblong:
        print(
            f"warning: {len(oblong)} inputs are far from square, such as {oblong[0]}: only their central square was used",
            file=sys.stderr,
        )
    if not count and not existing:
        raise utils.UserError(f"no usable image in {source} ({len(skipped)} files skipped): put face images into it")
    if options.compare:
        faces = ((decode(file), output) for file, output in zip(files, outputs) if output.exists())
        pairs = ((face[0], read_result(output)) for face, output in faces if not isinstance(face, ImageError))
        save_comparison(list(islice(pairs, COMPARED)), target / "compare.png")
        print(f"input, bicubic and SR side by side: {target / 'compare.png'}")
    print(f"{count} images super-resolved to {target}, {len(skipped)} skipped; {count / seconds:.1f} images/s")


def read_result(path: Path) -> Image.Image:
    """A result of this or an earlier run; a UserError if another program left something else there."""
    try:
        return load_image(path)
    except ImageError as error:
        raise utils.UserError(f"{path} {error}: delete it, and run the same command again") from error


def save_comparison(compared: list[tuple[Image.Image, Image.Image]], path: Path) -> None:
    """A sheet with input, bicubic and SR of each face, four faces a row, all at twice the size without smoothing."""
    tiles = []
    for face, sr in compared:
        pictures = ((face, Image.Resampling.NEAREST), (face, Image.Resampling.BICUBIC), (sr, Image.Resampling.NEAREST))
        tiles += [np.asarray(image.resize((HR_SIZE, HR_SIZE), filter)) for image, filter in pictures]
    tiles = np.stack(tiles).repeat(2, axis=1).repeat(2, axis=2)
    images = to_unit_range(torch.from_numpy(tiles).permute(0, 3, 1, 2))
    utils.save_sheet(path, {"input, bicubic, SR | input, bicubic, SR | ...": images}, columns=12)


if __name__ == "__main__":
    utils.run_script(main)
