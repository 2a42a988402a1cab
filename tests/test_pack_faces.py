"""Datasets/pack_faces.py: the faces that come out are those that training saw."""

import pytest
import torch

from Datasets import pack_faces
from Datasets.faces import prepare_faces
from utils import UserError


def test_a_machine_with_the_archive_has_the_same_faces(demo_data, tmp_path, capsys):
    archive, data = tmp_path / "faces.zip", tmp_path / "data"
    cache = tmp_path / "cache"
    pack_faces.main(["pack", "--archive", str(archive), "--data", str(demo_data), "--cache", str(cache)])
    pack_faces.main(["unpack", "--archive", str(archive), "--data", str(data)])
    for name in pack_faces.LISTS:
        before = prepare_faces(demo_data / f"{name}.csv", name[:2], cache)[:]
        after = prepare_faces(data / f"{name}.csv", name[:2], cache, 64, 64)[:]
        assert before[0].shape == after[0].shape
        if name.startswith("LR"):
            assert torch.equal(before[0], after[0])
        else:  # JPEG
            error = before[0].float() - after[0].float()
            assert 0 < error.square().mean() < 60 and error.mean().abs() < 1
    pack_faces.main(["unpack", "--archive", "gone.zip", "--data", str(data)])  # a second time: nothing to do
    assert "nothing to unpack" in capsys.readouterr().out


def test_archives_that_cannot_be_unpacked(tmp_path):
    half = tmp_path / "half.zip"
    half.write_bytes(b"PK\3\4 and no more")
    for archive, why in ((half, "truncated"), (tmp_path / "gone.zip", "missing")):
        with pytest.raises(UserError, match=why):
            pack_faces.unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists()
