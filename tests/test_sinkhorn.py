"""The Sinkhorn distance against POT, exact assignment, finite differences and its own marginals."""

import numpy as np
import ot
import pytest
import torch
from helpers import ROOT
from scipy.optimize import linear_sum_assignment

from Datasets.images import load_image, prepare_lr
from losses import alignment_loss, feature_points, sinkhorn_distance
from losses.sinkhorn import solve, squared_distances
from utils import SuperResolver, load_degradation, to_unit_range


def clouds(batch, n, m, d, scale=1.0, dtype=torch.float64):
    """Two batches of random points whose largest squared distance is `scale`."""
    x, y = torch.randn(batch, n, d, dtype=torch.float64), torch.randn(batch, m, d, dtype=torch.float64) + 0.3
    factor = (scale / squared_distances(x, y).amax()).sqrt()
    return (x * factor).to(dtype), (y * factor).to(dtype)


def marginal_errors(plan):
    n, m = plan.shape[1:]
    rows = (plan.sum(dim=2) - 1 / n).abs().sum(dim=1).max().item()
    columns = (plan.sum(dim=1) - 1 / m).abs().sum(dim=1).max().item()
    return max(rows, columns)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("n, m", [(16, 16), (5, 9), (9, 5)])
def test_value_equals_pot(eps, n, m):
    x, y = clouds(3, n, m, 4, scale=10)
    values = sinkhorn_distance(x, y, eps=eps, tolerance=1e-10)
    for i in range(3):
        cost = ot.dist(x[i].numpy(), y[i].numpy())  # squared Euclidean
        expected = ot.solve(cost, reg=eps, reg_type="KL", max_iter=20_000, tol=1e-9).value
        assert values[i].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("eps", [1.0, 0.05])
def test_gradient_equals_finite_differences_of_the_regularised_objective(eps):
    x, y = clouds(2, 5, 4, 3, scale=5)
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sinkhorn_distance(a, b, eps, 1e-13), (x, y), atol=1e-6, rtol=1e-5)


def test_small_eps_gives_exact_assignment():
    x, y = clouds(4, 16, 16, 8, scale=100)
    values = sinkhorn_distance(x, y, eps=1e-4)
    for i in range(4):
        cost = squared_distances(x, y)[i].numpy()
        exact = cost[linear_sum_assignment(cost)].mean()
        # <P, C> is at least the exact cost, and eps * KL at most eps * log(n)
        assert exact - 1e-6 <= values[i].item() <= exact + 1e-4 * np.log(16) + 1e-6


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-4), (torch.float32, 1e-3)])
@pytest.mark.parametrize("scale", [1, 100, 1e4])
@pytest.mark.parametrize("shape", [(13, 16, 16, 64), (16, 64, 64, 2), (2, 256, 256, 64), (8, 16, 24, 64)])
def test_marginals_at_the_default_eps(dtype, bound, scale, shape):
    x, y = clouds(*shape, scale=scale, dtype=dtype)
    solution = solve(squared_distances(x, y), eps=1e-3)
    assert solution.plan.dtype == dtype
    assert solution.converged.all()
    assert solution.iterations < 500
    assert marginal_errors(solution.plan) < bound
    assert torch.isfinite(solution.value).all()


def test_solves_to_1e_10_in_float64():
    x, y = clouds(16, 16, 16, 64, scale=100)
    solution = solve(squared_distances(x, y), eps=1e-3, tolerance=1e-10)
    assert solution.converged.all()
    assert marginal_errors(solution.plan) < 1e-9


def test_fp32_value_agrees_with_float64_at_large_costs():
    x, y = clouds(8, 16, 16, 64, scale=1e4, dtype=torch.float32)
    assert torch.allclose(sinkhorn_distance(x, y).double(), sinkhorn_distance(x.double(), y.double()), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_points_give_finite_values_and_gradients(dtype):
    point = torch.randn(1, 1, 8, dtype=dtype)
    cases = {
        "identical": (point.expand(2, 16, 8), point.expand(2, 16, 8)),
        "one point": (torch.randn(2, 1, 8, dtype=dtype), torch.randn(2, 1, 8, dtype=dtype)),
        "one against many": (torch.randn(2, 1, 8, dtype=dtype), torch.randn(2, 9, 8, dtype=dtype)),
        "duplicated": (torch.randn(2, 4, 8, dtype=dtype).repeat(1, 4, 1), torch.randn(2, 16, 8, dtype=dtype)),
        "same set": (clouds(2, 16, 16, 8, dtype=dtype)[0],) * 2,
        "large": clouds(2, 16, 16, 8, scale=1e4, dtype=dtype),
        "different scales": tuple(c * torch.tensor([1e-3, 1, 100], dtype=dtype).view(3, 1, 1) for c in clouds(3, 16, 16, 8)),
    }
    for name, (x, y) in cases.items():
        x, y = x.detach().to(dtype).clone().requires_grad_(), y.detach().to(dtype).clone().requires_grad_()
        value = sinkhorn_distance(x, y)
        value.sum().backward()
        assert torch.isfinite(value).all(), name
        assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all(), name


def test_identical_points_cost_nothing():
    x = torch.full((1, 16, 4), 3.0, dtype=torch.float64, requires_grad=True)
    value = sinkhorn_distance(x, x.detach())
    value.sum().backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert x.grad.abs().max() < 1e-12


def test_one_point_is_the_squared_distance():
    x = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    value = sinkhorn_distance(x, torch.tensor([[[4.0, 6.0]]]))
    value.sum().backward()
    assert value.item() == pytest.approx(25)
    assert torch.allclose(x.grad, torch.tensor([[[-6.0, -8.0]]]))


def test_half_types_are_raised_to_fp32():
    x, y = clouds(2, 8, 8, 4, dtype=torch.bfloat16)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = sinkhorn_distance(x, y)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    assert torch.allclose(value, sinkhorn_distance(x.float(), y.float()))


def test_problems_of_a_batch_do_not_affect_each_other():
    x, y = clouds(3, 16, 16, 8)
    x[1] *= 50
    together = sinkhorn_distance(x, y, tolerance=1e-9)
    alone = torch.cat([sinkhorn_distance(x[i : i + 1], y[i : i + 1], tolerance=1e-9) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-6)


def test_the_cap_is_reported():
    x, y = clouds(2, 64, 64, 2)
    with pytest.warns(RuntimeWarning, match="cap of 1 iterations"):
        solution = solve(squared_distances(x, y), eps=1e-3, tolerance=1e-14, max_iterations=1)
    assert not solution.converged.all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_points_that_are_not_finite_give_nan_and_spoil_no_other_problem(value):
    x, y = clouds(3, 8, 8, 4, dtype=torch.float32)
    expected = sinkhorn_distance(x, y)
    x[1, 2, 3] = value
    values = sinkhorn_distance(x, y)
    assert values[1].isnan() and torch.allclose(values[[0, 2]], expected[[0, 2]])


def test_memory_does_not_grow_with_the_iterations():
    """The graph holds the points and the plan, however long it took to find the plan."""
    x, y = clouds(1, 16, 16, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        sinkhorn_distance(x.requires_grad_(), y)
    assert saved == [(1, 16, 8), (1, 16, 8), (1, 16, 16)]


def test_alignment_loss_takes_alpha_of_each_face():
    clean, degraded, mixed = (torch.randn(2, 8, 4, 4) for _ in range(3))
    of_each = alignment_loss(clean, degraded, mixed, torch.tensor([0.2, 1.0]))
    alone = [alignment_loss(clean[i : i + 1], degraded[i : i + 1], mixed[i : i + 1], a) for i, a in ((0, 0.2), (1, 1.0))]
    assert of_each.item() == pytest.approx((sum(alone) / 2).item(), rel=1e-6)


def test_the_plan_of_a_face_and_its_degradation_is_the_identity():
    """With the shipped networks each position goes to itself: paired squared distances would have the same gradient."""
    faces = [prepare_lr(load_image(path)) for path in sorted((ROOT / "docs/faces").glob("*.png"))]
    x_c = to_unit_range(torch.from_numpy(np.stack([np.asarray(face) for face in faces])).permute(0, 3, 1, 2))
    generator, _ = load_degradation(ROOT / "weights/h2l.pth", "")
    x_d = generator(x_c, torch.randn(len(x_c), 16)).clamp(-1, 1)
    extractor = SuperResolver(ROOT / "weights/sr.pth", torch.device("cpu")).extractor
    x, target = (feature_points(extractor(part)) for part in (x_d, 0.3 * x_c + 0.7 * x_d))
    assert len(faces) > 1 and solve(squared_distances(x, target)).plan.diagonal(dim1=1, dim2=2).sum(dim=1).min() > 0.99
    (gradient,) = torch.autograd.grad(sinkhorn_distance(x.requires_grad_(), target).sum(), x)
    assert torch.allclose(gradient, 2 * (x - target) / 16, atol=1e-3)


@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_a_gpu_is_asked_twice_in_a_solve(scale, monkeypatch):
    """Each answer waits for it. No GPU is needed to see that, nor that a fixed number of steps suffices."""
    cost = squared_distances(*clouds(64, 16, 16, 64, scale=scale, dtype=torch.float32))
    expected, asked, ask, item = solve(cost), [], torch.Tensor.__bool__, torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: asked.append(tensor) or ask(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: asked.append(tensor) or item(tensor))
    solution = solve(cost)
    assert len(asked) == 2 and solution.converged.all()
    assert torch.allclose(solution.value, expected.value, rtol=1e-4)
