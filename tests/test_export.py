"""export.py: smaller weights for publication, and ONNX files that give test.py's pictures in another program."""

import importlib.util

import numpy as np
import pytest
import torch
from helpers import main

import export
import utils

PUBLISHED = ("--trained-on", "drawn faces", "--licence", "do as you like")


def faces(count):
    """The first of them is grey."""
    x = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x[0, 1:] = x[0, :1]
    return x


def test_an_exported_file_is_half_as_large_and_gives_the_same_pictures(lively, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sr.pth").write_bytes(lively.read_bytes())
    main(export, "~/sr.pth", "~/weights/half.pth", *PUBLISHED)
    target = tmp_path / "weights" / "half.pth"
    assert target.stat().st_size < 0.8 * lively.stat().st_size
    assert "trained on: drawn faces; licence: do as you like" in capsys.readouterr().out
    before, after = (utils.SuperResolver(path, torch.device("cpu")).pictures(faces(4)).int() for path in (lively, target))
    assert (before - after).abs().max() <= 2


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
    main(export, target.with_name("sr.pth"), target, "--pixels", request.param)
    return target, request.param


def test_an_onnx_file_gives_the_pictures_of_test_py(exported, lively):
    """To 1/255, for batches of any size; grey where the face is grey."""
    import onnxruntime

    target, pixels = exported
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    resolver = utils.SuperResolver(lively, torch.device("cpu"))
    for count in (1, 3, 8):
        x = faces(count)
        (sr,) = session.run(None, {"faces": x.numpy() if pixels == "8-bit" else utils.to_unit_range(x).numpy()})
        assert sr.shape == (count, 3, 64, 64) and sr.dtype == (np.uint8 if pixels == "8-bit" else np.float32)
        if pixels == "unit":
            assert np.abs(sr).max() <= 1
            sr = utils.to_bytes(torch.from_numpy(sr)).numpy()
        expected = resolver.pictures(x).numpy()
        assert np.abs(sr.astype(int) - expected.astype(int)).max() <= 1
        assert (sr[0] == sr[0, :1]).all() and expected.std() > 20  # flat pictures would agree anyhow


def test_an_onnx_file_loads_in_old_programs_has_folded_batchnorm_and_its_terms(exported):
    import onnx

    target, _ = exported
    model = onnx.load(target)
    onnx.checker.check_model(model)
    assert model.ir_version <= 8 and all(entry.version <= 18 for entry in model.opset_import)  # onnxruntime 1.16's
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators and "BatchNormalization" not in operators
    assert {entry.key: entry.value for entry in model.metadata_props} == {"trained on": "noise", "licence": "none"}
    assert str(export.__file__).encode() not in target.read_bytes()  # no paths of the machine that exported it
    assert [file.name for file in target.parent.glob("*.onnx*")] == ["face_sr.onnx"]


def test_without_the_packages_it_says_what_to_install(lively, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(utils.UserError, match="pip install onnx onnxscript"):
        main(export, lively, tmp_path / "a.onnx")


@pytest.mark.parametrize("kind, target, options, error", [
    ("sr", "a.pt", (), "must end in .pth or .onnx"),
    ("sr", "a.pth", (), "needs --trained-on and --licence"),
    ("sr", "a.pth", (*PUBLISHED, "--pixels", "unit"), "--pixels has no effect"),
    ("sr", "a.onnx", PUBLISHED[:2], "--trained-on has no effect"),
    ("sr_state", "a.pth", PUBLISHED, "name an h2l.pth or sr.pth"),
    ("h2l", "a.onnx", (), "holds 'h2l', not 'sr': an ONNX file is made of an sr.pth: name the sr.pth"),
])  # fmt: skip
def test_what_cannot_be_exported(kind, target, options, error, tmp_path, capsys):
    utils.save_checkpoint(tmp_path / "source.pth", kind, {})
    with pytest.raises((SystemExit, utils.UserError)) as raised:
        main(export, tmp_path / "source.pth", tmp_path / target, *options)
    assert error in capsys.readouterr().err + str(raised.value) and not (tmp_path / target).exists()
