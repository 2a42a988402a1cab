"""benchmarks/bench.py: its parts run, and the solvers that it compares solve the same problem."""

import sys

import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402


def test_every_part_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "BATCHES", [2])
    monkeypatch.setattr(bench, "SHAPES", [(2, 4, 8)])
    monkeypatch.setattr(bench, "FACES", 2)
    monkeypatch.setattr(bench, "CAP", 5)
    bench.main(["--rounds", "1", "--width", "4", "--precision", "fp32", "--device", "cpu", "--out", str(tmp_path / "out.md")])
    text = (tmp_path / "out.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert text.count("\n## ") == len(bench.BENCHES) == 5


@pytest.mark.parametrize("name", list(bench.SOLVERS))
def test_the_solvers_solve_the_same_problem(name, monkeypatch):
    """An easy one, on which all agree: the same gradient."""
    pytest.importorskip({"POT": "ot", "geo": "geomloss"}.get(name[:3], "torch"))
    monkeypatch.setattr(bench, "EPS", 2.0)
    x, y = torch.randn(3, 8, 4, requires_grad=True), torch.randn(3, 8, 4)
    bench.SOLVERS[name](x, y).sum().backward()
    mine = x.detach().clone().requires_grad_()
    bench.sinkhorn.sinkhorn_distance(mine, y, 2.0).sum().backward()
    factor = 2 if name.startswith("geomloss") else 1  # its cost is half the squared distance
    assert torch.allclose(factor * x.grad, mine.grad, atol=2e-2)


def test_a_part_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        bench.main(["stage3"])
    assert "no such part: stage3" in capsys.readouterr().err
