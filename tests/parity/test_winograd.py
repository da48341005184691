"""Winograd's convolutions against torch's own, and the C compiler that they need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.errors import RunError
from undistill.kernels import native, winograd
from undistill.kernels.mode import Kernels
from undistill.kernels.native import find_compiler, load_library
from undistill.kernels.winograd import conv3x3, lanes

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# batch, vectors of channels in and out, height, width: whole and cut tiles, fewer tiles than a block or a vector, one
# or several vectors, in pairs or not
SHAPES = [
    (3, 2, 2, 8, 8),
    (5, 4, 6, 7, 9),
    (2, 6, 2, 13, 4),
    (1, 8, 8, 3, 3),
    (9, 2, 4, 4, 4),
    (2, 2, 2, 1, 2),
    (2, 1, 3, 5, 6),
    (3, 3, 1, 9, 2),
]


def tensors(n: int, c: int, k: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * c + k)
    x = torch.randn(n, c, h, w, generator=generator).to(memory_format=torch.channels_last)
    return x, torch.randn(k, c, 3, 3, generator=generator), torch.randn(k, generator=generator)


def direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def gradients(conv: Callable[..., Tensor], operands: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return output and gradients of a function whose second derivatives are not zero, and those second ones."""
    operands = tuple(t.to(dtype).requires_grad_() for t in operands)
    y = conv(*operands)
    first = torch.autograd.grad(y.square().sum(), operands, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), operands)
    return [y.detach(), *(t.detach() for t in first), *second]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_results_and_derivatives_are_those_of_a_direct_convolution(shape: tuple[int, ...], threads: int):
    n, c, k, h, w = shape
    operands = tensors(n, c * lanes(), k * lanes(), h, w)
    torch.set_num_threads(threads)
    try:
        found = gradients(conv3x3, operands, torch.float32)
    finally:
        torch.set_num_threads(1)
    for ours, theirs in zip(found, gradients(direct, operands, torch.float64), strict=True):
        assert (ours - theirs).norm() < 5e-6 * theirs.norm()


def test_operands_in_any_layout():
    x, weight, bias = tensors(2, 32, 16, 6, 6)
    expected = direct(x, weight, bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = conv3x3(x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout), bias)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_torch_accepts_the_operators():
    x, weight, bias = (t.requires_grad_() for t in tensors(2, 16, 16, 5, 4))
    torch.library.opcheck(conv3x3, (x, weight, bias), rtol=1e-3, atol=1e-3)
    torch.library.opcheck(
        winograd.conv3x3_weight, (x, direct(x, weight, bias).detach().requires_grad_()), rtol=1e-3, atol=1e-3
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def count(*operands: Any) -> Tensor:
        found.append(operands)
        return conv3x3(*operands)

    monkeypatch.setattr(winograd, "conv3x3", count)
    return found


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, (3, 3), padding=(1, 1), bias=False)]
)
def test_the_mode_replaces_what_fits(conv: nn.Conv2d, calls: list[Any]):
    x, *_ = tensors(2, conv.in_channels, 16, 8, 8)
    with Kernels():
        found = conv(x)
    assert len(calls) == 1
    torch.testing.assert_close(found, conv(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("conv", "change"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), lambda x: x.contiguous()),
        (nn.Conv2d(16, 16, 3, padding=1).double(), lambda x: x.double()),
        (nn.Conv2d(16, 16, 3, padding=1), lambda x: x[0]),
        (nn.Conv2d(16, 6, 3, padding=1), lambda x: x),
        (nn.Conv2d(16, 16, 3), lambda x: x),
        (nn.Conv2d(16, 16, 3, padding="same"), lambda x: x),
        (nn.Conv2d(16, 16, 3, padding=1, stride=2), lambda x: x),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), lambda x: x),
        (nn.Conv2d(16, 16, 3, padding=2, dilation=2), lambda x: x),
        (nn.Conv2d(16, 16, 1), lambda x: x),
    ],
)
def test_the_mode_leaves_all_else_alone(conv: nn.Conv2d, change: Callable[[Tensor], Tensor], calls: list[Any]):
    x = change(tensors(2, 16, 16, 8, 8)[0])
    with Kernels():
        found = conv(x)
    assert not calls
    assert torch.equal(found, conv(x))


def test_the_mode_takes_named_operands(calls: list[Any]):
    x, weight, bias = tensors(2, 16, 16, 8, 8)
    with Kernels():
        found = F.conv2d(input=x, weight=weight, bias=bias, padding=1)
    assert len(calls) == 1
    torch.testing.assert_close(found, direct(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [torch.zeros(8), torch.zeros(16).double()])
def test_the_mode_leaves_mistakes_to_torch(bias: Tensor, calls: list[Any]):
    x, weight, _ = tensors(2, 16, 16, 8, 8)
    with Kernels(), pytest.raises(RuntimeError, match=r"bias|type"):
        F.conv2d(x, weight, bias, padding=1)
    assert not calls


def test_channels_that_it_cannot_take_are_refused():
    x, weight, _ = tensors(2, 16, 16, 8, 8)
    with pytest.raises(ValueError, match=f"multiples of {lanes()}, got 16 in and 6 out"):
        conv3x3(x, weight[:6], None)
    with pytest.raises(ValueError, match=f"multiples of {lanes()}, got 6 in and 16 out"):
        winograd.conv3x3_weight(x[:, :6], x)
    with pytest.raises(ValueError, match="32 channels, the weight is for 16"):
        conv3x3(torch.cat([x, x], 1), weight, None)
    with Kernels(), pytest.raises(RuntimeError, match="to have 16 channels"):  # torch's own words
        F.conv2d(torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last), weight, padding=1)


X, WEIGHT, BIAS = tensors(2, 16, 32, 8, 8)
GRAD = direct(X, WEIGHT, BIAS)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "told"),
    [
        (X.double(), WEIGHT, BIAS, r"x: expected a dense float32 tensor on cpu, got torch.float64 on cpu"),
        (X, WEIGHT.half(), BIAS, r"weight: expected a dense float32 tensor on cpu, got torch.float16"),
        (X, WEIGHT, BIAS.long(), r"bias: expected a dense float32 tensor on cpu, got torch.int64"),
        (X, WEIGHT, BIAS.to_sparse(), r"bias: .*torch.sparse_coo"),
        (X[0], WEIGHT, BIAS, r"x: expected \(B, C, H, W\) .* got \(16, 8, 8\)"),
        (X[:, :, :0], WEIGHT, BIAS, r"x: expected .* H and W above 0, got \(2, 16, 0, 8\)"),
        (X[:, :0], WEIGHT[:, :0], BIAS, r"x: expected .* above 0, got \(2, 0, 8, 8\)"),
        (X, WEIGHT[:, :, :2], BIAS, r"weight: expected shape \(32, 16, 3, 3\) .* got \(32, 16, 2, 3\)"),
        (X, WEIGHT[0], BIAS, r"weight: expected shape \(16, 16, 3, 3\)"),
        (X, torch.zeros(()), None, r"weight: expected shape \(0, 16, 3, 3\) .* got \(\)"),
        (X, WEIGHT[:0], None, r"multiples of \d+, got 16 in and 0 out"),
        (X, WEIGHT, BIAS[:31], r"bias: expected shape \(32,\) .* got \(31,\)"),
        (X, WEIGHT, BIAS[None], r"bias: expected shape \(32,\) .* got \(1, 32\)"),
    ],
)
def test_operands_that_the_kernels_would_misread_are_refused(x: Tensor, weight: Tensor, bias: Tensor | None, told: str):
    with pytest.raises(ValueError, match=told):
        conv3x3(x, weight, bias)


@pytest.mark.parametrize(
    ("x", "grad", "told"),
    [
        (X.double(), GRAD, r"x: expected a dense float32 tensor on cpu, got torch.float64"),
        (X, GRAD.bfloat16(), r"grad: expected a dense float32 tensor on cpu, got torch.bfloat16"),
        (X, GRAD[:1], r"grad: expected shape \(2, 32, 8, 8\) .* got \(1, 32, 8, 8\)"),
        (X[:1], GRAD, r"grad: expected shape \(1, 32, 8, 8\) .* got \(2, 32, 8, 8\)"),
        (X, GRAD[:, :, 1:], r"grad: expected shape \(2, 32, 8, 8\) .* got \(2, 32, 7, 8\)"),
        (X, GRAD[..., :4], r"grad: expected shape \(2, 32, 8, 8\) .* got \(2, 32, 8, 4\)"),
        (X, GRAD[0], r"grad: expected \(B, C, H, W\)"),
        (X.flatten(2), GRAD, r"x: expected \(B, C, H, W\)"),
    ],
)
def test_gradients_of_other_images_are_refused(x: Tensor, grad: Tensor, told: str):
    with pytest.raises(ValueError, match=told):
        winograd.conv3x3_weight(x, grad)


def test_operands_may_be_views():
    """Of other strides, an offset, or one number for all: what is read is what torch reads."""
    x = torch.randn(4, 8, 8, 48, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)[1:3, 16:32]
    weight, bias = WEIGHT.flip(2)[::2].transpose(0, 1), torch.ones(1).expand(16)
    grad = torch.ones(1).expand(2, 16, 8, 8)
    for found, expected in (
        (conv3x3(x, weight, bias), direct(x, weight, bias)),
        (winograd.conv3x3_weight(x, grad), torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1)),
    ):
        # By the norm: single elements are off by up to 3e-4, rounded otherwise; a wrong stride is off by all of it.
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_the_mode_leaves_half_precision_to_autocast(calls: list[Any]):
    x, weight, bias = tensors(2, 16, 16, 8, 8)
    with Kernels(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv2d(x, weight, bias, padding=1).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize("conv", [F.conv2d, conv3x3])
def test_no_image_has_no_gradient(conv: Callable[..., Tensor]):
    x, weight = torch.zeros(0, 16, 8, 8), torch.ones(16, 16, 3, 3, requires_grad=True)
    with Kernels():
        y = conv(x, weight, None) if conv is conv3x3 else conv(x, weight, padding=1)
        y.sum().backward()
    assert not weight.grad.any()


def test_threads_share_what_memory_there_is(monkeypatch: pytest.MonkeyPatch):
    x, *_ = tensors(9, 16, 16, 8, 8)
    whole = winograd.conv3x3_weight(x, x)
    monkeypatch.setattr(winograd, "_SCRATCH", 1)
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(winograd.conv3x3_weight(x, x), whole, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(1)


# Compiling


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDISTILL_CACHE", str(tmp_path))
    load_library.cache_clear()
    yield tmp_path
    load_library.cache_clear()


def source(folder: Path, text: str) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


def test_a_source_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    path = source(fresh, "int answer(void) { return 42; }")
    assert load_library(path).answer() == 42
    load_library.cache_clear()
    monkeypatch.setattr(native, "_compile", None)  # it is there
    assert load_library(path).answer() == 42
    assert [file.suffix for file in (fresh / "native").iterdir()] == [".so"]


def test_another_source_is_another_library(fresh: Path):
    assert load_library(source(fresh, "int answer(void) { return 1; }")).answer() == 1
    load_library.cache_clear()
    assert load_library(source(fresh, "int answer(void) { return 2; }")).answer() == 2


def test_a_source_with_a_mistake_leaves_nothing_behind(fresh: Path):
    with pytest.raises(RunError, match="error"):
        load_library(source(fresh, "int answer(void) { return forty; }"))
    assert not list((fresh / "native").iterdir())


def test_without_a_compiler_it_says_so(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(RunError, match="no C compiler"):
        load_library(source(fresh, ""))


def test_cc_names_the_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert find_compiler() is None
    monkeypatch.setenv("CC", "cc -O0")
    assert load_library(source(fresh, "int answer(void) { return 3; }")).answer() == 3
    monkeypatch.delenv("CC")
    assert Path(find_compiler()).name in {"cc", "gcc", "clang"}
