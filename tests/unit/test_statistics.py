from __future__ import annotations

import doctest
import math
import statistics as standard

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from undistill import functional
from undistill.errors import RecipeError
from undistill.functional import (
    Interval,
    best_of,
    best_proportion_of,
    clip,
    format_interval,
    holm,
    losses,
    mean_interval,
    paired_difference,
    paired_proportions,
    prediction_half_width,
    wilson_interval,
)
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


def test_a_further_run_falls_into_the_prediction_interval() -> None:
    assert prediction_half_width(Interval(8.0, 0.5, 3)) == 1.0
    assert prediction_half_width(Interval(8.0, None, 1)) is None
    runs = np.random.default_rng(0).normal(size=(4000, 4))
    intervals = [mean_interval(row[:3]) for row in runs.tolist()]
    inside = [abs(row[3] - own.mean) <= prediction_half_width(own) for row, own in zip(runs, intervals, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_clip() -> None:
    assert clip(Interval(98.0, 3.0, 3)) == (95.0, 100.0)
    assert clip(Interval(1.0, 3.0, 3)) == (0.0, 4.0)
    assert clip(Interval(0.9, 0.2, 3), most=1.0) == (pytest.approx(0.7), 1.0)
    assert clip(Interval(98.0, None, 1)) is None


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=9),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_paired_difference_equals_scipy(pairs: list[tuple[float, float]], confidence: float) -> None:
    a, b = zip(*pairs, strict=True)
    if standard.stdev([x - y for x, y in pairs]) < 1e-6:
        return  # scipy warns of lost precision
    found, theirs = paired_difference(seeds(*a), seeds(*b), confidence=confidence), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(confidence)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-5, abs=1e-9)
    assert (found.n, found.over, found.confidence) == (len(pairs), "seeds", confidence)


def test_paired_difference_is_over_common_seeds() -> None:
    # differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.706
    found = paired_difference({0: 5.0, 1: 7.0, 2: 99.0}, {1: 4.0, 0: 4.0, 3: 0.0})
    assert found is not None
    assert found[:2] == pytest.approx((2.0, 2 - 12.706), abs=1e-3)
    assert (found.n, found.decided) == (2, False)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 3.0, 1: 9.0}, {0: 1.0})
    assert single == (2.0, None, None, None, 1, "seeds", 0.95)
    assert not single.decided


def test_equal_differences_decide_only_beyond_the_resolution() -> None:
    a, near, far = seeds(90.2, 90.4), seeds(90.0, 90.2), seeds(80.0, 80.2)
    assert paired_difference(a, near).decided  # the trap: no spread, by chance
    assert not paired_difference(a, near, resolution=0.2).decided
    assert paired_difference(a, far, resolution=0.2).decided
    by_hand = 12.7062 * 0.2 / math.sqrt(6) / math.sqrt(2)
    assert paired_difference(a, near, resolution=0.2).high == pytest.approx(0.2 + by_hand, abs=1e-4)
    same = paired_difference(a, a)
    assert (same.mean, same.low, same.high, same.p, same.decided) == (0.0, 0.0, 0.0, 1.0, False)
    assert not paired_difference(a, a, resolution=0.2).decided


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0, 4.0])
def test_at_most_five_percent_of_equal_pairs_are_told_apart(n: int, spread: float) -> None:
    values = np.round(np.random.default_rng(n).normal(0, spread, (2, 4000, n)) * 5) / 5  # of 500 images
    found = [paired_difference(seeds(*a), seeds(*b), resolution=0.2) for a, b in zip(*values.tolist(), strict=True)]
    assert np.mean([each.decided for each in found]) <= 0.06
    assert all(each.decided == (each.p < 0.05) for each in found)


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_a, only_b, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_paired_proportions_equal_published_examples() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), p. 2635, table of 36, 12, 2, 0: method 10 says 0.0569 to 0.3404
    found = paired_proportions(*table(36, 12, 2, 0))
    assert (found.mean, found.low, found.high) == pytest.approx((20.0, 5.69, 34.04), abs=0.005)
    assert (found.n, found.over, found.decided) == (50, "images", True)
    # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8, complete response:
    # -0.1186 to -0.0046, where the exact test has p = 0.052: the interval reaches to 0
    found = paired_proportions(*table(59, 6, 16, 80))
    assert (found.mean, found.low, found.high) == pytest.approx((-6.21, -11.86, 0.0), abs=0.005)
    assert (found.p, found.decided) == (pytest.approx(0.0525, abs=1e-4), False)
    assert ours._newcombe(59, 6, 16, 161, 0.95) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_paired_proportions_have_mcnemars_exact_p(counts: tuple[int, int, int, int]) -> None:
    found, mirrored = paired_proportions(*table(*counts)), paired_proportions(*table(*counts)[::-1])
    discordant = counts[1] + counts[2]
    expected = stats.binomtest(counts[1], discordant).pvalue if discordant else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert -100 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 100
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert not found.decided or found.p <= 0.05


@pytest.mark.parametrize("chances", [(0.85, 0.05, 0.05, 0.05), (0.7, 0.15, 0.05, 0.1), (0.97, 0.02, 0.005, 0.005)])
def test_paired_proportions_cover_the_truth(chances: tuple[float, ...]) -> None:
    draws = np.random.default_rng(0).multinomial(200, chances, size=2000).tolist()
    truth = 100 * (chances[1] - chances[2])
    found = [paired_proportions(*table(*counts)) for counts in draws]
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.94
    if truth == 0:
        assert np.mean([each.decided for each in found]) <= 0.05


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; none below one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_best_by_hand() -> None:
    thieves = {"kd": seeds(91.0, 92.0, 93.0), "htc": seeds(95.0, 96.1, 96.9)}
    references = {"ce": seeds(80.0, 81.0, 82.0), "ls": seeds(90.0, 91.0, 92.0)}
    found = best_of(thieves, references)
    assert (found.candidate, found.reference, found.verdict) == ("htc", "ls", "leak")
    # against ls 5, 5.1, 4.9: standard error 0.1/√3, and one of two candidates has t(1 - 0.05/4, 2) = 6.2053
    assert found.difference.mean == pytest.approx(5.0)
    assert found.difference.low == pytest.approx(5 - 6.2053 * 0.1 / math.sqrt(3), abs=1e-4)
    assert found.difference.high == pytest.approx(5 + 6.2053 * 0.1 / math.sqrt(3), abs=1e-4)
    assert found.difference.p == pytest.approx(2 * stats.ttest_1samp([5, 5.1, 4.9], 0).pvalue, rel=1e-6)
    assert found.difference.confidence == 0.95


def test_a_leak_beats_every_reference_and_a_loss_is_of_all() -> None:
    references = {"ce": seeds(80.0, 80.1, 79.9), "ls": seeds(90.0, 80.0, 100.0)}  # what ls does is not known
    assert best_of({"kd": seeds(95.0, 95.1, 94.9)}, references).verdict == "not decided"
    low = seeds(70.0, 70.1, 69.9)
    assert best_of({"kd": low}, references).verdict == "loss"
    assert best_of({"kd": low, "htc": seeds(60.0, 79.0, 70.0)}, references).verdict == "not decided"


def test_a_leak_is_of_a_candidate_of_which_it_is_decided() -> None:
    found = best_of({"wild": seeds(99.0, 70.0, 99.0), "sure": seeds(85.0, 85.1, 84.9)}, {"ce": seeds(80.0, 80.0, 80.0)})
    assert (found.candidate, found.verdict) == ("sure", "leak")


def test_best_with_missing_seeds() -> None:
    reference = {"ce": seeds(80.0, 81.0, 82.0), "failed": {}}
    assert best_of({"kd": {}}, reference) is None
    assert best_of({"kd": seeds(1.0)}, {"ce": {}}) is None
    assert best_of({}, reference) is None
    one = best_of({"kd": seeds(90.0), "htc": seeds(91.0)}, reference)
    assert (one.candidate, one.verdict, one.difference.low) == ("htc", "not decided", None)
    several = best_of({"kd": seeds(90.0, 91.1, 91.9), "htc": seeds(95.0)}, reference)
    assert (several.candidate, several.verdict) == ("kd", "leak")


def test_best_over_images() -> None:
    wrong_first = [i >= 60 for i in range(100)]
    alone = [i >= 30 for i in range(100)]
    thief = [i >= 2 for i in range(100)]
    found = best_proportion_of({"kd": wrong_first, "htc": thief}, {"ce": wrong_first, "ls": alone})
    assert (found.candidate, found.reference, found.verdict) == ("htc", "ls", "leak")
    assert found.difference[:2] == pytest.approx((28.0, paired_proportions(thief, alone, confidence=0.975).low))
    assert best_proportion_of({"kd": wrong_first}, {"ls": alone}).verdict == "loss"
    assert best_proportion_of({"kd": alone}, {"ls": alone}).verdict == "not decided"


def verdicts(n: int, m: int, k: int, *, lead: float = 0.0, worse: float = 0.0, studies: int = 2000) -> dict[str, float]:
    """Simulate studies of m candidates and k references over n seeds, and return how often each verdict is given.

    Accuracies are of 500 images and correlated by seed. The first candidate leads by so many standard errors, and all
    references but the first are worse by so many points.
    """
    generator = np.random.default_rng(n)
    nets = 90 + generator.normal(size=(studies, 1, n)) + generator.normal(size=(studies, m + k, n))
    nets[:, 0] += lead * math.sqrt(2 / n)
    nets[:, m + 1 :] -= worse
    counts = dict.fromkeys(("leak", "loss", "not decided"), 0.0)
    for study in (np.round(nets * 5) / 5).tolist():
        rows = {str(i): seeds(*row) for i, row in enumerate(study)}
        names = list(rows)
        sides = ({name: rows[name] for name in part} for part in (names[:m], names[m:]))
        counts[best_of(*sides, resolution=0.2).verdict] += 1 / studies
    return counts


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize(("m", "k", "worse"), [(3, 2, 0.0), (3, 2, 10.0), (1, 3, 10.0), (1, 1, 0.0)])
def test_of_studies_without_effect_at_most_five_percent_say_one(n: int, m: int, k: int, worse: float) -> None:
    # 2,000 scatter by 0.5 points: where the rate is 5 % itself, as it is for a single pair, there are more
    assert verdicts(n, m, k, worse=worse, studies=2000 if m + k > 2 else 10_000)["not decided"] >= 0.94


@pytest.mark.parametrize(("n", "power"), [(2, 0.13), (3, 0.23), (5, 0.33), (10, 0.43)])
def test_power_against_two_standard_errors(n: int, power: float) -> None:
    found = verdicts(n, 1, 1, lead=2.0)
    assert found["leak"] == pytest.approx(power, abs=0.04)
    assert found["loss"] <= 0.01


@pytest.mark.parametrize(("n", "power"), [(3, 0.46), (5, 0.98), (10, 1.0)])
def test_power_against_eight_standard_errors_among_several(n: int, power: float) -> None:
    assert verdicts(n, 3, 2, lead=8.0, studies=500)["leak"] == pytest.approx(power, abs=0.06)


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
    with pytest.raises(RecipeError, match="confidence: expected"):
        paired_difference(seeds(1.0), seeds(2.0), confidence=confidence)
    with pytest.raises(RecipeError, match="confidence: expected"):
        paired_proportions([True], [True], confidence=confidence)
    with pytest.raises(RecipeError, match="confidence: expected"):
        best_of({}, {}, confidence=confidence)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_bad_counts_are_refused(successes: int, total: int) -> None:
    with pytest.raises(RecipeError, match=f"got {successes} of {total}"):
        wilson_interval(successes, total)


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected finite numbers"):
        paired_difference(seeds(1.0, math.nan), seeds(1.0, 2.0))
    with pytest.raises(RecipeError, match="resolution: expected"):
        paired_difference(seeds(1.0), seeds(1.0), resolution=-1.0)
    for pair in ([True], [True, False]), ([], []), ([1.0], [0.0]):
        with pytest.raises(RecipeError, match="expected two series of truth values over the same images"):
            paired_proportions(*pair)
    with pytest.raises(RecipeError, match=r"p_values: expected numbers in 0\.\.1"):
        holm([1.2])


def test_examples_of_the_docstrings() -> None:
    results = [doctest.testmod(module) for module in (losses, ours)]
    assert [result.failed for result in results] == [0, 0]
    assert sum(result.attempted for result in results) >= 4


def test_everything_public_is_exported_in_order() -> None:
    parts = [name for part in ("losses", "metrics", "statistics") for name in getattr(functional, part).__all__]
    assert functional.__all__ == sorted(parts)
