"""What a thief gets for how many queries: soft answers against the named class, from a normal and a nasty teacher.

Every point is a fresh student on as many images as it has queries, each asked about once, with the same number of steps
for all of them (the budgeted comparison of public benchmarks of model extraction). Beside it are the student alone on
as many labels, and a thief whose images are another data set's.
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
from undistill.studies.cells import common, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["QueryStudy", "queries"]

_TEACHERS = {"normal": "queries/teacher", "nasty": "queries/nasty_teacher"}
_SURROGATE_EPOCHS = 14  # of USPS, whose set is that much smaller than MNIST: the same number of steps


@dataclass(frozen=True)
class _Way:
    """One source of knowledge: how it is called, and what its recipe says."""

    label: str
    fields: Mapping[str, Any]
    alone: bool = False
    surrogate: bool = False


_ASKS = {"labels": False}
_SOFT: dict[str, Any] = {**_ASKS, "access": "probs"}
_NAMED: dict[str, Any] = {**_ASKS, "access": "labels"}
_WAYS = {
    "soft": _Way("soft answers, τ=1", {**_SOFT, "method": "kd(temperature=1, alpha=1)"}),
    "softer": _Way("soft answers, τ=10", {**_SOFT, "method": "kd(temperature=10, alpha=1)"}),
    "named": _Way("named class", {**_NAMED, "method": "hard_label"}),
    "named_smooth": _Way("named class, smoothed", {**_NAMED, "method": "hard_label(smoothing=0.2)"}),
    "labels": _Way("labels alone", {"method": "ce"}, alone=True),
    "labels_smooth": _Way("labels alone, smoothed", {"method": "label_smoothing(smoothing=0.2)"}, alone=True),
    "other_soft": _Way(
        "soft answers, τ=1, other images", {**_SOFT, "method": "kd(temperature=1, alpha=1)"}, surrogate=True
    ),
    "other_named": _Way("named class, other images", {**_NAMED, "method": "hard_label"}, surrogate=True),
}


@dataclass(frozen=True)
class QueryStudy(Study):
    """Students over their budget of queries.

    Attributes:
        points: Recipes, one a seed, by teacher, way and budget.
        victims: Recipes of the teachers, one a seed, by name.
    """

    points: Mapping[tuple[str, str, int], tuple[Recipe, ...]]
    victims: Mapping[str, tuple[Recipe, ...]]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the teachers and of the ways."""
        return tuple(dict.fromkeys(name for teacher, way, _ in self.points for name in (teacher, way)))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all points and of the teachers."""
        for recipes in (*self.victims.values(), *self.points.values()):
            yield from recipes

    def pick(self, keep: Keep) -> QueryStudy | None:
        """Return the study with the teachers and ways that were asked for, None if there are none."""
        points = {where: found for where, found in self.points.items() if keep(self.name, where[0], where[1])}
        victims = {name: found for name, found in self.victims.items() if any(name == where[0] for where in points)}
        return replace(self, points=points, victims=victims) if points else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``curves``: of each teacher, accuracy and fidelity over the budget."""
        measures: dict[str, tuple[str, Callable[[Run], float]]] = {
            "accuracy": ("Test accuracy, %", lambda run: run.accuracy),
            "fidelity": ("Fidelity, %", lambda run: 100 * float(run.result["fidelity"])),
        }
        panels = tuple(
            self._panel(name, measure, label, partial(make_cell, workspace=workspace, failures=failures, read=read))
            for measure, (label, read) in measures.items()
            for name in self.victims
        )
        notes = (
            "A query is an image that the victim is asked about; each is asked about once, and its answer serves all "
            "epochs. All students take the same number of steps.",
            "Labels alone: the same student, without any victim, on as many images with their true labels.",
            "Other images: a thief who has none of the victim's kind, and no labels either.",
            "Nothing here is chosen on test images: what is shown was set before it was run.",
        )
        named = [
            (f"{panel.title}, {line.label}, {point.x:,} queries", point)
            for panel in panels
            for line in panel.lines
            for point in line.points
        ]
        return Curves.make(**common(self, named, notes), panels=panels)

    def _panel(self, teacher: str, measure: str, label: str, cell: Callable[[Sequence[Recipe]], Cell]) -> parts.Panel:
        lines = []
        if measure == "accuracy":
            own, budgets = cell(self.victims[teacher]), sorted({budget for *_, budget in self.points})
            points = tuple(parts.Point(x=budget, **dict(own)) for budget in budgets)
            lines.append(parts.Line(name="teacher", label="the victim", role="teacher", against=None, points=points))
        for name, way in _WAYS.items():
            found = sorted(where[2] for where in self.points if where[:2] == (teacher, name))
            if not found or (way.alone and measure == "fidelity"):
                continue
            points = tuple(parts.Point(x=budget, **dict(cell(self.points[teacher, name, budget]))) for budget in found)
            lines.append(parts.Line(name=name, label=way.label, role="student", against=teacher, points=points))
        return parts.Panel(
            name=f"{measure}-{teacher}",
            title=self.changes.titled("mnist", f"MNIST, {teacher} teacher, {measure}"),
            x=parts.Scale(label="queries", scale="log"),
            y=parts.Axis(label=label),
            lines=tuple(lines),
            references=(),
        )


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
    if not budgets or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in budgets):
        raise RecipeError(f"budgets: expected whole numbers of 1 or more, got {list(budgets)}")
    victims = {
        name: tuple(load_recipe(recipe, seed=seed) for seed in range(seeds)) for name, recipe in _TEACHERS.items()
    }

    def student(victim: Recipe, way: _Way, budget: int) -> Recipe:
        given = {**way.fields, "queries": budget, "seed": victim.seed}
        if not way.alone:
            given["victim"] = victim
        if way.surrogate:
            given |= {"transfer": surrogate, "epochs": _SURROGATE_EPOCHS}
        return adapt(load_recipe("queries/student", **given), changes)

    points = {
        (name, way, budget): tuple(student(victim, about, budget) for victim in victims[name])
        for name in victims
        for way, about in _WAYS.items()
        for budget in sorted(set(budgets))
    }
    adapted = {name: tuple(adapt(recipe, changes) for recipe in found) for name, found in victims.items()}
    title = "What a thief gets for how many queries"
    return QueryStudy("queries", title, seeds, changes, points, adapted)
