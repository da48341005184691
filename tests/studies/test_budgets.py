"""The study of nasty teachers with a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from undistill.errors import RecipeError, UnknownNameError
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request, load_studies
from undistill.studies.budgets import budgets
from undistill.studies.changes import PAPER, Changes


def test_each_teacher_starts_from_the_twin_that_it_is_measured_against() -> None:
    study = budgets(seeds=2, changes=PAPER, points=(2, 0.5))
    assert [panel.name for panel in study.panels] == ["digits", "mnist", "cifar10"]
    for panel in study.panels:
        teacher, *students = panel.lines
        assert [point.x for point in teacher.points] == [0.5, 2]
        for point in teacher.points:
            assert point.reference is not None
            for found, twin in zip(point.recipes, point.reference.recipes, strict=True):
                assert found.adversary == twin
                assert (found.objective.start, found.objective.accuracy_budget) == ("twin", point.x)  # type: ignore[attr-defined]
                assert (found.seed, found.holdout, found.model) == (twin.seed, twin.holdout, twin.model)
        victims = [[recipe.victim for recipe in point.recipes] for point in students[0].points]
        assert victims == [list(point.recipes) for point in teacher.points]
        for line in students:
            assert line.dashed is not None
            assert [recipe.victim for recipe in line.dashed.point.recipes] == list(teacher.points[0].reference.recipes)  # type: ignore[union-attr]


def test_bad_points_and_names() -> None:
    with pytest.raises(RecipeError, match="expected budgets above 0"):
        budgets(seeds=1, changes=PAPER, points=(0,))
    with pytest.raises(UnknownNameError, match="data set of budgets 'minst'; did you mean 'mnist'"):
        load_studies("budgets", parameters={"data": ["minst"]})


def test_it_runs(tmp_path: Path) -> None:
    changes = Changes(data={"digits": "digits(subset=200, test_subset=100)"}, epochs=2, width=0.25)
    request = Request("budgets", changes=changes, parameters={"data": ["digits"], "points": [1.0]})
    found = reproduce(request, tmp_path, jobs=1, device="cpu")
    assert found.failed == 0
    (part,) = found.document.parts
    (panel,) = part.to_json()["panels"]
    lines = {line["name"]: line["points"][0] for line in panel["lines"]}
    dashed = {each["name"]: each["mean"] for each in panel["references"]}
    assert set(lines) == set(dashed) == {"teacher", "textbook", "untempered", "htc", "ttm", "named"}
    for name, point in lines.items():
        assert point["difference"] == pytest.approx(point["mean"] - dashed[name])
