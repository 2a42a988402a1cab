"""benchmarks/: the reference procedure makes the same updates, the solvers compared solve the same problem."""

import sys

import pytest
import torch
from helpers import ROOT, run_script
from test_training import faces, make_stages

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402
import reference  # noqa: E402

from losses import sinkhorn_distance  # noqa: E402


@pytest.mark.parametrize("number", [1, 2])
def test_the_reference_procedure_trains_the_same_networks(number, tmp_path):
    """A full iteration moves every network and writes its picture grids."""
    stage, _ = make_stages(number, tmp_path, torch.float32)
    y, small = faces(1, 64, torch.float32), faces(2, 16, torch.float32)
    if number == 1:
        other, arguments = reference.Degradation(stage, tmp_path), (small, small.roll(1, 0))
    else:
        other, arguments = reference.SuperResolution(stage, tmp_path), (y, small, small.roll(1, 0))
    other.iterate(10, *arguments)
    assert len(list(tmp_path.glob("*.png"))) == (3 if number == 1 else 8)
    for name, network in stage.run.networks.items():
        moved = [not torch.equal(a, b) for a, b in zip(network.parameters(), getattr(other, name).parameters())]
        assert sum(moved) > 0.5 * len(moved), name


@pytest.mark.parametrize("name", list(bench.SOLVERS))
def test_the_solvers_solve_the_same_problem(name):
    """An easy one, on which all agree: the same gradient, and a small error of the marginals."""
    pytest.importorskip({"POT": "ot", "geomloss": "geomloss"}.get(name, "torch"))
    x, y = bench.points((3, 8, 4), torch.device("cpu"))
    value, error = bench.SOLVERS[name](x, y, 2.0, 400)
    value.sum().backward()
    assert error() < 3 * bench.ERROR
    mine = x.detach().clone().requires_grad_()
    sinkhorn_distance(mine, y, 2.0).sum().backward()
    if name == "unrolled, log domain":  # <P, C> alone, as in the reference: the gradient's direction is near
        assert torch.nn.functional.cosine_similarity(x.grad.flatten(), mine.grad.flatten(), dim=0) > 0.9
    else:
        factor = 2 if name == "geomloss" else 1  # its cost is half the squared distance
        assert torch.allclose(factor * x.grad, mine.grad, atol=2e-2)


def test_the_marginal_error_in_closed_form():
    plan = torch.tensor([[[0.5, 0.0], [0.1, 0.4]]])  # rows 0.5 and 0.5, columns 0.6 and 0.4
    assert bench.marginal_error(plan) == pytest.approx(0.2)


def test_medians_of_functions_called_in_turn():
    calls = []
    times = bench.in_turn(3, lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 4 and len(times) == 2 and all(taken >= 0 for taken in times)


def test_a_part_that_is_not_there():
    result = run_script("benchmarks/bench.py", "stage3")
    assert result.returncode == 2 and "no such part: stage3" in result.stderr
