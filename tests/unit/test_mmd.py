"""The maximum mean discrepancy against a plain double loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undistill.errors import RecipeError, ShapeError
from undistill.functional.mmd import WIDTHS, mmd


def by_hand(x: Tensor, y: Tensor, widths: tuple[float, ...]) -> float:
    """Compute it pair by pair, in double precision."""
    rows = [*x.double(), *y.double()]
    distances = [[float((a - b).square().sum()) for b in rows] for a in rows]
    mean = sum(map(sum, distances)) / (len(rows) * (len(rows) - 1))
    n, m = len(x), len(y)
    total = 0.0
    for i in range(n + m):
        for j in range(n + m):
            weight = (1 / n if i < n else -1 / m) * (1 / n if j < n else -1 / m)
            total += weight * sum(math.exp(-distances[i][j] / (width * mean)) for width in widths)
    return total


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (7, 3), (1, 12)])
@pytest.mark.parametrize("widths", [(1.0,), WIDTHS, (1e-3, 1e3)])
def test_against_a_double_loop(n: int, m: int, widths: tuple[float, ...]):
    generator = torch.Generator().manual_seed(n + m)
    x, y = torch.randn(n, 6, generator=generator), 1 + 2 * torch.randn(m, 6, generator=generator)
    assert mmd(x, y, widths).item() == pytest.approx(by_hand(x, y, widths), abs=2e-5)


def test_a_worked_value():
    # Two points at squared distance 4, which is their mean distance: 2 - 2 exp(-1).
    assert mmd(torch.zeros(1, 1), torch.full((1, 1), 2.0), (1.0,)).item() == pytest.approx(2 - 2 / math.e)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_zero_for_equal_samples(offset: float):
    x = offset + torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert abs(mmd(x, x).item()) < 1e-5
    assert abs(mmd(x, x.flip(0)).item()) < 1e-5
    assert mmd(x, x + 1).item() > 0.1


def test_grows_to_its_most():
    x, far = torch.zeros(4, 3), torch.full((4, 3), 1e6)
    # Of 8 * 7 ordered pairs, 32 lie across, all at the same distance: 7/4 of the mean.
    across = sum(math.exp(-(7 / 4) / width) for width in WIDTHS)
    assert mmd(x, far).item() == pytest.approx(2 * len(WIDTHS) - 2 * across, rel=1e-4)
    assert mmd(x, far).item() < 2 * len(WIDTHS)


@pytest.mark.parametrize("width", [1e-30, 1e-6, 0.25, 1.0, 4.0, 1e6, 1e30])
@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e-3, 1.0, 1e6, 1e15])
def test_gradients_are_finite(width: float, scale: float):
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(6, 4, generator=generator)).requires_grad_()
    y = (scale * torch.randn(6, 4, generator=generator)).requires_grad_()
    found = mmd(x, y, (width,))
    found.backward()
    assert found.isfinite()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.isfinite().all()
    assert y.grad.isfinite().all()


def test_gradient_against_autograd_in_double():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(5, 3, generator=generator).requires_grad_() for _ in range(2))
    mmd(x, y, (0.5, 2.0)).backward()
    a, b = (each.detach().double().requires_grad_() for each in (x, y))
    both = torch.cat([a, b])
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    mean = distances.detach().sum() / 90
    sign = torch.tensor([0.2] * 5 + [-0.2] * 5, dtype=torch.float64)
    (sum((-distances / (w * mean)).exp() for w in (0.5, 2.0)) * sign[:, None] * sign).sum().backward()
    assert x.grad is not None
    assert a.grad is not None
    torch.testing.assert_close(x.grad.double(), a.grad, rtol=1e-4, atol=1e-6)


def test_moves_samples_together():
    x, y = torch.randn(16, 2), 3 + torch.randn(16, 2)
    y.requires_grad_()
    before = mmd(x, y)
    before.backward()
    assert y.grad is not None
    assert mmd(x, y.detach() - 5 * y.grad) < before


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(0, 3), torch.zeros(2, 3)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)),
    ],
)
def test_refuses_other_shapes(x: Tensor, y: Tensor):
    with pytest.raises(ShapeError):
        mmd(x, y)


@pytest.mark.parametrize("widths", [(), (0.0,), (-1.0,), (math.inf,), (math.nan,)])
def test_refuses_other_widths(widths: tuple[float, ...]):
    with pytest.raises(RecipeError, match="widths: expected finite numbers > 0"):
        mmd(torch.zeros(2, 2), torch.ones(2, 2), widths)
