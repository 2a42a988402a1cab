"""evaluate.py: closed-form cases of what it measures, and the script driven as users do; BatchNorm's statistics."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from helpers import run_script
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

import evaluate
import test as test_script
import utils
from Datasets import degradations
from Datasets.images import load_image, prepare_hr, prepare_lr
from Datasets.lists import read_list
from metrics import inputs as inputs_of
from metrics.frechet import load_inception
from models import HR_SIZE, LR_SIZE
from utils import to_bytes, to_unit_range

SMALL = ["--features", "MOBILENET", "--vgg-weights", "random", "--limit", 5]


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory) -> Path:
    """MobileNetV2's state dict with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mobilenet") / "mobilenet_v2.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def report(demo_data, h2l, sr, lively, mobilenet, tmp_path_factory) -> tuple[dict, str, Path]:
    """The JSON, the printed text and the path of a run on five drawn faces with two weights files."""
    path = tmp_path_factory.mktemp("evaluation") / "results" / "metrics.json"
    result = run_script(
        "evaluate.py", *small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", sr, lively, "--out", path
    )
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text()), result.stdout, path


def small(mobilenet):
    return [mobilenet if option == "MOBILENET" else option for option in SMALL]


def main(*options):
    evaluate.main([str(option) for option in options])


def faces(count, size, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- the script --------------------------------------------------------------------------------------------------


def test_every_number_of_every_row(report, sr, lively):
    content, printed, path = report
    assert list(content["rows"]) == ["floor", "bicubic", str(sr), str(lively)]
    assert set(content["rows"]["floor"]) == {"real_fd"}
    measured = [name for name in evaluate.DEFINITIONS if name != "real_fd_both"]
    assert set(content["rows"]["bicubic"]) == set(measured) - {"feature_gap"}
    for name in (str(sr), str(lively)):
        assert list(content["rows"][name]) == measured
        assert all(np.isfinite(value) for value in content["rows"][name].values())
    degradation = content["degradation"]
    assert list(degradation) == ["real", "floor", "x_c", "x_d", "hand_crafted"]
    assert set(degradation["hand_crafted"]) == set(degradation["x_d"]) == {*evaluate.DEGRADATION_DEFINITIONS} - {"rows"}
    for row in degradation.values():
        assert sum(row[name] for name in evaluate.RING_NAMES) == pytest.approx(1)
    for row in ("bicubic", str(sr), str(lively)):
        for column, kinds in (("four", inputs_of.FIXED), ("held_out", inputs_of.HELD_OUT)):
            values = [content["rows"][row][f"psnr_{kind}"] for kind in kinds]
            assert content["rows"][row][f"psnr_{column}"] == pytest.approx(np.mean(values))
    for name in measured:
        assert f"{name}: {evaluate.DEFINITIONS[name]}" in printed
    assert "FD-MobileNetV2: SR of 5 real faces against 5 HR faces; under 2048" in printed
    assert "FID" not in printed + path.read_text()  # MobileNetV2's distance is never called by that name
    with Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.width > 300 and sheet.height > 1000


def test_the_bicubic_row_is_pillows(report, demo_data):
    files = np.array(read_list(demo_data / "HR_test.csv"))[evaluate.choose(8, 5, 0)]
    values = []
    for file in files:
        y = prepare_hr(load_image(file))
        x = prepare_lr(y).resize((64, 64), Image.Resampling.BICUBIC)
        error = np.square(np.asarray(x, float) - np.asarray(y, float)).mean()
        values.append(10 * np.log10(255**2 / error))
    assert report[0]["rows"]["bicubic"]["psnr_clean"] == pytest.approx(np.mean(values), abs=0.01)


def test_the_numbers_do_not_depend_on_the_batch_size_nor_on_the_other_rows(report, demo_data, h2l, lively, mobilenet, tmp_path):
    path = tmp_path / "metrics.json"
    main(*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", lively, "--out", path, "--batch-size", 2)
    again = json.loads(path.read_text())
    for row in ("floor", "bicubic", str(lively)):
        for name, value in report[0]["rows"][row].items():
            assert again["rows"][row][name] == pytest.approx(value, abs=5e-4, rel=1e-3), (row, name)
    assert again["degradation"]["x_d"]["psnr"] == pytest.approx(report[0]["degradation"]["x_d"]["psnr"], abs=5e-3)


def test_the_self_ensemble_has_a_row_of_its_own(report, demo_data, h2l, lively, mobilenet, tmp_path):
    path = tmp_path / "metrics.json"
    main(*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", lively, "--out", path, "--self-ensemble")
    rows = json.loads(path.read_text())["rows"]
    name = f"{lively}, self-ensemble"
    assert list(rows) == ["floor", "bicubic", str(lively), name]
    assert rows[str(lively)]["psnr_clean"] == pytest.approx(report[0]["rows"][str(lively)]["psnr_clean"], abs=5e-4)
    assert rows[name]["psnr_clean"] > rows[str(lively)]["psnr_clean"] + 0.1  # the mean of two has the smaller error
    assert set(rows[name]) == set(rows["bicubic"])


def test_the_rows_so_far_are_kept_when_a_later_one_fails(demo_data, h2l, lively, mobilenet, monkeypatch, tmp_path):
    path, measured = tmp_path / "metrics.json", evaluate.measure_faces

    def failing(raw, extract, *rest):
        if extract is not None:
            raise KeyboardInterrupt
        return measured(raw, extract, *rest)

    monkeypatch.setattr(evaluate, "measure_faces", failing)
    with pytest.raises(KeyboardInterrupt):
        main(*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", lively, "--out", path)
    content = json.loads(path.read_text())
    assert list(content["rows"]) == ["floor", "bicubic"] and "hand_crafted" in content["degradation"]


@pytest.fixture(scope="session")
def inputs(demo_data, h2l, tmp_path_factory) -> Path:
    """What --write-inputs writes of five drawn faces and of the labelled ones."""
    folder = tmp_path_factory.mktemp("inputs")
    main("--data", demo_data, "--h2l", h2l, "--limit", 5, "--write-inputs", folder)
    return folder


def test_a_folder_of_bicubic_enlargements_gets_bicubics_row(demo_data, h2l, inputs, mobilenet, tmp_path):
    for file in inputs.rglob("*.png"):
        target = tmp_path / "bicubic" / file.relative_to(inputs)
        target.parent.mkdir(parents=True, exist_ok=True)
        load_image(file).resize((HR_SIZE, HR_SIZE), Image.Resampling.BICUBIC).save(target)
    path = tmp_path / "metrics.json"
    main(*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--results", tmp_path / "bicubic", "--out", path)
    rows = json.loads(path.read_text())["rows"]
    theirs, ours = rows[str(tmp_path / "bicubic")], rows["bicubic"]
    assert {"real_fd", "psnr_four", "psnr_held_out", "consistency", "perceptual_clean"} <= set(theirs)
    for name, value in theirs.items():
        # A value half-way between two of 8 bits may be rounded either way
        assert value == pytest.approx(ours[name], abs=0.02, rel=2e-3), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_evaluate_measures_is_what_test_py_delivers(precision, demo_data, h2l, lively, inputs, mobilenet, tmp_path):
    own = ["--weights", lively, "--precision", precision, "--device", "cpu"]
    test_script.main([str(option) for option in ["--input", inputs, "--output", tmp_path / "sr", *own]])
    path = tmp_path / "metrics.json"
    common = ["--data", demo_data, "--h2l", h2l, "--results", tmp_path / "sr", "--out", path]
    main(*small(mobilenet), *common, *own)
    rows = json.loads(path.read_text())["rows"]
    for name, value in rows[str(tmp_path / "sr")].items():
        assert value == pytest.approx(rows[str(lively)][name], abs=1e-3, rel=1e-4), name


def test_a_missing_picture_of_another_program_is_named(demo_data, h2l, inputs, mobilenet, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(inputs / "clean", folder / "clean")  # of 16 px
    common = [*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--results", folder, "--out", tmp_path / "metrics.json"]
    with pytest.raises(utils.UserError, match="has 16x16 px, not 64x64"):
        main(*common)
    for file in (folder / "clean").iterdir():
        file.unlink()
    with pytest.raises(utils.UserError, match=f"{file.parent}/.*png is missing"):
        main(*common)


def test_fidelity_by_group(demo_data, h2l, mobilenet, lively, tmp_path):
    files = list(read_list(demo_data / "HR_test.csv"))[:5]
    labels = {"path": files, "age": [1, 1, 35, 35, 35], "gender": ["f", "m", "f", "m", "f"]}
    pd.DataFrame(labels).to_csv(tmp_path / "groups.csv", index=False)
    path = tmp_path / "metrics.json"
    common = [*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", lively, "--out", path]
    main(*common, "--groups", tmp_path / "groups.csv")
    content = json.loads(path.read_text())
    groups = content["groups"][str(lively)]
    assert {name: row["faces"] for name, row in groups.items()} == {
        "all": 5, "age 0-2": 2, "age 20-39": 3, "gender f": 3, "gender m": 2,
    }  # fmt: skip
    for metric in ("psnr_clean", "psnr_four", "consistency"):
        mean = (2 * groups["age 0-2"][metric] + 3 * groups["age 20-39"][metric]) / 5
        assert groups["all"][metric] == pytest.approx(mean)
    assert np.isfinite(content["rows"][str(lively)]["real_fd_both"])
    (tmp_path / "groups.csv").write_text(f"path,age\n{files[0]},3\n{files[1]},old\n")
    with pytest.raises(utils.UserError, match="row 3: the age 'old' is not a number"):
        main(*common, "--groups", tmp_path / "groups.csv")


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", b"PK\x03\x04 half of it"])
@pytest.mark.parametrize("network", ["vgg", "inception"])
def test_a_damaged_download_is_named_and_to_be_deleted(network, content, monkeypatch, tmp_path):
    url = torchvision.models.VGG19_Weights.IMAGENET1K_V1.url if network == "vgg" else URL_INCEPTION_V3
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / url.rsplit("/", 1)[1]
    cached.parent.mkdir()
    cached.write_bytes(content)
    with pytest.raises(utils.UserError, match=f"{cached}.*is damaged.*delete it"):
        if network == "vgg":
            utils.load_perceptual_weights("imagenet")
        else:
            load_inception()


def test_a_list_of_one_face_is_an_error_before_anything_is_measured(demo_data, h2l, lively, mobilenet, tmp_path):
    for name in ("HR_train", "HR_test", "LR_train", "LR_test"):
        files = [str(file) for file in read_list(demo_data / f"{name}.csv")]
        (tmp_path / f"{name}.csv").write_text("\n".join(files[:1] if name == "LR_train" else files))
    with pytest.raises(utils.UserError, match="each of the four lists needs at least 2 faces"):
        main(*small(mobilenet), "--data", tmp_path, "--h2l", h2l, "--weights", lively, "--out", tmp_path / "m.json")


def test_another_framing_than_the_networks_is_warned_of(demo_data, h2l, sr, mobilenet, tmp_path, capsys):
    options = [*small(mobilenet), "--data", demo_data, "--h2l", h2l, "--weights", sr, "--out", tmp_path / "m.json"]
    main(*options, "--resize", 64, "--cache", tmp_path / "cache")
    said = capsys.readouterr().out
    for file in (h2l, sr):
        assert f"warning: {file} was trained with --resize 100 --crop 64, this is --resize 64 --crop 64" in said


def test_missing_packages_are_named_with_the_line_that_installs_them(demo_data, h2l, sr, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(utils.UserError, match="torchmetrics.*: pip install torchmetrics torch-fidelity"):
        main("--data", demo_data, "--h2l", h2l, "--weights", sr, "--vgg-weights", "random", "--out", tmp_path / "m.json")


def test_inception_without_a_network(demo_data, h2l, sr, monkeypatch, tmp_path):
    from urllib.error import URLError

    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    def offline(*_arguments, **_settings):
        raise URLError("no network")

    monkeypatch.setattr(fidelity, "load_state_dict_from_url", offline)
    with pytest.raises(utils.UserError, match="download of the FID network failed.*--features PATH"):
        main("--data", demo_data, "--h2l", h2l, "--weights", sr, "--vgg-weights", "random", "--out", tmp_path / "m.json")


def test_a_file_that_is_not_mobilenets(demo_data, h2l, sr, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(utils.UserError, match="a.pth does not fit MobileNetV2: tensor .* is missing"):
        main("--data", demo_data, "--h2l", h2l, "--weights", sr, "--vgg-weights", "random", "--features", tmp_path / "a.pth")


@pytest.mark.parametrize(
    "option",
    [
        ["--limit", -1],
        ["--limit", 1],
        ["--batch-size", 0],
        ["--alpha", 2],
        ["--seed", -1],
        ["--resize", 32],
        ["--out", "a.png"],
        ["--out", "."],
    ],
)
def test_options_out_of_range(option, capsys):
    with pytest.raises(SystemExit):
        main(*option)
    assert option[0] in capsys.readouterr().err


# --- what it measures --------------------------------------------------------------------------------------------


def test_psnr_and_consistency_in_closed_form():
    a = torch.full((2, 3, 64, 64), -1.0)
    b = a + 2 * torch.tensor([51.0, 25.6]).view(2, 1, 1, 1) / 255  # errors of 51 and, rounded, 26 of 255
    expected = torch.tensor([20 * np.log10(5), 20 * np.log10(255 / 26)], dtype=torch.float32)
    assert torch.allclose(utils.psnr(a, b), expected, atol=1e-4)
    best = utils.psnr(a, a)[0]
    # of three versions two are equal: one pair of three at the cap, two at the PSNR above
    assert torch.allclose(evaluate.consistency([a, a, b]), (best + 2 * expected) / 3, atol=1e-4)


def test_exploded_and_saturated_in_closed_form():
    images = torch.zeros(3, 3, 10, 10)
    images[0, :, :2, :] = 1.3  # 20 % of the values: not more than 20 %
    images[1, :, :3, :] = -1.3
    images[2] = 1.1
    assert evaluate.exploded(images).tolist() == [False, True, False]
    assert torch.allclose(utils.saturated(images), torch.tensor([0.2, 0.3, 1.0]))
    assert evaluate.exploded(images * torch.nan).all() and (utils.saturated(images * torch.nan) == 1).all()


def test_an_images_draws_depend_on_its_place_in_the_list_alone():
    y, clean = faces(4, 64), faces(4, LR_SIZE, 1)

    def degrade(x_c, z):
        return x_c * 0.5 + z.mean(dim=1)[:, None, None, None]

    whole = evaluate.make_inputs(y, clean, np.arange(4), 0, 0.3, degrade)
    part = evaluate.make_inputs(y[2:], clean[2:], np.array([2, 3]), 0, 0.3, degrade)
    other = evaluate.make_inputs(y[2:], clean[2:], np.array([2, 3]), 1, 0.3, degrade)
    assert list(whole) == evaluate.INPUTS and len(evaluate.DEGRADATIONS) == 8
    for kind in evaluate.INPUTS:
        assert whole[kind].shape == (4, 3, LR_SIZE, LR_SIZE) and whole[kind].dtype == torch.uint8
        assert torch.equal(whole[kind][2:], part[kind]), kind
    assert not torch.equal(other["z 1"], part["z 1"]) and not torch.equal(other["noise"], part["noise"])
    x_d = to_unit_range(whole["z 1"])
    mix = 0.3 * to_unit_range(clean) + 0.7 * x_d
    assert (to_unit_range(whole["mixed"]) - mix).abs().max() < 2 * 1.01 / 255


def test_each_degradation_is_what_its_name_says():
    """Of a constant face: blur, bilinear and JPEG keep it, noise has its standard deviation."""
    y, clean = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8), torch.full((4, 3, 16, 16), 128, dtype=torch.uint8)
    inputs = evaluate.make_inputs(y, clean, np.arange(4), 0, 0.3, lambda x_c, z: x_c)
    for kind in ("clean", "mixed", "blur", "bilinear", "jpeg", "z 1", "z 4"):
        assert (inputs[kind].int() - 128).abs().max() <= 1, kind
    noise = inputs["noise"].float() - 128
    assert noise.std().item() == pytest.approx(inputs_of.NOISE, rel=0.05) and abs(noise.mean().item()) < 1


def test_each_held_out_kind_is_what_its_name_says():
    """Of a face in two halves, black above and white below."""
    y, clean = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    y[..., 32:, :], clean[..., 8:, :] = 255, 255
    held_out = inputs_of.make_held_out(y, clean, torch.tensor([0.0, np.pi / 4, np.pi / 2]))
    assert list(held_out) == inputs_of.HELD_OUT
    for kind in ("nearest", "mosaic", "palette"):  # the edge lies between pixels, and between tiles
        assert torch.equal(held_out[kind], clean), kind
    assert held_out["faded"].unique().tolist() == [64, 191]
    along, oblique, across = held_out["motion"].float()[:, 0, :, 8].diff(dim=1).amax(dim=1)
    assert along > 200 and along > 1.3 * oblique > 1.3 * across  # movement along the edge leaves it as it is


def test_the_spectrum_of_a_wave_lies_in_its_ring():
    places = torch.arange(16) / 16
    for ring, periods in enumerate((2, 4, 6)):
        wave = (127.5 + 90 * torch.cos(2 * np.pi * periods * places)).round().to(torch.uint8)
        shares = evaluate.spectrum(wave.expand(2, 3, 16, 16))
        # A Hann window spreads a wave over its own frequency and, at a quarter of the power, each neighbour
        assert np.argmax(shares) == ring and shares[ring] > 0.6 and sum(shares) == pytest.approx(1)


def test_psnr_apart_from_the_colour():
    target = torch.rand(2, 3, 16, 16) - 0.5
    tinted = target + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    assert (utils.psnr(tinted, target) < 25).all() and (evaluate.psnr_apart_from_colour(tinted, target) > 50).all()


def test_measurements_are_fp32_whatever_the_networks_are(demo_data, h2l, lively, mobilenet, monkeypatch, tmp_path):
    measured, seen = evaluate.measure_faces, []

    def recording(raw, extract, *rest):
        seen.append((torch.is_autocast_enabled("cpu"), {images.dtype for images in raw.values()}))
        if extract is not None:
            seen.append(extract(rest[1]["clean"]).dtype)
        return measured(raw, extract, *rest)

    monkeypatch.setattr(evaluate, "measure_faces", recording)
    common = ["--data", demo_data, "--h2l", h2l, "--weights", lively, "--out", tmp_path / "m.json"]
    main(*small(mobilenet), *common, "--precision", "bf16", "--device", "cpu")
    fp32 = (False, {torch.float32})
    assert seen == [fp32, fp32, torch.bfloat16]  # bicubic's, the network's, and the network itself


def test_the_frechet_distance_of_shifted_features_is_the_squared_shift(mobilenet):
    """Equal covariances: the distance is |mean difference|^2; here with the mean colour as the feature network."""

    class MeanColour(nn.Module):
        num_features = 3

        def forward(self, images):
            return images.float().mean(dim=(2, 3))

    frechet = evaluate.Frechet(str(mobilenet), torch.device("cpu"))
    frechet.network = MeanColour()
    images = faces(40, 8) // 2
    reference = frechet.reference(images.split(16), title="reference")
    half = frechet.reference(images[:20].split(16), images[20:].split(16), title="the same in two sets")
    for shift in (0, 3, 10):  # and again: the reference is kept
        distances = frechet.distances([reference, half], (images + shift).split(7), "shifted")
        assert distances == pytest.approx([3 * shift**2] * 2, abs=0.01)


def bicubic(inputs):
    return {kind: evaluate.bicubic(faces) for kind, faces in inputs.items()}


def test_identical_outputs_are_consistent_and_have_no_feature_gap():
    """A network that sees only the mean of everything: nothing depends on the degradation."""
    y, clean = faces(3, 64), faces(3, LR_SIZE, 1)
    inputs = {kind: clean for kind in evaluate.INPUTS}
    perceptual = evaluate.PerceptualLoss()

    def extract(x):
        return 100 * to_unit_range(x).mean(dim=(1, 2, 3), keepdim=True).expand(-1, 4, 4, 4)

    table = evaluate.measure_faces(bicubic(inputs), extract, y, inputs, clean.roll(1, 0), perceptual)
    assert (table["consistency"] > 77).all() and (table["gap_degraded"] < 0.01).all() and (table["gap_others"] > 0.01).all()
    assert np.allclose(table["psnr_eight"], table["psnr_clean"])
    exact = evaluate.measure_faces({kind: to_unit_range(y) for kind in inputs}, None, y, inputs, clean, perceptual)
    assert np.allclose(exact["ssim_clean"], 1) and np.allclose(exact["perceptual_mixed"], 0, atol=1e-6)


def test_the_degradation_that_stands_apart_shows_in_its_own_columns():
    """Constant faces, of which the noisy one alone is 10 of 255 brighter."""
    y, clean = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8), torch.full((2, 3, LR_SIZE, LR_SIZE), 100, dtype=torch.uint8)
    inputs = {kind: clean + 10 * (kind == "noise") for kind in evaluate.INPUTS}
    table = evaluate.measure_faces(bicubic(inputs), None, y, inputs, clean, evaluate.PerceptualLoss())
    apart = 20 * np.log10(255 / 10)
    same = table["psnr_clean"]
    assert np.allclose(table["psnr_noise"], apart) and np.allclose(table["psnr_jpeg"], same)
    assert np.allclose(table["consistency_noise"], apart) and np.allclose(table["consistency_z"], same)
    for kind in ("blur", "jpeg", "bilinear"):
        assert np.allclose(table[f"consistency_{kind}"], (6 * same + apart) / 7)
    assert np.allclose(table["consistency"], (21 * same + 7 * apart) / 28)


# --- degraded at random -------------------------------------------------------------------------------------------


def smooth_faces(count, seed=0):
    """Smooth grey patches [N, 3, 64, 64] in [-1, 1]: mild JPEG keeps them, but would halve colours' resolution."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.7
    return nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1).expand(-1, 3, -1, -1)


def test_degrading_at_strength_0_is_nearly_pillows_reduction():
    y = smooth_faces(4)
    x_s = degradations.degrade_at_random(y, torch.Generator().manual_seed(0), strength=0)
    pillows = [prepare_lr(image) for image in inputs_of.to_images(to_bytes(y))]
    assert (to_bytes(x_s).int() - inputs_of.from_images(pillows).int()).abs().max() <= 5


def test_degrading_at_random_depends_on_a_faces_own_numbers_alone():
    y = smooth_faces(5)
    uniform, normal = degradations.draw_degradations(5, torch.Generator().manual_seed(1))
    whole = degradations.degrade(y, uniform, normal)
    assert whole.shape == (5, 3, 16, 16) and whole.dtype == torch.float32 and whole.abs().max() <= 1
    assert torch.equal(to_unit_range(to_bytes(whole)), whole)
    assert torch.equal(degradations.degrade(y[3:], uniform[3:], normal[3:]), whole[3:])
    assert torch.equal(degradations.degrade_at_random(y, torch.Generator().manual_seed(1)), whole)
    assert not torch.equal(degradations.degrade_at_random(y, torch.Generator().manual_seed(2)), whole)


# Random numbers at which nothing but a blur of 0.3 px happens, in the order of degrade()
IDLE = {"severity": 0.0, "blur": 0.0, "ratio": 0.5, "gain": 0.5, "offset": 0.5, "red": 0.5, "green": 0.5, "blue": 0.5,
        "noise": 0.0, "compressed": 0.99, "quality": 0.0}  # fmt: skip


def degrade_by(y, **numbers):
    uniform = torch.tensor([list({**IDLE, **numbers}.values())]).expand(len(y), -1)
    assert uniform.shape[1] == degradations.UNIFORMS
    return (degradations.degrade(y, uniform, torch.randn(len(y), 3, 16, 16)) + 1) * 127.5


def test_an_idle_degradation_is_pillows_reduction():
    y = smooth_faces(4)
    pillows = inputs_of.from_images(prepare_lr(image) for image in inputs_of.to_images(to_bytes(y)))
    assert (degrade_by(y) - pillows).abs().max() <= 2


def test_the_random_blur_of_an_edge_is_the_normal_distributions_integral():
    edge = torch.full((1, 3, 64, 64), 0.8)
    edge[..., 32:] = -0.8
    places = torch.arange(16) * 4 + 1.5 - 31.5
    expected = (1 - 0.8 * torch.erf(places / (degradations.MOST_BLUR * 2**0.5))) * 127.5
    blurred = degrade_by(edge, severity=1.0, blur=1.0)
    assert (blurred[0, 0] - expected).abs().max() < 5  # the bicubic filter is not quite a Gaussian's neighbour
    assert (blurred.mT - degrade_by(edge.mT, severity=1.0, blur=1.0)).abs().max() <= 1


def test_the_random_exposure_tint_noise_and_jpeg():
    y = smooth_faces(8)
    plain = degrade_by(y, severity=1.0)
    dark = degrade_by(y, severity=1.0, gain=0.0)
    assert (dark - np.exp(-degradations.GAIN) * plain).abs().max() <= 1
    assert (degrade_by(y, severity=1.0, offset=0.0) - (plain - degradations.OFFSET).clamp(min=0)).abs().max() <= 1
    tinted = degrade_by(y, severity=1.0, green=0.0)
    assert torch.equal(tinted[:, 0], plain[:, 0]) and torch.equal(tinted[:, 2], plain[:, 2])
    assert (tinted[:, 1] - np.exp(-degradations.TINT) * plain[:, 1]).abs().max() <= 1
    grey = torch.zeros(64, 3, 64, 64)
    noise = degrade_by(grey, noise=1.0) - degrade_by(grey)
    assert noise.std().item() == pytest.approx(degradations.NOISE, rel=0.02) and abs(noise.mean().item()) < 1
    pictures = to_bytes(degrade_by(y) / 127.5 - 1).permute(0, 2, 3, 1).numpy()
    expected = np.stack([degradations.compress(picture, degradations.LOWEST_QUALITY) for picture in pictures])
    compressed = degrade_by(y, compressed=0.0, quality=1.0).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(compressed.round(), expected) and not np.array_equal(expected, pictures)


# --- weights -----------------------------------------------------------------------------------------------------


def test_own_weights_come_before_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "repository" / "weights"
    monkeypatch.setattr(utils, "SHIPPED", shipped)
    own = Path("Trained_Models/sr.pth")
    assert utils.find_weights("", "sr") == own  # neither is there: the error names the one to train
    shipped.mkdir(parents=True)
    (shipped / "sr.pth").touch()
    assert utils.find_weights("", "sr") == shipped / "sr.pth"
    own.parent.mkdir()
    own.touch()
    assert utils.find_weights("", "sr") == own
    assert utils.find_weights("a/b.pth", "sr") == Path("a/b.pth")


def test_the_end_of_training_measures_batchnorm_anew(sr):
    """sr.pth differs from the state in BatchNorm's statistics alone."""
    weights = torch.load(sr, weights_only=True)["weights"]
    state = torch.load(sr.with_name("sr_state.pth"), weights_only=True)["networks"]
    changed = {
        key.rsplit(".", 1)[1]
        for name in weights
        for key, tensor in weights[name].items()
        if not torch.equal(tensor, state[name][key])
    }
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
