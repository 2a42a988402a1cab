"""The lists of faces: one path a line."""

import os
from pathlib import Path

import pandas as pd

from utils import UserError


def read_list(path: Path) -> pd.Series:
    """Read a list: one path a line, with or without a header; index: the line's number, value: the file's full path.

    UTF-8 with or without a byte order mark; a name may hold commas, and quotes if it is quoted as in CSV; blank lines do
    not count. Relative paths start at the list's own folder. The first line is a header if it has no file extension
    and no such file exists. Raises UserError for a list that is missing, empty or not text.
    """
    path = Path(path)
    remedy = "make the lists with Datasets/make_csv.py, or name their folder with --data"
    try:
        # A separator that cannot occur in a line of text: the whole line is one column
        rows = pd.read_csv(
            path, sep="\x1f", header=None, names=["path"], usecols=[0], dtype=str, encoding="utf-8-sig",
            na_filter=False, skip_blank_lines=False,
        )["path"].str.strip()  # fmt: skip
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {remedy}") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty: {remedy}") from error
    except (UnicodeDecodeError, pd.errors.ParserError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable UTF-8 list ({error}): {remedy}") from error
    rows.index += 1
    rows = rows[rows != ""]
    folder = os.path.abspath(path.parent)
    if len(rows) and not os.path.splitext(rows.iloc[0])[1]:
        if "\0" in rows.iloc[0] or not os.path.exists(os.path.join(folder, rows.iloc[0])):
            rows = rows.iloc[1:]
    if rows.empty:
        raise UserError(f"{path} is empty: {remedy}")
    return rows.map(lambda row: os.path.join(folder, row))
