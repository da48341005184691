"""Our kernels in place of torch's functions, wherever they fit: no net has to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from undistill.kernels import gelu, pooling, winograd

__all__ = ["Kernels"]


class Kernels(TorchFunctionMode):
    """While it is entered, ``torch`` computes by our kernels what fits them, and all else as before.

    What fits is float32 on CPU, with images laid out as ``channels_last``: convolutions 3x3 of stride 1 and padding 1,
    not grouped or dilated, with channels a multiple of ``winograd.lanes()``; maxima of 2x2 pixels with stride 2.
    And GELU of many numbers, of any layout, unless the net is being compiled.

    Raises:
        RunError: There is no working C compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        for kernel in (winograd, pooling, gelu):
            kernel.library()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace a call of torch where a kernel fits."""
        kwargs = kwargs or {}
        if func is F.conv2d and winograd.fits(*args, **kwargs):
            return winograd.conv3x3(*_operands(*args, **kwargs))
        if func is F.max_pool2d and pooling.fits(*args, **kwargs):
            return pooling.max_pool2x2(_input(*args, **kwargs))[0]
        if func is F.gelu and gelu.fits(*args, **kwargs):
            return gelu.gelu(_input(*args, **kwargs))
        return func(*args, **kwargs)


def _operands(input: Any, weight: Any, bias: Any = None, *_: Any, **__: Any) -> Any:
    return input, weight, bias


def _input(input: Any, *_: Any, **__: Any) -> Any:
    return input
