"""One image: what is read, how it is framed, and what is found in folders."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers import run_script
from pictures import encode, picture
from PIL import Image

from Datasets import make_demo
from Datasets.images import DamagedImageError, ImageError, load_image, prepare_hr, prepare_lr, prepare_pair, walk_files
from utils import UserError, thread_count, to_bytes, to_unit_range


def subpixel_shift(a, b):
    """By how many pixels b lies off a: the slope of the cross-spectrum's phase."""
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


def test_a_pair_is_the_hr_face_and_its_own_reduction():
    y, x_c = prepare_pair(picture(130, 100), 90, 70)
    assert y.tobytes() == prepare_hr(picture(130, 100), 90, 70).tobytes() and x_c.tobytes() == prepare_lr(y).tobytes()


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


# --- metadata ----------------------------------------------------------------------------------------------------


def chunk(name, data, check_sum=None):
    """A PNG chunk."""
    check_sum = zlib.crc32(name + data) if check_sum is None else check_sum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check_sum)


def segment(marker, data):
    """A JPEG segment."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


GARBAGE = b"Exif\0\0" + bytes(range(200))
BOMB = zlib.compress(bytes(3_000_000))
METADATA = {
    "PNG, EXIF": lambda face: encode(face, "PNG", exif=GARBAGE),
    "WebP, EXIF": lambda face: encode(face, "WEBP", lossless=True, exif=GARBAGE),
    "JPEG, EXIF": lambda face: encode(face, "JPEG", exif=GARBAGE),
    "PNG, colour profile": lambda face: encode(face, "PNG", icc_profile=bytes(range(256))),
    **{
        f"PNG, {name}": lambda face, part=part: encode(face)[:33] + part + encode(face)[33:]
        for name, part in {
            "text of 70 MB": chunk(b"tEXt", b"Comment\0" + b"x" * 70_000_000),
            "compressed text of 3 MB": chunk(b"zTXt", b"Comment\0\0" + BOMB),
            "international text of 3 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
            "check sum of a text": chunk(b"tEXt", b"Comment\0hello", 7),
            "colour profile of 3 MB": chunk(b"iCCP", b"name\0\0" + BOMB),
            "short gamma": chunk(b"gAMA", b"x"),
        }.items()
    },
    **{
        f"JPEG, {name}": lambda face, part=part: encode(face, "JPEG")[:2] + part + encode(face, "JPEG")[2:]
        for name, part in {
            "short JFIF": segment(0xE0, b"JFIF"),
            "empty colour profile": segment(0xE2, b"ICC_PROFILE\0"),
            "short Adobe": segment(0xEE, b"Adobe"),
        }.items()
    },
}


@pytest.mark.parametrize("name", METADATA)
def test_pixels_count_where_metadata_is_bad(name, tmp_path):
    face = picture(80, 80)
    (tmp_path / "face.x").write_bytes(METADATA[name](face))
    expected = face
    if name.startswith("JPEG"):
        (tmp_path / "good.jpg").write_bytes(encode(face, "JPEG"))
        expected = Image.open(tmp_path / "good.jpg")
    assert load_image(tmp_path / "face.x").tobytes() == expected.convert("RGB").tobytes()


def test_orientation_is_applied_where_other_metadata_is_bad(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(picture(80, 60), exif=exif)
    (tmp_path / "face.png").write_bytes(content[:33] + chunk(b"zTXt", b"Comment\0\0" + BOMB) + content[33:])
    expected = picture(80, 60).transpose(Image.Transpose.ROTATE_270)
    assert load_image(tmp_path / "face.png").tobytes() == expected.tobytes()


def test_damaged_pixels_are_damage_whatever_the_metadata(tmp_path):
    content = encode(picture(80, 80))
    (tmp_path / "half.png").write_bytes(content[:33] + chunk(b"zTXt", b"Comment\0\0" + BOMB) + content[33 : len(content) // 2])
    with pytest.raises(DamagedImageError, match="does not decode"):
        load_image(tmp_path / "half.png")


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.png", "photo.txt", "photo.JPG.download"])
def test_a_format_is_told_by_the_content(name, tmp_path):
    (tmp_path / name).write_bytes(encode(picture(70, 70), "JPEG"))
    assert load_image(tmp_path / name).size == (70, 70)


HEADS = {
    "HEIC": b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf",
    "AVIF": b"\0\0\0\x20ftypmif1\0\0\0\0avifmif1miafMA1B",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ",
    None: b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",  # a video
}


@pytest.mark.parametrize("name", HEADS)
def test_formats_that_need_a_plug_in_are_named_with_it(name, tmp_path, monkeypatch):
    assert formats.plugin_format(HEADS[name] + bytes(64)) == name
    monkeypatch.setattr(formats.importlib, "import_module", lambda module: (_ for _ in ()).throw(ImportError(module)))
    monkeypatch.setattr(formats.features, "check", lambda name: False)  # Pillow itself may read AVIF
    (tmp_path / "photo").write_bytes(HEADS[name] + bytes(64))
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "photo")
    assert (f"pip install {formats.PLUGINS[name][0]}" if name else "is not an image") in str(error.value)


def test_a_damaged_picture_of_a_plug_in_is_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "load_plugin", lambda name: True)
    (tmp_path / "photo").write_bytes(HEADS["JPEG XL"] + bytes(64))
    with pytest.raises(DamagedImageError, match="begins like a picture in the format JPEG XL"):
        load_image(tmp_path / "photo")


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path):
    """In a process of its own, in which nothing has loaded the plug-in yet."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(picture(80, 70)).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a")
    code = f"from Datasets.images import load_image; print(load_image(r'{tmp_path}/a').size)"
    result = run_script("-c", code)
    assert result.stdout == "(80, 70)\n", result.stderr


def test_what_the_system_refuses_is_no_damage(tmp_path):
    with pytest.raises(ImageError, match="cannot be read .No such file") as error:
        load_image(tmp_path / "nowhere.png")
    assert not isinstance(error.value, DamagedImageError)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path)


# --- large pictures ----------------------------------------------------------------------------------------------


def test_large_jpeg_files_are_decoded_at_a_reduced_size_and_others_as_they_are(tmp_path):
    photograph = picture(15, 12).resize((3000, 2500), Image.Resampling.BICUBIC)
    (tmp_path / "large.jpg").write_bytes(encode(photograph, "JPEG"))
    (tmp_path / "small.jpg").write_bytes(encode(photograph.resize((1200, 1000)), "JPEG"))
    whole, reduced = load_image(tmp_path / "large.jpg"), load_image(tmp_path / "large.jpg", 100)
    assert whole.size == (3000, 2500) and reduced.size == (750, 625)
    difference = np.asarray(prepare_hr(whole), dtype=float) - np.asarray(prepare_hr(reduced), dtype=float)
    assert np.abs(difference).mean() < 1
    photograph.resize((4500, 4000)).save(tmp_path / "huge.png", compress_level=1)
    assert load_image(tmp_path / "huge.png", 100).size == (450, 400)
    assert load_image(tmp_path / "small.jpg", 16).tobytes() == load_image(tmp_path / "small.jpg").tobytes()


def test_threads_follow_the_affinity_and_are_bounded(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if hasattr(os, "sched_getaffinity"):
        assert thread_count() == min(8, len(os.sched_getaffinity(0)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert thread_count() == 8


# --- folders -----------------------------------------------------------------------------------------------------


def test_walk_files_survives_link_loops_and_leaves_the_output_out(tmp_path):
    (tmp_path / "a" / "out").mkdir(parents=True)
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "out" / "2.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert walk_files(tmp_path, without=tmp_path / "a" / "out") == [tmp_path / "a" / "1.png"]


def test_hidden_and_system_files_are_left_out_and_said(tmp_path):
    system = ["__MACOSX/._a.png", "._a.png", ".DS_Store", "sub/Thumbs.db", "sub/.hidden/b.png", "desktop.ini"]
    for name in [*system, "a.png", "sub/b.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    left_out = {}
    found = walk_files(tmp_path, leave_out=lambda path, reason: left_out.update({path: reason}))
    assert found == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]
    assert {path.relative_to(tmp_path).as_posix() for path in left_out} == {
        "__MACOSX", "._a.png", ".DS_Store", "sub/Thumbs.db", "sub/.hidden", "desktop.ini",
    }  # fmt: skip
    assert set(left_out.values()) == {"is hidden or made by the operating system"}
    hidden = tmp_path / "sub" / ".hidden"
    assert walk_files(hidden) == [hidden / "b.png"]  # the folder itself was asked for


def test_a_folder_without_permission_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    for name in ("a", "locked", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    scandir = os.scandir

    def refuse(path):  # root, who may run the tests, is refused nothing
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert walk_files(tmp_path) == [tmp_path / "a" / "1.png", tmp_path / "z" / "1.png"]
    assert f"left out: {tmp_path / 'locked'} cannot be read (Permission denied)" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        walk_files(tmp_path / "locked")
