"""3x3 convolutions on CPU by Winograd's algorithm: a quarter of the multiplications, equal results up to rounding.

Direct convolutions run near the peak of the processor here, so that only fewer operations make them faster. Every 4x4
tile of an output channel takes 36 multiplications per input channel, where the direct form takes 144. Lavin and Gray,
*Fast Algorithms for Convolutional Neural Networks* (CVPR 2016), https://arxiv.org/abs/1509.09308, section 4; the
gradients take the same transforms backwards. ``winograd.c`` does the work.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undistill.kernels.native import check_kind, load_library

__all__ = ["conv3x3", "conv3x3_weight", "fits", "lanes", "library"]

_GAPS = 32  # numbers that the kernels leave free at each point
_POINTS = 36
_SCRATCH = 2**27  # numbers, half a GiB: wide layers are for fewer threads
_TILES = 48  # at a time: as many as stay in the cache


@torch.library.custom_op("undistill::conv3x3", mutates_args=())
def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with stride 1 and padding 1.

    Args:
        x: Images (B, C, H, W), float32 on CPU; C a multiple of ``lanes()``.
        weight: (K, C, 3, 3), float32; K a multiple of ``lanes()``.
        bias: (K,), or None.

    Returns:
        (B, K, H, W), ``channels_last``. It differs from a direct convolution by a few 1e-6 of its norm. Its gradients
        are such convolutions too, so that it has derivatives of any order.

    Raises:
        ValueError: An operand is not of such a kind, or the shapes do not fit each other.
    """
    check_kind(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    n, c, h, w = _images("x", x)
    k, threads = weight.shape[0] if weight.ndim else 0, torch.get_num_threads()
    if weight.ndim == 4 and weight.shape[1] != c:
        raise ValueError(f"the images have {c} channels, the weight is for {weight.shape[1]}")
    _check_shape("weight", weight, (k, c, 3, 3))
    _check_channels(c, k)
    if bias is not None:
        _check_shape("bias", bias, (k,))
    x = x.contiguous(memory_format=torch.channels_last)
    panels = weight.reshape(k // lanes(), lanes(), c, 3, 3).permute(3, 4, 0, 2, 1).contiguous()
    y, transformed = _like(x, k), x.new_empty(_POINTS * c * k)
    library().transform_weight(panels.data_ptr(), transformed.data_ptr(), c * k, threads)
    scratch = x.new_empty(threads * _POINTS * (_TILES * (c + k) + _GAPS))
    shift = None if bias is None else bias.contiguous()
    library().convolve(
        x.data_ptr(),
        transformed.data_ptr(),
        None if shift is None else shift.data_ptr(),
        y.data_ptr(),
        scratch.data_ptr(),
        *(n, h, w, c, k, _TILES, threads),
    )
    return y


@torch.library.custom_op("undistill::conv3x3_weight", mutates_args=())
def conv3x3_weight(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the weight of ``conv3x3``.

    Args:
        x: Its images (B, C, H, W).
        grad: Gradient of its result (B, K, H, W).

    Returns:
        (K, C, 3, 3).

    Raises:
        ValueError: An operand is not of the kind that ``conv3x3`` takes, or the shapes do not fit each other.
    """
    check_kind(x=x, grad=grad)
    (n, c, h, w), (_, k, _, _), threads = _images("x", x), _images("grad", grad), torch.get_num_threads()
    _check_shape("grad", grad, (n, k, h, w))
    _check_channels(c, k)
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    if n == 0:
        return x.new_zeros((k, 3, 3, c)).permute(0, 3, 1, 2)
    panels = x.new_empty((3, 3, k // lanes(), c, lanes()))
    a_thread = _POINTS * (_TILES * (c + k) + c * k + _GAPS)
    threads = max(1, min(threads, _SCRATCH // a_thread))
    scratch = x.new_empty(threads * a_thread)
    library().weight_gradient(
        x.data_ptr(), grad.data_ptr(), panels.data_ptr(), scratch.data_ptr(), *(n, h, w, c, k, _TILES, threads)
    )
    return panels.permute(2, 4, 3, 0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _like(x, weight.shape[0])


@conv3x3_weight.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty((grad.shape[1], 3, 3, x.shape[1])).permute(0, 3, 1, 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _conv3x3_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        conv3x3(grad, _turned(weight), None) if of_x else None,
        conv3x3_weight(x, grad) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


def _conv3x3_weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, of_output = ctx.saved_tensors
    of_x, of_grad = ctx.needs_input_grad
    return conv3x3(of_output, _turned(grad), None) if of_x else None, conv3x3(x, grad, None) if of_grad else None


conv3x3.register_autograd(_conv3x3_backward, setup_context=_save)
conv3x3_weight.register_autograd(_conv3x3_weight_backward, setup_context=_save)


def _images(name: str, images: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of images: any number of them, of one pixel or more."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name}: expected (B, C, H, W) with C, H and W above 0, got {tuple(images.shape)}")
    n, c, h, w = images.shape
    return n, c, h, w


def _check_shape(name: str, operand: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(operand.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected} beside the other operands, got {tuple(operand.shape)}")


def _check_channels(c: int, k: int) -> None:
    if c % lanes() or k % lanes() or not k:
        raise ValueError(f"channels must be multiples of {lanes()}, got {c} in and {k} out")


def _turned(weight: Tensor) -> Tensor:
    """Return the weight of the convolution that carries gradients back."""
    return weight.flip(2, 3).transpose(0, 1)


def _like(x: Tensor, channels: int) -> Tensor:
    n, _, h, w = x.shape
    return x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)


def fits(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Return whether these arguments of ``F.conv2d`` are what ``conv3x3`` computes, laid out as it likes."""
    return (
        tuple(weight.shape[2:]) == (3, 3)
        and _pair(stride) == _pair(padding) == _pair(dilation) == (1, 1)
        and groups == 1
        and input.ndim == 4
        and input.numel() > 0
        and weight.shape[0] % lanes() == weight.shape[1] % lanes() == 0
        and weight.shape[1] == input.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (input, weight, bias) if t is not None)
        and not torch.is_autocast_enabled("cpu")
        and input.is_contiguous(memory_format=torch.channels_last)
    )


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # compilers of nets see no C
def lanes() -> int:
    """Return how many channels a vector register holds: 4, 8 (AVX) or 16 (AVX-512)."""
    return int(library().lanes())


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        RunError: There is no working C compiler.
    """
    library = load_library(Path(__file__).with_name("winograd.c"))
    pointer, number, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.transform_weight.argtypes = [*[pointer] * 2, number, threads]
    library.convolve.argtypes = [*[pointer] * 5, *[number] * 6, threads]
    library.weight_gradient.argtypes = [*[pointer] * 4, *[number] * 6, threads]
    for function in (library.transform_weight, library.convolve, library.weight_gradient):
        function.restype = None
    return library
