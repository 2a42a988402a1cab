"""Prepared faces and batches."""

import errno
import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import encode, picture
from PIL import Image

from Datasets import faces as module
from Datasets.faces import PreparedFaces, batch_indices, load_faces, prepare_faces, row_bytes
from Datasets.images import prepare_hr, prepare_lr
from utils import UserError


def test_prepared_faces_are_the_files_and_follow_their_changes(tmp_path):
    for number in range(3):
        picture(100, 100, number).save(tmp_path / f"{number}.png")
    path, cache = tmp_path / "HR_train.csv", tmp_path / "cache"
    path.write_text("2.png\n0.png\n2.png\n")
    faces = prepare_faces(path, "HR", cache)
    hr, clean = faces[[0, 1, 2]]
    for index, seed in enumerate((2, 0, 2)):
        expected = prepare_hr(picture(100, 100, seed))
        assert torch.equal(hr[index], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
        assert torch.equal(clean[index], torch.from_numpy(np.array(prepare_lr(expected))).permute(2, 0, 1))
    assert prepare_faces(path, "HR", cache).path == faces.path
    picture(100, 100, 7).save(tmp_path / "0.png")
    changed = prepare_faces(path, "HR", cache)
    assert torch.equal(changed[[1]][0][0], torch.from_numpy(np.array(prepare_hr(picture(100, 100, 7)))).permute(2, 0, 1))
    del faces
    picture(100, 100, 8).save(tmp_path / "0.png")
    del changed
    prepare_faces(path, "HR", cache)
    assert len(list(cache.iterdir())) == 1  # the old faces are gone, and no temporary file stays


def test_each_framing_keeps_its_own_faces_and_lr_faces_have_one(tmp_path):
    for number in range(3):
        picture(100, 100, number).save(tmp_path / f"{number}.png")
    for kind in ("HR", "LR"):
        (tmp_path / f"{kind}_train.csv").write_text("0.png\n1.png\n2.png\n")
    paths = [load_faces(tmp_path, "HR", "train", resize=resize).path for resize in (100, 90)]
    assert paths[0] != paths[1] and all(path.exists() for path in paths)
    assert load_faces(tmp_path, "HR", "train", resize=100).path == paths[0]
    assert load_faces(tmp_path, "LR", "train", resize=100).path == load_faces(tmp_path, "LR", "train", resize=90).path


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the file")
def test_faces_that_another_program_removed_stay_readable(tmp_path):
    picture(100, 100, 0).save(tmp_path / "0.png")
    (tmp_path / "LR_train.csv").write_text("0.png\n")
    faces = load_faces(tmp_path, "LR", "train")
    before = faces[[0]][0]
    picture(100, 100, 1).save(tmp_path / "0.png")
    changed = load_faces(tmp_path, "LR", "train")
    assert changed.path != faces.path and not faces.path.exists()
    assert torch.equal(faces[[0]][0], before)
    assert not torch.equal(changed[[0]][0], before)


def test_batches_are_dense(tmp_path):
    """A view with gaps cannot be sent to a GPU from pinned memory in one piece."""
    rows = np.random.default_rng(0).integers(0, 256, (5, row_bytes("HR")), dtype=np.uint8)
    rows.tofile(tmp_path / "x.faces")
    faces = PreparedFaces(tmp_path / "x.faces", "HR")
    for indices in ([3, 1], slice(1, 4), slice(None, None, 2)):
        for part, side in zip(faces[indices], (64, 16)):
            assert part.is_contiguous(memory_format=torch.channels_last) and part.shape[1:] == (3, side, side)
            assert part.untyped_storage().nbytes() == part.numel()
    y, x_c = faces[[3]]
    assert y[0].permute(1, 2, 0).numpy().tobytes() + x_c[0].permute(1, 2, 0).numpy().tobytes() == rows[3].tobytes()


def collect(indices):
    return [(hr.tolist(), lr.tolist()) for hr, lr in indices]


def test_batches_are_reproducible_and_continue_anywhere():
    whole = collect(batch_indices(10, 7, 4, seed=3, start=0, stop=12))
    assert collect(batch_indices(10, 7, 4, seed=3, start=5, stop=12)) == whole[5:]
    assert collect(batch_indices(10, 7, 4, seed=4, start=0, stop=12)) != whole
    drawn = [index for hr, _ in whole for index in hr]
    for first in range(0, 40, 10):
        assert sorted(drawn[first : first + 10]) == list(range(10))  # each face once before any comes again
    partners = [dict(zip(hr, lr)) for hr, lr in whole]
    assert len({partner[0] for partner in partners if 0 in partner}) > 1


def test_processes_share_the_global_batch():
    whole = collect(batch_indices(10, 7, 4, seed=3, start=2, stop=6))
    parts = [collect(batch_indices(10, 7, 4, seed=3, start=2, stop=6, rank=rank, world=2)) for rank in (0, 1)]
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*parts)] == whole


def bad_list(tmp_path, kind="HR", **files):
    """A list of 40 usable faces and the given ones: name -> content."""
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        picture(70, 70, number).save(tmp_path / name)
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    path = tmp_path / f"{kind}_train.csv"
    path.write_text("\n".join(["path", *names, *files]))
    return path


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("gone.png", None, "No such file"),
        ("text.png", b"not an image at all", "is not an image"),
        ("empty.png", b"", "is not an image"),
        ("half.png", encode(picture(70, 70))[:5000], "does not decode"),
        ("small.png", encode(picture(63, 200)), "63x200 px; HR faces need a shorter side of at least 64 px"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_row_and_remedy(name, content, reason, tmp_path):
    path = bad_list(tmp_path, **{name: content})
    with pytest.raises(UserError) as error:
        prepare_faces(path, "HR", tmp_path / "cache")
    message = str(error.value)
    assert reason in message and f"{path}, row 42: {tmp_path / name}" in message and "remove" in message
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_few_damaged_files_are_reported_and_left_out(tmp_path, capsys):
    path = bad_list(tmp_path, **{"half.png": encode(picture(70, 70))[:5000]})
    extra = [f"extra{number}.png" for number in range(80)]
    for number, name in enumerate(extra):
        picture(70, 70, 100 + number).save(tmp_path / name)
    path.write_text(path.read_text() + "\n" + "\n".join(extra))
    faces = prepare_faces(path, "HR", tmp_path / "cache")
    assert len(faces) == 120
    assert f"row 42: {tmp_path / 'half.png'} does not decode" in capsys.readouterr().out
    assert torch.equal(faces[[40]][0][0], torch.from_numpy(np.array(prepare_hr(picture(70, 70, 100)))).permute(2, 0, 1))


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path):
    path = bad_list(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--cache"):
        prepare_faces(path, "HR", tmp_path / "file")


def test_an_error_names_a_table_with_all_bad_rows(tmp_path):
    path = bad_list(tmp_path, **{f"small{number}.png": encode(picture(63, 63, number)) for number in range(15)})
    with pytest.raises(UserError) as error:
        prepare_faces(path, "HR", tmp_path / "cache")
    table = tmp_path / "cache" / "HR_train_left_out.csv"
    assert f"... and 5 more, all in {table}" in str(error.value) and "make_csv.py" in str(error.value)
    rows = pd.read_csv(table)
    assert list(rows["row"]) == list(range(42, 57)) and list(rows["path"]) == [f"{tmp_path}/small{n}.png" for n in range(15)]
    assert all("63x63 px" in reason for reason in rows["reason"])


def test_system_files_in_a_list_are_left_out_and_said(tmp_path, capsys):
    path = bad_list(tmp_path, **{"._0.png": b"\0\5\x16\7" + bytes(200)})
    assert len(prepare_faces(path, "HR", tmp_path / "cache")) == 40
    assert f"row 42: {tmp_path / '._0.png'} is not an image" in capsys.readouterr().out
    path.write_text("path\n._0.png\n")
    with pytest.raises(UserError, match="1 of 1"):
        prepare_faces(path, "HR", tmp_path / "cache")


def test_prepared_faces_that_vanish_are_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_remove_old", lambda cache, name, target: target.unlink())
    with pytest.raises(UserError, match="--cache"):
        prepare_faces(bad_list(tmp_path), "HR", tmp_path / "cache")


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_an_error_that_leaves_nothing_behind(known, tmp_path, monkeypatch):
    """known: before anything is decoded; otherwise, as where a quota ends, in the middle."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000) if known else usage)
    monkeypatch.setattr(module, "_decode_files" if known else "_judge", None if known else full)
    with pytest.raises(UserError) as error:
        prepare_faces(bad_list(tmp_path), "HR", tmp_path / "cache")
    message = str(error.value)
    assert "No space left" in message and f"{40 * row_bytes('HR'):,} bytes" in message and "--cache" in message
    assert not list((tmp_path / "cache").iterdir())


def test_leftovers_of_dead_processes_are_removed_after_a_day(tmp_path, demo_data):
    for name in ("dead", "living"):
        (tmp_path / f"{name}.faces.12345678.tmp").write_bytes(bytes(100))
    os.utime(tmp_path / "dead.faces.12345678.tmp", (0, time.time() - 25 * 3600))
    prepare_faces(demo_data / "LR_test.csv", "LR", tmp_path)
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["living.faces.12345678.tmp"]


def test_what_is_special_with_pictures_is_said_once(tmp_path, capsys):
    for number in range(3):
        picture(200, 200, number).save(tmp_path / f"{number}.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    (tmp_path / "LR_train.csv").write_text("0.png\n1.png\n2.png\nblack.png\n")
    load_faces(tmp_path, "LR", "train")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "3 images much larger than 16 px, such as" in said[0] and "1 image black or flat" in said[1]
