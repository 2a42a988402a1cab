"""What test.py and photos.py share: their options, which pictures they are given, and where the results go."""

import argparse
import errno
import glob
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

import utils
from Datasets.images import ImageError, Notes, load_image, walk_files
from utils import SuperResolver, plural

HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # where one result cannot be written for these, none can
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # extensions that no folder is meant by

Pair = tuple[Path, Path]  # an input and its result


@dataclass
class Tally:
    """What became of the inputs, which is said on the way and in the end."""

    written: int = 0
    skipped: int = 0  # not usable as input
    unwritten: list[str] = field(default_factory=list)  # why a result could not be written
    notes: Notes = field(default_factory=Notes)

    def skip(self, path: Path, error: ImageError) -> None:
        """Count an input that cannot be used."""
        self.skipped += 1
        tqdm.write(f"skipped: {path} {error}", file=sys.stderr)

    def count(self, reason: str | None) -> None:
        """Count a result, or with a reason one that could not be written."""
        if reason is None:
            self.written += 1
        else:
            self.unwritten.append(reason)
            tqdm.write(f"skipped: {reason}", file=sys.stderr)

    def warn(self) -> None:
        """Say what the user should know about inputs, each thing once."""
        for warning in self.notes.lines():
            print(warning, file=sys.stderr)

    def check(self) -> None:
        """Raise UserError if there are results that could not be written."""
        if self.unwritten:
            raise utils.UserError(f"{plural(len(self.unwritten), 'result')} could not be written, such as {self.unwritten[0]}")


def build_parser(description: str, folder: str, noun: str, compared: str) -> utils.Parser:
    """The options of both scripts; noun: what they take, compared: what the --compare sheet shows."""
    parser = utils.Parser(description)
    option, switch = parser.option, parser.switch
    text = f"{noun}: folders, with their sub-folders, pictures and quoted patterns (*.png)"
    option("input", [folder], text, nargs="+", metavar="PATH")
    option("output", "Results", "folder of the results; for one picture, also the name of a PNG file")
    option("weights", "", "an sr.pth; empty: Trained_Models/sr.pth, or else the shipped weights/sr.pth")
    option("batch-size", 64, "faces in a batch; the results do not depend on it")
    option("device", "auto", "auto: the GPU if there is one", metavar="{auto,cuda,cpu}")
    option("precision", "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16"))
    switch("skip-existing", "leave out inputs that have a result already: to resume after a stop")
    switch("self-ensemble", "less grain, half as fast: the mean of the SR of a face and of its mirror image")
    switch("compare", f"also write compare.png: {compared} of the first 64 faces")
    return parser


def open_resolver(parser: utils.Parser, options: argparse.Namespace) -> SuperResolver:
    """The network that the options name, which is said. Raises UserError if it cannot be used."""
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: must be at least 1")
    device = utils.choose_device(options.device)
    dtype = utils.choose_precision(options.precision, device)
    resolver = SuperResolver(utils.find_weights(options.weights, "sr"), device, dtype)
    print(f"{utils.describe(resolver.path, resolver.content)}\ncomputing on {device.type} in {str(dtype)[6:]}", flush=True)
    return resolver


def expand(given: list[str]) -> list[Path]:
    """The folders and files that are there; a pattern stands for what it matches.

    Raises UserError for a name that is not there and for a pattern without a match.
    """
    found: list[Path] = []
    for text in given:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            what = "matches nothing" if glob.has_magic(text) else "does not exist"
            raise utils.UserError(f"--input {text} {what}: name folders or pictures that are there")
        found += map(Path, matches)
    return found


def find_inputs(given: list[Path], without: Path) -> dict[Path, str]:
    """Every input file, once -> its relative name, "/" between folders, which its result gets.

    The name starts at the folder, if one folder is given, and else at the deepest folder that holds all that is given.
    without: the folder of the results, which are no inputs.
    """
    folders = given if len(given) == 1 and given[0].is_dir() else [path.parent for path in given]
    files = [file for path in given for file in (walk_files(path, without=without) if path.is_dir() else [path])]
    once = {os.path.abspath(file): file for file in files}
    names = utils.relative_names(list(once), [os.path.abspath(folder) for folder in folders])
    return dict(zip(once.values(), names))


def plan(given: list[Path], options: argparse.Namespace) -> tuple[list[Pair], Path]:
    """Every input with the path of its result, and the folder of the results.

    Raises UserError if --output names one picture and cannot be that, or if it is the inputs' own folder.
    """
    files = find_inputs(given, without=Path(options.output))
    target = Path(options.output)
    if target.suffix.lower() in PICTURES and not os.path.isdir(target):
        if len(given) > 1 or given[0].is_dir():
            raise utils.UserError(f"--output {target} names one picture, and --input is not one: name a folder")
        if target.suffix.lower() != ".png":
            name = target.with_suffix(".png")
            raise utils.UserError(f"--output {target}: results are PNG files; name it {name}, or a folder")
        outputs, folder = [target], target.parent
    else:
        reserved = {"compare.png"} if options.compare else frozenset()
        outputs, folder = [target / name for name in utils.output_names(list(files.values()), reserved)], target
        if folder.resolve() in {path.resolve() for path in given}:
            raise utils.UserError(f"--output {folder} would mix the results with the inputs: choose another folder")
    check_overwriting(files, outputs)
    return list(zip(files, outputs)), folder


def check_overwriting(files: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Raise UserError if a result would replace an input."""
    overwritten = {str(file.resolve()) for file in files} & {str(output.resolve()) for output in outputs}
    if overwritten:
        why = f"would mix the results with the inputs and overwrite {min(overwritten)}"
        raise utils.UserError(f"--output {why}: choose another folder")


def leave_out_existing(pairs: list[Pair], folder: Path, options: argparse.Namespace) -> list[Pair]:
    """What --skip-existing, if given, leaves to do; the folder of the results is made where there is something to do.

    Raises UserError if it cannot be written to: before the first face, not after the last.
    """
    waiting = [pair for pair in pairs if not (options.skip_existing and os.path.isfile(pair[1]))]
    if options.skip_existing:
        existing = plural(len(pairs) - len(waiting), "result")
        print(f"--skip-existing: {existing} already there, made with whatever options they were")
    if waiting:
        utils.make_folder(folder, "--output")
    return waiting


def write(image: Image.Image, path: Path) -> str | None:
    """Write a result as PNG; returns why it cannot be written, or None.

    Raises UserError for a reason that no other result can escape, such as a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        utils.write_atomic(path, lambda temporary: image.save(temporary, "PNG", compress_level=1), flush=False)
    except (OSError, utils.UserError) as error:
        cause = error.__cause__ if isinstance(error, utils.UserError) else error
        if getattr(cause, "errno", None) in HOPELESS:
            remedy = "choose another --output, or free space and resume with --skip-existing"
            raise utils.UserError(f"cannot write {path} ({cause}): {remedy}") from error
        return f"{path} cannot be written ({cause})"
    return None


def read_result(path: Path) -> Image.Image:
    """A result of this or an earlier run. Raises UserError if another program left something else there."""
    try:
        return load_image(path)
    except ImageError as error:
        raise utils.UserError(f"{path} {error}: delete it, and run the same command again") from error
