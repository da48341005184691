"""Our GELU against torch's own in float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.kernels import gelu as kernel
from undistill.kernels.gelu import gelu, gelu_backward
from undistill.kernels.mode import Kernels

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    Tensor.contiguous,
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x[:, ::2],
    lambda x: x.transpose(1, 3),
    lambda x: x.flatten(1),
    lambda x: x[:0],
    lambda x: x[0, 0, 0, 0],
]


def numbers(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Return the result, and derivatives of the first three orders of a function of it."""
    x = x.detach().requires_grad_()
    found = [function(x)]
    y = found[0].square()
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(y)
    return tuple(each.detach() for each in found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_results_and_derivatives_are_those_of_torch_in_float64(layout: Callable[[Tensor], Tensor], threads: int):
    x = layout(numbers(3, 6, 7, 5))
    torch.set_num_threads(threads)
    try:
        found = derivatives(gelu, x)
    finally:
        torch.set_num_threads(1)
    for ours, theirs in zip(found, derivatives(F.gelu, x.double()), strict=True):
        assert ours.shape == x.shape
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)


def test_it_is_as_near_to_the_true_numbers_as_torch_and_nearer_far_below_zero():
    x = torch.linspace(-12, 12, 100_001)
    true = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    off = (gelu(x) - true).abs()
    assert (off / true.abs().clamp(min=1)).max() < 2e-7
    assert (off <= 5e-6 * true.abs()).all()  # torch's own are zero from -6 on
    assert (F.gelu(x) - true).abs().max() > off.max()


def test_the_derivative_is_as_near_as_that_of_torch():
    x = torch.linspace(-12, 12, 100_001)
    t = x.double()
    true = torch.special.ndtr(t) + t * (t.square() / -2).exp() / (2 * torch.pi) ** 0.5
    grad = numbers(len(x))
    assert ((gelu_backward(grad, x) - grad * true).abs() / grad.abs().clamp(min=1)).max() < 4e-7


def test_what_is_large_or_no_number():
    x = torch.tensor([1e30, -1e30, torch.inf, torch.nan])
    y, dx = gelu(x), gelu_backward(torch.ones(4), x)
    assert y[0] == x[0]
    assert abs(y[1]) < 1e-30
    assert y[2] == torch.inf
    assert y[3].isnan()
    assert dx[0] == 1
    assert abs(dx[1]) < 1e-30
    assert dx[3].isnan()


def test_a_gradient_of_another_layout():
    x, grad = numbers(2, 3, 4, 5), numbers(2, 5, 4, 3).transpose(1, 3)
    torch.testing.assert_close(gelu_backward(grad, x), torch.ops.aten.gelu_backward(grad, x), rtol=1e-5, atol=1e-5)


def test_torch_accepts_the_operators():
    x = numbers(2, 8, 5, 4).requires_grad_()
    torch.library.opcheck(gelu, (x,))
    torch.library.opcheck(gelu_backward, (numbers(2, 8, 5, 4).requires_grad_(), x))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def count(x: Tensor) -> Tensor:
        found.append(x)
        return gelu(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(kernel, "gelu", count)
    return found


@pytest.mark.parametrize("function", [F.gelu, lambda x: F.gelu(input=x, approximate="none"), torch.nn.GELU()])
def test_the_mode_replaces_what_fits(function: Callable[[Tensor], Tensor], calls: list[Any]):
    x = numbers(2, 64, 17, 16).to(memory_format=torch.channels_last)
    with Kernels():
        found = function(x)
    assert len(calls) == 1
    assert found.stride() == x.stride()
    torch.testing.assert_close(found, function(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.gelu(x.double()),
        lambda x: F.gelu(x.bfloat16()),
        lambda x: F.gelu(x[:, ::2]),
        lambda x: F.gelu(x[:1, :8]),  # too few
        F.relu,
    ],
)
def test_the_mode_leaves_all_else_alone(function: Callable[[Tensor], Tensor], calls: list[Any]):
    x = numbers(4, 64, 17, 16)
    with Kernels():
        found = function(x)
    assert not calls
    assert torch.equal(found, function(x))


def test_what_is_compiled_keeps_torchs_own():
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    with Kernels():
        torch.compile(lambda x: F.gelu(x), backend=keep, fullgraph=True)(numbers(2, 64, 17, 16))
    (graph,) = graphs
    assert "gelu" in graph
    assert "undistill" not in graph


def test_operands_that_the_kernel_would_misread_are_refused():
    with pytest.raises(ValueError, match=r"x: expected a dense float32 tensor on cpu, got torch\.float64"):
        gelu(numbers(3).double())
    with pytest.raises(ValueError, match=r"grad: expected the shape of x, \(3,\), got \(2,\)"):
        gelu_backward(numbers(2), numbers(3))
