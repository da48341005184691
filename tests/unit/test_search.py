"""The settings that a search tries, and which of them goes on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from undistill.attacks import ATTACKS
from undistill.methods import REFERENCES, build_method, method_class
from undistill.objective import Range
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.parts.audit import Gain, judge
from undistill.studies.leak import gains
from undistill.studies.search import LR_FACTORS, Tuned, settings, with_epochs

METHODS = [name for registry in (ATTACKS, REFERENCES) for name in registry.names()]


def test_a_range_is_even_in_what_it_says() -> None:
    assert [Range(1, 100, log=True).at(share) for share in (0, 0.5, 1)] == [1, 10, 100]
    assert [Range(0, 0.4).at(share) for share in (0, 0.5, 1)] == [0, 0.2, 0.4]
    assert LR_FACTORS.at(0.5) == 1
    assert [str(Range(0, 0.4)), str(LR_FACTORS)] == ["0 to 0.4", "0.25 to 4, log"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_built_everywhere_in_its_space(name: str) -> None:
    space = method_class(name).search
    fields = method_class(name).model_fields
    for key, of in space.items():
        assert key in fields
        for value in (of.at(0), of.at(0.37), of.at(1)) if isinstance(of, Range) else of:
            built = build_method({"name": name, key: value})
            assert getattr(built, key) == value


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).search])
def test_the_published_settings_lie_in_the_space_or_are_tried_anyway(name: str) -> None:
    first, rate = settings(name, 4)[0]
    assert (first, rate) == (build_method(name).spec, 1.0)


def test_points_cover_the_space_evenly() -> None:
    tried = settings("kd", 33)
    assert len(tried) == len(set(tried)) == 33
    temperatures = [math.log2(build_method(spec).temperature) for spec, _ in tried[1:]]  # type: ignore[attr-defined]
    # Of a scrambled Sobol sequence each half, quarter and eighth has its share: 32 points, τ from 1 to 2⁵.
    eighths = [sum(5 * at / 8 <= t < 5 * (at + 1) / 8 for t in temperatures) for at in range(8)]
    assert eighths == [4] * 8
    rates = [math.log2(rate) for _, rate in tried[1:]]
    assert sum(rate < 0 for rate in rates) == 16
    assert all(-2 <= rate <= 2 for rate in rates)


def test_what_is_given_is_not_searched() -> None:
    assert {build_method(spec).temperature for spec, _ in settings("kd(temperature=7)", 8)} == {7.0}  # type: ignore[attr-defined]
    assert len({build_method(spec).alpha for spec, _ in settings("kd(temperature=7)", 8)}) == 8  # type: ignore[attr-defined]


class Finished:
    """A workspace in which some recipes have a result."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, float | None]] = {}

    def find(self, recipe: Recipe) -> Any:
        result = self.results.get(recipe.hash)
        return None if result is None else SimpleNamespace(recipe=recipe, result=result)


def test_the_search_goes_on_without_trials_that_failed() -> None:
    base = load_recipe(None, data="digits", model="mlp", method="label_smoothing", epochs=8)
    tuned, there = Tuned(base, "label_smoothing", 8, (1, 2)), Finished()

    def asked(*failed: Recipe) -> set[str]:
        return {recipe.hash for recipe in tuned.ask(there, [one.hash for one in failed])}  # type: ignore[arg-type]

    first = {recipe.hash for recipe in (*tuned.published, *tuned.short)}
    assert asked() == first
    assert {recipe.epochs for recipe in tuned.short} == {2}
    for at, recipe in enumerate(tuned.short[:-1]):
        there.results[recipe.hash] = {"heldout": 50.0 + at, "agreement": None}
    assert asked() == first  # one is still to come
    broken = tuned.short[-1]
    kept = [tuned.whole[at] for at in (0, 5, 6)]  # the published one, and the best two of those that came out
    assert asked(broken) == first | {recipe.hash for recipe in kept}
    there.results[kept[1].hash] = {"heldout": None, "agreement": 0.9}  # of who has no label
    there.results[kept[2].hash] = {"heldout": 80.0, "agreement": 1.0}  # whose labels count
    assert [(one.method, one.seed) for one in tuned.best(there)] == [(kept[1].method, 1), (kept[1].method, 2)]  # type: ignore[arg-type]
    fresh = {recipe.hash for recipe in tuned.best(there)}  # type: ignore[arg-type]
    assert asked(broken, kept[0]) == first | {recipe.hash for recipe in kept} | fresh
    assert not fresh & {recipe.hash for recipe in tuned.whole}


def test_milestones_move_with_the_epochs() -> None:
    base = load_recipe(None, data="digits", model="mlp", method="ce", epochs=40, milestones=[20, 30])
    assert with_epochs(base, 10).milestones == (5, 7)


def _suite(leak: float, generator: object) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Return five seeds of ten thieves and two references, one thief with a known gain; seeds share their images."""
    import numpy as np

    assert isinstance(generator, np.random.Generator)
    shared = generator.normal(0, 0.5, 5)
    values = 90 + shared + generator.normal(0, 0.5, (12, 5))
    values[2] += leak
    names = ["ce", "label_smoothing", *(f"thief{at}" for at in range(10))]
    found = {name: dict(enumerate(row.tolist(), 1)) for name, row in zip(names, values, strict=True)}
    return {name: of for name, of in found.items() if "thief" in name}, {name: found[name] for name in names[:2]}


def _judged(thieves: dict[str, dict[int, float]], references: dict[str, dict[int, float]], favourite: str) -> str:
    found = gains(thieves, references, favourite)
    ends = {name: best.difference.ends for name, best in found.items()}
    return judge([Gain(mean=0, low=e[0], high=e[1], beyond="") if e else None for e in ends.values()], margin=1.0)


def test_a_planted_leak_is_found_and_none_is_not() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    told = {}
    for leak in (0.0, 5.0):
        suites = [_suite(leak, generator) for _ in range(400)]
        told[leak] = [_judged(*suite, "thief0") == "leaks" for suite in suites]
    assert sum(told[5.0]) >= 380  # 19 of 20
    assert sum(told[0.0]) <= 20


def test_a_leak_of_a_thief_that_nobody_favoured_is_found_too() -> None:
    import numpy as np

    generator = np.random.default_rng(1)
    told = [_judged(*_suite(5.0, generator), "thief3") == "leaks" for _ in range(200)]
    assert sum(told) >= 190


def test_the_error_is_shared_by_weight() -> None:
    from scipy import stats

    thieves = {"a": {1: 91.0, 2: 92.0, 3: 90.5}, "b": {1: 90.0, 2: 91.0, 3: 92.0}, "c": {1: 89.0, 2: 91.0, 3: 90.0}}
    reference = {"ce": {1: 90.0, 2: 90.5, 3: 90.0}}
    found = gains(thieves, reference, "a", error=0.05)
    for name, level in (("a", 1 - 0.025), ("b", 1 - 0.0125), ("c", 1 - 0.0125)):
        apart = [thieves[name][seed] - reference["ce"][seed] for seed in (1, 2, 3)]
        low, high = stats.t.interval(level, 2, loc=sum(apart) / 3, scale=stats.sem(apart))
        assert found[name].difference.ends == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.2, 3.0, 1.0, "leaks"),
        (-2.0, 0.9, 1.0, "undistillable"),
        (-2.0, 1.1, 1.0, "not decided"),
        (-2.0, -0.1, 0.0, "undistillable"),
    ],
)
def test_a_judgement_says_no_more_than_its_intervals(low: float, high: float, margin: float, verdict: str) -> None:
    gain = Gain(mean=(low + high) / 2, low=low, high=high, beyond="ce")
    assert judge([gain], margin) == verdict
    # Of a thief that failed nothing is known, and nothing is promised.
    assert judge([gain, None], margin) == ("leaks" if verdict == "leaks" else "not decided")


def test_nothing_compared_decides_nothing() -> None:
    assert judge([], 1.0) == "not decided"
