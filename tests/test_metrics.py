"""evaluate.py: closed-form cases of what it measures, and the script driven as users do."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from helpers import write_weights
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

import evaluate
import test as test_script
import utils
from Datasets.images import load_image, prepare_hr, prepare_lr
from Datasets.lists import read_list
from losses import PerceptualLoss
from metrics import definitions, folders, frechet, identity
from metrics import inputs as inputs_of
from metrics.frechet import MobileNetFeatures
from models import HR_SIZE, LR_SIZE, DegradationGenerator
from utils import to_unit_range

FOUR = "blur_noise_jpeg_bilinear"


class Colours(nn.Module):
    """In place of MobileNetV2, where its time is not worth it: coarse colours."""

    num_features = 48

    def __init__(self, _path=None):
        super().__init__()

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


@pytest.fixture(scope="module", autouse=True)
def quick_features():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "MobileNetFeatures", Colours)
        yield


@pytest.fixture(scope="module")
def h2l(tmp_path_factory) -> Path:
    """h2l.pth of a random generator."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("h2l") / "h2l.pth"
    return write_weights(path, "h2l", {"generator": DegradationGenerator(4)}, width=4, settings={"resize": 100, "crop": 64})


def main(*options):
    evaluate.main([str(option) for option in options])


@pytest.fixture(scope="module")
def common(demo_data, h2l) -> list:
    return ["--features", "colours", "--vgg-weights", "random", "--limit", 5, "--data", demo_data, "--h2l", h2l]


@pytest.fixture
def measure(common, tmp_path):
    """Run the script; returns the JSON."""

    def run(*options):
        main(*common, "--out", tmp_path / "metrics.json", *options)
        return json.loads((tmp_path / "metrics.json").read_text())

    return run


@pytest.fixture(scope="module")
def report(common, lively, tmp_path_factory) -> dict:
    """The JSON of a run on five drawn faces."""
    path = tmp_path_factory.mktemp("evaluation") / "new" / "metrics.json"
    main(*common, "--weights", lively, "--self-ensemble", "--out", path)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def inputs(common, tmp_path_factory) -> Path:
    """What --write-inputs writes of five drawn faces."""
    folder = tmp_path_factory.mktemp("written") / "inputs"
    main(*common, "--write-inputs", folder)
    return folder


def enlarge(inputs, target):
    """Another program: bicubic enlargements of all inputs."""
    for file in inputs.rglob("*.png"):
        path = target / file.relative_to(inputs)
        path.parent.mkdir(parents=True, exist_ok=True)
        load_image(file).resize((HR_SIZE, HR_SIZE), Image.Resampling.BICUBIC).save(path)


def faces(count, size, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- the script --------------------------------------------------------------------------------------------------


def test_every_number_of_every_row(report, lively):
    ensemble = f"{lively}, self-ensemble"
    rows, degradation = report["rows"], report["degradation"]
    assert list(rows) == ["floor", "bicubic", "lanczos", str(lively), ensemble]
    assert set(rows["floor"]) == {"real_fd"} and list(rows[str(lively)]) == list(definitions.DEFINITIONS)
    assert set(rows["bicubic"]) == set(rows[ensemble]) == {*definitions.DEFINITIONS} - {"feature_gap"}
    assert {*rows["bicubic"]} - {*rows["lanczos"]} == {*evaluate.BEFORE_ROUNDING}
    assert all(np.isfinite(value) for row in rows.values() for value in row.values())
    assert rows[ensemble]["psnr_clean"] > rows[str(lively)]["psnr_clean"] + 0.1  # the mean of two has the smaller error
    for column, kinds in ((FOUR, inputs_of.FIXED), ("held_out", inputs_of.HELD_OUT)):
        values = [rows["bicubic"][f"psnr_{kind}"] for kind in kinds]
        assert rows["bicubic"][f"psnr_{column}"] == pytest.approx(np.mean(values))
    strengths = [f"hand_crafted_{strength}" for strength in ("0.5", "1", "1.5", "2")]
    assert list(degradation) == ["real", "floor", "x_c", "x_d", *strengths]
    assert {*degradation["x_d"]} == {*degradation[strengths[0]]} == {*definitions.DEGRADATION_DEFINITIONS} - {"rows"}
    assert degradation[strengths[0]]["psnr"] > degradation[strengths[3]]["psnr"] + 3
    for row in degradation.values():
        assert sum(row[name] for name in definitions.RING_NAMES) == pytest.approx(1)


def test_the_baselines_are_pillows(report, demo_data):
    files = np.array(read_list(demo_data / "HR_test.csv"))[evaluate.choose(8, 5, 0)]
    for row, method in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        values = []
        for file in files:
            y = prepare_hr(load_image(file))
            x = prepare_lr(y).resize((64, 64), method)
            values.append(10 * np.log10(255**2 / np.square(np.asarray(x, float) - np.asarray(y, float)).mean()))
        assert report["rows"][row]["psnr_clean"] == pytest.approx(np.mean(values), abs=0.01)


def test_the_numbers_depend_on_neither_the_batch_size_nor_the_other_rows_but_on_the_reference(
    report, measure, lively, demo_data, tmp_path, capsys
):
    again = measure("--weights", lively, "--batch-size", 2)
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in definitions.DEFINITIONS)
    assert "psnr blur, noise, JPEG, bilinear" in printed and "FD-MobileNetV2: SR of 5 real faces against 5 HR" in printed
    assert "FID" not in printed  # MobileNetV2's distance is never called by that name
    other = measure("--weights", lively, "--reference", demo_data / "HR_train.csv")
    assert other["protocol"]["reference_faces"] == 5 and "HR_train.csv" in other["definitions"]["real_fd"]
    for row in ("floor", "bicubic", str(lively)):
        for name, value in report["rows"][row].items():
            assert again["rows"][row][name] == pytest.approx(value, abs=5e-4, rel=1e-3), (row, name)
            same = other["rows"][row][name] == pytest.approx(value, abs=5e-4, rel=1e-3)
            assert same == (name != "real_fd"), (row, name)


def test_a_run_that_ends_early_leaves_the_json_and_the_sheet_of_before(measure, lively, monkeypatch, tmp_path):
    before = measure("--weights", lively)
    files = {name: (tmp_path / name).read_bytes() for name in ("metrics.json", "metrics.png")}
    measured = evaluate.measure_faces

    def failing(raw, extract, *rest):
        if extract is not None:
            raise KeyboardInterrupt
        return measured(raw, extract, *rest)

    monkeypatch.setattr(evaluate, "measure_faces", failing)
    with pytest.raises(KeyboardInterrupt):
        measure("--weights", lively, "--seed", 1)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    rows = json.loads((tmp_path / "metrics.partial.json").read_text())["rows"]
    assert list(rows) == ["floor", "bicubic", "lanczos"]
    monkeypatch.undo()
    after = measure("--weights", lively, "--seed", 1)
    assert before["sheet"]["sha256"] != after["sheet"]["sha256"] and not list(tmp_path.glob("*.partial.*"))


def test_a_folder_of_bicubic_enlargements_gets_bicubics_numbers(measure, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    enlarge(inputs, Path("bicubic"))
    shutil.copy(f"{inputs}.json", "inputs.json")
    shutil.rmtree("bicubic/motion")
    rows = measure("--results", "bicubic")["rows"]
    assert list(rows) == ["floor", "bicubic", "lanczos", "bicubic (folder)"]
    assert {"real_fd", f"psnr_{FOUR}", "consistency", "perceptual_clean"} <= set(rows["bicubic (folder)"])
    assert "psnr_held_out" not in rows["bicubic (folder)"] and "bicubic has no folder motion:" in capsys.readouterr().out
    for name, value in rows["bicubic (folder)"].items():
        # A value half-way between two of 8 bits may be rounded either way
        if name != "exploded_test":
            assert value == pytest.approx(rows["bicubic"][name], abs=0.02, rel=2e-3), name


@pytest.mark.parametrize("option", [["--seed", 1], ["--h2l", "other"], ["--resize", 64], ["--alpha", 0.6]])
def test_results_of_other_inputs_are_refused(option, measure, inputs, tmp_path):
    enlarge(inputs, tmp_path / "mine")
    shutil.copy(f"{inputs}.json", tmp_path / "inputs.json")
    if option[0] == "--h2l":
        torch.manual_seed(1)
        option = ["--h2l", write_weights(tmp_path / "other.pth", "h2l", {"generator": DegradationGenerator(4)}, width=4)]
    with pytest.raises(utils.UserError, match=f"mine.*inputs.json.*{option[0][2:]} "):
        measure("--results", tmp_path / "mine", *option)


def test_inputs_are_written_into_a_new_folder_only(common, inputs, tmp_path):
    (tmp_path / "new.json").write_text("{}")
    for folder, reason in ((inputs, "inputs is not empty"), (tmp_path / "new", "new.json")):
        with pytest.raises(utils.UserError, match=reason):
            main(*common, "--write-inputs", folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_evaluate_measures_is_what_test_py_delivers(precision, measure, lively, inputs, tmp_path, capsys, monkeypatch):
    measured, seen = evaluate.measure_faces, []

    def recording(raw, extract, *rest):  # what measures is fp32 whatever the networks are
        seen.append((torch.is_autocast_enabled("cpu"), {images.dtype for images in raw.values()}))
        assert extract is None or extract(rest[1]["clean"]).dtype == utils.choose_precision(precision, torch.device("cpu"))
        return measured(raw, extract, *rest)

    monkeypatch.setattr(evaluate, "measure_faces", recording)
    own = ["--weights", lively, "--precision", precision, "--device", "cpu"]
    test_script.main([str(option) for option in ["--input", inputs, "--output", tmp_path / "sr", *own]])
    rows = measure("--results", tmp_path / "sr", *own)["rows"]
    assert "no record" in capsys.readouterr().out and seen == [(False, {torch.float32})] * 4
    for name, value in rows[str(tmp_path / "sr")].items():
        assert value == pytest.approx(rows[str(lively)][name], abs=1e-3, rel=1e-4), name


def test_a_missing_picture_of_another_program_is_named(measure, inputs, tmp_path):
    shutil.copytree(inputs / "clean", tmp_path / "results" / "clean")  # of 16 px
    with pytest.raises(utils.UserError, match="has 16x16 px, not 64x64"):
        measure("--results", tmp_path / "results")
    for file in (tmp_path / "results" / "clean").iterdir():
        file.unlink()
    with pytest.raises(utils.UserError, match=f"{file.parent}/.*png is missing"):
        measure("--results", tmp_path / "results")


def test_a_face_that_is_listed_twice_has_two_names():
    assert folders.relative_names(["/a/b/1.jpg", "/a/2.jpg", "/a/2.jpg"]) == ["b/1.png", "2.png", "again 1/2.png"]


def test_fidelity_by_group(measure, lively, demo_data, tmp_path, capsys):
    files = list(read_list(demo_data / "HR_test.csv"))[:5]
    columns = {"path": files, "age": ["1", "old", "35", "35", "999"], "gender": ["f", "m", "", "m", "f"], "blur": list("00101")}
    table = pd.DataFrame(columns)
    table = pd.concat([table] * 3, ignore_index=True)
    table["x"] = range(15)
    table.to_csv(tmp_path / "groups.csv", index=False)
    groups = measure("--groups", tmp_path / "groups.csv", "--limit", 0, "--weights", lively)["groups"]
    counts = {"all": 15, "age 0-2": 3, "age 20-39": 6, "age other": 6, "gender f": 6, "gender m": 6, "gender unknown": 3,
              "blur 0": 9, "blur 1": 6}  # fmt: skip
    assert {name: row["faces"] for name, row in groups["bicubic"].items()} == counts
    for metric in definitions.GROUP_METRICS:
        means = [groups["bicubic"][name][metric] for name in ("all", "blur 0", "blur 1")]
        assert means[0] == pytest.approx((9 * means[1] + 6 * means[2]) / 15)
    said = capsys.readouterr().out
    assert "no groups by x:" in said and "6 values of age in no band, such as 'old' in row 3" in said


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("path,age\n{hr},1\n{hr},2,3\n", "row 3: has 3 fields"),
        ("path,age\n{hr},1\n{lr},2\n", "row 3: .*too small"),
        ("path,age\n{hr},1\nmissing.png,2\n", "row 3: .*missing.png"),
        ("path\n{hr}\n{hr}\n", "its first row"),
    ],
)
def test_groups_that_cannot_be_used(rows, reason, measure, demo_data, tmp_path):
    hr, lr = (next(iter(read_list(demo_data / f"{name}_test.csv"))) for name in ("HR", "LR"))
    (tmp_path / "groups.csv").write_text(rows.format(hr=hr, lr=lr))
    with pytest.raises(utils.UserError, match=reason):
        measure("--groups", tmp_path / "groups.csv")


@pytest.mark.parametrize("network", ["vgg", "inception"])
def test_a_damaged_download_is_named_and_to_be_deleted(network, monkeypatch, tmp_path):
    url = torchvision.models.VGG19_Weights.IMAGENET1K_V1.url if network == "vgg" else URL_INCEPTION_V3
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / url.rsplit("/", 1)[1]
    cached.parent.mkdir()
    for content in (b"", b"<html>not here</html>", b"PK\x03\x04 half of it"):
        cached.write_bytes(content)
        with pytest.raises(utils.UserError, match=f"{cached}.*is damaged.*delete it"):
            utils.load_perceptual_weights("imagenet") if network == "vgg" else frechet.load_inception()


def test_a_list_of_one_face_and_another_framing_than_the_networks(common, demo_data, h2l, tmp_path, capsys):
    for name in ("HR_train", "HR_test", "LR_train", "LR_test"):
        files = [str(file) for file in read_list(demo_data / f"{name}.csv")]
        (tmp_path / f"{name}.csv").write_text("\n".join(files[:1] if name == "LR_train" else files))
    with pytest.raises(utils.UserError, match="LR_train.csv has one face"):
        main(*common, "--data", tmp_path, "--resize", 64, "--out", tmp_path / "m.json")
    assert f"warning: {h2l} was trained with --resize 100 --crop 64, this is --resize 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "options", "package"),
    [
        ("torchmetrics.image.fid", [], "torchmetrics"),
        ("dlib", ["--identity"], "dlib-bin"),
        ("face_recognition_models", ["--identity"], "face-recognition-models"),
    ],
)
def test_missing_packages_are_named_with_the_line_that_installs_them(module, options, package, measure, lively, monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", object())
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(utils.UserError, match=f"{module.partition('.')[0]}.*pip install .*{package}"):
        measure("--weights", lively, *options)


def test_mobilenets_file_and_another(tmp_path):
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "mobilenet.pth")
    assert MobileNetFeatures(tmp_path / "mobilenet.pth")(faces(2, 64)).shape == (2, 1280)
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(utils.UserError, match="a.pth does not fit MobileNetV2: tensor .* is missing"):
        MobileNetFeatures(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "option",
    ["--limit -1", "--limit 1", "--batch-size 0", "--alpha 2", "--seed -1", "--resize 32", "--out a.png", "--out .",
     "--results a a/"],
)  # fmt: skip
def test_options_out_of_range(option, capsys):
    with pytest.raises(SystemExit):
        main(*option.split())
    assert option.split()[0] in capsys.readouterr().err


# --- what it measures --------------------------------------------------------------------------------------------


def test_psnr_in_closed_form():
    a = torch.full((2, 3, 64, 64), -1.0)
    b = a + 2 * torch.tensor([51.0, 25.6]).view(2, 1, 1, 1) / 255  # errors of 51 and, rounded, 26 of 255
    expected = torch.tensor([20 * np.log10(5), 20 * np.log10(255 / 26)], dtype=torch.float32)
    assert torch.allclose(utils.psnr(a, b), expected, atol=1e-4)


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

    whole = inputs_of.make_inputs(y, clean, np.arange(4), 0, 0.3, degrade)
    part = inputs_of.make_inputs(y[2:], clean[2:], np.array([2, 3]), 0, 0.3, degrade)
    other = inputs_of.make_inputs(y[2:], clean[2:], np.array([2, 3]), 1, 0.3, degrade)
    assert list(whole) == inputs_of.INPUTS and len(inputs_of.DEGRADATIONS) == 8
    for kind in inputs_of.INPUTS:
        assert whole[kind].shape == (4, 3, LR_SIZE, LR_SIZE) and whole[kind].dtype == torch.uint8
        assert torch.equal(whole[kind][2:], part[kind]), kind
    assert not torch.equal(other["z 1"], part["z 1"]) and not torch.equal(other["noise"], part["noise"])
    x_d = to_unit_range(whole["z 1"])
    mix = 0.3 * to_unit_range(clean) + 0.7 * x_d
    assert (to_unit_range(whole["mixed"]) - mix).abs().max() < 2 * 1.01 / 255


def test_each_degradation_is_what_its_name_says():
    """Of a constant face: blur, bilinear and JPEG keep it, noise has its standard deviation."""
    y, clean = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8), torch.full((4, 3, 16, 16), 128, dtype=torch.uint8)
    inputs = inputs_of.make_inputs(y, clean, np.arange(4), 0, 0.3, lambda x_c, z: x_c)
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


def test_the_frechet_distance_of_shifted_features_is_the_squared_shift():
    """Equal covariances: the distance is |mean difference|^2, of 48 features."""
    network, images = frechet.Frechet("colours", torch.device("cpu")), faces(60, 8) // 2
    reference = network.features(images.split(16), "reference")
    for shift in (0, 3, 10):
        shifted = network.features((images + shift).split(7), "shifted")
        assert network.distance(reference, shifted) == pytest.approx(48 * shift**2, abs=0.01)


def test_identity_in_closed_form(monkeypatch):
    """Descriptors on a line: SR of the first two faces lies nearest to their own, that of the third to the second's."""
    hr, sr = np.array([[0.0], [10.0], [20.0]]), np.array([[1.0], [12.0], [14.0]])
    expected = {"identity_own": 3, "identity_others": (9 + 19 + 12 + 8 + 14 + 4) / 6, "identity_nearer": 5 / 6,
                "recognised": 2 / 3}  # fmt: skip
    assert identity.compare(sr, hr) == pytest.approx(expected)

    class Network:
        """The mean of a chip in place of a descriptor."""

        def compute_face_descriptor(self, chips):
            assert all(chip.shape == (150, 150, 3) for chip in chips)
            return [[chip.mean()] for chip in chips]

    monkeypatch.setattr(identity, "load_network", Network)
    y = torch.tensor([50, 100, 200, 250], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 64, 64)
    judge = identity.Judge(y, np.array([0, 1, 3]))

    def make(kind, index):
        return y[index] if kind != "noise" else torch.full_like(y[index], 99)

    row = judge(make, ["real", *identity.KINDS], "title")
    assert set(row) == {*definitions.IDENTITY_DEFINITIONS} and row["identity_own"] == 0 and row["recognised"] == 1
    assert row["recognised_noise"] == pytest.approx(1 / 3) and row["recognised_degraded"] == pytest.approx((4 + 1 / 3) / 5)
    assert set(judge(make, ["clean"], "title")) == {"identity_own", "identity_others", "identity_nearer", "recognised"}


def test_dlibs_network_knows_a_face_again():
    pytest.importorskip("dlib")
    judge = identity.Judge(faces(2, HR_SIZE), np.arange(2))
    assert judge.hr.shape == (2, 128) and judge(lambda _kind, index: faces(2, HR_SIZE)[index], ["clean"], "")["recognised"] == 1


def bicubic(inputs):
    return {kind: inputs_of.bicubic(faces) for kind, faces in inputs.items()}


def test_identical_outputs_are_consistent_and_have_no_feature_gap():
    """A network that sees only the mean of everything: nothing depends on the degradation."""
    y, clean = faces(3, 64), faces(3, LR_SIZE, 1)
    inputs = {kind: clean for kind in inputs_of.INPUTS}
    perceptual = PerceptualLoss()

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
    inputs = {kind: clean + 10 * (kind == "noise") for kind in inputs_of.INPUTS}
    table = evaluate.measure_faces(bicubic(inputs), None, y, inputs, clean, PerceptualLoss())
    apart = 20 * np.log10(255 / 10)
    same = table["psnr_clean"]
    assert np.allclose(table["psnr_noise"], apart) and np.allclose(table["psnr_jpeg"], same)
    assert np.allclose(table["consistency_noise"], apart) and np.allclose(table["consistency_z"], same)
    for kind in ("blur", "jpeg", "bilinear"):
        assert np.allclose(table[f"consistency_{kind}"], (6 * same + apart) / 7)
    assert np.allclose(table["consistency"], (21 * same + 7 * apart) / 28)


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
