"""The lists, and make_csv.py and make_demo.py, which write them."""

import os
import re
import sys

import pandas as pd
import pytest
from helpers import ROOT, run_script
from pictures import encode, picture

from Datasets import make_csv, make_demo
from Datasets.images import walk_files
from Datasets.lists import read_list, write_list
from utils import UserError

NAMES = ("HR_train", "HR_test", "LR_train", "LR_test")


LISTS = {
    "header": "path\na.png\nb.png\n",
    "no header": "a.png\nb.png\n",
    "byte order mark": "\ufeffa.png\nb.png\n",
    "header and mark": "\ufeffpath\na.png\nb.png\n",
    "windows lines": "a.png\r\nb.png\r\n",
    "trailing spaces": "a.png  \n b.png\t\n",
    "empty lines": "\na.png\n\n\nb.png\n\n",
    "quotes": '"a.png"\n"b.png"\n',
    "no last line end": "a.png\nb.png",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
def test_lists(text, tmp_path):
    (tmp_path / "list.csv").write_bytes(text.encode())
    assert list(read_list(tmp_path / "list.csv")) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_list_rows_are_line_numbers_and_names_may_hold_anything(tmp_path):
    names = ["a,b.png", 'say "x".png', "Gesicht ä 顔.png", "NA", "#1.png", "/elsewhere/c.png", "sub/d.png"]
    pd.DataFrame({"path": names}).to_csv(tmp_path / "list.csv", index=False)
    rows = read_list(tmp_path / "list.csv")
    assert list(rows.index) == list(range(2, len(names) + 2))
    assert list(rows) == [name if name.startswith("/") else f"{tmp_path}/{name}" for name in names]
    (tmp_path / "plain.csv").write_text("path\n\na,b.png\n")
    assert dict(read_list(tmp_path / "plain.csv")) == {3: f"{tmp_path}/a,b.png"}


@pytest.mark.parametrize(
    "content, reason", [(None, "missing"), (b"", "empty"), (b"path\n\n", "empty"), (b"\xff\xfe\x00\x89PNG", "UTF-8")]
)
def test_bad_lists(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "HR_train.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        read_list(tmp_path / "HR_train.csv")
    assert "HR_train.csv" in str(error.value) and "--data" in str(error.value)


# --- tables and names --------------------------------------------------------------------------------------------

TABLES = {
    "index": pd.DataFrame({"path": ["a.png", "sub/b.png"]}).to_csv(),
    "label": "path,label\na.png,0\nsub/b.png,1\n",
    "label first": "label,path\n0,a.png\n1,sub/b.png\n",
    "no header": "0,a.png\n1,sub/b.png\n",
    "semicolons": "id;path\n0;a.png\n1;sub/b.png\n",
    "tabs": "id\tpath\n0\ta.png\n1\tsub/b.png\n",
    "quotes": '"id","path","note"\n"0","a.png","x, y"\n"1","sub/b.png",""\n',
    "backslashes": "path\na.png\nsub\\b.png\n",
    "index and backslashes": ",path\n0,a.png\n1,sub\\b.png\n",
    "header is a folder": "sub\na.png\nsub/b.png\n",
    "header with a dot": "file.path\na.png\nsub/b.png\n",
    "table, header is a folder": "sub,label\na.png,0\nsub/b.png,1\n",
    "windows": "\ufeff,path\r\n0,a.png\r\n1,sub\\b.png\r\n",
    "blank lines": "path,label\n\na.png,0\n\nsub/b.png,1\n\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_tables(text, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_bytes(text.encode())
    rows = read_list(tmp_path / "list.csv")
    assert list(rows) == [f"{tmp_path}/a.png", f"{tmp_path}/sub/b.png"]
    for row, file in rows.items():  # the numbers are those of the lines
        assert os.path.basename(file) in text.splitlines()[row - 1]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("hr,lr\na.png,b.png\na.png,b.png\n", "2 of its columns"),
        ("id,path\n0,gone.png\n1,lost.png\n", "no column"),
        ("id,path\n" + "".join(f"{n},gone{n}.png\n" for n in range(3000)), "no column"),
        ("path,label\na.png,0\n,1\n", "row 3"),
    ],
)
def test_tables_without_one_column_of_paths_are_refused(text, reason, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        read_list(tmp_path / "list.csv")
    assert "list.csv" in str(error.value)
    if "column" in reason:
        assert text.splitlines()[1] in str(error.value) and "one path a line" in str(error.value)


def test_a_long_table_of_which_few_files_are_there(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "list.csv").write_text("id,path\n" + "".join(f"{number},{number}.png\n" for number in range(3000)))
    assert list(read_list(tmp_path / "list.csv")) == [f"{tmp_path}/{number}.png" for number in range(3000)]


def test_a_name_with_commas_is_no_table(tmp_path):
    (tmp_path / "a,b.png").touch()
    (tmp_path / "list.csv").write_text("path\na,b.png\n")
    assert list(read_list(tmp_path / "list.csv")) == [f"{tmp_path}/a,b.png"]


def test_the_home_folder_in_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "list.csv").write_text("~/a.png\n~b.png\n")
    assert list(read_list(tmp_path / "list.csv")) == [str(tmp_path / "home" / "a.png"), str(tmp_path / "~b.png")]


def test_any_name_survives_writing_and_reading(tmp_path):
    names = [" leading.png", "trailing .png ", "a,b.png", 'q"u"o.png', "Gesicht ä 顔.png", "~x.png", "back\\slash.png", "#.png"]
    for name in names:
        (tmp_path / name).touch()
    write_list([str(tmp_path / name) for name in names], tmp_path / "list.csv")
    assert list(read_list(tmp_path / "list.csv")) == [str(tmp_path / name) for name in names]


# --- make_csv.py -------------------------------------------------------------------------------------------------


def fill(folder, names, side=70):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(side, side, seed)))


def rows_of(folder):
    return {name: [os.path.relpath(row, folder) for row in read_list(folder / f"{name}.csv")] for name in NAMES}


def test_make_csv_splits_without_overlap_and_relative_to_the_lists(tmp_path):
    for number in range(20):
        (tmp_path / "hr" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lr").mkdir(exist_ok=True)
        picture(70, 70, number).save(tmp_path / "hr" / "sub" / f"{number}, ä.png")
        picture(20, 20, number).save(tmp_path / "lr" / f"{number}.jpg")
    (tmp_path / "hr" / "notes.txt").write_text("not an image")
    options = ["--hr", tmp_path / "hr", "--lr", tmp_path / "lr", "--out", tmp_path, "--test-fraction", 0.2, "--seed", 5]
    make_csv.main([str(option) for option in options])
    lists = {name: list(read_list(tmp_path / f"{name}.csv")) for name in ("HR_train", "HR_test", "LR_train", "LR_test")}
    assert [len(rows) for rows in lists.values()] == [16, 4, 16, 4]
    assert not set(lists["HR_train"]) & set(lists["HR_test"])
    assert not (tmp_path / "HR_train.csv").read_text(encoding="utf-8").count(str(tmp_path))
    first = (tmp_path / "HR_train.csv").read_bytes()
    make_csv.main([str(option) for option in options])
    assert (tmp_path / "HR_train.csv").read_bytes() == first


def test_make_csv_takes_given_test_folders_and_refuses_overlap(tmp_path):
    for folder in "ab":
        fill(tmp_path / folder, [f"{folder}{number}.png" for number in range(3)], side=70 if folder == "a" else 71)
    options = ["--hr", f"{tmp_path}/a", "--lr", f"{tmp_path}/a", "--lr-test", f"{tmp_path}/b", "--out", f"{tmp_path}"]
    make_csv.main([*options, "--hr-test", f"{tmp_path}/b"])
    assert len(read_list(tmp_path / "HR_train.csv")) == len(read_list(tmp_path / "HR_test.csv")) == 3
    with pytest.raises(UserError, match="in both sets"):
        make_csv.main([*options, "--hr-test", f"{tmp_path}/a"])
    with pytest.raises(UserError, match="not a folder"):
        make_csv.main(["--hr", f"{tmp_path}/nowhere", "--lr", f"{tmp_path}/a"])


def test_make_csv_uses_copies_once_and_says_what_is_no_lr_face(tmp_path, capsys):
    fill(tmp_path / "hr", [f"{number}.png" for number in range(4)])
    fill(tmp_path / "lr", [f"{number}.png" for number in range(4)], side=80)
    fill(tmp_path / "test", ["0.png", "9.png"])  # the first is hr/0.png once more
    for number in range(3):
        (tmp_path / "hr" / f"copy {number}.png").write_bytes((tmp_path / "hr" / f"{number}.png").read_bytes() + b"other bytes")
        (tmp_path / "lr" / f"copy {number}.png").write_bytes((tmp_path / "lr" / f"{number}.png").read_bytes())
    options = ["--hr", f"{tmp_path}/hr", "--lr", f"{tmp_path}/lr", "--out", f"{tmp_path}"]
    make_csv.main([*options, "--hr-test", f"{tmp_path}/test"])
    lists = rows_of(tmp_path)
    assert lists["HR_test"] == ["test/0.png", "test/9.png"] and lists["HR_train"] == ["hr/2.png", "hr/3.png"]
    assert sorted(lists["LR_train"] + lists["LR_test"]) == [f"lr/{number}.png" for number in range(4)]
    printed = capsys.readouterr().out
    assert "and 7 more: is a copy of another picture" in printed and "7 images much larger than 16 px" in printed


def test_make_csv_leaves_out_what_training_would_refuse_and_writes_all_of_it(tmp_path, capsys):
    fill(tmp_path / "hr", [f"{number}.png" for number in range(6)])
    fill(tmp_path / "hr" / "small", [f"{number}.png" for number in range(30)], side=63)
    fill(tmp_path / "lr", ["a", "b.jpg_large", "c.png"], side=20)  # by content, not by name
    (tmp_path / "hr" / "half.png").write_bytes(encode(picture(70, 70))[:5000])
    (tmp_path / "hr" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (tmp_path / "lr" / "notes.txt").write_text("no picture")
    (tmp_path / "lr" / "._a.png").write_bytes(b"\0\5\x16\7")
    make_csv.main(["--hr", f"{tmp_path}/hr", "--lr", f"{tmp_path}/lr", "--out", f"{tmp_path}"])
    lists = rows_of(tmp_path)
    assert sorted(lists["HR_train"] + lists["HR_test"]) == [f"hr/{number}.png" for number in range(6)]
    assert sorted(lists["LR_train"] + lists["LR_test"]) == ["lr/a", "lr/b.jpg_large", "lr/c.png"]
    table = pd.read_csv(tmp_path / "left_out.csv")
    reasons = {os.path.relpath(path, tmp_path): reason for path, reason in zip(table["path"], table["reason"])}
    assert len(reasons) == 34 and sum("63x63 px" in reason for reason in reasons.values()) == 30
    assert "does not decode" in reasons["hr/half.png"] and "not an image" in reasons["lr/notes.txt"]
    assert "hidden" in reasons["lr/._a.png"] and "hr/photo.heic" in reasons
    output = capsys.readouterr().out
    assert f"left out: 34 files, all named in {tmp_path / 'left_out.csv'}" in output and "and 29 more: is too small" in output
    (tmp_path / "elsewhere").mkdir()
    make_csv.main(["--hr", f"{tmp_path}/hr", "--lr", f"{tmp_path}/hr", "--out", f"{tmp_path}/elsewhere", "--seed", "1"])
    assert "images in HR and LR lists alike" in capsys.readouterr().out


def test_make_csv_names_the_plug_in_for_what_pillow_does_not_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    fill(tmp_path / "hr", ["a.png", "b.png"])
    (tmp_path / "hr" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    fill(tmp_path / "lr", ["a.png", "b.png"])
    make_csv.main(["--hr", f"{tmp_path}/hr", "--lr", f"{tmp_path}/lr", "--out", f"{tmp_path}"])
    assert "photo.HEIC: is a picture in the format HEIC (to read it: pip install pillow-heif)" in capsys.readouterr().out


def test_make_csv_gives_the_files_of_a_folder_within_another_to_it_alone(tmp_path, capsys):
    fill(tmp_path / "root", ["a.png", "b.png", "LR/c.png", "LR/d.png", "test/e.png"])
    root = f"{tmp_path}/root"
    make_csv.main(["--hr", root, "--lr", f"{root}/LR", "--hr-test", f"{root}/test", "--out", str(tmp_path)])
    lists = rows_of(tmp_path)
    assert lists["HR_train"] == ["root/a.png", "root/b.png"] and lists["HR_test"] == ["root/test/e.png"]
    assert sorted(lists["LR_train"] + lists["LR_test"]) == ["root/LR/c.png", "root/LR/d.png"]
    assert f"{root}/LR is given by itself" in capsys.readouterr().out


def test_make_csv_takes_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    fill(tmp_path / "faces", ["a.png", "b.png"])
    make_csv.main(["--hr", "~/faces", "--lr=~/faces", "--out=~/lists"])
    assert (tmp_path / "lists" / "HR_train.csv").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_make_csv_under_a_c_locale_and_with_names_that_are_not_utf_8(tmp_path):
    fill(tmp_path / "hr", ["ä.png", "b.png"])
    fill(tmp_path / "lr", ["c.png", "d.png"])
    (tmp_path / "hr" / os.fsdecode(b"\xff.png")).write_bytes(encode(picture(70, 70, 8)))
    (tmp_path / "hr" / "line\rbreak.png").write_bytes(encode(picture(70, 70, 9)))
    options = ["--hr", tmp_path / "hr", "--lr", tmp_path / "lr", "--out", tmp_path]
    code = (
        "import sys; from Datasets import make_csv; from Datasets.faces import load_faces; make_csv.main(sys.argv[1:]);"
        "print([len(load_faces(sys.argv[-1], 'HR', part)) for part in ('train', 'test')])"
    )
    result = run_script("-c", code, *options, environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert result.returncode == 0 and result.stdout.endswith("[1, 1]\n"), result.stderr
    lists = rows_of(tmp_path)
    assert sorted(lists["HR_train"] + lists["HR_test"]) == ["hr/b.png", "hr/ä.png"]
    left_out = (tmp_path / "left_out.csv").read_text()
    assert r"\xff.png" in left_out and "not UTF-8" in left_out and "line break in its name" in left_out


# --- make_demo.py ------------------------------------------------------------------------------------------------


def test_demo_faces_depend_on_the_seed_alone_and_no_face_comes_twice(demo_data, tmp_path):
    make_demo.main(["--out", str(tmp_path), "--hr", "2", "--lr", "2"])
    assert (tmp_path / "HR_train" / "00001.png").read_bytes() == (demo_data / "HR_train" / "00001.png").read_bytes()
    files = [file for file in walk_files(demo_data) if file.suffix == ".png"]
    assert len({file.read_bytes() for file in files}) == len(files) == 24 + 8 + 24 + 8


# --- every script ------------------------------------------------------------------------------------------------


def test_every_script_finds_the_modules_itself():
    """With PYTHONSAFEPATH, Python does not look for modules beside the script."""
    paths = [path for folder in (ROOT, ROOT / "Datasets") for path in folder.glob("*.py")]
    scripts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    scripts = {name: text for name, text in scripts.items() if 'if __name__ == "__main__"' in text}
    assert {"train.py", "train_h2l.py", "test.py", "evaluate.py", "make_csv.py"} <= set(scripts)
    ours = r"^(?:import|from) (?:utils|models|losses|training|metrics|Datasets)\b"
    for name, text in scripts.items():
        before = text[: re.search(ours, text, re.MULTILINE).start()]
        assert "sys.path.insert(0, str(Path(__file__).resolve().parent" in before, name
