"""The labelled faces of --groups: any table of paths and labels."""

import csv
import re
from pathlib import Path

import pandas as pd
from torch import Tensor

import utils
from Datasets.faces import prepare_faces
from Datasets.lists import SEPARATORS
from metrics.folders import list_names
from models import HR_SIZE

BANDS = [0, 3, 10, 20, 40, 60, 200]  # years, the ages' lower ends
MOST_VALUES = 12  # of a column that makes groups
UNKNOWN, OTHER = "unknown", "other"


def read_groups(path: Path, cache: Path) -> tuple[Tensor, Tensor, pd.DataFrame, list[str]]:
    """Labelled faces: y, uint8 [N, 3, 64, 64]; x_c, uint8 [N, 3, 16, 16]; a column of labels each; names.

    path: a table with the column path and any columns of labels. The faces are framed already: the centre square at 64 px.
    Raises UserError, naming the row, for what cannot be used, such as faces of under 64 px.
    """
    try:
        prepared = prepare_faces(path, "HR", cache, HR_SIZE, HR_SIZE)
        names = list_names(path, len(prepared))
    except utils.UserError as error:
        raise utils.UserError(f"--groups: {error}") from error
    y, clean = prepared[:]
    return y, clean, make_groups(read_labels(path), path), names


def read_labels(path: Path) -> pd.DataFrame:
    """The columns beside the path as text, under the numbers of the file's lines. Raises UserError, naming the row."""
    rows = {}
    with open(path, newline="", encoding="utf-8-sig") as stream:
        header_line = stream.readline()
        stream.seek(0)
        reader = csv.reader(stream, delimiter=max(SEPARATORS, key=header_line.count))
        header = [name.strip() for name in next(reader)]
        if "path" not in header or len(header) < 2 or len({*header}) < len(header):
            raise utils.UserError(f"--groups {path}: its first row must name path and other columns, each once: {header}")
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                counts = f"{len(fields)} fields, the first row {len(header)}"
                raise utils.UserError(f"--groups {path}, row {reader.line_num}: has {counts}: quote what has a separator in it")
            rows[reader.line_num] = [field.strip() for field in fields]
    if len(rows) < 2:
        raise utils.UserError(f"--groups {path}: needs at least 2 faces")
    return pd.DataFrame.from_dict(rows, orient="index", columns=header).drop(columns="path")


def make_groups(labels: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Each column as categories: ages in bands such as "20-39", other columns by value; what is empty is "unknown".

    Columns with too many values are left out, and printed. Raises UserError if none is left.
    """
    groups, left_out = {}, []
    for name, values in labels.items():
        known = values[~values.str.lower().isin(["", UNKNOWN])]
        ages = pd.to_numeric(known, errors="coerce")
        if re.search(r"(?<![^\W_])age(?![^\W_])", name.lower()) and ages.notna().mean() > 0.5:
            groups[name] = band(name, known, ages, path).reindex(values.index)
        elif known.nunique() <= MOST_VALUES:
            groups[name] = known.astype("category").reindex(values.index)
        else:
            left_out.append(name)
            continue
        groups[name] = groups[name].cat.add_categories(UNKNOWN).fillna(UNKNOWN)
    if left_out:
        print(f"--groups {path}: no groups by {', '.join(left_out)}: over {MOST_VALUES} values, and no ages")
    if not groups:
        raise utils.UserError(f"--groups {path}: no column makes groups; expected is one of few values, or age in years")
    return pd.DataFrame(groups).reset_index(drop=True)


def band(name: str, known: pd.Series, ages: pd.Series, path: Path) -> pd.Series:
    """Ages in bands; what is no age of a person is a group of its own, and printed."""
    names = [f"{low}-{high - 1}" for low, high in zip(BANDS, BANDS[1:-1])] + [f"{BANDS[-2]} and over"]
    bands = pd.cut(ages, BANDS, right=False, labels=names).cat.add_categories(OTHER)
    strange = known[bands.isna()]
    if len(strange):
        example = f"{strange.iloc[0]!r} in row {strange.index[0]}"
        print(f"--groups {path}: {utils.plural(len(strange), 'value')} of {name} in no band, such as {example}: {name} {OTHER}")
    return bands.fillna(OTHER)
