"""How an audit's strongest thief of unlabelled images fares with fewer queries: the settings of the full budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from undistill.recipe import Recipe
from undistill.reporting.cell import Cell
from undistill.reporting.parts.curves import Axis, Curves, Line, Panel, Point, Scale
from undistill.run import Failure
from undistill.studies.cells import against, cell_notes, fidelity_of, make_cell
from undistill.studies.search import changed
from undistill.studies.suite import NAMED, on_named_class
from undistill.workspace import Workspace

if TYPE_CHECKING:
    from undistill.studies.audit import Arm

__all__ = ["curve", "curve_recipes", "favourite"]

_SHARES = (10, 3, 1)  # a tenth, a third, and all of the budget
_FEWEST = 20
_NOTE = (
    "Settings are those that were chosen at the full budget. A query is an image that the victim is asked about; "
    "students take as many steps whatever their budget. In brackets: soft answers against the same way to learn from "
    "the named class."
)


def favourite(arms: Sequence[Arm], workspace: Workspace) -> Arm | None:
    """Return the thief that the search found best on held-out images; the first of equals, None without one."""
    scores = {at: arm.tuned.choice(workspace) for at, arm in enumerate(arms) if arm.thief}
    known = {at: score for at, score in scores.items() if score is not None}
    return arms[max(known, key=lambda at: known[at])] if known else None


def curve_recipes(
    arms: Sequence[Arm], workspace: Workspace, failed: Collection[str] = ()
) -> dict[str, dict[int, tuple[Recipe, ...]]]:
    """Return by way to learn, and by budget, the recipes of the favourite, and of two who see the named class alone.

    Args:
        arms: Of one person, who has no labels and no defense on the answers; empty for nobody.
        workspace: Where the runs are.
        failed: Hashes of recipes that have no result and will have none.

    Returns:
        Nothing while searches go on.
    """
    best = favourite(arms, workspace)
    if best is None or not all(arm.tuned.done(workspace, failed) for arm in arms):
        return {}
    shown = [arm for arm in arms if arm is best or (not arm.thief and arm.method in (best.method, NAMED))]
    whole = best.tuned.base.queries or 0
    budgets = sorted({max(_FEWEST, whole // share) for share in _SHARES if whole >= _FEWEST})
    return {
        arm.name: {
            budget: tuple(changed(recipe, queries=budget) for recipe in arm.tuned.best(workspace)) for budget in budgets
        }
        for arm in shown
        if arm.tuned.best(workspace)
    }


def curve(
    found: Mapping[str, Mapping[int, Sequence[Recipe]]],
    person: str,
    seeds: int,
    workspace: Workspace,
    failures: Mapping[str, Failure],
) -> Curves:
    """Return the part that shows what ``curve_recipes`` asked for: accuracy and fidelity over the budget."""
    panels = [
        Panel(
            name=name,
            title=f"{person}, {name}",
            x=Scale(label="queries", scale="log"),
            y=Axis(label=label),
            lines=tuple(_lines(found, partial(make_cell, workspace=workspace, failures=failures, read=read))),
            references=(),
        )
        for name, label, read in (
            ("accuracy", "Test accuracy, %", lambda run: run.accuracy),
            ("fidelity", "Fidelity, %", fidelity_of),
        )
    ]
    named = [
        (f"{line.label}, {point.x} queries", point) for panel in panels for line in panel.lines for point in line.points
    ]
    return Curves.make(
        name="queries",
        header="Queries",
        title="What the thief that is best on held-out images gets for how many queries, and the named class alone",
        seeds=seeds,
        notes=(_NOTE, *cell_notes(named, seeds)),
        failed=any(point.failures for _, point in named),
        panels=tuple(panels),
    )


def _lines(found: Mapping[str, Mapping[int, Sequence[Recipe]]], cell: Callable[..., Cell]) -> Iterator[Line]:
    cells = {name: {budget: cell(recipes) for budget, recipes in points.items()} for name, points in found.items()}
    for name, points in cells.items():
        beside = cells.get(on_named_class(name), {})
        shown = {budget: against(point, beside.get(budget)) for budget, point in points.items()}
        yield Line(
            name=name,
            label=name,
            role="student",
            against=None,
            points=tuple(Point(x=budget, **dict(point)) for budget, point in shown.items()),
        )
