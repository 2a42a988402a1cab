"""test.py, driven as users do: any image in, PNG out, nothing lost, nothing silently wrong."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import ROOT, run_script
from PIL import Image

import test as script
import utils
from Datasets.images import load_image, prepare_lr, walk_files
from models import Decoder, FeatureExtractor
from utils import to_bytes, to_unit_range


def picture(width=16, height=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run(sr, source, target, *more):
    return run_script("test.py", "--weights", sr, "--input", source, "--output", target, "--device", "cpu", *more)


def main(sr, source, target, *more):
    options = ["--weights", sr, "--input", source, "--output", target, "--device", "cpu", "--precision", "fp32", *more]
    script.main([str(option) for option in options])


def test_the_shipped_folder(sr, tmp_path):
    result = run(sr, "LR", tmp_path / "out", "--compare")
    assert result.returncode == 0, result.stderr
    faces = [file for file in walk_files(ROOT / "LR") if file.name.startswith("drawn_")]
    assert 3 <= len(faces) <= 16
    for file in faces:
        with Image.open(tmp_path / "out" / f"{file.stem}.png") as image:
            assert image.size == (64, 64) and image.format == "PNG" and image.mode == "RGB"
    with Image.open(tmp_path / "out" / "compare.png") as sheet:
        assert sheet.width > 700
    assert f"{len(walk_files(ROOT / 'LR'))} images super-resolved" in result.stdout
    assert "0 skipped" in result.stdout and "images/s" in result.stdout


def test_the_output_is_the_networks(lively, tmp_path):
    picture(20, 30).save(tmp_path / "face.png")
    main(lively, tmp_path / "face.png", tmp_path / "out")
    weights = torch.load(lively, weights_only=True)["weights"]
    extractor, decoder = FeatureExtractor(8).eval(), Decoder(8).eval()
    extractor.load_state_dict(weights["extractor"])
    decoder.load_state_dict(weights["decoder"])
    x = torch.from_numpy(np.array(prepare_lr(load_image(tmp_path / "face.png")))).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = to_bytes(decoder(extractor(to_unit_range(x))))[0].permute(1, 2, 0).numpy()
    written = np.asarray(Image.open(tmp_path / "out" / "face.png"))
    assert np.abs(written.astype(int) - expected).max() <= 1


def test_the_self_ensemble_is_the_mean_over_the_mirror_images(lively, tmp_path):
    face = picture()
    for name, image in (("face", face), ("mirrored", face.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / f"{name}.png")
    main(lively, tmp_path / "in", tmp_path / "single")
    main(lively, tmp_path / "in", tmp_path / "both", "--self-ensemble")

    def read(folder, name):
        return np.asarray(Image.open(tmp_path / folder / f"{name}.png")).astype(int)

    a, b = read("single", "face"), read("single", "mirrored")[:, ::-1]
    assert np.abs(a - b).max() > 10
    unclamped = (a > 0) & (a < 255) & (b > 0) & (b < 255)
    assert unclamped.mean() > 0.25
    assert np.abs(read("both", "face") - (a + b) / 2)[unclamped].max() <= 1
    assert np.array_equal(read("both", "face"), read("both", "mirrored")[:, ::-1])


def test_a_result_depends_neither_on_neighbours_nor_on_the_batch_size(lively, tmp_path):
    for number in range(9):
        (tmp_path / "in").mkdir(exist_ok=True)
        picture(seed=number).save(tmp_path / "in" / f"{number}.png")
    main(lively, tmp_path / "in", tmp_path / "all", "--batch-size", 9)
    main(lively, tmp_path / "in", tmp_path / "four", "--batch-size", 4)
    main(lively, tmp_path / "in" / "5.png", tmp_path / "alone", "--batch-size", 1)

    def read(name, number):
        return np.asarray(Image.open(tmp_path / name / f"{number}.png")).astype(int)

    assert all(np.abs(read("all", n) - read("four", n)).max() <= 1 for n in range(9))
    assert np.abs(read("all", 5) - read("alone", 5)).max() <= 1
    assert np.abs(read("all", 5) - read("all", 6)).max() > 20


def test_folding_batchnorm_keeps_the_function(lively):
    loaded = utils.load_networks(lively, "sr", {"extractor": FeatureExtractor, "decoder": Decoder}, "")
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        extractor, decoder = loaded["extractor"].double(), loaded["decoder"].double()
        expected = decoder(extractor(x))
        folded = [utils.fold_batchnorm(network) for network in (extractor, decoder)]
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for network in folded for layer in network.modules())
        assert torch.allclose(decoder(extractor(x)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shipped", [False, True], ids=["test network", "shipped weights"])
def test_bf16_is_near_fp32(shipped, lively, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(8):
        face = Image.open(ROOT / "LR" / f"drawn_{number + 1}.png") if shipped else picture(seed=number)
        face.save(source / f"{number}.png")
    weights = ROOT / "weights" / "sr.pth" if shipped else lively
    for precision in ("fp32", "bf16"):
        result = run(weights, source, tmp_path / precision, "--precision", precision)
        assert (
            result.returncode == 0
            and f"computing on cpu in {precision.replace('fp', 'float').replace('bf', 'bfloat')}" in result.stdout
        )
    for file in walk_files(source):
        a, b = (np.asarray(Image.open(tmp_path / precision / file.name), float) for precision in ("fp32", "bf16"))
        assert 0 < np.square(a - b).mean() < 255**2 / 10**3.5  # not the same, and at least 35 dB


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


def test_many_kinds_of_files(sr, tmp_path):
    source = tmp_path / "in"
    (source / "sub" / "日本").mkdir(parents=True)
    colour = picture()
    colour.save(source / "a.png")
    colour.save(source / "sub" / "日本" / "gesicht ä.bmp")
    colour.convert("L").save(source / "grey.gif")
    colour.convert("CMYK").save(source / "cmyk.jpg")
    colour.convert("RGBA").save(source / "alpha.webp")
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(source / "deep.png")
    colour.convert("P").save(source / "palette.tiff")
    picture(300, 200).save(source / "large.png")
    (source / "notes.txt").write_text("not an image")
    (source / "half.png").write_bytes((source / "large.png").read_bytes()[:9000])
    (source / "empty.jpg").touch()
    picture(60, 20).save(source / "long.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(source / "pipe.png")  # a reader that waited for it would never end
    result = run(sr, source, tmp_path / "out", "--batch-size", 3)
    assert result.returncode == 0, result.stderr
    expected = ["a", "sub/日本/gesicht ä", "grey", "cmyk", "alpha", "deep", "palette", "large", "long"]
    written = {file.relative_to(tmp_path / "out").as_posix() for file in walk_files(tmp_path / "out")}
    assert written == {f"{name}.png" for name in expected}
    assert "9 images super-resolved" in result.stdout
    assert f"{4 if hasattr(os, 'mkfifo') else 3} skipped" in result.stdout
    for name, reason in (("notes.txt", "is not an image"), ("half.png", "does not decode"), ("empty.jpg", "is not an image")):
        assert f"skipped: {source / name} {reason}" in result.stderr
    assert result.stderr.count("warning") == 2 and "large.png" in result.stderr and "16 px" in result.stderr
    assert "1 input far from square" in result.stderr and "long.png" in result.stderr


def test_colliding_names_all_get_written_and_stay_the_same(lively, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for seed, name in enumerate(["a.png", "a.bmp", "a.bmp.png", "b.gif"]):
        picture(seed=seed).save(source / name)
    for target in ("one", "two"):
        main(lively, source, tmp_path / target)
    names = sorted(file.name for file in walk_files(tmp_path / "one"))
    assert len(names) == 4 and "a.bmp.png" in names and "b.png" in names
    assert len({(tmp_path / "one" / name).read_bytes() for name in names}) == 4  # each face's own
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.png", "a.jpg"], ["a.png.png", "a.jpg.png"]),
        (["a.jpg", "A.png"], ["a.jpg.png", "A.png.png"]),
        (["a.jpg", "a.gif", "a.jpg.png"], ["a.jpg.2.png", "a.gif.png", "a.jpg.png"]),
        (["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
        (["compare.jpg"], ["compare.jpg.png"]),
        (["noextension"], ["noextension.png"]),
        (["b.jpg", "b.png/c.jpg"], ["b.jpg.png", "b.png/c.png"]),
    ],
)
def test_output_names(names, expected):
    assert utils.output_names(names, {"compare.png"}) == expected
    assert utils.output_names(names[::-1], {"compare.png"}) == expected[::-1]


def test_results_within_the_input_folder_are_not_inputs(sr, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    for _ in range(2):
        main(sr, tmp_path, tmp_path / "Results")
        assert "1 image super-resolved" in capsys.readouterr().out
    before = (tmp_path / "a.png").read_bytes()
    for source, target in ((tmp_path, tmp_path), (tmp_path / "a.png", tmp_path)):
        with pytest.raises(utils.UserError, match="would mix the results with the inputs"):
            main(sr, source, target)
    assert (tmp_path / "a.png").read_bytes() == before


def test_skip_existing_goes_on_where_a_run_stopped(lively, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(4):
        picture(seed=number).save(tmp_path / "in" / f"{number}.png")
    main(lively, tmp_path / "in", tmp_path / "out")
    kept = (tmp_path / "out" / "0.png").stat().st_mtime_ns
    (tmp_path / "out" / "2.png").unlink()
    main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing")
    printed = capsys.readouterr().out
    assert "3 results already there" in printed and "1 image super-resolved" in printed
    assert (tmp_path / "out" / "2.png").exists() and (tmp_path / "out" / "0.png").stat().st_mtime_ns == kept
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing", "--compare")  # nothing left to do is no error
    printed = capsys.readouterr().out
    assert "4 results already there" in printed and "0 images super-resolved" in printed and "1 skipped" in printed
    part = Image.open(tmp_path / "out" / "compare.png")
    (tmp_path / "out" / "3.png").unlink()
    main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing", "--compare")
    main(lively, tmp_path / "in", tmp_path / "whole", "--compare")
    whole = Image.open(tmp_path / "whole" / "compare.png")
    for sheet in (part, Image.open(tmp_path / "out" / "compare.png")):  # rounding may depend on the batch
        assert np.abs(np.asarray(sheet).astype(int) - np.asarray(whole)).max() <= 1
    (tmp_path / "out" / "0.png").write_text("no picture")
    with pytest.raises(utils.UserError, match="0.png is not an image.*delete it"):
        main(lively, tmp_path / "in", tmp_path / "out", "--skip-existing", "--compare")


def test_nothing_usable_is_an_error(sr, tmp_path):
    (tmp_path / "in").mkdir()
    result = run(sr, tmp_path / "in", tmp_path / "out")
    assert result.returncode == 1 and "no usable image" in result.stderr
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    result = run(sr, tmp_path / "in", tmp_path / "out")
    assert result.returncode == 1 and "1 file skipped" in result.stderr
    result = run(sr, tmp_path / "nowhere", tmp_path / "out")
    assert result.returncode == 1 and "does not exist" in result.stderr


def test_without_weights_it_says_how_to_get_them(tmp_path):
    result = run(tmp_path / "sr.pth", "LR", tmp_path / "out")
    assert result.returncode == 1
    assert all(text in result.stderr for text in ("is missing", "train_h2l.py", "train.py", "make demo", "name another file"))


def test_an_output_that_cannot_be_written(sr, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run(sr, "LR", tmp_path / "file" / "out")
    assert result.returncode == 1 and "choose another --output" in result.stderr


def test_the_shipped_faces_are_small():
    faces = [file for file in walk_files(ROOT / "LR") if file.name.startswith("drawn_")]
    assert all(max(Image.open(file).size) < 32 for file in faces)
    assert shutil.disk_usage(ROOT).total > sum(file.stat().st_size for file in faces) < 30_000


# --- what people name as input and output ------------------------------------------------------------------------


def written(folder):
    return sorted(file.relative_to(folder).as_posix() for file in walk_files(folder))


def put(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed=seed).save(path)
    return path


def test_files_folders_and_patterns_mixed(lively, tmp_path, capsys):
    for seed, name in enumerate(["a.png", "b.jpg", "c.bmp", "sub/a.png", "sub/d.png", "other/e.png"]):
        put(tmp_path / name, seed)
    inputs = [tmp_path / "a.png", tmp_path / "sub", tmp_path / "[bc].*", tmp_path / "sub" / "a.png"]
    script.main([str(o) for o in ["--weights", lively, "--input", *inputs, "--output", tmp_path / "out"]])
    assert written(tmp_path / "out") == ["a.png", "b.png", "c.png", "sub/a.png", "sub/d.png"]
    assert "5 images super-resolved" in capsys.readouterr().out
    main(lively, tmp_path / "s*" / "d.*", tmp_path / "pattern")
    assert written(tmp_path / "pattern") == ["d.png"]
    with pytest.raises(utils.UserError, match=r"--input .*x\*\.png matches nothing"):
        main(lively, tmp_path / "x*.png", tmp_path / "out")


def test_a_file_whose_name_looks_like_a_pattern(lively, tmp_path):
    main(lively, put(tmp_path / "face [1].png"), tmp_path / "out")
    assert written(tmp_path / "out") == ["face [1].png"]


def test_one_picture_into_one_file(lively, tmp_path):
    face = put(tmp_path / "in" / "a.jpg")
    main(lively, face, tmp_path / "new" / "face_sr.png", "--compare")
    assert written(tmp_path / "new") == ["compare.png", "face_sr.png"]
    main(lively, face, tmp_path / "folder")
    assert (tmp_path / "folder" / "a.png").read_bytes() == (tmp_path / "new" / "face_sr.png").read_bytes()
    main(lively, face, tmp_path / "results.v2")  # no picture's name: a folder, as ever
    assert written(tmp_path / "results.v2") == ["a.png"]
    with pytest.raises(utils.UserError, match="results are PNG files; name it .*x.png"):
        main(lively, face, tmp_path / "x.jpg")
    with pytest.raises(utils.UserError, match="names one picture, and --input is not one"):
        main(lively, tmp_path / "in", tmp_path / "x.png")
    with pytest.raises(utils.UserError, match="would mix the results with the inputs and overwrite"):
        main(lively, put(tmp_path / "b.png"), tmp_path / "b.png")
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "x.jpg").exists()


def test_the_home_folder_in_every_path(lively, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(put(tmp_path / "in" / "a.png").parent)
    (tmp_path / "sr.pth").write_bytes(lively.read_bytes())
    script.main(["--weights=~/sr.pth", "--input=~/in/a.png", "--output=~/Results"])
    assert written(tmp_path / "Results") == ["a.png"] and os.listdir() == ["a.png"]


def test_long_but_legal_names(lively, tmp_path, capsys):
    names = ["人" * 82 + ".png", "b" * 248 + ".png"]
    for name in names:
        put(tmp_path / "in" / name)
    main(lively, tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out") == sorted(names)
    # Two such names that want the same result need a longer one, which the file system refuses: the others are written
    put(tmp_path / "in" / ("b" * 248 + ".bmp"))
    put(tmp_path / "in" / "short.png")
    with pytest.raises(utils.UserError, match="2 results could not be written, such as .*File name too long"):
        main(lively, tmp_path / "in", tmp_path / "again")
    assert "short.png" in written(tmp_path / "again") and "人" * 82 + ".png" in written(tmp_path / "again")
    printed = capsys.readouterr()
    assert "skipped: " in printed.err and "cannot be written" in printed.err and "2 images super-resolved" in printed.out


def test_a_full_disk_ends_the_run_with_its_remedy(lively, tmp_path, monkeypatch):
    put(tmp_path / "in" / "a.png")

    def full(*_arguments, **_settings):
        raise utils.UserError("cannot write") from OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "write_atomic", full)
    with pytest.raises(utils.UserError, match="No space left on device.*resume with --skip-existing"):
        main(lively, tmp_path / "in", tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="names that are not text exist on Unix alone")
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_that_the_console_cannot_show(environment, lively, tmp_path):
    put(tmp_path / "入力" / "顔.png")
    (tmp_path / "入力" / "no 画像.txt").write_text("not an image")
    os.rename(put(tmp_path / "入力" / "x.png"), os.fsencode(tmp_path / "入力") + b"/\xff.png")
    result = run_script(
        "test.py", "--weights", lively, "--input", tmp_path / "入力", "--output", tmp_path / "結果", environment=environment
    )
    assert result.returncode == 0, result.stderr
    assert "2 images super-resolved" in result.stdout and "1 skipped" in result.stdout
    assert len(os.listdir(tmp_path / "結果")) == 2


def test_a_reader_that_leaves_early_does_not_end_the_work(lively, tmp_path):
    for number in range(3):
        put(tmp_path / "in" / f"{number}.png", number)
    command = [sys.executable, "test.py", "--weights", lively, "--input", tmp_path / "in", "--output", tmp_path / "out"]
    script_run = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    script_run.stdout.close()  # before anything is printed
    errors = script_run.stderr.read().decode()
    assert script_run.wait(120) == 0 and "Traceback" not in errors
    assert len(written(tmp_path / "out")) == 3


def test_pythons_safe_path(tmp_path):
    result = run_script("test.py", "--help", environment={"PYTHONSAFEPATH": "1"})
    assert result.returncode == 0, result.stderr


def test_decoding_stays_a_bounded_number_of_files_ahead():
    started = []
    with ThreadPoolExecutor(4) as pool:
        results = script.ahead(pool, lambda item: started.append(item) or item, iter(range(100)), 6)
        for number in range(5):
            assert next(results) == number
        assert len(started) <= 5 + 6
        assert list(results) == list(range(5, 100)) and sorted(started) == list(range(100))


def test_starting_does_not_import_what_only_evaluate_and_training_need():
    code = "import sys, test; print([name for name in ('torchvision', 'torchmetrics', 'matplotlib') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr
