"""recipes/gpu.sh, rehearsed on the CPU with two iterations of each: cut by its slice, resumed, and run to the end."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
import torchvision
from helpers import HANGING, ROOT

pytestmark = pytest.mark.skipif(not shutil.which("bash") or not shutil.which("timeout"), reason="needs bash and timeout")


def gpu_recipe(folder, *options):
    environment = {"PYTHON": sys.executable, "DEVICE": "cpu", "TINY": "1", "FEATURES": str(folder / "features.pth")}
    command = ["bash", "recipes/gpu.sh", "--faces", str(folder / "faces.tar.gz"), "--out", str(folder / "out"), *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=HANGING)


def test_the_gpu_recipe_goes_on_where_its_slice_ended_and_comes_to_the_end(demo_data, tmp_path):
    subprocess.run(["tar", "czf", tmp_path / "faces.tar.gz", "-C", demo_data, "."], check=True)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "features.pth")

    cut = gpu_recipe(tmp_path, "--minutes", "0.4")  # 4 s, and 20 to save
    assert cut.returncode == 3 and "this slice is over" in cut.stdout, cut.stderr
    done = {path.name for path in (tmp_path / "out/done").iterdir()}
    assert "evaluate" not in done

    rest = gpu_recipe(tmp_path)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert not any(f"== {name}:" in rest.stdout for name in done)
    for log in ("full/train_h2l.csv", "full/train.csv", "align/train.csv"):
        assert pd.read_csv(tmp_path / "out" / log)["iteration"].max() == 2, log
    assert "alignment_loss" in pd.read_csv(tmp_path / "out/align/train.csv").dropna(axis=1)
    assert "GFLOP/s" in (tmp_path / "out/bench_stage1.md").read_text()
    rows = json.loads((tmp_path / "out/metrics.json").read_text())["rows"]
    assert len([row for row in rows if "sr.pth" in str(row)]) == 2
    again = gpu_recipe(tmp_path, "--minutes", "0.4")
    assert again.returncode == 0 and again.stdout.count("==") == 1  # nothing is left to do


def test_a_failing_step_ends_the_recipe(tmp_path):
    result = gpu_recipe(tmp_path)
    assert result.returncode > 0 and "faces failed with status" in result.stderr
    assert "faces.tar.gz" in result.stderr and not (tmp_path / "out/done/faces").exists()
