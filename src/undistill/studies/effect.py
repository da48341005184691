"""The paper's effect at a size that two cores of a CPU can train: Table 1 by the turbo protocol, with more thieves.

The teacher is the speedrun net: normal, nasty with the paper's ω, and nasty within half a point of accuracy. Students
are the paper's own. Below the textbook's rows stand the thieves that the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from undistill.errors import UnknownNameError
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.parts.effect import Effect, EffectRow
from undistill.run import Failure
from undistill.studies.changes import Changes, adapt
from undistill.studies.paper import PaperCell, PaperRow, PaperTable, load_paper
from undistill.studies.study import STUDIES
from undistill.studies.tables import TableStudy
from undistill.studies.thieves import TEXTBOOK, THIEVES
from undistill.workspace import Workspace

__all__ = ["EffectStudy", "effect"]

_STUDENTS = ("cnn", "preresnet20", "preresnet32")
_TEACHERS = {
    "normal": ("Normal teacher", "turbo/cifar10/speedrun"),
    "nasty": ("Nasty teacher, ω=0.04", "turbo/cifar10/nasty_speedrun"),
    "budget": ("Nasty teacher, within 0.5 points", "turbo/cifar10/budget_speedrun"),
}
_ALONE = {
    "baseline": ("Student baseline", {}),
    "smoothed": ("Student alone, labels smoothed by 0.1", {"method": "label_smoothing(smoothing=0.1)"}),
    "smoother": ("Student alone, labels smoothed by 0.2", {"method": "label_smoothing(smoothing=0.2)"}),
}
# Rows of Table 1 that stand beside ours.
_PRINTED = {"baseline": "baseline", "speedrun-normal": "resnet18-normal", "speedrun-nasty": "resnet18-nasty"}
_REMARKS = (
    "Another protocol than the paper's: a tenth of its epochs, by Muon, and a smaller teacher, the speedrun net. "
    "The paper's numbers, with ResNet-18 as the teacher and the whole protocol, stand beside ours to be looked at, not "
    "to be compared.",
    "Thieves learn on the owner's training images with all their labels, as in the paper.",
    "Settings were fixed before these runs, those of the protocol on held-out images.",
)
_OF_BUDGET = "Within 0.5 points: of the held-out accuracy of its twin, from whose weights that teacher starts."


@dataclass(frozen=True)
class EffectStudy(TableStudy):
    """A table of students alone and of normal and nasty teachers, to be run.

    Attributes:
        asked: Of each row the teacher, None for students alone, and how it is asked, as it is shown.
    """

    asked: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Effect:
        """Return a part of kind ``effect``: the table, and of each row whom it asks."""
        table = super().evaluate(workspace, failures, cache)
        rows = []
        for row in table.rows:
            of, how = self.asked[row.name]
            rows.append(EffectRow(**dict(row), of=of, how=how))
        notes = (*table.notes, *([_OF_BUDGET] if any(row.of == "budget" for row in rows) else []))
        return Effect.make(**{**dict(table), "kind": "effect", "rows": tuple(rows), "notes": notes})


@STUDIES.register("effect")
def effect(
    *,
    seeds: int,
    changes: Changes,
    students: Sequence[str] = _STUDENTS,
    thieves: Sequence[str] = tuple(THIEVES),
    tried_with: Sequence[str] = ("cnn",),
) -> EffectStudy:
    """Return the study of the paper's effect in the turbo protocol.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        students: Columns: cnn, preresnet20, preresnet32.
        thieves: How they ask: textbook, untempered, htc, ttm, named.
        tried_with: Those students with which thieves ask otherwise than by the book, and learn alone with smoothed
            labels.

    Raises:
        UnknownNameError: A student or a thief is none.
    """
    _check("student of effect", (*students, *tried_with), _STUDENTS)
    _check("thief of effect", thieves, THIEVES)
    columns = ("teacher", *dict.fromkeys((*students, *tried_with)))
    rows: dict[str, PaperRow] = {}
    cells: dict[tuple[str, str], tuple[Recipe, ...]] = {}
    asked: dict[str, tuple[str | None, str]] = {}
    ways = [(None, how) for how in _ALONE] + [(teacher, how) for teacher in _TEACHERS for how in thieves]
    for teacher, how in ways:
        whole = how in ("baseline", TEXTBOOK)
        name = how if teacher is None else f"speedrun-{teacher}" if whole else f"speedrun-{teacher}-{how}"
        asked[name] = teacher, (_ALONE if teacher is None else THIEVES)[how][0]
        rows[name] = _row(name, *asked[name], columns)
        for column in columns if whole else tried_with:
            recipes = [_recipe(teacher, how, column, seed) for seed in range(seeds)]
            found = tuple(adapt(recipe, changes) for recipe in recipes if recipe is not None)
            if found:
                cells[name, column] = found
    printed = load_paper()["table1"].columns
    title = "The paper's effect, and what a thief does about it"
    paper = PaperTable(id="effect", title=title, columns={name: printed[name] for name in columns}, rows=rows)
    return EffectStudy("effect", title, seeds, changes, paper, cells, _REMARKS, "paper, whole protocol", asked)


def _check(what: str, given: Sequence[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(what, name, known)


def _row(name: str, teacher: str | None, how: str, columns: Sequence[str]) -> PaperRow:
    kind: Literal["baseline", "normal", "nasty"] = (
        "baseline" if teacher is None else "normal" if teacher == "normal" else "nasty"
    )
    label = how if teacher is None else f"{_TEACHERS[teacher][0]}: {how}"
    beside = load_paper()["table1"]
    printed = [beside.cell(_PRINTED[name], column) if name in _PRINTED else PaperCell() for column in columns]
    return PaperRow(label=label, kind=kind, teacher=teacher and "speedrun", cells=tuple(printed))


def _recipe(teacher: str | None, how: str, column: str, seed: int) -> Recipe | None:
    """Return the recipe of one cell; None where students alone have no teacher."""
    victim = None if teacher is None else _teacher(teacher, seed)
    if column == "teacher":
        return victim
    if victim is None:
        return load_recipe(f"turbo/cifar10/{column}", seed=seed, **_ALONE[how][1])
    return load_recipe(f"turbo/cifar10/kd_{column}__from_resnet18", seed=seed, victim=victim, **THIEVES[how][1])


def _teacher(name: str, seed: int) -> Recipe:
    twin = load_recipe(_TEACHERS["normal"][1], seed=seed)
    return twin if name == "normal" else load_recipe(_TEACHERS[name][1], seed=seed, adversary=twin)
