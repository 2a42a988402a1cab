"""Faces from and to folders: labelled test faces, inputs for other programs, and the pictures that these made of them."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

import utils
from Datasets.images import ImageError, load_image, prepare_hr, prepare_lr
from Datasets.lists import read_list
from models import HR_SIZE

LABELS = ("age", "gender", "race")
AGES = [0, 3, 10, 20, 40, 60, 200]  # years, the bands' lower ends


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
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    return utils.output_names([Path(os.path.relpath(file, folder)).as_posix() for file in files])


def kind_folder(kind: str) -> str:
    """The sub-folder of a kind of input: "z 1" -> "z_1"."""
    return kind.replace(" ", "_")


def write_inputs(folder: Path, inputs: dict[str, tuple[list[str], Tensor]]) -> None:
    """Write inputs as PNG: kind -> (names, uint8 [N, 3, 16, 16]) -> folder/KIND/NAME."""
    for kind, (names, faces) in inputs.items():
        for name, face in zip(names, faces.permute(0, 2, 3, 1).contiguous().numpy()):
            path = folder / kind_folder(kind) / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise utils.UserError(f"cannot make the folder {path.parent} ({error}): name another --write-inputs") from error
            image = Image.fromarray(face)
            utils.write_atomic(path, lambda temporary, image=image: image.save(temporary, "PNG"), flush=False)


def read_results(folder: Path, kinds: dict[str, list[str]]) -> dict[str, Tensor]:
    """SR pictures of any program: kind -> names as in list_names -> kind -> uint8 [N, 3, 64, 64].

    A kind without a folder is left out. The extension is free. Raises UserError, naming the file, for a
    picture that is missing, does not decode, or is not 64x64 px.
    """
    found: dict[str, Tensor] = {}
    for kind, names in kinds.items():
        place = folder / kind_folder(kind)
        if place.is_dir():
            with ThreadPoolExecutor(utils.thread_count()) as pool:
                pictures = list(pool.map(read_result, [place / name for name in names]))
            found[kind] = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    if not found:
        expected = ", ".join(map(kind_folder, kinds))
        raise utils.UserError(f"--results {folder} has none of the folders {expected}: --write-inputs shows what belongs there")
    return found


def read_result(path: Path) -> np.ndarray:
    """One SR picture [64, 64, 3], under its name or with another extension."""
    if not path.exists():
        stem = str(path).removesuffix(".png")
        others: Iterable[Path] = (Path(stem + end) for end in (".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"))
        others = [other for other in others if other.exists()]
        if not others:
            raise utils.UserError(f"--results: {path} is missing")
        path = others[0]
    try:
        image = load_image(path)
    except ImageError as error:
        raise utils.UserError(f"--results: {path} {error}") from error
    if image.size != (HR_SIZE, HR_SIZE):
        raise utils.UserError(f"--results: {path} has {image.width}x{image.height} px, not {HR_SIZE}x{HR_SIZE}")
    return np.asarray(image)


def read_groups(path: Path) -> tuple[Tensor, Tensor, pd.DataFrame, list[str]]:
    """Labelled test faces: y, uint8 [N, 3, 64, 64]; x_c, uint8 [N, 3, 16, 16]; a column of labels each; names.

    path: a CSV with the column path and any of age (years), gender and race. The faces are framed already:
    the centre square, reduced to 64 px. Raises UserError, naming the row, for what cannot be used.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise utils.UserError(f"--groups {path} cannot be read ({error})") from error
    labels = [label for label in LABELS if label in table]
    if "path" not in table or not labels or len(table) < 2:
        raise utils.UserError(f"--groups {path}: expected the columns path and any of {', '.join(LABELS)}, and at least 2 rows")

    def decode(row: int) -> np.ndarray:
        try:
            image = load_image(Path(path).parent / table["path"][row])
        except (ImageError, OSError) as error:
            raise utils.UserError(f"--groups {path}, row {row + 2}: {table['path'][row]} {error}") from error
        return np.asarray(prepare_hr(image, HR_SIZE, HR_SIZE))

    with ThreadPoolExecutor(utils.thread_count()) as pool:
        faces = list(pool.map(decode, range(len(table))))
    small = [np.asarray(prepare_lr(Image.fromarray(face))) for face in faces]
    y, clean = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) for images in (faces, small))
    names = relative_names([os.path.abspath(Path(path).parent / file) for file in table["path"]])
    return y, clean, group_labels(table[labels], path), names


def group_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The labels with ages in bands, such as "20-39"."""
    table = table.copy()
    if "age" in table:
        ages = pd.to_numeric(table["age"], errors="coerce")
        if ages.isna().any():
            row = int(ages.isna().to_numpy().nonzero()[0][0])
            raise utils.UserError(f"--groups {path}, row {row + 2}: the age {table['age'][row]!r} is not a number")
        names = [f"{low}-{high - 1}" for low, high in zip(AGES, AGES[1:-1])] + [f"{AGES[-2]} and over"]
        table["age"] = pd.cut(ages, AGES, right=False, labels=names)
    return table
