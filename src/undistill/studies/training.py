"""How a thief trains: what a nasty teacher does to students that learn from it for longer, or by another optimizer.

The paper's CNN learns by Adam at a rate that stays as it is. Here it does so for a while, for longer and for much
longer, and by Muon. Each way to train has its own student alone beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undistill.errors import RecipeError, UnknownNameError
from undistill.recipe import Recipe, load_recipe
from undistill.studies.changes import Changes, adapt
from undistill.studies.effect import EffectStudy
from undistill.studies.paper import PaperCell, PaperColumn, PaperRow, PaperTable
from undistill.studies.study import STUDIES
from undistill.studies.thieves import TEXTBOOK, THIEVES

__all__ = ["training"]

# By data set: the recipes of the normal teacher, the nasty one and the student alone.
_NETS: Mapping[str, tuple[str, str, str]] = {
    "digits": ("training/digits_teacher", "training/digits_nasty", "training/digits_student"),
    "cifar10": ("turbo/cifar10/speedrun", "turbo/cifar10/nasty_speedrun", "turbo/cifar10/cnn"),
}
# What a constant rate ends with is chance: of its epochs the best on held-out images is taken, as a thief would.
_ADAM = {"optimizer": "adam", "lr": 0.001, "schedule": "constant", "selection": "heldout"}
_MUON = {"optimizer": "muon", "lr": 0.03, "schedule": "linear", "selection": "last"}
_PLAIN = {"weight_decay": 0.0, "milestones": []}
# By name: how it is shown, for how many times the student's epochs, and what the recipe says.
_WAYS: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "adam": ("Adam, constant rate", 1, {**_PLAIN, **_ADAM}),
    "longer": ("Adam, 4 times as long", 4, {**_PLAIN, **_ADAM}),
    "longest": ("Adam, 16 times as long", 16, {**_PLAIN, **_ADAM}),
    "muon": ("Muon, falling rate", 1, {**_PLAIN, **_MUON}),
}
_REMARKS = {
    "digits": "Teachers are ResNet-18, the student is the paper's CNN, both at a quarter of their width; teachers "
    "learn by the paper's optimizer, with its τ and ω.",
    "cifar10": "Teachers are the speedrun net, with the paper's τ and ω; the student is the paper's CNN.",
}
_NOTES = (
    "Adam at a constant rate of 0.001 is what the paper trains its CNN by: of all epochs the best on held-out images "
    "counts. By Muon the rate falls to zero, in as many epochs as Adam has at first, and the last one counts. In each "
    "column all students are trained alike, the one alone too.",
    "Thieves learn on the owner's training images with all their labels, as in the paper. Another protocol than the "
    "paper's. Rates were not searched. The ways to train were chosen after a trial on digits with some of these seeds, "
    "in which a falling rate of Adam stood in place of the longer ones.",
)


@STUDIES.register("training")
def training(
    *,
    seeds: int,
    changes: Changes,
    data: str = "digits",
    ways: Sequence[str] = tuple(_WAYS),
    thieves: Sequence[str] = (TEXTBOOK,),
) -> EffectStudy:
    """Return the study of how a thief trains.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        data: Name of the data set: digits, cifar10.
        ways: How students are trained, a column each: adam, longer, longest, muon.
        thieves: How the teachers are asked: textbook, untempered, htc, ttm, named.

    Raises:
        UnknownNameError: The data set, a way or a thief is none.
        RecipeError: ``profile=turbo``, which would train every student alike.
    """
    if changes.profile == "turbo":
        raise RecipeError("training: its columns are ways to train, and turbo is one; leave out --profile turbo")
    given = {"data set": ([data], _NETS), "way": (ways, _WAYS), "thief": (thieves, THIEVES)}
    for what, (names, known) in given.items():
        for name in names:
            if name not in known:
                raise UnknownNameError(f"{what} of training", name, known)
    columns = {way: _column(data, way) for way in ("teacher", *ways)}
    rows: dict[str, PaperRow] = {}
    cells: dict[tuple[str, str], tuple[Recipe, ...]] = {}
    asked: dict[str, tuple[str | None, str]] = {}
    for teacher, how in [(None, ""), *((teacher, how) for teacher in ("normal", "nasty") for how in thieves)]:
        row = "baseline" if teacher is None else f"{teacher}-{how}"
        asked[row] = teacher, "Student alone" if teacher is None else THIEVES[how][0]
        rows[row] = _row(*asked[row], len(columns))
        for way in columns:
            recipes = [_recipe(data, way, teacher, how, seed) for seed in range(seeds)]
            found = tuple(_adapted(recipe, way, changes) for recipe in recipes if recipe is not None)
            if found:
                cells[row, way] = found
    title = "What a nasty teacher does to a thief, by how he trains"
    paper = PaperTable(id="training", title=title, columns=columns, rows=rows)
    remarks = (_REMARKS[data], *_NOTES)
    return EffectStudy("training", title, seeds, changes, paper, cells, remarks, asked=asked)


def _column(data: str, way: str) -> PaperColumn:
    if way == "teacher":
        return PaperColumn(label="Teacher performance", dataset=data, measure="teacher", against="normal")
    return PaperColumn(label=_WAYS[way][0], dataset=data, measure="kd", student="cnn", against="baseline")


def _row(teacher: str | None, how: str, columns: int) -> PaperRow:
    cells = tuple(PaperCell() for _ in range(columns))
    if teacher is None:
        return PaperRow(label=how, kind="baseline", cells=cells)
    label = f"{teacher.capitalize()} teacher: {how}"
    return PaperRow(label=label, kind="normal" if teacher == "normal" else "nasty", teacher=teacher, cells=cells)


def _recipe(data: str, way: str, teacher: str | None, how: str, seed: int) -> Recipe | None:
    """Return the recipe of one cell; None where students alone have no teacher."""
    normal, nasty, student = _NETS[data]
    twin = load_recipe(normal, seed=seed)
    victim = twin if teacher == "normal" else load_recipe(nasty, seed=seed, adversary=twin)
    if way == "teacher":
        return None if teacher is None else victim
    _, times, fields = _WAYS[way]
    fields = {**fields, "epochs": times * load_recipe(student).epochs, "seed": seed}
    if teacher is None:
        return load_recipe(student, **fields)
    return load_recipe(student, victim=victim, **THIEVES[how][1], **fields)


def _adapted(recipe: Recipe, way: str, changes: Changes) -> Recipe:
    """Return a recipe with the changes made; a longer way stays as many times longer than the others."""
    found = adapt(recipe, changes)
    if way == "teacher" or changes.epochs is None:
        return found
    return found.model_copy(update={"epochs": _WAYS[way][1] * changes.epochs})
