"""GELU on CPU by one exponential and a polynomial, where torch's own spends most of its time on erf: see ``gelu.c``."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undistill.kernels.native import check_kind, load_library

__all__ = ["fits", "gelu", "gelu_backward", "library"]

_SMALLEST = 2**15  # numbers; below, a call costs more than is gained


@torch.library.custom_op("undistill::gelu", mutates_args=())
def gelu(x: Tensor) -> Tensor:
    """Return x Φ(x), where Φ is the distribution function of the standard normal distribution.

    Args:
        x: Any shape, float32 on CPU.

    Returns:
        The same shape, with derivatives of any order. It is off by less than 2e-7, of the result's size above 1; and
        by less than 5e-6 of the result down to -12, where torch's own is zero from -6 on. Below, it is some -1e-32.

    Raises:
        ValueError: The numbers are not such.
    """
    check_kind(x=x)
    x = _dense(x)
    y = torch.empty_like(x)
    library().gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
    return y


@torch.library.custom_op("undistill::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the numbers that went into ``gelu``.

    Args:
        grad: Gradient of its result.
        x: These numbers.

    Returns:
        The same shape.

    Raises:
        ValueError: An operand is of another kind, or the shapes differ.
    """
    check_kind(grad=grad, x=x)
    if grad.shape != x.shape:
        raise ValueError(f"grad: expected the shape of x, {tuple(x.shape)}, got {tuple(grad.shape)}")
    x = _dense(x)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    dx = torch.empty_like(x)
    library().gelu_backward(grad.data_ptr(), x.data_ptr(), dx.data_ptr(), x.numel(), torch.get_num_threads())
    return dx


@gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(_dense(x))


@gelu_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(_dense(x))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    dx: Tensor = gelu_backward(grad, *ctx.saved_tensors)
    return dx


def _backward_backward(ctx: Any, of_dx: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad, x = ctx.saved_tensors
    of_grad, of_x = ctx.needs_input_grad
    density = (x.square() / -2).exp() / math.sqrt(2 * math.pi)
    return gelu_backward(of_dx, x) if of_grad else None, of_dx * grad * (2 - x.square()) * density if of_x else None


gelu.register_autograd(_backward, setup_context=_save)
gelu_backward.register_autograd(_backward_backward, setup_context=_save)


def fits(input: Any, approximate: str = "none") -> bool:
    """Return whether these arguments of ``F.gelu`` are what ``gelu`` computes, and enough of it."""
    return (
        approximate == "none"
        and input.dtype == torch.float32
        and input.device.type == "cpu"
        and input.numel() >= _SMALLEST
        and _is_dense(input)
        and not torch.compiler.is_compiling()  # which makes one loop of this and its neighbours
    )


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _dense(x: Tensor) -> Tensor:
    return x if _is_dense(x) else x.contiguous()


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        RunError: There is no working C compiler.
    """
    library = load_library(Path(__file__).with_name("gelu.c"))
    pointer, number, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.gelu.argtypes = [*[pointer] * 2, number, threads]
    library.gelu_backward.argtypes = [*[pointer] * 3, number, threads]
    for function in (library.gelu, library.gelu_backward):
        function.restype = None
    return library
