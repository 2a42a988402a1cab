r"""Entropy-regularised Wasserstein (Sinkhorn) distance between two sets of points, batched and in the log domain.

For points x_1..x_n and y_1..y_m with weights 1/n and 1/m and the cost C_ij = |x_i - y_j|^2,

    W(x, y) = min over plans P with those marginals of  <P, C> + eps * KL(P | a b'),       a_i = 1/n, b_j = 1/m.

Its dual has one potential a point, and the optimal plan follows from the optimal potentials:

    W = max over f, g of  <a, f> + <b, g> - eps * (sum(P) - 1),     P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps).

Sinkhorn's iterations maximise over f and g in turn, each in closed form (a log-sum-exp). Three things make them fit for
eps = 1e-3 beside costs of 1 to 1e4, where they alone need thousands of rounds or end in rounding errors:

- eps-scaling: eps begins at 1/40 of the largest cost of each problem and is halved, each stage starting from the last
  one's potentials (Schmitzer 2019, "Stabilized sparse scaling algorithms for entropy regularized transport problems");
- absorption, once a stage: the cost becomes the residual C - f - g and the potentials restart from zero. Where there is
  mass the residual is small, so that (f + g - C) / eps keeps its digits in fp32 also when C / eps is 1e7;
- a Newton step on f, with g eliminated, in place of Sinkhorn's wherever it lowers the error of the marginals
  (Brauer et al. 2017, "A Sinkhorn-Newton method for entropic optimal transport"): quadratic convergence, so that two
  steps a stage are enough.

The gradient needs none of this to be differentiated. By the envelope theorem the derivative of W by the cost is the
optimal plan itself, so that dW/dx_i = 2 sum_j P_ij (x_i - y_j): memory does not grow with the iterations.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_STAGE = 40.0  # the largest cost in units of the first stage's eps: exp(-40) is well within fp32
STAGE_STEPS = 100  # the cap of an eps-scaling stage before the last; 1 or 2 are usual
GPU_STAGE_STEPS, GPU_LAST_STEPS = 4, 8  # without a look at the error: each look waits for the GPU
NEWTON_TRUST = 3.0  # a Newton step moves no potential by more than this many eps: the plan by a factor of e^3


class SinkhornSolution(NamedTuple):
    """What `solve` found for a batch of B problems of n by m points.

    plan: [B, n, m], total 1. value: [B], W above. iterations: of all stages together. converged: [B], whether the L1
    distance of the plan's row sums from 1/n reached the tolerance (its column sums are exact but for rounding).
    """

    plan: Tensor
    value: Tensor
    iterations: int
    converged: Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """C_ij = |x_i - y_j|^2 of x [B, n, d] and y [B, m, d] -> [B, n, m].

    fp32: |x|^2 + |y|^2 - 2 x y in float64, so that nothing is lost by cancellation. float64: by differences, more slowly.
    """
    if x.dtype == torch.float64:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    x, y = x.double(), y.double()
    squares = torch.linalg.vecdot(x, x)[:, :, None] + torch.linalg.vecdot(y, y)[:, None]
    return torch.baddbmm(squares, x, y.mT, alpha=-2).clamp(min=0).float()


@torch.no_grad()
def solve(cost: Tensor, eps: float = 1e-3, tolerance: float | None = None, max_iterations: int = 1000) -> SinkhornSolution:
    """Solve a batch of entropy-regularised transport problems with uniform weights.

    cost: [B, n, m], fp32 or float64, finite, not negative. eps: in units of the cost, the same for the whole batch.
    tolerance: L1 error of the row sums at which a problem counts as solved; 1e-4 in fp32 and 1e-6 in float64 if None.
    max_iterations: the cap, looked at in the last stage. A problem that is not solved by then is reported by a RuntimeWarning
    and by `converged`.

    A problem with a cost that is not finite gets NaN for its value and plan.
    """
    batch, n, m = cost.shape
    largest = cost.amax(dim=(1, 2), keepdim=True)
    lost = ~torch.isfinite(largest)
    cost, largest = cost.masked_fill(lost, 0), largest.masked_fill(lost, 0)
    if tolerance is None:
        tolerance = 1e-6 if cost.dtype == torch.float64 else 1e-4
    # An error of 2/n is one unmatched point, which no later stage finds again: a stage ends well below that.
    stage_tolerance = max(tolerance, 0.1 / max(n, m))
    stage_steps, last_steps = (GPU_STAGE_STEPS, GPU_LAST_STEPS) if cost.is_cuda else (STAGE_STEPS, max_iterations)

    residual, f, g = cost, torch.zeros_like(cost[:, :, :1]), torch.zeros_like(cost[:, :1])
    iterations = 0

    def absorb(stage_eps: Tensor, steps: int, enough: float) -> tuple[Tensor, Tensor]:
        """Absorb `steps` steps into the residual; the plan and its row errors."""
        nonlocal residual, f, g, iterations
        u, v, plan, error, used = _iterate(residual, stage_eps, steps, enough)
        residual, f, g, iterations = residual - u - v, f + u, g + v, iterations + used
        return plan, error

    stage_eps = (largest / FIRST_STAGE).clamp(min=eps)
    for _ in range(math.ceil(math.log2(max(largest.max().item() / FIRST_STAGE / eps, 1)))):
        absorb(stage_eps, stage_steps, stage_tolerance)
        stage_eps = (stage_eps / 2).clamp(min=eps)
    while True:
        plan, error = absorb(stage_eps, last_steps, tolerance)
        converged = error <= tolerance
        solved = bool(converged.all())
        if solved or iterations >= max_iterations:
            break

    if not solved:
        warnings.warn(
            f"Sinkhorn stopped at its cap of {max_iterations} iterations: {int((~converged).sum())} of {batch} problems "
            f"have marginals off by up to {error.max():.1e} (tolerance {tolerance:.1e}, eps {eps:g})",
            RuntimeWarning,
            stacklevel=2,
        )
    value = f.mean(dim=(1, 2)) + g.mean(dim=(1, 2)) - eps * (plan.sum(dim=(1, 2)) - 1)
    value, plan = value.masked_fill(lost[:, 0, 0], math.nan), plan.masked_fill(lost, math.nan)
    return SinkhornSolution(plan, value, iterations, converged)


def _iterate(residual: Tensor, eps: Tensor, steps: int, enough: float) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """At most `steps` Newton or Sinkhorn steps on the residual cost [B, n, m] at one eps a problem ([B, 1, 1]).

    enough: the row error at which they end, except on a GPU. Returns what they add to the potentials, u [B, n, 1] and
    v [B, 1, m], the plan [B, n, m], its row errors [B], and how many steps there were.
    """
    n, m = residual.shape[1:]

    def plan_of(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """v such that the columns of the plan sum to 1/m, Sinkhorn's update of g; the plan, its row sums and row errors."""
        v = -eps * (torch.logsumexp((u - residual) / eps, dim=1, keepdim=True) - math.log(n))
        plan = torch.exp((u + v - residual) / eps - math.log(n * m))
        rows = plan.sum(dim=2, keepdim=True)
        return v, plan, rows, (rows - 1 / n).abs().sum(dim=(1, 2))

    u = torch.zeros_like(residual[:, :, :1])
    v, plan, rows, error = plan_of(u)
    for done in range(steps):
        if not residual.is_cuda and (error <= enough).all():
            return u, v, plan, error, done
        newton_u = torch.nan_to_num(u + eps * _newton_step(plan, rows, error))
        newton = plan_of(newton_u)
        # Sinkhorn's own step never raises the error: it stands in wherever Newton's does not clearly lower it. Rows
        # without any mass in this dtype are raised by a bounded step instead of an infinite one.
        better = (newton[3] < 0.9 * error)[:, None, None]
        sinkhorn_u = u - eps * torch.log((rows * n).clamp(min=torch.finfo(residual.dtype).tiny))
        if residual.is_cuda or not better.all():
            u = torch.where(better, newton_u, sinkhorn_u)
            v, plan, rows, error = plan_of(u)
        else:
            u, (v, plan, rows, error) = newton_u, newton
    return u, v, plan, error, steps


def _newton_step(plan: Tensor, rows: Tensor, error: Tensor) -> Tensor:
    """Newton's step on the dual as a function of u alone, in units of eps: [B, n, 1], bounded by NEWTON_TRUST.

    plan: [B, n, m]. rows: its sums [B, n, 1]. error: their L1 distance from 1/n, [B].
    """
    n, m = plan.shape[1:]
    # The Hessian is -(diag(rows) - m P P') / eps. It is singular along the constants (they cancel in
    # u + v): 1/n^2 removes that. It is nearly singular where the plan falls into parts: the Levenberg
    # term removes that, and fades as the error does.
    damping = 1 + 0.1 * error.clamp(max=1)[:, None, None]
    hessian = torch.diag_embed((rows * damping)[:, :, 0]) - m * plan @ plan.mT + 1 / n**2
    step, _ = torch.linalg.solve_ex(hessian, 1 / n - rows)
    return step * (NEWTON_TRUST / step.abs().amax(dim=1, keepdim=True).clamp(min=NEWTON_TRUST))


class _SinkhornDistance(torch.autograd.Function):
    """W(x, y) with the gradient of the envelope theorem."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, eps: float, tolerance: float | None, max_iterations: int) -> Tensor:
        solution = solve(squared_distances(x, y), eps, tolerance, max_iterations)
        ctx.save_for_backward(x, y, solution.plan)
        return solution.value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, y, plan = ctx.saved_tensors
        gradient_x = gradient_y = None
        # sum_j P_ij (x_i - y_j), with both sets moved to a common centre first: fewer digits cancel
        centre = y.mean(dim=1, keepdim=True)
        x, y = x - centre, y - centre
        if ctx.needs_input_grad[0]:
            gradient_x = 2 * gradient[:, None, None] * (plan.sum(dim=2)[:, :, None] * x - plan @ y)
        if ctx.needs_input_grad[1]:
            gradient_y = 2 * gradient[:, None, None] * (plan.sum(dim=1)[:, :, None] * y - plan.mT @ x)
        return gradient_x, gradient_y, None, None, None


def sinkhorn_distance(
    x: Tensor, y: Tensor, eps: float = 1e-3, tolerance: float | None = None, max_iterations: int = 1000
) -> Tensor:
    """W(x, y) of each pair of point sets: x [B, n, d] and y [B, m, d] -> [B], in squared units of the points.

    Not debiased: W(x, x) is not 0 but at most eps * log(n). Differentiable once, in x and y. Computes in the points'
    dtype; half types are raised to fp32. Options as in `solve`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    with torch.autocast(x.device.type, enabled=False):
        return _SinkhornDistance.apply(x, y.to(x.dtype), eps, tolerance, max_iterations)
