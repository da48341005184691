"""Checks of shapes, dtypes and ranges that never wait for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undistill.errors import RecipeError, ShapeError


def check_logits(**named: Tensor) -> None:
    """Refuse logits that are not floating point, not (B, K), empty, or not all of one shape."""
    first, *_ = named
    for name, logits in named.items():
        if logits.dim() != 2 or logits.numel() == 0 or not logits.is_floating_point():
            raise ShapeError(f"{name}: expected floating-point logits of shape (B, K), not empty, got {_what(logits)}")
        if logits.shape != named[first].shape:
            raise ShapeError(f"{name}: expected the shape of {first}, {tuple(named[first].shape)}, got {_what(logits)}")


def check_labels(labels: Tensor, n: int) -> None:
    """Refuse labels that are not integers of shape (n,).

    Their range is not looked at: that would wait for the device in every training step.
    """
    if labels.dim() != 1 or labels.shape[0] != n or not is_integer(labels):
        raise ShapeError(f"labels: expected whole numbers of shape ({n},), one for each sample, got {_what(labels)}")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite."""
    if not 0 < temperature < math.inf:
        raise RecipeError(f"temperature: expected a finite number > 0, got {temperature}")


def check_weight(weight: float) -> None:
    """Refuse a weight that is negative or not finite."""
    if not 0 <= weight < math.inf:
        raise RecipeError(f"weight: expected a finite number >= 0, got {weight}")


def check_share(name: str, value: float) -> None:
    """Refuse a share outside 0..1."""
    if not 0 <= value <= 1:
        raise RecipeError(f"{name}: expected a number in 0..1, got {value}")


def check_count(name: str, value: int, most: int | None = None) -> None:
    """Refuse a count below 1, or above ``most``."""
    if value < 1 or (most is not None and value > most):
        raise RecipeError(f"{name}: expected a whole number in 1..{'' if most is None else most}, got {value}")


def is_integer(tensor: Tensor) -> bool:
    """Tell whether a tensor holds whole numbers; truth values are not numbers here."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
