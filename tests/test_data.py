"""Lists, prepared faces and batches."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_script
from PIL import Image

from Datasets import make_csv, make_demo
from Datasets.faces import BatchIndices, FaceBatches, PreparedFaces, load_faces, prepare_faces, row_bytes
from Datasets.images import load_image, prepare_hr, prepare_lr, walk_files
from Datasets.lists import read_list
from utils import UserError, to_bytes, to_unit_range


def picture(width=80, height=80, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def subpixel_shift(a, b):
    """By how many pixels b lies off a (x, y): the slope of the cross-spectrum's phase at low frequencies."""
    window = np.outer(np.hanning(64), np.hanning(64))
    spectrum = np.fft.fft2((a - a.mean()) * window) * np.conj(np.fft.fft2((b - b.mean()) * window))
    frequency = np.fft.fftfreq(64)
    rows, columns = np.meshgrid(frequency, frequency, indexing="ij")
    near = (np.hypot(rows, columns) < 0.08) & (np.hypot(rows, columns) > 0)
    weight = np.abs(spectrum[near]) ** 0.5
    system = np.stack([rows[near], columns[near]], axis=1) * weight[:, None]
    slope, *_ = np.linalg.lstsq(system, np.angle(spectrum[near]) * weight, rcond=None)
    return slope / (2 * np.pi)


def test_clean_lr_is_aligned_with_hr():
    shifts, shifted = [], []
    for seed in range(20):
        hr = prepare_hr(make_demo.draw_face(np.random.default_rng(seed)))
        lr = prepare_lr(hr).resize((64, 64), Image.Resampling.BICUBIC)
        grey = [np.asarray(image.convert("L"), dtype=float) for image in (hr, lr)]
        shifts.append(subpixel_shift(*grey))
        moved = np.fft.ifft2(np.fft.fft2(grey[1]) * np.exp(-2j * np.pi * 0.5 * np.fft.fftfreq(64))[None, :]).real
        shifted.append(subpixel_shift(grey[0], moved))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05
    assert 0.35 < abs(np.mean(shifted, axis=0)[1]) < 0.65  # the measure sees a shift of half a pixel


def test_hr_framing_is_resize_then_centre_crop():
    image = picture(130, 100)
    expected = image.crop((15, 0, 115, 100)).crop((18, 18, 82, 82))
    assert prepare_hr(image, 100, 64).tobytes() == expected.tobytes()
    assert prepare_hr(image, 128, 96).size == (64, 64)


def test_lr_of_16_px_is_untouched_and_others_are_squared_first():
    small = picture(16, 16)
    assert prepare_lr(small).tobytes() == small.tobytes()
    wide = picture(40, 20)
    assert prepare_lr(wide).tobytes() == wide.crop((10, 0, 30, 20)).resize((16, 16), Image.Resampling.BICUBIC).tobytes()


def test_bytes_and_unit_range_are_inverse():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit_range(levels)), levels)
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_image_modes(mode, tmp_path):
    grey = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (20, 1))
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    elif mode != "L":
        image = image.convert("RGB").convert(mode)
    path = tmp_path / f"image.{'tif' if mode in ('CMYK', 'F') else 'png'}"
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    values = np.asarray(loaded)[..., 0].astype(int)
    assert abs(values.mean() - grey.mean()) < 4
    if mode not in ("1", "P"):  # those two are dithered
        assert np.abs(values - grey).mean() < 4


def test_alpha_is_composited_on_black(tmp_path):
    image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    image.save(tmp_path / "clear.png")
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("clear.png", "palette.png"):
        assert np.asarray(load_image(tmp_path / name)).max() == 0


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 30, 10))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: up is right
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    loaded = np.asarray(load_image(tmp_path / "turned.jpg"))
    assert loaded.shape == (30, 20, 3)
    assert loaded[:, 12:].mean() > 200 > 50 > loaded[:, :8].mean()


def test_walk_files_survives_link_loops_and_leaves_the_output_out(tmp_path):
    (tmp_path / "a" / "out").mkdir(parents=True)
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "out" / "2.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert walk_files(tmp_path, without=tmp_path / "a" / "out") == [tmp_path / "a" / "1.png"]


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


def test_a_million_rows_are_read_and_checked_quickly(tmp_path):
    for number in range(50):
        picture(20, 20, number).save(tmp_path / f"{number}.png")
    (tmp_path / "LR_train.csv").write_text("\n".join(f"{number % 50}.png" for number in range(200_000)))
    faces = prepare_faces(tmp_path / "LR_train.csv", "LR", tmp_path / "cache")
    assert len(faces) == 200_000
    assert torch.equal(faces[[3]][0], faces[[53]][0])


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


def test_faces_that_are_read_are_not_removed_when_the_files_change(tmp_path):
    picture(100, 100, 0).save(tmp_path / "0.png")
    (tmp_path / "LR_train.csv").write_text("0.png\n")
    faces = load_faces(tmp_path, "LR", "train")
    picture(100, 100, 1).save(tmp_path / "0.png")
    changed = load_faces(tmp_path, "LR", "train")  # as another program does
    assert changed.path != faces.path
    again = pickle.loads(pickle.dumps(faces))  # as a worker process opens it
    assert torch.equal(again[[0]][0], faces[[0]][0]) and not torch.equal(again[[0]][0], changed[[0]][0])
    del faces, again
    picture(100, 100, 2).save(tmp_path / "0.png")
    load_faces(tmp_path, "LR", "train")
    assert not [path for path in (tmp_path / ".cache").iterdir() if path.suffix == ".tmp"]


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
    whole = collect(BatchIndices(10, 7, 4, seed=3, start=0, stop=12))
    assert collect(BatchIndices(10, 7, 4, seed=3, start=5, stop=12)) == whole[5:]
    assert collect(BatchIndices(10, 7, 4, seed=4, start=0, stop=12)) != whole
    drawn = [index for hr, _ in whole for index in hr]
    for first in range(0, 40, 10):
        assert sorted(drawn[first : first + 10]) == list(range(10))  # each face once before any comes again
    partners = [dict(zip(hr, lr)) for hr, lr in whole]
    assert len({partner[0] for partner in partners if 0 in partner}) > 1


def test_processes_share_the_global_batch():
    whole = collect(BatchIndices(10, 7, 4, seed=3, start=2, stop=6))
    parts = [collect(BatchIndices(10, 7, 4, seed=3, start=2, stop=6, rank=rank, world=2)) for rank in (0, 1)]
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*parts)] == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(workers, demo_data, tmp_path):
    hr = prepare_faces(demo_data / "HR_train.csv", "HR", tmp_path)
    lr = prepare_faces(demo_data / "LR_train.csv", "LR", tmp_path)

    def batches(workers, **settings):
        indices = BatchIndices(len(hr), len(lr), 4, 0, 0, 8)
        loader = torch.utils.data.DataLoader(
            FaceBatches(hr, lr), batch_size=None, sampler=indices, num_workers=workers, **settings
        )
        return list(loader)

    method = {"multiprocessing_context": "spawn"} if workers == 2 else {}
    for alone, shared in zip(batches(0), batches(workers, **method)):
        assert all(torch.equal(a, b) for a, b in zip(alone, shared))


def test_make_csv_splits_without_overlap_and_relative_to_the_lists(tmp_path):
    for number in range(20):
        (tmp_path / "hr" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lr").mkdir(exist_ok=True)
        picture(70, 70, number).save(tmp_path / "hr" / "sub" / f"{number}, ä.png")
        picture(20, 20, number).save(tmp_path / "lr" / f"{number}.jpg")
    (tmp_path / "hr" / "notes.txt").write_text("not an image")
    options = ["--hr", tmp_path / "hr", "--lr", tmp_path / "lr", "--out", tmp_path, "--test-fraction", 0.2, "--seed", 5]
    result = run_script("Datasets/make_csv.py", *options)
    assert result.returncode == 0, result.stderr
    lists = {name: list(read_list(tmp_path / f"{name}.csv")) for name in ("HR_train", "HR_test", "LR_train", "LR_test")}
    assert [len(rows) for rows in lists.values()] == [16, 4, 16, 4]
    assert not set(lists["HR_train"]) & set(lists["HR_test"])
    assert not (tmp_path / "HR_train.csv").read_text(encoding="utf-8").count(str(tmp_path))
    first = (tmp_path / "HR_train.csv").read_bytes()
    make_csv.main([str(option) for option in options])
    assert (tmp_path / "HR_train.csv").read_bytes() == first


def test_make_csv_takes_given_test_folders_and_refuses_overlap(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            picture(70, 70).save(tmp_path / folder / f"{number}.png")
    options = ["--hr", f"{tmp_path}/a", "--lr", f"{tmp_path}/a", "--lr-test", f"{tmp_path}/b", "--out", f"{tmp_path}"]
    make_csv.main([*options, "--hr-test", f"{tmp_path}/b"])
    assert len(read_list(tmp_path / "HR_train.csv")) == len(read_list(tmp_path / "HR_test.csv")) == 3
    with pytest.raises(SystemExit, match="in both sets"):
        make_csv.main([*options, "--hr-test", f"{tmp_path}/a"])
    with pytest.raises(SystemExit, match="not a folder"):
        make_csv.main(["--hr", f"{tmp_path}/nowhere", "--lr", f"{tmp_path}/a"])


def test_demo_faces_depend_on_the_seed_alone_and_no_face_comes_twice(demo_data, tmp_path):
    make_demo.main(["--out", str(tmp_path), "--hr", "2", "--lr", "2"])
    assert (tmp_path / "HR_train" / "00001.png").read_bytes() == (demo_data / "HR_train" / "00001.png").read_bytes()
    files = [file for file in walk_files(demo_data) if file.suffix == ".png"]
    assert len({file.read_bytes() for file in files}) == len(files) == 24 + 8 + 24 + 8


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


def png(size, seed=0):
    import io

    stream = io.BytesIO()
    picture(*size, seed).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("gone.png", None, "no such file"),
        ("text.png", b"not an image at all", "is not an image"),
        ("empty.png", b"", "is not an image"),
        ("half.png", png((70, 70))[:5000], "does not decode"),
        ("small.png", png((63, 200)), "63x200 px; HR faces need a shorter side of at least 64 px"),
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
    path = bad_list(tmp_path, **{"half.png": png((70, 70))[:5000]})
    extra = [f"extra{number}.png" for number in range(80)]
    for number, name in enumerate(extra):
        picture(70, 70, 100 + number).save(tmp_path / name)
    path.write_text(path.read_text() + "\n" + "\n".join(extra))
    faces = prepare_faces(path, "HR", tmp_path / "cache")
    assert len(faces) == 120
    assert f"row 42: {tmp_path / 'half.png'} does not decode" in capsys.readouterr().out
    assert torch.equal(faces[[40]][0][0], torch.from_numpy(np.array(prepare_hr(picture(70, 70, 100)))).permute(2, 0, 1))


@pytest.mark.parametrize(
    "content, reason", [(None, "is missing"), (b"", "is empty"), (b"path\n\n", "is empty"), (b"\xff\xfe\x00\x89PNG", "UTF-8")]
)
def test_bad_lists(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "HR_train.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        read_list(tmp_path / "HR_train.csv")
    assert "HR_train.csv" in str(error.value) and "--data" in str(error.value)


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path):
    path = bad_list(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--cache"):
        prepare_faces(path, "HR", tmp_path / "file")
