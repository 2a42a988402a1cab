"""What training does on a GPU alone, done here on the CPU: the run is the same.

The loss terms are read seldom, and nothing is saved after a NaN all the same; the faces lie in the device's memory.
"""

import pandas as pd
import pytest
import torch
from helpers import TINY

import train_h2l
from Datasets.faces import BatchIndices, FaceBatches, ResidentFaces, prepare_faces
from training.run import Run


@pytest.fixture
def seldom(monkeypatch):
    """Let every run read its terms as one on a GPU does."""
    begin = Run.begin

    def begin_seldom(run):
        run.read_every = 20
        begin(run)

    monkeypatch.setattr(Run, "begin", begin_seldom)


def train(data, out, *more):
    intervals = ["--log-every", "7", "--sample-every", "12", "--save-every", "5"]
    train_h2l.main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "100", *intervals, *more])


@pytest.fixture
def resident(monkeypatch):
    """Let every run hold its faces on its device."""

    def on_device(run, hr, lr, indices):
        return map(FaceBatches(ResidentFaces(hr, run.device), ResidentFaces(lr, run.device)).__getitem__, indices)

    monkeypatch.setattr(Run, "_resident", on_device)


@pytest.mark.parametrize("way", ["seldom", "resident"])
def test_the_run_is_the_same(way, demo_data, tmp_path, request):
    for name in ("plain", way):
        if name != "plain":
            request.getfixturevalue(name)
        train(demo_data, tmp_path / name, "--max-steps", "16", "--critic-updates", "2")
    plain, other = (torch.load(tmp_path / name / "h2l_state.pth", weights_only=True) for name in ("plain", way))
    for network, tensors in plain["networks"].items():
        assert all(torch.equal(tensor, other["networks"][network][key]) for key, tensor in tensors.items())
    logs = [pd.read_csv(tmp_path / name / "train_h2l.csv").drop(columns="images_per_second") for name in ("plain", way)]
    pd.testing.assert_frame_equal(*logs)
    assert logs[0]["iteration"].tolist() == [7, 12, 14, 16]


def test_resident_faces_are_those_of_the_file(demo_data, tmp_path):
    hr, lr = (prepare_faces(demo_data / f"{kind}_train.csv", kind, tmp_path) for kind in ("HR", "LR"))
    device = torch.device("cpu")
    there = FaceBatches(ResidentFaces(hr, device), ResidentFaces(lr, device))
    for indices in BatchIndices(len(hr), len(lr), 5, seed=0, start=0, stop=10):
        for one, other in zip(there[indices], FaceBatches(hr, lr)[indices]):
            assert torch.equal(one, other) and one.stride() == other.stride()


def test_the_first_bad_iteration_is_named_and_nothing_saved_after_it(seldom, demo_data, tmp_path, monkeypatch):
    loss, calls = train_h2l.critic_loss, []

    def spoiled(*scores):
        calls.append(scores)
        return loss(*scores) * (float("nan") if len(calls) >= 8 else 1)

    monkeypatch.setattr(train_h2l, "critic_loss", spoiled)
    with pytest.raises(FloatingPointError, match=r"critic_loss is nan at iteration 8\. The last good state is in"):
        train(demo_data, tmp_path)
    assert len(calls) == 10  # read before the save at 10
    assert torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"] == 5
