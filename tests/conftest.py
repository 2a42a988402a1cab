"""What the tests share: a small drawn face set and tiny trained weights."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import REFERENCE, TINY, run_script, write_weights  # noqa: E402

from Datasets import make_demo  # noqa: E402
from models import Decoder, FeatureExtractor  # noqa: E402


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Path:
    """24 drawn faces of each kind to train with and 8 to test with, and their lists."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo.main(["--out", str(folder), "--hr", "24", "--lr", "24"])
    return folder


@pytest.fixture(scope="session")
def h2l(demo_data, tmp_path_factory) -> Path:
    """h2l.pth of a two-step run of train_h2l.py, as a user starts it."""
    out = tmp_path_factory.mktemp("h2l")
    result = run_script("train_h2l.py", "--data", demo_data, "--out", out, "--max-steps", 2, *TINY)
    assert result.returncode == 0, result.stderr
    return out / "h2l.pth"


@pytest.fixture(scope="session")
def sr(demo_data, h2l) -> Path:
    """sr.pth of a two-step run of train.py, as a user starts it; all files of both stages lie beside it."""
    options = ["--data", demo_data, "--out", h2l.parent, "--max-steps", 2, "--vgg-weights", "random", *REFERENCE, *TINY]
    result = run_script("train.py", *options)
    assert result.returncode == 0, result.stderr
    return h2l.parent / "sr.pth"


@pytest.fixture(scope="session")
def lively(tmp_path_factory) -> Path:
    """sr.pth of random networks, scaled so that different inputs give clearly different pictures."""
    torch.manual_seed(1)
    extractor, decoder = FeatureExtractor(8), Decoder(8)
    faces = torch.rand(64, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        for _ in range(30):  # BatchNorm's running statistics
            decoder(extractor(faces))
        sr = decoder.eval()(extractor.eval()(faces))
        decoder.layers[-1].weight *= 0.4 / (sr - sr.mean(dim=0)).std()
    path = tmp_path_factory.mktemp("lively") / "sr.pth"
    return write_weights(path, "sr", {"extractor": extractor, "decoder": decoder}, width=8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
