"""One image: what is read, how it is framed, and what is found in folders."""

import os
import struct

import numpy as np
import pytest
import torch
from pictures import encode, picture
from PIL import Image, ImageCms

from Datasets import images, make_demo
from Datasets.images import DamagedImageError, ImageError, load_image, notes, prepare_hr, prepare_lr, walk_files
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


def test_bytes_and_unit_range_are_inverse():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit_range(levels)), levels)
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


# --- values and colours ------------------------------------------------------------------------------------------

GREY = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (20, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_image_modes(mode, tmp_path):
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(GREY).convert("RGB").convert(mode).save(path)
    values = np.asarray(load_image(path)).astype(int)
    assert abs(values.mean() - GREY.mean()) < 4
    if mode not in ("1", "P"):  # those two are dithered
        assert np.abs(values - GREY[..., None]).mean() < 4


def int16(bits):
    return (GREY.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)


RANGES = {
    **{f"{bits} bits": int16(bits) for bits in (8, 10, 12, 14, 16)},
    "a dark picture of 8 bits, spread": GREY.astype(np.uint16) // 8 * 257,
    "0 to 1": GREY.astype(np.float32) / 255,
    "-1 to 1": GREY.astype(np.float32) / 127.5 - 1,
    "0 to 255, overshooting": np.where(GREY == 255, 261, GREY.astype(np.float32)),
    "1023, as floating point": int16(10).astype(np.float32),
    "kelvin": 290 + GREY.astype(np.float32) / 10 + 0.05,
    "with NaN": np.where(GREY == 0, np.nan, GREY.astype(np.float32) / 255).astype(np.float32),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_range_of_values_is_found(name, tmp_path):
    Image.fromarray(RANGES[name]).save(tmp_path / "a.tif")
    expected = GREY // 8 if "dark" in name else GREY
    image = load_image(tmp_path / "a.tif")
    assert np.abs(np.asarray(image).astype(int) - expected[..., None]).max() <= 1
    assert bool(notes(image)) == (name in ("10 bits", "12 bits", "14 bits", "1023, as floating point", "kelvin"))


def test_a_range_that_a_file_declares_counts(tmp_path):
    dark = int16(10) // 8
    (tmp_path / "a.pgm").write_bytes(b"P5 20 20 1023\n" + dark.astype(">u2").tobytes())
    assert np.abs(np.asarray(load_image(tmp_path / "a.pgm")).astype(int) - (GREY // 8)[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_black_and_what_is_transparent_all_over_has_its_colours(mode, tmp_path):
    def load(alpha, **settings):
        image = Image.new("RGB", (20, 20), "white")
        image.putalpha(Image.fromarray(alpha))
        image.convert(mode).save(tmp_path / "a.png")
        return load_image(tmp_path / "a.png", **settings)

    half = np.zeros((20, 20), np.uint8)
    half[:, 10:] = 255
    image = load(half)
    assert np.asarray(image)[:, 11:].min() == 255 and np.asarray(image)[:, :9].max() == 0 and "black" in notes(image)[0]
    for level in (0, 128):
        image = load(np.full_like(half, level))
        assert np.asarray(image).min() == 255 and "colours were taken" in notes(image)[0]
    assert not notes(load(np.full_like(half, 255)))[1:]  # flat alone
    kept = load(half, keep_alpha=True)
    assert kept.mode == "RGBA" and np.array_equal(np.asarray(kept)[..., 3], half) and np.asarray(kept)[:, 11:, :3].min() == 255


def test_black_and_flat_pictures_are_said():
    for value in (0, 120):
        assert "black or flat" in notes(Image.new("RGB", (30, 30), (value,) * 3))
    assert notes(Image.fromarray(GREY)) == ()


def wide_gamut():
    """sRGB's profile with the primaries of Display P3."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {b"rXYZ": (0.515, 0.241, -0.001), b"gXYZ": (0.292, 0.692, 0.042), b"bXYZ": (0.157, 0.067, 0.784)}
    for tag in range(struct.unpack(">I", profile[128:132])[0]):
        name, start, _ = struct.unpack(">4sII", profile[132 + 12 * tag : 144 + 12 * tag])
        if name in primaries:
            profile[start + 8 : start + 20] = struct.pack(">3i", *(round(value * 65536) for value in primaries[name]))
    return bytes(profile)


def test_colours_are_converted_from_the_files_profile(tmp_path):
    pixels = picture(20, 20)
    srgb, wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), wide_gamut()
    pixels = Image.blend(pixels, Image.new("RGB", (20, 20), "grey"), 0.5)  # within both gamuts
    (tmp_path / "profile.icc").write_bytes(wide)
    converted = ImageCms.profileToProfile(pixels, srgb, str(tmp_path / "profile.icc"), ImageCms.Intent.RELATIVE_COLORIMETRIC)
    assert np.abs(np.asarray(converted).astype(int) - np.asarray(pixels)).max() > 9
    for name, profile in (("wide.png", wide), ("srgb.png", srgb.tobytes()), ("bad.png", bytes(range(256)))):
        (converted if name == "wide.png" else pixels).save(tmp_path / name, icc_profile=profile)
        loaded = load_image(tmp_path / name)
        difference = np.abs(np.asarray(loaded).astype(int) - np.asarray(pixels)).max()
        assert difference <= (2 if name == "wide.png" else 0) and "icc_profile" not in loaded.info
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "grey.png", icc_profile=wide)
    assert images.is_grey(load_image(tmp_path / "grey.png"), 1e-9)


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 30, 10))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: up is right
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    loaded = np.asarray(load_image(tmp_path / "turned.jpg"))
    assert loaded.shape == (30, 20, 3)
    assert loaded[:, 12:].mean() > 200 > 50 > loaded[:, :8].mean()
    for kind in ("PNG", "JPEG", "WEBP"):  # EXIF that cannot be read
        (tmp_path / "face").write_bytes(encode(image, kind, exif=b"Exif\0\0" + bytes(range(200))))
        assert load_image(tmp_path / "face").size == (30, 20)


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.png", "photo.txt", "photo.JPG.download"])
def test_a_format_is_told_by_the_content(name, tmp_path):
    (tmp_path / name).write_bytes(encode(picture(70, 70), "JPEG"))
    assert load_image(tmp_path / name).size == (70, 70)


@pytest.mark.parametrize("heic", [True, False])
def test_heic_is_named_with_its_plug_in_and_a_video_is_no_picture(heic, tmp_path, monkeypatch):
    monkeypatch.setattr(images.importlib, "import_module", lambda module: (_ for _ in ()).throw(ImportError(module)))
    brands = b"heic\0\0\0\0mif1heicmiaf" if heic else b"isom\0\0\x02\0isomiso2avc1mp41"
    (tmp_path / "photo").write_bytes(b"\0\0\0\x1cftyp" + brands + bytes(64))
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "photo")
    assert ("pip install pillow-heif" if heic else "is not an image") in str(error.value)


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(picture(80, 70)).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a")
    assert load_image(tmp_path / "a").size == (80, 70)


def test_what_the_system_refuses_is_no_damage(tmp_path):
    (tmp_path / "half.png").write_bytes(encode(picture(80, 80))[:5000])
    for path, error in (("nowhere.png", ImageError), ("", ImageError), ("half.png", DamagedImageError)):
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / path)
        assert caught.type is error


# --- large pictures ----------------------------------------------------------------------------------------------


def test_large_files_are_decoded_at_a_reduced_size_and_others_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "DRAFT_PIXELS", 40_000)
    monkeypatch.setattr(images, "HUGE_PIXELS", 160_000)
    photograph = picture(15, 12).resize((300, 250), Image.Resampling.BICUBIC)
    (tmp_path / "large.jpg").write_bytes(encode(photograph, "JPEG"))
    (tmp_path / "small.jpg").write_bytes(encode(photograph.resize((120, 100)), "JPEG"))
    whole, reduced = load_image(tmp_path / "large.jpg"), load_image(tmp_path / "large.jpg", 16)
    assert whole.size == (300, 250) and reduced.size == (150, 125)
    difference = np.asarray(prepare_lr(whole), dtype=float) - np.asarray(prepare_lr(reduced), dtype=float)
    assert np.abs(difference).mean() < 5
    photograph.resize((450, 400)).save(tmp_path / "huge.png", compress_level=1)
    assert load_image(tmp_path / "huge.png", 16).size == (75, 67)
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
    (tmp_path / "b").symlink_to(tmp_path / "a")  # a second way to the same folder: its pictures get results of their own
    said = []
    found = walk_files(f"{tmp_path}/", without=tmp_path / "a" / "out", leave_out=lambda path, reason: said.append(path))
    assert found == [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    assert sorted(said) == [tmp_path / "a" / "loop", tmp_path / "b" / "loop"]


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
