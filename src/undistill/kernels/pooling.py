"""Maxima of 2x2 pixels on CPU: as torch's, to the bit, without 8 bytes a number for where each came from.

Torch's own keeps an int64 index a maximum, and takes gradients back by clearing all and writing some. Here the place
among the four takes a byte, and every gradient is written once. ``pooling.c`` does the work.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undistill.kernels.native import check_kind, load_library

__all__ = ["fits", "library", "max_pool2x2", "max_pool2x2_backward"]


@torch.library.custom_op("undistill::max_pool2x2", mutates_args=())
def max_pool2x2(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each 2x2 pixels, and which it is.

    Args:
        x: Images (B, C, H, W), float32 on CPU; H and W 2 or more. A last odd row or column counts for nothing.

    Returns:
        The maxima (B, C, H // 2, W // 2), ``channels_last``, with derivatives of any order; and their places likewise,
        uint8: 0 and 1 above, 2 and 3 below. Of equal ones it is the first.

    Raises:
        ValueError: The images are not such.
    """
    check_kind(x=x)
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        raise ValueError(f"x: expected (B, C, H, W) with H and W of 2 or more, got {tuple(x.shape)}")
    x = x.contiguous(memory_format=torch.channels_last)
    y, which = _halved(x)
    n, c, h, w = x.shape
    library().max_pool(x.data_ptr(), y.data_ptr(), which.data_ptr(), n, h, w, c, torch.get_num_threads())
    return y, which


@torch.library.custom_op("undistill::max_pool2x2_backward", mutates_args=())
def max_pool2x2_backward(grad: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of the images of ``max_pool2x2``.

    Args:
        grad: Gradient of its maxima (B, C, H // 2, W // 2).
        which: Their places.
        height: H.
        width: W.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: An operand is of another kind, or the shapes do not fit each other.
    """
    check_kind(grad=grad)
    if which.dtype != torch.uint8 or which.shape != grad.shape or grad.shape[2:] != (height // 2, width // 2):
        found = f"{which.dtype} {tuple(which.shape)} for a gradient {tuple(grad.shape)} of {height}x{width} pixels"
        raise ValueError(f"which: expected the places that max_pool2x2 returned, got {found}")
    grad, which = (t.contiguous(memory_format=torch.channels_last) for t in (grad, which))
    dx = _unpooled(grad, height, width)
    sizes = grad.shape[0], height, width, grad.shape[1]
    library().max_pool_backward(grad.data_ptr(), which.data_ptr(), dx.data_ptr(), *sizes, torch.get_num_threads())
    return dx


@max_pool2x2.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _halved(x)


@max_pool2x2_backward.register_fake
def _(grad: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    return _unpooled(grad, height, width)


def _save(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.size = inputs[0].shape[2:]


def _save_places(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
    dx: Tensor = max_pool2x2_backward(grad, *ctx.saved_tensors, *ctx.size)
    return dx


def _backward_backward(ctx: Any, of_images: Tensor) -> tuple[Tensor, None, None, None]:
    (which,) = ctx.saved_tensors
    fours = of_images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    return fours.gather(4, which.long().unsqueeze(4)).squeeze(4), None, None, None


max_pool2x2.register_autograd(_backward, setup_context=_save)
max_pool2x2_backward.register_autograd(_backward_backward, setup_context=_save_places)


def fits(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    """Return whether these arguments of ``F.max_pool2d`` are what ``max_pool2x2`` computes, laid out as it likes."""
    two = (2, (2, 2), [2, 2])
    return (
        kernel_size in two
        and (stride in two or not stride)
        and padding in (0, (0, 0))
        and dilation in (1, (1, 1))
        and not ceil_mode
        and not return_indices
        and input.dtype == torch.float32
        and input.device.type == "cpu"
        and input.ndim == 4
        and input.numel() > 0
        and min(input.shape[2:]) >= 2
        and input.is_contiguous(memory_format=torch.channels_last)
    )


def _halved(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    y = x.new_empty((n, h // 2, w // 2, c)).permute(0, 3, 1, 2)
    return y, torch.empty_like(y, dtype=torch.uint8)


def _unpooled(grad: Tensor, height: int, width: int) -> Tensor:
    n, c, _, _ = grad.shape
    return grad.new_empty((n, height, width, c)).permute(0, 3, 1, 2)


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        RunError: There is no working C compiler.
    """
    library = load_library(Path(__file__).with_name("pooling.c"))
    pointer, number, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    for function in (library.max_pool, library.max_pool_backward):
        function.argtypes = [*[pointer] * 3, *[number] * 4, threads]
        function.restype = None
    return library
