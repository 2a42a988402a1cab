"""Boxes around faces in photographs: files of boxes, and the square to cut.

A box is in px of the photograph as it is seen, upright: after its EXIF orientation was applied.
"""

import csv
import io
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

from Datasets.lists import SEPARATORS, full_path
from utils import UserError

SCALE = 1.2  # side of the square around a face, in heights of the face
WIDER_ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")  # the set's readme.txt
COLUMNS = ("x", "y", "w", "h")


class Box(NamedTuple):
    """A face in a photograph, in px: left and top edge, width and height; the detector's score in 0..1.

    reason: why the annotation says that this face should not be used, or ""; hr_reason: not as an HR face.
    """

    x: float
    y: float
    w: float
    h: float
    score: float = 1.0
    reason: str = ""
    hr_reason: str = ""

    @property
    def size(self) -> float:
        """Height of the face in px, or its width where that is larger."""
        return max(self.w, self.h)


def face_square(box: Box, scale: float = SCALE) -> tuple[int, int, int]:
    """(left, top, side) in whole px of the square around a box's centre, `scale` times as high as the face."""
    side = round(scale * box.size)
    return round(box.x + box.w / 2 - side / 2), round(box.y + box.h / 2 - side / 2), side


def is_inside(square: tuple[int, int, int], size: tuple[int, int]) -> bool:
    """Whether (left, top, side) lies within a picture of (width, height)."""
    left, top, side = square
    return left >= 0 and top >= 0 and left + side <= size[0] and top + side <= size[1]


# --- files -------------------------------------------------------------------------------------------------------


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Read boxes as photograph's path, as written in the file -> its boxes; a photograph without faces has none.

    A .csv file has the columns path (or photograph), x, y, w, h and perhaps score, between commas, semicolons or tabs;
    any other file is read as Wider Face's annotation. Raises UserError with file, line and remedy.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: name a file of boxes with --boxes") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable UTF-8 file of boxes ({error})") from error
    try:
        boxes = _read_table(path, text) if Path(path).suffix.lower() == ".csv" else _read_wider(path, text.splitlines())
    except csv.Error as error:
        raise UserError(f"{path} is not a table of boxes ({error}): it needs a header with path,x,y,w,h") from error
    if not boxes:
        raise UserError(f"{path} has no boxes: it needs Wider Face's layout, or a CSV file with path,x,y,w,h")
    return boxes


def find_photographs(boxes: dict[str, list[Box]], folder: Path) -> tuple[dict[str, list[Box]], list[str]]:
    """Where the photographs of `read_boxes` are: absolute path -> boxes; and the names that lead to no file.

    Names follow the rules of lists: relative to the folder, with ~ and Windows' backslashes.
    """
    known: dict[str, list[Box]] = {}
    missing = []
    for name, found in boxes.items():
        path = os.path.abspath(full_path(name, os.path.abspath(folder)))
        if os.path.isfile(path):
            known.setdefault(path, []).extend(found)
        else:
            missing.append(name)
    return known, missing


def _read_table(path: Path, text: str) -> dict[str, list[Box]]:
    """Boxes of a CSV file with a header."""
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    photograph = "photograph" if "photograph" in columns else "path"
    missing = [column for column in (photograph, *COLUMNS) if column not in columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}: it needs a header with path,x,y,w,h, and perhaps score")
    boxes: dict[str, list[Box]] = {}
    for row in reader:
        values = [row[column] or "" for column in COLUMNS] + [row.get("score") or "1"]
        if separator == ";":  # such tables are often written with decimal commas
            values = [value.replace(",", ".") for value in values]
        box = _make_box(values, path, reader.line_num)
        if box.w <= 0 or box.h <= 0:
            raise UserError(f"{path}, line {reader.line_num}: a face of {values[2]} x {values[3]} px has no size: fix the line")
        boxes.setdefault(row[photograph] or "", []).append(box)
    if boxes and all(box.size <= 1 for found in boxes.values() for box in found):
        raise UserError(
            f"{path} has fractions of the photographs' sides, as YOLO writes them: x,y,w,h must be px, x and y those of the"
            " left upper corner (a centre less half of w and h)"
        )
    return boxes


def _make_box(values: list[str], path: Path, row: int) -> Box:
    """A box of four or five texts x, y, w, h, score; raises UserError unless they are finite."""
    try:
        box = Box(*(float(value) for value in values))
    except ValueError as error:
        raise UserError(f"{path}, line {row}: {' '.join(values)!r} should be the numbers x y w h: fix the line") from error
    if not all(math.isfinite(value) for value in box[:5]):
        raise UserError(f"{path}, line {row}: the box {' '.join(values[:4])} is not finite: fix the line")
    return box


def _read_wider(path: Path, lines: list[str]) -> dict[str, list[Box]]:
    """Boxes of Wider Face's annotation: a path, a count, and as many rows; a photograph without faces has a row of zeros.

    A row is `x y w h`, alone or followed by the six attributes in the order of the set's readme.
    Some programs document another order; invalid and pose, which are 0 or 1, tell them apart.
    """
    boxes: dict[str, list[Box]] = {}
    numbered = iter(list(enumerate(map(str.strip, lines), start=1)))
    for number, name in numbered:
        if set(name.split()) <= {"0"}:  # a blank line, or the zeros under a photograph without faces
            continue
        _, count = next(numbered, (0, ""))
        if not count.isdigit():
            raise UserError(f"{path}, line {number + 1}: expected the number of faces of {name}, found {count!r}")
        rows = list(itertools.islice(numbered, int(count)))
        if len(rows) < int(count):
            raise UserError(f"{path}, line {len(lines)}: truncated; {name} should have {count} faces: copy the file again")
        boxes.setdefault(name, []).extend(_wider_box(row.split(), path, line) for line, row in rows)
    return boxes


def _wider_box(values: list[str], path: Path, line: int) -> Box:
    """A row of Wider Face's annotation, with a reason where its attributes rule the face out."""
    if len(values) not in (4, 10):
        raise UserError(f"{path}, line {line}: expected x y w h and perhaps six attributes, found {' '.join(values)!r}")
    box = _make_box(values[:4], path, line)
    if box.w <= 0 or box.h <= 0:  # the set itself has a few
        return box._replace(w=0.0, h=0.0, reason="without a size in the annotation")
    attributes = dict(zip(WIDER_ATTRIBUTES, values[4:]))
    if attributes and (attributes["invalid"] not in "01" or attributes["pose"] not in "01"):
        raise UserError(
            f"{path}, line {line}: invalid and pose, columns 8 and 10, can only be 0 or 1. The attributes must be in the"
            f" order {', '.join(WIDER_ATTRIBUTES)}: use the set's own file"
        )
    if attributes.get("invalid") == "1":
        return box._replace(reason="invalid in the annotation")
    if attributes.get("occlusion") == "2":
        return box._replace(reason="heavily occluded in the annotation")
    return box._replace(hr_reason="heavily blurred in the annotation") if attributes.get("blur") == "2" else box
