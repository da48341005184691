"""The settings that a search tries, and which of them goes on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

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


Suite = tuple[dict[str, dict[int, float]], dict[str, list[tuple[str, dict[int, float]]]], str]


def _suite(leak: float, generator: np.random.Generator, *, thieves: int = 10) -> Suite:
    """Return five seeds of some thieves, of their references, and who is the favourite; the first thief gains.

    Every thief has the best of two references that all share, and itself without soft answers, to beat; all share what
    the images of a seed make easy. The favourite is chosen by other nets, as a search chooses, which are as noisy.
    """
    shared = 90 + generator.normal(0, 0.5, 5)
    names = [f"thief{at}" for at in range(thieves)]
    true = dict.fromkeys(names, 0.0) | {"thief0": leak}

    def values(gain: float = 0.0) -> dict[int, float]:
        return dict(enumerate((shared + gain + generator.normal(0, 0.5, 5)).tolist(), 1))

    common = [("ce", values()), ("label_smoothing", values())]
    search = {name: gain + generator.normal(0, 0.5) for name, gain in true.items()}
    references = {name: [*common, (f"{name} on the named class", values())] for name in names}
    return {name: values(gain) for name, gain in true.items()}, references, max(search, key=lambda name: search[name])


def _judged(thieves: dict[str, dict[int, float]], references: Any, favourite: str) -> str:
    found = gains(thieves, references, favourite)
    return judge([Gain(mean=0, low=one.low, high=one.high, beyond="") for one in found.values()], margin=1.0)


@pytest.mark.parametrize("thieves", [1, 3, 10])
def test_a_planted_leak_is_found_and_none_is_not(thieves: int) -> None:
    generator = np.random.default_rng(0)
    told = {
        leak: [_judged(*_suite(leak, generator, thieves=thieves)) == "leaks" for _ in range(400)] for leak in (0.0, 5.0)
    }
    assert sum(told[5.0]) >= 380  # 19 of 20
    assert sum(told[0.0]) <= 20


def test_a_suite_without_a_leak_may_be_called_undistillable() -> None:
    generator = np.random.default_rng(1)
    assert sum(_judged(*_suite(0.0, generator, thieves=3)) == "undistillable" for _ in range(100)) >= 30
    # What leaks three points, and what is within the margin of error of one, are not.
    assert sum(_judged(*_suite(1.5, generator, thieves=3)) == "undistillable" for _ in range(400)) <= 20


def test_the_error_is_shared_by_weight_below_and_not_above() -> None:
    thieves = {"a": {1: 91.0, 2: 92.0, 3: 90.5}, "b": {1: 90.0, 2: 91.0, 3: 92.0}, "c": {1: 89.0, 2: 91.0, 3: 90.0}}
    reference = {1: 90.0, 2: 90.5, 3: 90.0}
    found = gains(thieves, {name: [("ce", reference)] for name in thieves}, "a", persons=2)
    for name, share in (("a", 0.0125), ("b", 0.00625), ("c", 0.00625)):  # of 0.05, two persons
        apart = [thieves[name][seed] - reference[seed] for seed in (1, 2, 3)]
        where = {"loc": sum(apart) / 3, "scale": stats.sem(apart)}
        assert found[name].low == pytest.approx(stats.t.interval(1 - share, 2, **where)[0])
        assert found[name].high == pytest.approx(stats.t.interval(0.95, 2, **where)[1])
        assert (found[name].beyond, found[name].seeds) == ("ce", 3)


def test_a_thief_has_to_beat_every_reference_of_its_own() -> None:
    thief, weak, strong = ({seed: base + seed / 10 for seed in (1, 2, 3)} for base in (90.0, 80.0, 95.0))
    found = gains({"kd": thief, "htc": thief}, {"kd": [("ce", weak), ("x", strong)], "htc": [("ce", weak)]}, None)
    assert (found["kd"].beyond, found["htc"].beyond) == ("x", "ce")
    assert found["kd"].mean == pytest.approx(-5)
    assert not found["kd"].leaks
    assert found["htc"].leaks


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
