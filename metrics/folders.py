"""Inputs for other programs, as folders of pictures, and the pictures that these made of them."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

import utils
from Datasets.images import ImageError, load_image
from Datasets.lists import read_list
from metrics.inputs import to_images
from models import HR_SIZE

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MARK = '{"inputs of": "evaluate.py"'  # how a record begins
THUMBNAIL = 4  # px, the side of the grey pictures by which a record knows its inputs
TOLERANCE = 2.0  # of 255, root mean square: rounding differs between devices by less, other noise by more


def list_names(path: Path, length: int) -> list[str]:
    """The name of each face of a list, as --write-inputs writes it and --results expects it: relative, ending in .png.

    length: how many faces the list has. Raises UserError if some of its files are damaged.
    """
    files = [os.path.abspath(file) for file in read_list(path)]
    if len(files) != length:
        raise utils.UserError(f"{path} lists files that cannot be used: remove their rows, so that its faces have names")
    return relative_names(files)


def relative_names(files: list[str]) -> list[str]:
    """Names ending in .png, relative to the deepest folder that holds all the files."""
    names = utils.relative_names(files, [os.path.dirname(file) for file in files])
    # A file that is listed again is another face, whose degradations differ
    again = pd.Series(names).groupby(names).cumcount()
    return utils.output_names([f"again {number}/{name}" if number else name for number, name in zip(again, names)])


def kind_folder(kind: str) -> str:
    """The sub-folder of a kind of input: "z 1" -> "z_1"."""
    return kind.replace(" ", "_")


# --- inputs ------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path, inputs: dict[str, tuple[list[str], Tensor]], options: dict) -> None:
    """Write inputs as PNG: kind -> (names, uint8 [N, 3, 16, 16]) -> FOLDER/KIND/NAME, and their record, FOLDER.json.

    options: that the inputs depend on, for the record. Raises UserError for a folder that is not empty.
    """
    utils.make_folder(folder, "--write-inputs")
    if any(folder.iterdir()):
        raise utils.UserError(f"--write-inputs {folder} is not empty: what is there would lie among the inputs; name a new one")
    if record_of(folder).exists() and not is_record(record_of(folder)):
        raise utils.UserError(f"--write-inputs {folder}: its record would replace {record_of(folder)}; name another folder")
    record_of(folder).unlink(missing_ok=True)
    for kind, (names, faces) in inputs.items():
        paths = [folder / kind_folder(kind) / name for name in names]
        for parent in {path.parent for path in paths}:
            utils.make_folder(parent, "--write-inputs")
        for path, image in zip(paths, to_images(faces)):
            utils.write_atomic(path, lambda temporary, image=image: image.save(temporary, "PNG"), flush=False)
    kinds = {kind: dict(zip(names, map(bytes.hex, map(bytes, thumbnails(faces))))) for kind, (names, faces) in inputs.items()}
    text = f'{MARK}, "options": {json.dumps(options)}, "kinds": {json.dumps(kinds)}}}\n'
    utils.write_atomic(record_of(folder), lambda temporary: temporary.write_text(text, "utf-8"))


def record_of(folder: Path) -> Path:
    """The record beside a folder of inputs, or of results: FOLDER.json."""
    return Path(f"{os.path.abspath(folder)}.json")


def thumbnails(faces: Tensor) -> np.ndarray:
    """uint8 [N, 3, 16, 16] -> grey, uint8 [N, 16]."""
    grey = functional.avg_pool2d(faces.float().mean(dim=1), faces.shape[-1] // THUMBNAIL)
    return grey.round().to(torch.uint8).flatten(1).numpy()


# --- results -----------------------------------------------------------------------------------------------------


def read_results(folder: Path, inputs: dict[str, tuple[list[str], Tensor]], options: dict) -> dict[str, Tensor]:
    """SR pictures of any program: kind -> (names, uint8 [N, 3, 16, 16]), as in write_inputs -> kind -> uint8 [N, 3, 64, 64].

    A kind without a folder is left out, and printed. The extension is free. options: as in write_inputs. Raises UserError,
    naming the file, for a picture that is missing, does not decode, or is not 64x64 px, and for results of other inputs.
    """
    kinds = [kind for kind in inputs if (folder / kind_folder(kind)).is_dir()]
    missing = ", ".join(kind_folder(kind) for kind in inputs if kind not in kinds)
    if not kinds:
        raise utils.UserError(f"--results {folder} has none of the folders {missing}: --write-inputs shows what belongs there")
    if missing:
        print(f"--results {folder} has no folder {missing}: what is measured on these is left out of its row, as -")
    check_inputs(folder, {kind: inputs[kind] for kind in kinds}, options)
    found = {}
    for kind in kinds:
        with ThreadPoolExecutor(utils.thread_count()) as pool:
            pictures = list(pool.map(read_result, [folder / kind_folder(kind) / name for name in inputs[kind][0]]))
        found[kind] = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return found


def read_result(path: Path) -> np.ndarray:
    """One SR picture [64, 64, 3], under its name or with another extension."""
    found = next((other for end in EXTENSIONS if (other := path.with_suffix(end)).exists()), None)
    if found is None:
        raise utils.UserError(f"--results: {path} is missing")
    try:
        image = load_image(found)
    except ImageError as error:
        raise utils.UserError(f"--results: {found} {error}") from error
    if image.size != (HR_SIZE, HR_SIZE):
        raise utils.UserError(f"--results: {found} has {image.width}x{image.height} px, not {HR_SIZE}x{HR_SIZE}")
    return np.asarray(image)


def check_inputs(folder: Path, inputs: dict[str, tuple[list[str], Tensor]], options: dict) -> None:
    """Compare these inputs with those that results were made of, by the record beside the results or beside them.

    FOLDER.json says it; else every record in the folder that FOLDER lies in, such as inputs.json, must agree. Without any it
    is printed that nothing was checked. Raises UserError, with the options that differ, for other inputs.
    """
    own = record_of(folder)
    records = [own] if is_record(own) else [path for path in sorted(own.parent.glob("*.json")) if is_record(path)]
    if not records:
        print(f"--results {folder}: no record beside it says of which inputs it was made; copy that of --write-inputs to {own}")
    for path in records:
        try:
            record = json.loads(path.read_text("utf-8"))
            other = next((kind for kind in inputs if differ(record["kinds"].get(kind), *inputs[kind])), None)
        except (ValueError, KeyError, TypeError) as error:
            raise utils.UserError(f"--results {folder}: {path} is damaged ({error}): write the inputs anew") from error
        if other is not None:
            then = ", ".join(f"{name} {value}" for name, value in record["options"].items() if options.get(name) != value)
            raise utils.UserError(
                f"--results {folder}: by {path}, its inputs were others ({other}): {then or 'other faces'}. Give the same "
                f"options, or make the results anew; if they were made of other inputs than these, copy their record to {own}"
            )


def is_record(path: Path) -> bool:
    """Whether a file is a record of --write-inputs."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(len(MARK)) == MARK.encode()


def differ(recorded: dict[str, str] | None, names: list[str], faces: Tensor) -> bool:
    """Whether faces, uint8 [N, 3, 16, 16], are other ones than those that were recorded under their names."""
    if recorded is None or not {*names} <= {*recorded}:
        return True
    then = np.stack([np.frombuffer(bytes.fromhex(recorded[name]), np.uint8) for name in names]).astype(float)
    return bool((np.square(then - thumbnails(faces)).mean(axis=1) > TOLERANCE**2).any())
