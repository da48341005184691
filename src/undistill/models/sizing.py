"""Checks and arithmetic that every family shares."""

from __future__ import annotations

import math

from undistill.errors import RecipeError

__all__ = ["check_arguments", "scaled"]


def check_arguments(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> None:
    """Check what every factory is given.

    Raises:
        RecipeError: A number is of the wrong kind or out of range; every mistake in one error.
    """
    least = {"num_classes": (num_classes, 2), "in_channels": (in_channels, 1), "image_size": (image_size, 1)}
    problems = [
        f"{name} must be a whole number from {low} up, got {value!r}"
        for name, (value, low) in least.items()
        if not _is_int(value) or value < low
    ]
    if isinstance(width, bool) or not isinstance(width, int | float) or not (math.isfinite(width) and width > 0):
        problems.append(f"width must be a number above 0 (1.0 is the paper's net), got {width!r}")
    if problems:
        raise RecipeError(problems)


def scaled(channels: int, width: float, *, multiple: int = 1) -> int:
    """Return ``channels * width`` rounded to the nearest ``multiple``, at least one; exact at width 1.

    Args:
        channels: Count at width 1, a multiple of ``multiple``.
        width: Factor above 0.
        multiple: What the result must be divisible by, for grouped convolutions and channel shuffles.
    """
    return max(1, math.floor(channels * width / multiple + 0.5)) * multiple


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
