"""How many floating-point operations a net and a training step take, and how many a machine does in a second.

One multiplication with its addition counts as 2. Convolutions and matrix products are counted; all else (activations,
normalization, losses, the optimizer's update) is left out, as is usual: it takes time, but few operations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.utils.flop_counter import FlopCounterMode

from undistill.data.loader import Batch
from undistill.errors import RecipeError
from undistill.objective import Nets, Objective

__all__ = ["StepFlops", "clock", "count_flops", "forward_flops", "matmul_rate", "shapes_only"]

_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # small ones fit caches, large ones fill the device


@dataclass(frozen=True)
class StepFlops:
    """Operations of one training step on one batch.

    Attributes:
        forward: Of all forward passes, those of frozen nets included, and of the loss.
        backward: Of the backward pass.
        images: Size of the batch.
    """

    forward: int
    backward: int
    images: int

    @property
    def total(self) -> int:
        """Of the whole step."""
        return self.forward + self.backward

    @property
    def per_image(self) -> float:
        """Of the whole step, for each image of the batch."""
        return self.total / self.images


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """Give tensors shapes but no values inside the block: nets are built and run there without computing anything."""
    active = active_fake_mode()
    if active is not None:
        yield active
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def count_flops(objective: Objective, nets: Nets, batch: Batch) -> StepFlops:
    """Count the operations of one whole training step: forward and backward passes, frozen nets included.

    The count is exact for this batch, and nothing is computed: copies of the nets, without values, take the step. The
    nets, their statistics and gradients, the victim's meter and all random states stay as they are. It costs some
    tenths of a second, on any device.

    Args:
        objective: What the step minimises.
        nets: Of the step, on any device.
        batch: Images (B, C, H, W) and labels (B,), of which only shapes and types matter.

    Raises:
        RecipeError: The step depends on the values of tensors, which a copy without values cannot follow.
    """
    with torch.inference_mode(False), torch.enable_grad(), shapes_only() as mode:
        with FakeCopyMode(mode):
            nets, batch = deepcopy((nets, batch))
        nets.model.train()
        counter = _counter()
        try:
            with counter:
                loss = objective.step(batch, nets).loss
                forward = counter.get_total_flops()
                loss.backward()  # type: ignore[no-untyped-call]
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise RecipeError(
                f"the operations of method {objective.name!r} cannot be counted: its step reads the values of tensors "
                f"({error}); keep them on the device, without .item() or a mask of varying size"
            ) from error
        return StepFlops(forward, counter.get_total_flops() - forward, len(batch.y))


def forward_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the operations of one forward pass in eval mode, exactly and without computing anything.

    Args:
        model: Stays as it is.
        shape: Of the images, (B, C, H, W).
    """
    with shapes_only() as mode:
        with FakeCopyMode(mode):
            model = deepcopy(model).eval()
        first = next(model.parameters(), None)
        images = torch.empty(shape, device=None if first is None else first.device)
        with _counter() as counter, torch.no_grad():
            model(images)
        return int(counter.get_total_flops())


def matmul_rate(device: torch.device, seconds: float = 0.3) -> float:
    """Measure how many operations a second float32 matrix products reach here: the best of a few sizes.

    Torch's settings count: its number of threads on CPU and, on CUDA, whether float32 products may use TF32.

    Args:
        device: Where to compute.
        seconds: Time to spend, shared by all sizes; every size is tried at least once.

    Returns:
        FLOP/s.
    """
    sizes = _SIZES[device.type]
    return max(_matmul_rate(device, size, seconds / len(sizes)) for size in sizes)


def _matmul_rate(device: torch.device, size: int, seconds: float) -> float:
    a, b = (torch.ones(size, size, device=device) for _ in range(2))
    out = a @ b  # not measured: memory is touched, the library picks its kernel
    fastest, begin = float("inf"), clock(device)
    while True:
        start = clock(device)
        torch.mm(a, b, out=out)
        end = clock(device)
        fastest = min(fastest, end - start)
        if end - begin >= seconds:
            return 2 * size**3 / fastest


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    grad_shape: torch.Size, x_shape: torch.Size, weight_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """Count both gradients of a convolution, each as many operations as the convolution itself.

    Torch's own formula takes the gradient of the weights of a grouped convolution for that of a full one: with 32
    groups it counts 32 times too much.
    """
    transposed, (of_input, of_weight, _) = args[4], args[7]
    positions = prod((x_shape if transposed else grad_shape)[2:])
    return 2 * x_shape[0] * positions * prod(weight_shape) * (bool(of_input) + bool(of_weight))
