"""What a thief gets for how many queries: soft answers against the named class, from a normal and a nasty teacher.

Every point is a fresh student on as many images as it has queries, each asked about once, in as many steps as any other
has (the budgeted comparison of public benchmarks of model extraction). Beside them is the student alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from undistill.errors import RecipeError
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.cell import Cell
from undistill.reporting.parts import Part
from undistill.reporting.parts import curves as parts
from undistill.reporting.parts.curves import Curves
from undistill.run import Failure, Run
from undistill.studies.cells import against, common, fidelity_of, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["Curve", "QueryStudy", "check_budgets", "queries"]

_ALONE = ("labels", "labels-alone")
_MEASURES: dict[str, tuple[str, Callable[[Run], float]]] = {
    "accuracy": ("Test accuracy, %", lambda run: run.accuracy),
    "fidelity": ("Fidelity, %", fidelity_of),
}


@dataclass(frozen=True)
class Curve:
    """One line: a source of knowledge, over the budget.

    Attributes:
        name: Of the line.
        label: As it is shown.
        of: Name of the teacher whose answers it is; None for a student alone.
        points: Recipes, one a seed, by budget.
        beside: Name of the line that it is measured against, at the same budget; None for none.
    """

    name: str
    label: str
    of: str | None
    points: Mapping[int, tuple[Recipe, ...]]
    beside: str | None = None


@dataclass(frozen=True)
class QueryStudy(Study):
    """Students over their budget of queries.

    Attributes:
        panels: Curves by the panel's name.
        victims: Recipes of the teachers, one a seed, by name.
        measures: Which measures get a panel each.
        notes: What a reader must know.
    """

    panels: Mapping[str, tuple[Curve, ...]]
    victims: Mapping[str, tuple[Recipe, ...]]
    measures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the panels and of their curves."""
        names = (name for panel, curves in self.panels.items() for name in (panel, *(curve.name for curve in curves)))
        return tuple(dict.fromkeys(names))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of the teachers and of all points."""
        for victims in self.victims.values():
            yield from victims
        for curve in (curve for curves in self.panels.values() for curve in curves):
            for recipes in curve.points.values():
                yield from recipes

    def pick(self, keep: Keep) -> QueryStudy | None:
        """Return the study with the panels and curves that were asked for, None if there are none."""
        panels = {
            name: kept
            for name, curves in self.panels.items()
            if (kept := tuple(curve for curve in curves if keep(self.name, name, curve.name)))
        }
        asked = {curve.of for curves in panels.values() for curve in curves}
        victims = {name: found for name, found in self.victims.items() if name in asked}
        return replace(self, panels=panels, victims=victims) if panels else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``curves``: a panel of curves for each measure."""
        cell = partial(make_cell, workspace=workspace, failures=failures)
        panels = tuple(
            self._panel(name, measure, curves, partial(cell, read=_MEASURES[measure][1]), workspace)
            for measure in self.measures
            for name, curves in self.panels.items()
        )
        named = [
            (f"{panel.title}, {line.label}, {point.x:,} queries", point)
            for panel in panels
            for line in panel.lines
            for point in line.points
        ]
        return Curves.make(**common(self, named, self.notes), panels=panels)

    def _asked(self, curve: Curve, workspace: Workspace) -> dict[int, int]:
        """Return budgets by how many images were asked about: a set has no more than it has."""
        found: dict[int, int] = {}
        for budget, recipes in curve.points.items():
            run = None if curve.of is None else workspace.find(recipes[0])
            asked = None if run is None else run.result.get("queries")
            found.setdefault(budget if asked is None else int(asked), budget)
        return found

    def _panel(
        self,
        name: str,
        measure: str,
        curves: Sequence[Curve],
        cell: Callable[[Sequence[Recipe]], Cell],
        workspace: Workspace,
    ) -> parts.Panel:
        several = len(self.measures) > 1
        teachers = {curve.of for curve in curves} - {None}
        known = {curve.name: curve.points for curve in curves}

        def point(curve: Curve, budget: int, x: int) -> parts.Point:
            copies = measure == "accuracy" or curve.beside not in _ALONE  # who is alone copies nobody
            other = known.get(curve.beside or "") if copies else None
            return parts.Point(x=x, **dict(against(cell(curve.points[budget]), cell(other[budget]) if other else None)))

        return parts.Panel(
            name=f"{measure}-{name}" if several else name,
            title=self.changes.titled("", f"{name}, {measure}" if several else name).replace("reduced", "changed"),
            x=parts.Scale(label="queries", scale="log"),
            y=parts.Axis(label=_MEASURES[measure][0]),
            lines=tuple(
                parts.Line(
                    name=curve.name,
                    label=curve.label,
                    role="teacher" if curve.name == "teacher" else "student",
                    against=curve.of if len(teachers) == 1 else None,
                    points=tuple(point(curve, budget, x) for x, budget in self._asked(curve, workspace).items()),
                )
                for curve in curves
                if measure == "accuracy" or (curve.of is not None and curve.name != "teacher")
            ),
            references=(),
        )


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """Return budgets in order.

    Raises:
        RecipeError: One is no number of queries, or there is none.
    """
    if not budgets or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in budgets):
        raise RecipeError(f"budgets: expected whole numbers of 1 or more, got {list(budgets)}")
    return tuple(sorted(set(budgets)))


_SOFT: dict[str, Any] = {"labels": False, "access": "probs"}
_NAMED: dict[str, Any] = {"labels": False, "access": "labels"}
_OTHER_EPOCHS = 7  # of USPS, whose set is that much smaller than MNIST: about as many steps
_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft": ("soft answers, τ=1", {**_SOFT, "method": "kd(temperature=1, alpha=1)"}),
    "softer": ("soft answers, τ=4", {**_SOFT, "method": "kd(temperature=4, alpha=1)"}),
    "named": ("named class", {**_NAMED, "method": "hard_label"}),
    "named_smooth": ("named class, smoothed", {**_NAMED, "method": "hard_label(smoothing=0.2)"}),
    "labels": ("labels alone", {"method": "ce"}),
    "labels_smooth": ("labels alone, smoothed", {"method": "label_smoothing(smoothing=0.2)"}),
    "other_soft": ("soft answers, τ=1", {**_SOFT, "method": "kd(temperature=1, alpha=1)"}),
    "other_named": ("named class", {**_NAMED, "method": "hard_label"}),
}


_BESIDE = {"soft": "named", "softer": "named", "named": "labels", "named_smooth": "labels", "labels_smooth": "labels"}


@STUDIES.register("queries")
def queries(
    *,
    seeds: int,
    changes: Changes,
    budgets: Sequence[int] = (100, 300, 1000, 3000, 10000, 60000),
    surrogate: str = "usps",
) -> QueryStudy:
    """Return the study of what a thief gets for how many queries, on MNIST.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        budgets: Numbers of queries, each 1 or more.
        surrogate: Data set spec of the images of a thief who has none of the victim's kind.

    Raises:
        RecipeError: A budget is no number of queries.
    """
    asked = check_budgets(budgets)

    def curve(victims: Sequence[Recipe], teacher: str, way: str) -> Curve:
        label, fields = _WAYS[way]
        alone, other = way.startswith("labels"), way.startswith("other")

        def student(victim: Recipe, budget: int) -> Recipe:
            given = {**fields, "queries": budget, "seed": victim.seed} | ({} if alone else {"victim": victim})
            given |= {"transfer": surrogate, "epochs": _OTHER_EPOCHS} if other else {}
            return adapt(load_recipe("queries/student", **given), changes)

        points = {budget: tuple(student(victim, budget) for victim in victims) for budget in asked}
        if not other:
            return Curve(way, label, None if alone else teacher, points, _BESIDE.get(way))
        return Curve(f"{way}_{teacher.split()[0]}", f"{teacher}, {label}", teacher, points)

    panels: dict[str, tuple[Curve, ...]] = {}
    others: list[Curve] = []
    adapted = {}
    for teacher, recipe in (("normal teacher", "queries/teacher"), ("nasty teacher", "queries/nasty_teacher")):
        victims = [load_recipe(recipe, seed=seed) for seed in range(seeds)]
        adapted[teacher] = tuple(adapt(victim, changes) for victim in victims)
        own = Curve("teacher", "the victim", teacher, dict.fromkeys(asked, adapted[teacher]))
        curves = [curve(victims, teacher, way) for way in _WAYS]
        others += [one for one in curves if one.name.startswith("other")]
        panels[teacher] = (own, *(one for one in curves if one not in others))
    panels["other images"] = tuple(others)
    return QueryStudy(
        "queries",
        "What a thief gets for how many queries",
        seeds,
        changes,
        panels,
        adapted,
        tuple(_MEASURES),
        (
            "A query is an image that the victim is asked about; each is asked about once, and its answer serves all "
            "epochs. Students take one pass over the owner's training set, whatever their budget: images come again.",
            "Thieves have no labels and take any images. Labels alone: the same student, without any victim, on as "
            "many images with their true labels, of every class alike.",
            f"Other images: a thief who has none of the victim's kind, but those of {surrogate}, without labels, in "
            f"{_OTHER_EPOCHS} passes over these.",
            "In brackets, in points: soft answers against the named class, the named class and smoothed labels against "
            "labels alone; with its interval, not corrected for the number of these.",
            "Nothing is chosen on test images: what is shown was set before it was run.",
        ),
    )
