"""The studies of what a thief gets for how many queries: their recipes, and their numbers against the runs on disk."""

from __future__ import annotations

import json
from typing import Any

import pytest

from undistill.api import reproduce
from undistill.errors import RecipeError
from undistill.orchestrate.reproduce import Reproduction
from undistill.recipe import Recipe
from undistill.studies.changes import PAPER
from undistill.studies.demo import demo
from undistill.studies.queries import queries


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    return reproduce(
        "queries",
        out=tmp_path_factory.mktemp("queries"),
        smoke=True,
        jobs=1,
        parameters={"budgets": [30, 90]},
        progress=False,
    )


def _points(made: Reproduction) -> dict[tuple[str, str, int], dict[str, Any]]:
    (part,) = (part.to_json() for part in made.document.parts)
    return {
        (panel["name"], line["name"], point["x"]): point
        for panel in part["panels"]
        for line in panel["lines"]
        for point in line["points"]
    }


def test_every_number_is_that_of_its_run(made: Reproduction) -> None:
    points = _points(made)
    # Of two teachers the victim, four thieves and two references by accuracy, the thieves by fidelity; and by both two
    # thieves of each with other images, who are asked about no more than there are.
    assert len(points) == 2 * 2 * (7 + 4) + 2 * 2 * 2 * 2
    for (panel, way, budget), point in points.items():
        (name,) = point["runs"].values()
        result = json.loads((made.folder.parent / "runs" / name / "result.json").read_text())
        measure = panel.partition("-")[0]
        expected = result["selected"]["accuracy"] if measure == "accuracy" else 100 * result["fidelity"]
        assert point["mean"] == pytest.approx(expected)
        if way != "teacher" and not way.startswith("labels"):
            assert result["queries"] == result["images"] == min(budget, 100)  # the smoke set has 100 images
            assert result["labels"] == 0
        elif way.startswith("labels"):
            assert result["queries"] is None
            assert result["labels"] == min(budget, 100)


def test_thieves_of_both_teachers_have_the_same_references(made: Reproduction) -> None:
    points = _points(made)
    for way in ("labels", "labels_smooth"):
        runs = [points[f"accuracy-{teacher} teacher", way, 30]["runs"] for teacher in ("normal", "nasty")]
        assert runs[0] == runs[1]


def test_thieves_and_references_of_the_demo_have_the_same_means() -> None:
    study = demo(seeds=2, changes=PAPER)
    curves = {curve.name: curve for curve in study.panels["digits"]}
    alone: Recipe = curves["labels-alone"].points[100][0]
    for name, curve in curves.items():
        for budget, recipes in curve.points.items():
            assert [recipe.seed for recipe in recipes] == [0, 1]
            if name == "teacher":
                continue
            for recipe in recipes:
                assert (recipe.transfer, recipe.labels, recipe.data) == (alone.transfer, alone.labels, alone.data)
                assert (recipe.epochs, recipe.model) == (alone.epochs, alone.model)
                assert recipe.queries == (None if curve.of is None else budget)


def test_parts_and_wrong_budgets() -> None:
    study = queries(seeds=1, changes=PAPER, budgets=(3000, 100, 100))
    assert list(study.panels["nasty teacher"][1].points) == [100, 3000]
    kept = study.pick(lambda *names: "named" in names)
    assert kept is not None
    assert {curve.name for curves in kept.panels.values() for curve in curves} == {"named"}
    assert study.pick(lambda *names: False) is None
    for budgets in ((), (0,), (1.5,), (True,)):
        with pytest.raises(RecipeError, match="whole numbers of 1 or more"):
            queries(seeds=1, changes=PAPER, budgets=budgets)  # type: ignore[arg-type]
