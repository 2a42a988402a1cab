"""benchmarks/bench.py: its parts run."""

import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402


def test_every_part_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "BATCHES", [2])
    monkeypatch.setattr(bench, "SHAPES", [(2, 4, 8)])
    monkeypatch.setattr(bench, "FACES", 2)
    bench.main(["--rounds", "1", "--width", "4", "--precision", "fp32", "--device", "cpu", "--out", str(tmp_path / "out.md")])
    text = (tmp_path / "out.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert text.count("\n## ") == len(bench.BENCHES) == 5


def test_a_part_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        bench.main(["stage3"])
    assert "no such part: stage3" in capsys.readouterr().err
