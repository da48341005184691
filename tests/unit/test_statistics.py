from __future__ import annotations

import doctest
import math
import statistics as standard

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from undistill import functional
from undistill.errors import RecipeError
from undistill.functional import Interval, format_interval, losses, mean_interval, wilson_interval
from undistill.functional import statistics as ours


def test_mean_interval_by_hand() -> None:
    # mean 2, standard deviation 1, t(0.975, 2 degrees of freedom) = 4.3027 in every table
    mean, half_width, n = mean_interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2.0, 3)
    assert half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99]))
def test_mean_interval_equals_scipy(values: list[float], confidence: float) -> None:
    interval = mean_interval(values, confidence)
    scale = standard.stdev(values) / math.sqrt(len(values))
    assert interval.mean == pytest.approx(standard.fmean(values))
    assert interval.half_width == pytest.approx(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * scale, rel=1e-9)
    assert interval.n == len(values)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([96.4]) == Interval(96.4, None, 1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval(iter([8.0, 8.0, 8.0])) == Interval(8.0, 0.0, 3)


def test_format() -> None:
    assert format_interval(Interval(96.4, 0.314, 3)) == "96.40 ± 0.31 (n=3)"
    assert format_interval(Interval(96.4, None, 1)) == "96.40 (n=1)"
    assert format_interval(Interval(0.12345, 0.0, 2), digits=3) == "0.123 ± 0.000 (n=2)"


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_the_textbook(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_scipy(counts: tuple[int, int]) -> None:
    expected = stats.binomtest(*counts).proportion_ci(0.99, method="wilson")
    low, high = wilson_interval(*counts, confidence=0.99)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(RecipeError, match="values: expected one or more finite numbers, got"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_bad_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(RecipeError, match="confidence: expected"):
        mean_interval([1.0, 2.0], confidence)
    with pytest.raises(RecipeError, match="confidence: expected"):
        wilson_interval(1, 2, confidence)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_bad_counts_are_refused(successes: int, total: int) -> None:
    with pytest.raises(RecipeError, match=f"got {successes} of {total}"):
        wilson_interval(successes, total)


def test_examples_of_the_docstrings() -> None:
    results = [doctest.testmod(module) for module in (losses, ours)]
    assert [result.failed for result in results] == [0, 0]
    assert sum(result.attempted for result in results) >= 4


def test_everything_public_is_exported_in_order() -> None:
    parts = [name for part in ("losses", "metrics", "statistics") for name in getattr(functional, part).__all__]
    assert functional.__all__ == sorted(parts)
