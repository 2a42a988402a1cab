"""test.py, driven as users do: any image in, PNG out, nothing lost, nothing silently wrong."""

import ntpath
import os
import subprocess
import sys
from pathlib import PureWindowsPath

import helpers
import numpy as np
import pytest
import torch
from helpers import ROOT, run_script
from pictures import picture
from PIL import Image

import test as script
import utils
from Datasets.images import load_image, prepare_lr, prepare_pair, walk_files
from models import Decoder, FeatureExtractor
from utils import to_bytes, to_unit_range

# Mean PSNR of weights/sr.pth on docs/faces, dB; `python -m pytest tests/test_inference.py -k golden -s` prints it
GOLDEN = 25.37
SHIPPED = ROOT / "weights/sr.pth"


def main(sr, source, target, *more):
    paths = ("--weights", sr, "--input", source, "--output", target)
    helpers.main(script, *paths, "--device", "cpu", "--precision", "fp32", *more)


def put(path, seed=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(*size, seed=seed).save(path)
    return path


def put_many(folder, count):
    for number in range(count):
        put(folder / f"{number}.png", number)
    return folder


def written(folder):
    return sorted(file.relative_to(folder).as_posix() for file in walk_files(folder))


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def batch(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


# --- the network -------------------------------------------------------------------------------------------------


def test_golden_psnr_of_the_shipped_weights():
    pairs = [prepare_pair(load_image(path), resize=64) for path in walk_files(ROOT / "docs/faces") if path.suffix == ".png"]
    y, x_c = (batch(images) for images in zip(*pairs))
    sr = utils.SuperResolver(SHIPPED, torch.device("cpu")).pictures(x_c)
    mean = utils.psnr(to_unit_range(sr), to_unit_range(y)).mean().item()
    print(f"golden: {mean:.2f} dB on {len(y)} faces")
    assert mean == pytest.approx(GOLDEN, abs=0.05)


@pytest.mark.parametrize("kind", ["h2l", "sr"])
def test_the_shipped_weights(kind):
    """Under 40 MB, in half precision, of the paper's width, with their origin and terms."""
    path = ROOT / "weights" / f"{kind}.pth"
    assert path.stat().st_size < 40e6
    content = utils.load_checkpoint(path, kind, "git checkout weights")
    assert content["width"] == 64 and set(content["about"]) == {"trained on", "licence"}
    tensors = [tensor for weights in content["weights"].values() for tensor in weights.values()]
    assert all(tensor.dtype == torch.float16 for tensor in tensors if tensor.dim() > 1)
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_the_output_is_the_networks_and_no_batch_changes_it(lively, tmp_path, capsys):
    put_many(tmp_path / "in", 5)
    for size in (5, 2):
        main(lively, tmp_path / "in", tmp_path / str(size), "--batch-size", size)
    weights = torch.load(lively, weights_only=True)["weights"]
    extractor, decoder = FeatureExtractor(8).eval(), Decoder(8).eval()
    extractor.load_state_dict(weights["extractor"])
    decoder.load_state_dict(weights["decoder"])
    x = batch([prepare_lr(load_image(tmp_path / f"in/{n}.png")) for n in range(5)])
    with torch.no_grad():
        expected = to_bytes(decoder(extractor(to_unit_range(x)))).permute(0, 2, 3, 1).numpy()
    for n in range(5):
        assert all(np.abs(read(tmp_path / f"{size}/{n}.png") - expected[n]).max() <= 1 for size in (5, 2))
    assert np.abs(expected[0].astype(int) - expected[1]).max() > 20
    image, printed = Image.open(tmp_path / "5/0.png"), capsys.readouterr().out
    assert image.size == (64, 64) and image.format == "PNG" and image.mode == "RGB"
    assert "computing on cpu in float32" in printed and "5 images super-resolved" in printed and "images/s" in printed


def test_the_self_ensemble_is_the_mean_over_the_mirror_images(lively, tmp_path):
    picture(16, 16).save(put(tmp_path / "in/face.png"))
    picture(16, 16).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "in/mirrored.png")
    main(lively, tmp_path / "in", tmp_path / "single")
    main(lively, tmp_path / "in", tmp_path / "both", "--self-ensemble")
    a, b = read(tmp_path / "single/face.png"), read(tmp_path / "single/mirrored.png")[:, ::-1]
    assert np.abs(a - b).max() > 10
    unclamped = (a > 0) & (a < 255) & (b > 0) & (b < 255)
    assert unclamped.mean() > 0.25
    assert np.abs(read(tmp_path / "both/face.png") - (a + b) / 2)[unclamped].max() <= 1
    assert np.array_equal(read(tmp_path / "both/face.png"), read(tmp_path / "both/mirrored.png")[:, ::-1])


@pytest.mark.parametrize("trace, grey", [(0, True), (2, True), (8, False)])
def test_what_is_grey_in_is_grey_out(trace, grey, lively):
    """trace: of colour, of 255, in one pixel: JPEG and colour profiles round."""
    faces = batch([picture(16, 16, seed) for seed in range(3)])
    faces[1:] = faces[1:, :1].clone().clamp(max=240)
    faces[1:, 0, 3, 3] += trace
    resolver = utils.SuperResolver(lively, torch.device("cpu"))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in resolver.extractor.modules())  # folded
    plain = resolver.decoder(resolver.features(faces))
    luminance = (plain * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True).expand_as(plain)
    assert torch.allclose(resolver(faces)[1:], luminance[1:] if grey else plain[1:], atol=1e-5)
    assert torch.equal(resolver(faces)[0], plain[0])  # another face's colours stay
    for ensemble in (False, True):
        sr = resolver.pictures(faces, ensemble)[1:]
        assert (sr == sr[:, :1]).all() == grey


def test_bf16_is_near_fp32():
    faces = batch([prepare_lr(load_image(ROOT / f"LR/drawn_{n + 1}.png")) for n in range(8)])
    dtypes = (torch.float32, torch.bfloat16)
    a, b = (utils.SuperResolver(SHIPPED, torch.device("cpu"), dtype).pictures(faces).float() for dtype in dtypes)
    errors = (a - b).square().flatten(1).mean(dim=1)
    assert (errors > 0).all() and (errors < 255**2 / 10**3.5).all()  # not the same, and at least 35 dB


# --- from files to files -----------------------------------------------------------------------------------------


def test_many_kinds_of_files(lively, tmp_path, capsys):
    source, colour = tmp_path / "in", picture(16, 16)
    (source / "sub" / "日本").mkdir(parents=True)
    colour.save(source / "a.png")
    colour.save(source / "sub" / "日本" / "gesicht ä.bmp")
    colour.convert("L").save(source / "grey.gif")
    colour.convert("CMYK").save(source / "cmyk.jpg")
    colour.convert("RGBA").save(source / "opaque.webp", lossless=True)
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(source / "deep.png")
    colour.convert("P").save(source / "palette.tiff")
    put(source / "large.png", size=(300, 200))
    put(source / "long.png", size=(60, 20))
    for name, alpha in (("clear", np.zeros((16, 16))), ("cut", np.diag([255] * 16))):
        face = colour.copy()
        face.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        face.save(source / f"{name}.png")
    Image.new("RGB", (16, 16)).save(source / "black.png")
    (source / "notes.txt").write_text("not an image")
    (source / "half.png").write_bytes((source / "large.png").read_bytes()[:9000])
    (source / "empty.jpg").touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(source / "pipe.png")  # a reader that waited for it would never end
    main(lively, source, tmp_path / "out", "--batch-size", 3)
    expected = ["a", "black", "clear", "cmyk", "cut", "deep", "grey", "large", "long", "opaque", "palette"]
    assert written(tmp_path / "out") == [f"{name}.png" for name in [*expected, "sub/日本/gesicht ä"]]
    printed = capsys.readouterr()
    assert f"12 images super-resolved to {tmp_path / 'out'}, {4 if hasattr(os, 'mkfifo') else 3} skipped" in printed.out
    for name, reason in (("notes.txt", "is not an image"), ("half.png", "does not decode"), ("empty.jpg", "is not an image")):
        assert f"skipped: {source / name} {reason}" in printed.err
    said = [line for line in printed.err.splitlines() if line.startswith("warning: 1 image ")]
    for name, word in (("large", "16 px"), ("long", "square"), ("clear", "transparent"), ("cut", "black"), ("black", "flat")):
        assert sum(word in line and f"{name}.png" in line for line in said) == 1, name
    assert len(said) == printed.err.count("warning") == 5
    assert np.array_equal(read(tmp_path / "out/clear.png"), read(tmp_path / "out/a.png"))  # the colours under alpha 0


@pytest.mark.parametrize("names, expected", [
    (["a.png", "b.jpg"], ["a.png", "b.png"]),
    (["a.png", "a.jpg"], ["a.png.png", "a.jpg.png"]),
    (["a.jpg", "A.png"], ["a.jpg.png", "A.png.png"]),
    (["a.jpg", "a.gif", "a.jpg.png"], ["a.jpg.2.png", "a.gif.png", "a.jpg.png"]),
    (["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
    (["compare.jpg"], ["compare.jpg.png"]),
    (["noextension"], ["noextension.png"]),
    (["b.jpg", "b.png/c.jpg"], ["b.jpg.png", "b.png/c.png"]),
])  # fmt: skip
def test_output_names(names, expected):
    """All different, and the same in whatever order the inputs come."""
    assert utils.output_names(names, {"compare.png"}) == expected
    assert utils.output_names(names[::-1], {"compare.png"}) == expected[::-1]


@pytest.mark.parametrize("files, names", [
    ([r"C:\a\1.png", r"D:\b\2.png"], ["C/a/1.png", "D/b/2.png"]),
    ([r"\\host\share\1.png", r"D:\2.png"], ["host/share/1.png", "D/2.png"]),
    ([r"C:\a\x\1.png", r"C:\a\2.png"], ["x/1.png", "2.png"]),
])  # fmt: skip
def test_inputs_on_two_drives_of_windows(files, names, monkeypatch):
    class System:
        path, sep = ntpath, "\\"

    monkeypatch.setattr(utils, "os", System)
    assert utils.relative_names(files, [str(PureWindowsPath(file).parent) for file in files]) == names


def test_results_within_the_input_folder_are_not_inputs(lively, tmp_path, capsys):
    put(tmp_path / "a.png")
    for _ in range(2):
        main(lively, tmp_path, tmp_path / "Results")
        assert "1 image super-resolved" in capsys.readouterr().out
    before = (tmp_path / "a.png").read_bytes()
    for source, target in ((tmp_path, tmp_path), (tmp_path / "a.png", tmp_path), (tmp_path / "a.png", tmp_path / "a.png")):
        with pytest.raises(utils.UserError, match="would mix the results with the inputs"):
            main(lively, source, target)
    assert (tmp_path / "a.png").read_bytes() == before


def test_skip_existing_goes_on_where_a_run_stopped(lively, tmp_path, capsys):
    put_many(tmp_path / "in", 4)
    main(lively, tmp_path / "in", tmp_path / "out", "--compare")
    whole = read(tmp_path / "out/compare.png")
    kept = (tmp_path / "out/0.png").stat().st_mtime_ns
    (tmp_path / "out/2.png").unlink()
    main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing")
    printed = capsys.readouterr().out
    assert "3 results already there" in printed and "1 image super-resolved" in printed
    assert (tmp_path / "out/2.png").exists() and (tmp_path / "out/0.png").stat().st_mtime_ns == kept
    main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing", "--compare")  # nothing left to do is no error
    assert "4 results already there" in capsys.readouterr().out
    assert np.abs(read(tmp_path / "out/compare.png") - whole).max() <= 1  # rounding may depend on the batch
    (tmp_path / "out/0.png").write_text("no picture")
    with pytest.raises(utils.UserError, match="0.png is not an image.*delete it"):
        main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing", "--compare")


def test_results_that_cannot_be_written_end_nothing_else(lively, tmp_path, capsys):
    """Two long names that want the same result need a longer one, which no file system takes; a folder is in the way."""
    names = ["人" * 82 + ".png", "b" * 248 + ".png", "b" * 248 + ".bmp", "folder.png", "short.png"]
    for name in names:
        put(tmp_path / "in" / name)
    put(tmp_path / "out/folder.png/within.png")
    for options in (("--compare",), ("--compare", "--skip-existing")):
        with pytest.raises(utils.UserError, match="3 results could not be written"):
            main(lively, tmp_path / "in", tmp_path / "out", *options)
        printed = capsys.readouterr()
        assert printed.err.count("cannot be written") == 3 and "File name too long" in printed.err
        assert f"{0 if '--skip-existing' in options else 2} images super-resolved" in printed.out
    assert sorted(["compare.png", "folder.png/within.png", "short.png", names[0]]) == written(tmp_path / "out")


@pytest.mark.parametrize("where", ["file/out", "/proc/self"])
def test_a_folder_that_cannot_be_written_is_known_before_the_first_face(where, lively, tmp_path, monkeypatch):
    if where.startswith("/") and not os.path.isdir(where):
        pytest.skip("stands in for a folder without permission, also for root")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(script, "super_resolve", None)
    with pytest.raises(utils.UserError, match="--output"):
        main(lively, put(tmp_path / "a.png"), tmp_path / where)


def test_a_full_disk_ends_the_run_with_its_remedy(lively, tmp_path, monkeypatch):
    def full(*_arguments, **_settings):
        raise utils.UserError("cannot write") from OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "write_atomic", full)
    with pytest.raises(utils.UserError, match="No space left on device.*resume with --skip-existing"):
        main(lively, put(tmp_path / "a.png"), tmp_path / "out")


# --- what people name as input and output ------------------------------------------------------------------------


def test_what_is_not_there(lively, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("not an image")
    for weights, source, words in (
        (lively, tmp_path / "in", ("no usable image", "1 file skipped")),
        (lively, tmp_path / "nowhere", ("--input", "does not exist")),
        (lively, tmp_path / "x*.png", ("x\\*.png", "matches nothing")),
        (tmp_path / "sr.pth", tmp_path / "in", ("is missing", "train_h2l.py", "make demo", "name another file")),
    ):
        with pytest.raises(utils.UserError, match=".*".join(words)):
            main(weights, source, tmp_path / "out")


def test_files_folders_and_patterns_mixed(lively, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sr.pth").write_bytes(lively.read_bytes())
    for seed, name in enumerate(["a.png", "b.jpg", "c.bmp", "face [1].png", "sub/a.png", "sub/d.png", "other/e.png"]):
        put(tmp_path / name, seed)
    inputs = ["~/a.png", tmp_path / "sub", "~/[bc].*", tmp_path / "sub/a.png", "~/face [1].png"]
    helpers.main(script, "--weights=~/sr.pth", "--input", *inputs, "--output=~/out", "--device", "cpu")
    assert written(tmp_path / "out") == ["a.png", "b.png", "c.png", "face [1].png", "sub/a.png", "sub/d.png"]


def test_one_picture_into_one_file(lively, tmp_path):
    face = put(tmp_path / "in/a.jpg")
    main(lively, face, tmp_path / "new/face_sr.png", "--compare")
    assert written(tmp_path / "new") == ["compare.png", "face_sr.png"]
    main(lively, face, tmp_path / "results.v2")  # no picture's name: a folder
    assert (tmp_path / "results.v2/a.png").read_bytes() == (tmp_path / "new/face_sr.png").read_bytes()
    with pytest.raises(utils.UserError, match="name it .*x.png"):
        main(lively, face, tmp_path / "x.jpg")
    with pytest.raises(utils.UserError, match="names one picture, and --input is not one"):
        main(lively, tmp_path / "in", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "x.jpg").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="names that are not text exist on Unix alone")
def test_names_that_the_console_cannot_show_and_a_reader_that_leaves(lively, tmp_path):
    put(tmp_path / "入力/顔.png")
    (tmp_path / "入力/no 画像.txt").write_text("not an image")
    os.rename(put(tmp_path / "入力/x.png"), os.fsencode(tmp_path / "入力") + b"/\xff.png")
    options = ["--weights", lively, "--input", tmp_path / "入力", "--output", tmp_path / "結果"]
    result = run_script("test.py", *options, environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONSAFEPATH": "1"})
    assert result.returncode == 0, result.stderr
    assert "2 images super-resolved" in result.stdout and "1 skipped" in result.stdout
    command = [sys.executable, "test.py", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before anything is printed
    assert "Traceback" not in process.stderr.read().decode() and process.wait(240) == 0
    assert len(os.listdir(tmp_path / "結果")) == 2


def test_starting_does_not_import_what_only_evaluate_and_training_need():
    code = "import sys, test; print([name for name in ('torchvision', 'torchmetrics', 'matplotlib') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.stdout.strip() == "[]", result.stderr


def test_photographs_have_a_script_of_their_own(capsys):
    with pytest.raises(SystemExit):
        script.main(["--photos", "--input", "photographs"])
    assert "python photos.py" in capsys.readouterr().err
