"""Our pooling against torch's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.kernels import pooling
from undistill.kernels.mode import Kernels
from undistill.kernels.pooling import max_pool2x2, max_pool2x2_backward

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

SHAPES = [(3, 16, 8, 8), (2, 5, 7, 9), (1, 24, 2, 3), (4, 1, 3, 2), (2, 33, 31, 30)]


def images(*shape: int) -> Tensor:
    """Return images with many equal pixels: of these the first must win."""
    values = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.float().to(memory_format=torch.channels_last)


def derivatives(pool: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maxima, and the first and second derivatives of a function of them."""
    x = x.detach().requires_grad_()
    y = pool(x)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    return y.detach(), first.detach(), second


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_maxima_and_derivatives_are_those_of_torch(shape: tuple[int, ...], threads: int):
    x = images(*shape)
    torch.set_num_threads(threads)
    try:
        found = derivatives(lambda x: max_pool2x2(x)[0], x)
    finally:
        torch.set_num_threads(1)
    for ours, theirs in zip(found, derivatives(lambda x: F.max_pool2d(x, 2), x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("view", [Tensor.contiguous, lambda x: x[:, ::2], lambda x: x.transpose(2, 3)])
def test_images_of_any_layout(view: Callable[[Tensor], Tensor]):
    x = view(images(2, 16, 6, 9))
    for ours, theirs in zip(
        derivatives(lambda x: max_pool2x2(x)[0], x), derivatives(lambda x: F.max_pool2d(x, 2), x), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("where", range(4))
def test_what_is_not_a_number_is_seen(where: int):
    x = torch.zeros(1, 8, 2, 2)
    x.view(8, 4)[:, where] = float("nan")
    y, which = max_pool2x2(x)
    assert y.isnan().all()
    assert (which == where).all()


def test_torch_accepts_the_operators():
    x = images(2, 8, 5, 4).requires_grad_()
    y, which = (t.detach() for t in max_pool2x2(x))
    torch.library.opcheck(max_pool2x2, (x,))
    torch.library.opcheck(max_pool2x2_backward, (y.requires_grad_(), which, 5, 4))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def count(x: Tensor) -> tuple[Tensor, Tensor]:
        found.append(x)
        return max_pool2x2(x)

    monkeypatch.setattr(pooling, "max_pool2x2", count)
    return found


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(input=x, kernel_size=(2, 2), stride=2),
        torch.nn.MaxPool2d(2),
        torch.nn.MaxPool2d((2, 2), (2, 2)),
    ],
)
def test_the_mode_replaces_what_fits(pool: Callable[[Tensor], Tensor], calls: list[Any]):
    x = images(2, 8, 6, 6)
    with Kernels():
        found = pool(x)
    assert len(calls) == 1
    assert torch.equal(found, pool(x))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 3),
        lambda x: F.max_pool2d(x, (2, 1)),
        lambda x: F.max_pool2d(x, 2, stride=1),
        lambda x: F.max_pool2d(x, 2, padding=1),
        lambda x: F.max_pool2d(x, 2, dilation=2),
        lambda x: F.max_pool2d(x, 2, ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_pool2d(x.double(), 2),
        lambda x: F.max_pool2d(x.contiguous(), 2),
        lambda x: F.max_pool2d(x[0], 2),
        lambda x: F.avg_pool2d(x, 2),
    ],
)
def test_the_mode_leaves_all_else_alone(pool: Callable[[Tensor], Tensor], calls: list[Any]):
    x = images(2, 8, 7, 7)
    with Kernels():
        found = pool(x)
    assert not calls
    assert torch.equal(found, pool(x))


def test_the_mode_leaves_mistakes_to_torch(calls: list[Any]):
    with Kernels(), pytest.raises(RuntimeError, match="too small"):
        F.max_pool2d(images(2, 8, 1, 4), 2)
    assert not calls


def test_a_net_is_compiled_in_one_piece_with_the_kernels_inside():
    conv = torch.nn.Conv2d(16, 16, 3, padding=1)
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    net = torch.compile(lambda x: F.max_pool2d(conv(x), 2), backend=keep, fullgraph=True)
    x = images(2, 16, 6, 6)
    with Kernels():
        found = net(x)
    (graph,) = graphs
    assert "undistill.conv3x3" in graph
    assert "undistill.max_pool2x2" in graph
    torch.testing.assert_close(found, F.max_pool2d(conv(x), 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (images(2, 8, 4, 4).double(), "x: expected a dense float32 tensor on cpu, got torch.float64"),
        (images(2, 8, 1, 4), r"H and W of 2 or more, got \(2, 8, 1, 4\)"),
        (images(2, 8, 4, 4)[0], r"expected \(B, C, H, W\)"),
    ],
)
def test_images_that_the_kernel_would_misread_are_refused(x: Tensor, told: str):
    with pytest.raises(ValueError, match=told):
        max_pool2x2(x)


def test_places_of_other_images_are_refused():
    y, which = max_pool2x2(images(2, 8, 4, 4))
    for places, height in ((which[:1], 4), (which.int(), 4), (which, 6)):
        with pytest.raises(ValueError, match="the places that max_pool2x2 returned"):
            max_pool2x2_backward(y, places, height, 4)
