"""What training does on a GPU alone, done here on the CPU: the run is the same.

The loss terms are read seldom, and nothing is saved after a NaN all the same; the faces lie in the device's memory.
"""

import pandas as pd
import pytest
import torch
from helpers import TINY

import train_h2l
from Datasets.faces import ResidentFaces
from training.run import Run


@pytest.fixture
def seldom(monkeypatch):
    """Let every run read its terms as one on a GPU does."""
    start = Run._start

    def start_seldom(run, faces):
        run.read_every = 20
        start(run, faces)

    monkeypatch.setattr(Run, "_start", start_seldom)


def train(data, out, *more):
    intervals = ["--save-every", "140"]  # a row of the log every 7 iterations
    train_h2l.main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "100", *intervals, *more])


@pytest.fixture
def resident(monkeypatch):
    """Let every run hold its faces on its device."""

    def on_device(run, hr, lr):
        return ResidentFaces(hr, run.device), ResidentFaces(lr, run.device)

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
    assert logs[0]["iteration"].tolist() == [7, 14, 16]


def test_the_first_bad_iteration_is_named_and_nothing_saved_after_it(seldom, demo_data, tmp_path, monkeypatch):
    terms, calls = train_h2l.critic_terms, []

    def spoiled(*arguments):
        calls.append(arguments)
        found = terms(*arguments)
        return found | {"critic_loss": found["critic_loss"] * (float("nan") if len(calls) >= 8 else 1)}

    monkeypatch.setattr(train_h2l, "critic_terms", spoiled)
    with pytest.raises(FloatingPointError, match=r"critic_loss is nan at iteration 8\. The last good state is in"):
        train(demo_data, tmp_path, "--max-steps", "5")
        train(demo_data, tmp_path)
    assert len(calls) == 14  # read before the row at 14
    assert torch.load(tmp_path / "h2l_state.pth", weights_only=True)["iteration"] == 5
