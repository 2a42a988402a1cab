"""The lists of faces: one path a line, or a table as pandas writes it with one column of paths."""

import csv
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils import UserError, plural

REMEDY = "make the lists with Datasets/make_csv.py, or name their folder with --data"
SEPARATORS = ",;\t"
SAMPLE = 100  # so many rows, spread over a list, mostly tell which column has the paths


def read_list(path: Path) -> pd.Series:
    """Read a list, as paths or as a table; index: the line's number, value: the file's full path.

    One path a line, or a table with one column of paths.

    UTF-8 with or without a byte order mark; names may hold commas, and quotes if they are quoted as in CSV; blank lines do
    not count. Relative paths start at the list's own folder, and ~ is the home folder. In a table, with commas, semicolons
    or tabs, the column is taken that names existing files. The first line is a header if it names no file and does not end
    as pictures do.
    Raises UserError for a list that is missing, empty, not text, or a table without exactly one column of paths.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = {number: fields[0] for number, fields in _parse(text, "\x1f")}  # a separator that no line of text has
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {REMEDY}") from error
    except (ValueError, csv.Error, OSError) as error:
        raise UserError(f"{path} is not a readable UTF-8 list ({error}): {REMEDY}") from error
    separator, column = _find_column(list(rows.values()), text, folder, path)
    if separator:
        rows = {}
        for number, fields in _parse(text, separator):
            if column >= len(fields) or not fields[column].strip():
                raise UserError(f"{path}, row {number}: has no path in column {column + 1}; remove or complete it")
            rows[number] = fields[column]
    found = pd.Series(rows, dtype=str)
    if len(found) and _is_header(found.iloc[:10], folder):
        found = found.iloc[1:]
    if found.empty:
        raise UserError(f"{path} is empty: {REMEDY}")
    return found.map(lambda row: full_path(row, folder))


def full_path(row: str, folder: str) -> str:
    """The path that a row of a list in `folder` means.

    As it stands if there is such a file. Otherwise blanks around it do not count, ~ is the home folder, and backslashes, as
    Windows writes them, separate folders.
    """
    if sys.getfilesystemencoding() != "utf-8" and not row.isascii():  # under LC_ALL=C
        row = os.fsdecode(row.encode())
    path = os.path.join(folder, row)
    if row.strip() == row and not row.startswith("~") and "\\" not in row or os.path.isfile(path):
        return path
    path = os.path.join(folder, os.path.expanduser(row.strip()))
    if "\\" in row and not os.path.isfile(path):
        converted = os.path.join(folder, row.strip().replace("\\", "/"))
        return converted if os.path.isfile(converted) else path
    return path


def write_list(images: Iterable[str], path: Path) -> None:
    """Write one path a line under a header, relative to the list's folder for files below it."""
    folder = os.path.abspath(path.parent)
    rows = [os.path.relpath(image, folder) if image.startswith(folder + os.sep) else image for image in images]
    rows = [os.fsencode(row).decode() for row in rows]  # UTF-8, also under LC_ALL=C
    pd.DataFrame({"path": rows}).to_csv(path, index=False, encoding="utf-8")
    print(f"{path}: {plural(len(rows), 'image')}")


# --- reading -----------------------------------------------------------------------------------------------------


def _parse(text: str, separator: str) -> Iterable[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return ((reader.line_num, fields) for fields in reader if any(map(str.strip, fields)))


def _find_column(rows: list[str], text: str, folder: str, path: Path) -> tuple[str, int]:
    """The separator and the column that has the paths; ("", 0) if each whole line is a path.

    A list is taken for a table if most of its lines have a separator and no line names a file as a whole.
    """
    sample = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, SAMPLE).round().astype(int))] if rows else []
    separators = [separator for separator in SEPARATORS if sum(separator in row for row in sample) > len(sample) / 2]
    if not separators or _name_files(sample, folder):
        return "", 0
    found = _find_columns(text, separators, lambda column: column[:: len(column) // SAMPLE + 1], folder)
    if not found:  # few files of a long list may be there
        if _name_files(rows, folder):
            return "", 0
        found = _find_columns(text, separators, list, folder)
    if len(found) == 1:
        return found[0]
    shown = "\n".join(f"  {row}" for row in text.splitlines()[:3])
    what = f"{len(found)} of its columns name files" if found else f"no column of it names files, seen from {folder}"
    raise UserError(
        f"{path} looks like a table, and {what}. Its rows are\n{shown}\nExpected is one path a line, or a table with one "
        f"column of paths, relative to the list's folder or absolute: {REMEDY}"
    )


def _find_columns(text: str, separators: list[str], choose: Callable, folder: str) -> list[tuple[str, int]]:
    """All (separator, column) of a table in which a row that `choose` takes names a file."""
    found = []
    for separator in separators:
        columns = itertools.zip_longest(*(fields for _, fields in _parse(text, separator)), fillvalue="")
        found += [(separator, number) for number, column in enumerate(columns) if _name_files(choose(column), folder)]
    return found


def _name_files(texts: Iterable[str], folder: str) -> bool:
    """Whether any of the texts is the path of a file."""
    return any(os.path.isfile(full_path(text, folder)) for text in texts if text.strip())


def _is_header(rows: pd.Series, folder: str) -> bool:
    """Whether the first row is a header: no file, and its ending is not that of pictures here."""
    first, *others = (os.path.splitext(row.strip())[1].lower() for row in rows)
    picture = first in Image.registered_extensions() or first in (".heic", ".heif") or (first and first in others)
    return not picture and not os.path.isfile(full_path(rows.iloc[0], folder))
