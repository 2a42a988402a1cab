"""Boxes around faces in photographs: files of boxes, the square to cut, and overlaps."""

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils import UserError

SCALE = 1.2  # side of the square around a face, in heights of the face
WIDER_ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")  # the set's readme.txt
BOX_COLUMNS = ["x", "y", "w", "h"]


class Box(NamedTuple):
    """A face in a photograph, in px: left and top edge, width and height; the detector's score in 0..1.

    reason: why the annotation says that this face should not be used, or "".
    """

    x: float
    y: float
    w: float
    h: float
    score: float = 1.0
    reason: str = ""

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


def overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller of the two areas, 0..1: 1 for a box within the other."""
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(width, 0) * max(height, 0) / max(min(a.w * a.h, b.w * b.h), 1e-9)


def suppress(boxes: list[Box], limit: float = 0.5) -> list[Box]:
    """Non-maximum suppression: of boxes that overlap by more than `limit`, the one with the best score; from the top down."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(overlap(box, other) <= limit for other in kept):
            kept.append(box)
    return sorted(kept, key=lambda box: (box.y, box.x))


# --- files -------------------------------------------------------------------------------------------------------


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Read boxes as photograph's path, as written in the file -> its boxes; a photograph without faces has none.

    A .csv file has the columns path (or photograph), x, y, w, h and perhaps score, as the faces.csv of make_faces.py; any
    other file is read as Wider Face's annotation. Raises UserError with file, line and remedy.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: name a file of boxes with --boxes") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable UTF-8 file of boxes ({error})") from error
    boxes = _read_table(path) if Path(path).suffix.lower() == ".csv" else _read_wider(path, text.splitlines())
    if not boxes:
        raise UserError(f"{path} has no boxes: it needs Wider Face's layout, or a CSV file with path,x,y,w,h")
    return boxes


def _read_table(path: Path) -> dict[str, list[Box]]:
    """Boxes of a CSV file with a header."""
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", dtype=str, na_filter=False, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a table of boxes ({error}): it needs a header with path,x,y,w,h") from error
    photograph = "photograph" if "photograph" in table else "path"
    missing = [column for column in (photograph, *BOX_COLUMNS) if column not in table]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}: it needs a header with path,x,y,w,h, and perhaps score")
    boxes: dict[str, list[Box]] = {}
    scores = table["score"] if "score" in table else ["1"] * len(table)
    for row, (name, score, *values) in enumerate(zip(table[photograph], scores, *(table[c] for c in BOX_COLUMNS)), start=2):
        boxes.setdefault(name, []).append(_make_box([*values, score or "1"], path, row))
    return boxes


def _make_box(values: list[str], path: Path, row: int) -> Box:
    """A box of four or five texts x, y, w, h, score; raises UserError unless they are finite and of a positive size."""
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
    number = 0
    while number < len(lines):
        name = lines[number].strip()
        number += 1
        if not name:
            continue
        count = lines[number].strip() if number < len(lines) else ""
        if not count.isdigit():
            raise UserError(f"{path}, line {number + 1}: expected the number of faces of {name}, found {count!r}")
        number += 1
        rows = lines[number : number + int(count)]
        boxes.setdefault(name, []).extend(_wider_box(row.split(), path, number + i) for i, row in enumerate(rows, start=1))
        if len(rows) < int(count):
            raise UserError(f"{path}, line {len(lines)}: truncated; {name} should have {count} faces: copy the file again")
        number += int(count)
        if int(count) == 0 and number < len(lines) and set(lines[number].split()) == {"0"}:
            number += 1
    return boxes


def _wider_box(values: list[str], path: Path, line: int) -> Box:
    """A row of Wider Face's annotation, with a reason where its attributes rule the face out."""
    if len(values) not in (4, 10):
        raise UserError(f"{path}, line {line}: expected x y w h and perhaps six attributes, found {' '.join(values)!r}")
    box = _make_box(values[:4], path, line)
    attributes = dict(zip(WIDER_ATTRIBUTES, values[4:]))
    if attributes and (attributes["invalid"] not in "01" or attributes["pose"] not in "01"):
        raise UserError(
            f"{path}, line {line}: invalid and pose, columns 8 and 10, can only be 0 or 1. The attributes must be in the"
            f" order {', '.join(WIDER_ATTRIBUTES)}: use the set's own file"
        )
    if attributes.get("invalid") == "1":
        return box._replace(reason="invalid in the annotation")
    return box._replace(reason="heavily occluded in the annotation") if attributes.get("occlusion") == "2" else box
