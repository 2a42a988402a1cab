"""export.py: smaller weights for publication, and ONNX files that give test.py's pictures in another program."""

import importlib.util

import numpy as np
import pytest
import torch
from helpers import run_script
from PIL import Image

import export
import utils
from models import Decoder, FeatureExtractor


def faces(count):
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_an_exported_file_is_half_as_large_and_gives_the_same_pictures(lively, tmp_path):
    target = tmp_path / "weights" / "sr.pth"
    result = run_script("export.py", lively, target, "--trained-on", "drawn faces", "--licence", "do as you like")
    assert result.returncode == 0, result.stderr
    assert target.stat().st_size < 0.8 * lively.stat().st_size
    Image.fromarray(faces(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "face.png")
    pictures = []
    for number, weights in enumerate((lively, target)):
        out = tmp_path / str(number)
        where = ["--input", tmp_path / "face.png", "--output", out, "--precision", "fp32"]
        result = run_script("test.py", "--weights", weights, *where)
        assert result.returncode == 0, result.stderr
        pictures.append(np.asarray(Image.open(out / "face.png")).astype(int))
    assert "trained on: drawn faces; licence: do as you like" in result.stdout
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_only_inference_files_are_exported(sr, tmp_path):
    with pytest.raises(utils.UserError, match="is not an inference file"):
        export.main([str(sr.with_name("sr_state.pth")), str(tmp_path / "a.pth"), "--trained-on", "a", "--licence", "b"])


def test_halving_keeps_what_does_not_fit():
    assert export.half(torch.ones(2, 2)).dtype == torch.float16
    assert export.half(torch.ones(2)).dtype == torch.float32
    assert export.half(torch.full((2, 2), 1e6)).dtype == torch.float32
    assert export.half(torch.tensor(3)).dtype == torch.int64


@pytest.fixture(scope="module", params=["8-bit", "unit"])
def exported(request, lively, tmp_path_factory):
    """(the file, how its pixels are) of the small network's two ONNX files."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    target = tmp_path_factory.mktemp("onnx") / "face_sr.onnx"
    content = torch.load(lively, weights_only=True) | {"about": {"trained on": "noise", "licence": "none"}}
    torch.save(content, target.with_name("sr.pth"))
    export.main([str(target.with_name("sr.pth")), str(target), "--pixels", request.param])
    return target, request.param


def test_an_onnx_file_gives_the_pictures_of_pytorch(exported, lively):
    """To 1/255, for batches of any size."""
    import onnxruntime

    target, pixels = exported
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    networks = utils.load_networks(lively, "sr", {"extractor": FeatureExtractor, "decoder": Decoder}, "")
    for count in (1, 3, 8):
        x = faces(count)
        with torch.no_grad():
            expected = utils.to_bytes(networks["decoder"](networks["extractor"](utils.to_unit_range(x))))
        (sr,) = session.run(None, {"faces": x.numpy() if pixels == "8-bit" else utils.to_unit_range(x).numpy()})
        assert sr.shape == (count, 3, 64, 64) and sr.dtype == (np.uint8 if pixels == "8-bit" else np.float32)
        if pixels == "unit":
            assert np.abs(sr).max() <= 1
            sr = utils.to_bytes(torch.from_numpy(sr)).numpy()
        assert np.abs(sr.astype(int) - expected.numpy().astype(int)).max() <= 1
        assert expected.float().std() > 20  # flat pictures would agree anyhow


def test_an_onnx_file_has_folded_batchnorm_and_its_terms(exported):
    import onnx

    target, _ = exported
    model = onnx.load(target)
    onnx.checker.check_model(model)
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators and "BatchNormalization" not in operators
    assert {entry.key: entry.value for entry in model.metadata_props} == {"trained on": "noise", "licence": "none"}
    assert str(export.__file__).encode() not in target.read_bytes()  # no paths of the machine that exported it
    assert [file.name for file in target.parent.glob("*.onnx*")] == ["face_sr.onnx"]


def test_without_the_packages_it_says_what_to_install(lively, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(utils.UserError, match="needs .*onnxscript: pip install onnx onnxscript"):
        export.main([str(lively), str(tmp_path / "a.onnx")])


def test_what_cannot_be_exported(h2l, lively, tmp_path, capsys):
    with pytest.raises(utils.UserError, match="holds 'h2l', not 'sr'"):
        export.main([str(h2l), str(tmp_path / "a.onnx")])
    for target, error in (("a.pt", "must end in .pth or .onnx"), ("a.pth", "needs --trained-on and --licence")):
        with pytest.raises(SystemExit):
            export.main([str(lively), str(tmp_path / target)])
        assert error in capsys.readouterr().err
