"""On a GPU the loss terms are read seldom: the run is the same, and nothing is saved after a NaN."""

import pandas as pd
import pytest
import torch
from helpers import TINY

import train_h2l
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


def test_the_run_is_the_same(demo_data, tmp_path, request):
    for name in ("each", "seldom"):
        if name == "seldom":
            request.getfixturevalue("seldom")
        train(demo_data, tmp_path / name, "--max-steps", "16", "--critic-updates", "2")
    each, seldom = (torch.load(tmp_path / name / "h2l_state.pth", weights_only=True) for name in ("each", "seldom"))
    for network, tensors in each["networks"].items():
        assert all(torch.equal(tensor, seldom["networks"][network][key]) for key, tensor in tensors.items())
    logs = [pd.read_csv(tmp_path / name / "train_h2l.csv").drop(columns="images_per_second") for name in ("each", "seldom")]
    pd.testing.assert_frame_equal(*logs)
    assert logs[0]["iteration"].tolist() == [7, 12, 14, 16]


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
