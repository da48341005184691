"""How sure a number is: intervals of means, rates and differences, over seeds and over samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from undistill.errors import RecipeError

__all__ = [
    "Best",
    "Difference",
    "Interval",
    "best_of",
    "best_proportion_of",
    "clip",
    "format_interval",
    "holm",
    "may_be_chance",
    "mean_interval",
    "paired_difference",
    "paired_proportions",
    "prediction_half_width",
    "wilson_interval",
]

_Values = TypeVar("_Values", bound=Sized)


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


class Difference(NamedTuple):
    """A mean of paired differences with its confidence interval.

    Attributes:
        mean: In the unit of the values: points for accuracies in percent.
        low: Lower end of the interval; None where there is one value, which tells no spread.
        high: Upper end.
        p: Two-sided p-value of "there is no difference"; None where ``low`` is.
        n: Number of pairs.
        over: What the pairs are of: ``seeds`` or ``images``.
        confidence: Of the interval.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    over: str
    confidence: float = 0.95

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, where there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0: then, and only then, a sentence may say that there is a difference."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


class Best(NamedTuple):
    """What the best of several candidates has beyond the best of several references.

    Attributes:
        candidate: Its name.
        reference: Name of the best reference.
        difference: Of these two; interval and p-value are corrected for the choice among all.
    """

    candidate: str
    reference: str
    difference: Difference

    @property
    def verdict(self) -> str:
        """``leak`` or ``loss`` where the interval excludes 0, else ``not decided``."""
        if not self.difference.decided:
            return "not decided"
        return "leak" if self.difference.mean > 0 else "loss"


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


def prediction_half_width(interval: Interval) -> float | None:
    """Return half the width of the interval in which one further value is expected: half_width · √(n+1).

    It is what a single run of others, such as a number that a paper prints, is compared with. The interval of the mean
    is too narrow for that, and the more so the more seeds there are: 95 % intervals miss 16 % of such runs at 3 seeds
    and 65 % at 20.

    Args:
        interval: Of ``mean_interval``; the further value has its confidence.

    Returns:
        In the unit of the values; None for a single value.
    """
    return None if interval.half_width is None else interval.half_width * math.sqrt(interval.n + 1)


def clip(interval: Interval, least: float = 0.0, most: float = 100.0) -> tuple[float, float] | None:
    """Return the ends of an interval within the range that its quantity has; None for a single value.

    Args:
        interval: Such as that of an accuracy in percent, which Student's t lets reach above 100.
        least: Smallest possible value.
        most: Largest possible value.
    """
    if interval.half_width is None:
        return None
    return max(least, interval.mean - interval.half_width), min(most, interval.mean + interval.half_width)


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


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], *, confidence: float = 0.95, resolution: float = 0.0
) -> Difference | None:
    """Return the mean of a - b over the seeds that both have, with Student's t interval of the differences.

    Accuracies over N images are multiples of 100/N points, so that two or three differences may be equal by chance; the
    interval would then have no width and decide anything. ``resolution`` is a floor of the spread: the differences vary
    at least by what rounding alone would make of them, resolution²/6 (each of two values has a variance of
    resolution²/12). Of pairs without any difference at most 5 % are then called different, whatever their spread is
    (simulated at 2 to 10 seeds); byte-identical runs never are.

    Args:
        a: Values by seed.
        b: Values by seed.
        confidence: Between 0 and 1, both excluded.
        resolution: Step in which the values are counted, in their unit: 100/N for accuracies in percent.

    Returns:
        None where no seed is common to both.

    Raises:
        RecipeError: A value is not finite, or an argument is out of range.
    """
    _check_confidence(confidence)
    if not 0 <= resolution < math.inf:
        raise RecipeError(f"resolution: expected a finite number >= 0, got {resolution}")
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not all(map(math.isfinite, differences)):
        raise RecipeError(f"values: expected finite numbers, got differences {differences}")
    n = len(differences)
    if n < 2:
        return Difference(differences[0], None, None, None, 1, "seeds", confidence) if differences else None
    from scipy.special import stdtr, stdtrit

    mean = fmean(differences)
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (n - 1)
    error = math.sqrt(max(variance, resolution**2 / 6) / n)
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    t = abs(mean) / error if error else math.inf if mean else 0.0
    return Difference(mean, mean - half_width, mean + half_width, 2 * float(stdtr(n - 1, -t)), n, "seeds", confidence)


def paired_proportions(right_a: ArrayLike, right_b: ArrayLike, *, confidence: float = 0.95) -> Difference:
    """Return by how many points more often a is right than b on the same images, over these images.

    It tells two trained nets apart, not two ways of training: for that there must be seeds. The p-value is McNemar's
    exact one, a binomial test on the images on which one is right and the other wrong. The interval is Newcombe's for
    paired rates (Statistics in Medicine 17, 1998, 2635-2650, method 10), reaching to 0 where the exact test, which is
    stricter, sees no difference: so what is decided has both p <= 1 - confidence and an interval without 0.

    Args:
        right_a: Whether a is right, shape (N,), truth values.
        right_b: Whether b is right, shape (N,), in the same order.
        confidence: Between 0 and 1, both excluded.

    Raises:
        RecipeError: There is no image, the numbers of images differ, or ``confidence`` is out of range.
    """
    _check_confidence(confidence)
    a, b = np.asarray(right_a), np.asarray(right_b)
    if a.ndim != 1 or a.shape != b.shape or not len(a) or a.dtype != bool or b.dtype != bool:
        got = " and ".join(f"{each.dtype} of shape {each.shape}" for each in (a, b))
        raise RecipeError(f"paired_proportions: expected two series of truth values over the same images, got {got}")
    from scipy.special import bdtr

    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    p = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    low, high = _newcombe(int((a & b).sum()), only_a, only_b, n, confidence)
    if p > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(100 * (only_a - only_b) / n, 100 * low, 100 * high, p, n, "images", confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the order given (Holm, 1979).

    Called a finding where they are at most 5 %, the chance of any false finding among them is at most 5 %.

    Args:
        p_values: Each in 0..1.

    Raises:
        RecipeError: One is out of range.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise RecipeError(f"p_values: expected numbers in 0..1, got {list(p_values)}")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def best_of(
    candidates: Mapping[str, Mapping[int, float]],
    references: Mapping[str, Mapping[int, float]],
    *,
    confidence: float = 0.95,
    resolution: float = 0.0,
) -> Best | None:
    """Return what the best candidate has beyond the best reference, paired by seed, and how sure that is.

    A candidate leaks only if it beats every reference, so its lower bound is the least of its differences; being the
    best of m candidates, each difference is bounded at α/m (Bonferroni). All have lost only if each of them is below
    some reference; that one being chosen among k, each difference is bounded from above at α/k. The interval of the two
    covers max(candidates) - max(references) at 1 - α whatever is true, and the lower end covers the candidate's own
    gain as well: in a study without any effect the chance of saying *any*, leak or loss, is at most α = 5 %.

    The candidate is the one with the highest mean, among those whose leak is decided if there are any. The more there
    are, the wider the interval: one that was chosen on held-out data counts as one. The power against a leak of two
    standard errors of the difference is 13 % at 2 seeds, 23 % at 3, 33 % at 5 and 43 % at 10 with one candidate and
    one reference, and 0, 1, 4 and 11 % with three candidates, one of which leaks, and two equal references; there, a
    leak of eight standard errors is found by 3, 46, 98 and 100 % (simulated; spread 1 point, 500 images).

    Args:
        candidates: Values by name and seed. Those without a value are left out, as are those with fewer than two seeds
            in common with a reference if another has more.
        references: Values by name and seed. Those without a value are left out.
        confidence: 1 - α, between 0 and 1, both excluded.
        resolution: As of ``paired_difference``.

    Returns:
        None where no candidate has a seed in common with every reference.

    Raises:
        RecipeError: A value is not finite, or an argument is out of range.
    """

    def compare(a: Mapping[int, float], b: Mapping[int, float], level: float) -> Difference | None:
        return paired_difference(a, b, confidence=level, resolution=resolution)

    return _best(candidates, references, compare, confidence)


def best_proportion_of(
    candidates: Mapping[str, Sequence[bool]], references: Mapping[str, Sequence[bool]], *, confidence: float = 0.95
) -> Best | None:
    """Return what ``best_of`` does for nets of one seed, over the test images on which each is right or wrong.

    Args:
        candidates: By name, whether each image is answered rightly, as in ``paired_proportions``.
        references: By name, of the same images.
        confidence: Between 0 and 1, both excluded.

    Returns:
        None where there is no candidate or no reference.

    Raises:
        RecipeError: The numbers of images differ, or ``confidence`` is out of range.
    """

    def compare(a: Sequence[bool], b: Sequence[bool], level: float) -> Difference:
        return paired_proportions(a, b, confidence=level)

    return _best(candidates, references, compare, confidence)


def _best(
    candidates: Mapping[str, _Values],
    references: Mapping[str, _Values],
    compare: Callable[[_Values, _Values, float], Difference | None],
    confidence: float,
) -> Best | None:
    _check_confidence(confidence)
    candidates = {name: values for name, values in candidates.items() if len(values)}
    references = {name: values for name, values in references.items() if len(values)}
    m, k = len(candidates), len(references)
    names, below, above = [], [], []  # bounded from below and from above: of each candidate a difference a reference
    for name, values in candidates.items():
        rows = [
            [
                found
                for other in references.values()
                if (found := compare(values, other, 1 - (1 - confidence) / choices))
            ]
            for choices in (m, k)
        ]
        if len(rows[0]) == k:
            names.append(name)
            below.append(rows[0])
            above.append(rows[1])
    if not names or not references:
        return None
    mean, low, p = (np.array([[each[i] for each in row] for row in below], dtype=float) for i in (0, 1, 3))
    high = np.array([[each.high for each in row] for row in above], dtype=float)  # None is nan
    sure = ~np.isnan(low).any(axis=1)
    sure |= not sure.any()
    leaks = sure & (low > 0).all(axis=1)
    best = int(np.where(leaks if leaks.any() else sure, mean.min(axis=1), -np.inf).argmax())
    reference = int(mean[best].argmin())
    found = below[best][reference]
    if found.low is not None:
        gained = m * p[best].max()
        lost = k * np.where(mean < 0, p, 1.0).min(axis=1)[sure].max()
        found = found._replace(
            low=float(low[best].min()),
            high=float(high.min(axis=1)[sure].max()),
            p=min(1.0, float(gained if found.mean > 0 else lost)),
        )
    return Best(names[best], list(references)[reference], found._replace(confidence=confidence))


def _newcombe(both: int, only_a: int, only_b: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the ends of the interval of the difference of two paired rates; see ``paired_proportions``."""
    hits_a, hits_b = both + only_a, both + only_b
    covariance = float(both * (n - hits_a - only_b) - only_a * only_b)
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)
    margins = hits_a * (n - hits_a) * hits_b * (n - hits_b)
    phi = covariance / math.sqrt(margins) if margins else 0.0
    (low_a, high_a), (low_b, high_b) = (wilson_interval(hits, n, confidence) for hits in (hits_a, hits_b))
    rate_a, rate_b = hits_a / n, hits_b / n
    return (
        rate_a - rate_b - _add(rate_a - low_a, high_b - rate_b, phi),
        rate_a - rate_b + _add(high_a - rate_a, rate_b - low_b, phi),
    )


def _add(x: float, y: float, correlation: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))


def may_be_chance(accuracy: float, images: int, classes: int) -> bool:
    """Tell whether a net may be guessing: Wilson's 95 % interval over the images reaches down to 1/classes.

    Args:
        accuracy: In percent.
        images: Number of test images.
        classes: Number of classes.
    """
    return wilson_interval(round(accuracy / 100 * images), images)[0] <= 1 / classes


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise RecipeError(f"confidence: expected a number between 0 and 1, both excluded, got {confidence}")
