"""How sure a number is: intervals over seeds and over samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from undistill.errors import RecipeError

__all__ = ["Interval", "format_interval", "mean_interval", "wilson_interval"]


class Interval(NamedTuple):
    """A mean with its confidence interval, mean ± half_width.

    Attributes:
        mean: Mean of the values, in their unit.
        half_width: Half the width of the interval in the same unit; None for a single value, which tells no spread.
        n: Number of values.
    """

    mean: float
    half_width: float | None
    n: int


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values, such as one for each seed, with Student's t interval.

    Args:
        values: One or more finite numbers.
        confidence: Between 0 and 1, both excluded.

    Raises:
        RecipeError: There is no value, one is not finite, or ``confidence`` is out of range.
    """
    values = [float(value) for value in values]
    _check_confidence(confidence)
    if not values or not all(map(math.isfinite, values)):
        raise RecipeError(f"values: expected one or more finite numbers, got {values}")
    n = len(values)
    if n == 1:
        return Interval(values[0], None, 1)
    from scipy.special import stdtrit

    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(n), n)


def format_interval(interval: Interval, digits: int = 2) -> str:
    """Write an interval with its number of values.

    Args:
        interval: In the unit to print: multiply fractions by 100 before for percent.
        digits: Decimals, at least 0.

    Example:
        >>> format_interval(Interval(96.4, 0.31, 3))
        '96.40 ± 0.31 (n=3)'
        >>> format_interval(Interval(96.4, None, 1))
        '96.40 (n=1)'
    """
    spread = "" if interval.half_width is None else f" ± {interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f}{spread} (n={interval.n})"


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the lower and upper end of Wilson's score interval of a rate, such as an accuracy over samples.

    Unlike the mean ± z·σ of a textbook it stays within 0..1 and has a width at 0 and 1 (Wilson, 1927; method 3 of
    Newcombe, 1998, without continuity correction).

    Args:
        successes: 0 to ``total``.
        total: At least 1.
        confidence: Between 0 and 1, both excluded.

    Raises:
        RecipeError: An argument is out of range.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= total or total < 1:
        raise RecipeError(f"successes: expected 0 <= successes <= total and total >= 1, got {successes} of {total}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, spread = successes / total, z * z / total
    center = (rate + spread / 2) / (1 + spread)
    half_width = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    # rounding must not leave the rate itself outside, nor an end outside 0..1
    return max(0.0, min(rate, center - half_width)), min(1.0, max(rate, center + half_width))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise RecipeError(f"confidence: expected a number between 0 and 1, both excluded, got {confidence}")
