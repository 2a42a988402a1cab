"""The lists of faces: one path a line, or a table as pandas writes it with one column of paths."""

import csv
import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from Datasets import formats
from utils import UserError, plural

REMEDY = "make the lists with Datasets/make_csv.py, or name their folder with --data"
SEPARATORS = ",;\t"
SAMPLE = 100  # so many rows, spread over a list, tell which column has the paths


def read_list(path: Path) -> pd.Series:
    """Read a list, as paths or as a table; index: the line's number, value: the file's full path.

    One path a line, or a table with one column of paths.

    UTF-8 with or without a byte order mark; names may hold commas, and quotes if they are quoted
    as in CSV; blank lines do not count. Relative paths start at the list's own folder, and ~ is
    the home folder. In a table, with commas, semicolons or tabs, the column is taken that names
    existing files. The first line is a header if it names no file and does not end as pictures do.
    Raises UserError for a list that is missing, empty, not text, or a table without exactly one
    column of paths.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    rows = _read_rows(path)
    separator, column = _find_column(rows, folder, path)
    if separator:
        rows = _read_column(path, separator, column)
    rows = rows[rows.str.strip() != ""]
    if len(rows) and _is_header(rows.iloc[:10], folder):
        rows = rows.iloc[1:]
    if rows.empty:
        raise UserError(f"{path} is empty: {REMEDY}")
    return rows.map(lambda row: full_path(row, folder))


def full_path(row: str, folder: str) -> str:
    """The path that a row of a list in `folder` means.

    As it stands if there is such a file. Otherwise blanks around it do not count, ~ is the home
    folder, and backslashes, as Windows writes them, separate folders.
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


def _read_rows(path: Path) -> pd.Series:
    """Each line of a list as one text, under its number; UserError for a file that is no text."""
    try:
        # A separator that cannot occur in a line of text: the whole line is one column
        rows = pd.read_csv(
            path, sep="\x1f", header=None, names=["path"], usecols=[0], dtype=str, encoding="utf-8-sig",
            na_filter=False, skip_blank_lines=False,
        )["path"]  # fmt: skip
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {REMEDY}") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty: {REMEDY}") from error
    except (UnicodeDecodeError, pd.errors.ParserError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable UTF-8 list ({error}): {REMEDY}") from error
    rows.index += 1
    return rows


def _find_column(rows: pd.Series, folder: str, path: Path) -> tuple[str, int]:
    """The separator and the column that has the paths; ("", 0) if each whole line is a path.

    A list is taken for a table if most of its lines have a separator and none of those looked at
    names a file as a whole.
    """
    rows = rows[rows.str.strip() != ""]
    sample = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).round().astype(int))] if len(rows) else rows

    def name_files(texts: Iterable[str]) -> bool:
        return any(os.path.isfile(full_path(text, folder)) for text in texts if text.strip())

    separators = [separator for separator in SEPARATORS if sample.str.contains(separator, regex=False).mean() > 0.5]
    if not separators or name_files(sample):
        return "", 0
    with open(path, newline="", encoding="utf-8-sig") as stream:  # the lines once more, now with their quotes
        lines = [line for line in stream if line.strip()]
    found = []
    for separator in separators:
        table = [next(csv.reader([line], delimiter=separator)) for line in lines[:: len(lines) // SAMPLE + 1]]
        columns = itertools.zip_longest(*table, fillvalue="")
        found += [(separator, number) for number, column in enumerate(columns) if name_files(column)]
    if len(found) == 1:
        return found[0]
    shown = "\n".join(f"  {line.rstrip()}" for line in lines[:3])
    what = f"{len(found)} of its columns name files" if found else f"no column of it names files, seen from {folder}"
    raise UserError(
        f"{path} looks like a table, and {what}. Its rows are\n{shown}\nExpected is one path a line, or a table with one "
        f"column of paths, relative to the list's folder or absolute: {REMEDY}"
    )


def _read_column(path: Path, separator: str, column: int) -> pd.Series:
    """One column of a table, under the lines' numbers; UserError for a row without a path."""
    texts = {}
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, delimiter=separator)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if column >= len(fields) or not fields[column].strip():
                raise UserError(f"{path}, row {reader.line_num}: has no path in column {column + 1}; remove or complete it")
            texts[reader.line_num] = fields[column]
    return pd.Series(texts, dtype=str)


def _is_header(rows: pd.Series, folder: str) -> bool:
    """Whether the first row is a header: no file, and its ending is not that of pictures here."""
    first, *others = (os.path.splitext(row.strip())[1].lower() for row in rows)
    picture = first in Image.registered_extensions() or first in formats.PLUGIN_EXTENSIONS or (first and first in others)
    return not picture and not os.path.isfile(full_path(rows.iloc[0], folder))
