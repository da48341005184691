"""How a thief trains: what a nasty teacher does to students that learn from it for longer, or by another optimizer.

The paper's CNN learns by Adam at a rate that stays as it is. Here it does so for a while, for longer and for much
longer, and by Muon. Each way to train has its own student alone beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from undistill.errors import RecipeError, UnknownNameError
from undistill.functional.statistics import paired_difference
from undistill.recipe import Recipe, load_recipe
from undistill.registry import Spec
from undistill.reporting.cell import Cell
from undistill.reporting.parts.effect import Effect
from undistill.reporting.wording import change
from undistill.run import Failure
from undistill.studies.changes import Changes, adapt
from undistill.studies.effect import EffectStudy
from undistill.studies.paper import PaperCell, PaperColumn, PaperRow, PaperTable
from undistill.studies.study import STUDIES
from undistill.studies.thieves import TEXTBOOK, THIEVES, ways_to_ask
from undistill.workspace import Workspace

__all__ = ["TrainingStudy", "compared", "training"]


class _Nets(NamedTuple):
    """Recipes of the normal teacher, the nasty one and the student alone; the paper's τ."""

    normal: str
    nasty: str
    student: str
    temperature: int


_NETS: Mapping[str, _Nets] = {
    "digits": _Nets("training/digits_teacher", "training/digits_nasty", "training/digits_student", 4),
    "cifar10": _Nets("turbo/cifar10/speedrun", "turbo/cifar10/nasty_speedrun", "turbo/cifar10/cnn", 4),
    "cifar100": _Nets("training/cifar100_teacher", "training/cifar100_nasty", "training/cifar100_student", 20),
}
# What a constant rate ends with is chance: of its epochs the best on held-out images is taken, as a thief would.
_ADAM = {
    "optimizer": "adam",
    "lr": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "milestones": [],
    "selection": "heldout",
}
_MUON = {
    "optimizer": "muon",
    "lr": 0.03,
    "weight_decay": 0.0,
    "schedule": "linear",
    "milestones": [],
    "selection": "last",
}
_SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0005, "schedule": "step", "gamma": 0.2, "selection": "heldout"}
_STEPS = (0.3, 0.6, 0.8)  # of all epochs, at which the rate of the paper's SGD falls
# By name: how it is shown, for how many times the student's epochs, and what the recipe says.
_WAYS: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "sgd": ("SGD, falling in steps", 1, _SGD),
    "adam": ("Adam, constant rate", 1, _ADAM),
    "longer": ("Adam, 4 times as long", 4, _ADAM),
    "longest": ("Adam, 16 times as long", 16, _ADAM),
    "muon": ("Muon, falling rate", 1, _MUON),
}
_DEFAULT = ("adam", "longer", "longest", "muon")
_REMARKS = {
    "digits": "Teachers are ResNet-18, the student is the paper's CNN, both at a quarter of their width; teachers "
    "learn by the paper's optimizer, with its τ and ω.",
    "cifar10": "Teachers are the speedrun net, with the paper's τ and ω; the student is the paper's CNN.",
    "cifar100": "Teachers are the speedrun net, with the paper's τ and ω; the student is the paper's MobileNetV2 at a "
    "quarter of its width.",
}
_OF_WAYS = {
    "sgd": "The paper trains all its nets but the CNN by SGD, at a rate of 0.1 that falls to a fifth after 30, 60 and "
    "80 percent of the epochs: of all epochs the best on held-out images counts.",
    "adam": "Adam at a constant rate of 0.001 is what the paper trains its CNN by: of all epochs the best on held-out "
    "images counts.",
    "muon": "By Muon the rate falls to zero, in as many epochs as the others have at first, and the last one counts.",
}
_NOTES = (
    "In each column all students are trained alike, the one alone too. Thieves learn on the owner's training images "
    "with all their labels, as in the paper. Another protocol than the paper's. Rates were not searched."
)
_CHOSEN = (
    "The ways to train were chosen after a trial on digits with some of these seeds, in which a falling rate of Adam "
    "stood in place of the longer ones."
)


@dataclass(frozen=True)
class TrainingStudy(EffectStudy):
    """A table of students by how they are trained, which says how far apart the ways are."""

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Effect:
        """Return a part of kind ``effect``, with the ways compared in its notes."""
        part = super().evaluate(workspace, failures, cache)
        return part.model_copy(update={"notes": (*part.notes, *compared(part))})


@STUDIES.register("training")
def training(
    *,
    seeds: int,
    changes: Changes,
    data: str = "digits",
    ways: Sequence[str] = _DEFAULT,
    thieves: Sequence[str] = (TEXTBOOK,),
) -> TrainingStudy:
    """Return the study of how a thief trains.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        data: Name of the data set: digits, cifar10, cifar100.
        ways: How students are trained, a column each: sgd, adam, longer, longest, muon.
        thieves: How the teachers are asked: textbook, untempered, htc, ttm, named.

    Raises:
        UnknownNameError: The data set, a way or a thief is none.
        RecipeError: ``profile=turbo``, which would train every student alike.
    """
    if changes.profile == "turbo":
        raise RecipeError(
            "training: its columns are ways to train, and turbo is one; leave out --profile turbo, or of all studies "
            "this one: --skip training"
        )
    given = {"data set": ([data], _NETS), "way": (ways, _WAYS), "thief": (thieves, THIEVES)}
    for what, (names, known) in given.items():
        for name in names:
            if name not in known:
                raise UnknownNameError(f"{what} of training", name, known)
    labels = ways_to_ask(_NETS[data].temperature)
    columns = {way: _column(data, way) for way in ("teacher", *ways)}
    rows: dict[str, PaperRow] = {}
    cells: dict[tuple[str, str], tuple[Recipe, ...]] = {}
    asked: dict[str, tuple[str | None, str]] = {}
    for teacher, how in [(None, ""), *((teacher, how) for teacher in ("normal", "nasty") for how in thieves)]:
        row = "baseline" if teacher is None else f"{teacher}-{how}"
        asked[row] = teacher, "Student alone" if teacher is None else labels[how][0]
        rows[row] = _row(*asked[row], len(columns))
        for way in columns:
            recipes = [_recipe(data, way, teacher, how, seed) for seed in range(seeds)]
            found = tuple(_adapted(recipe, way, changes) for recipe in recipes if recipe is not None)
            if found:
                cells[row, way] = found
    title = "What a nasty teacher does to a thief, by how he trains"
    paper = PaperTable(id="training", title=title, columns=columns, rows=rows)
    said = [_OF_WAYS["adam" if way in ("longer", "longest") else way] for way in ways]
    remarks = (_REMARKS[data], *dict.fromkeys(said), _NOTES, *([_CHOSEN] if data == "digits" else []))
    return TrainingStudy("training", title, seeds, changes, paper, cells, remarks, asked=asked)


def _column(data: str, way: str) -> PaperColumn:
    if way == "teacher":
        return PaperColumn(label="Teacher performance", dataset=data, measure="teacher", against="normal")
    student = Spec.parse(load_recipe(_NETS[data].student).model).name
    return PaperColumn(label=_WAYS[way][0], dataset=data, measure="kd", student=student, against="baseline")


def _row(teacher: str | None, how: str, columns: int) -> PaperRow:
    cells = tuple(PaperCell() for _ in range(columns))
    if teacher is None:
        return PaperRow(label=how, kind="baseline", cells=cells)
    label = f"{teacher.capitalize()} teacher: {how}"
    return PaperRow(label=label, kind="normal" if teacher == "normal" else "nasty", teacher=teacher, cells=cells)


def _recipe(data: str, way: str, teacher: str | None, how: str, seed: int) -> Recipe | None:
    """Return the recipe of one cell; None where students alone have no teacher."""
    nets = _NETS[data]
    twin = load_recipe(nets.normal, seed=seed)
    victim = twin if teacher == "normal" else load_recipe(nets.nasty, seed=seed, adversary=twin)
    if way == "teacher":
        return None if teacher is None else victim
    _, times, fields = _WAYS[way]
    fields = {**fields, "epochs": times * load_recipe(nets.student).epochs, "seed": seed}
    if way == "sgd":
        fields["milestones"] = [round(share * fields["epochs"]) for share in _STEPS]
    if teacher is None:
        return load_recipe(nets.student, **fields)
    return load_recipe(nets.student, victim=victim, **ways_to_ask(nets.temperature)[how][1], **fields)


def _adapted(recipe: Recipe, way: str, changes: Changes) -> Recipe:
    """Return a recipe with the changes made; a longer way stays as many times longer than the others."""
    found = adapt(recipe, changes)
    if way == "teacher" or changes.epochs is None:
        return found
    return found.model_copy(update={"epochs": _WAYS[way][1] * changes.epochs})


def compared(part: Effect) -> Iterator[str]:
    """Yield of each way to ask the nasty teacher what a thief who trains otherwise is spared, paired by seed."""
    alone = next((row for row in part.rows if row.of is None), None)
    ways = [column for column in part.columns if column.name != "teacher"]
    if alone is None or not {way.name for way in ways} <= alone.cells.keys():
        return
    first, *others = ways
    for row in (row for row in part.rows if row.of == "nasty"):
        told = []
        for way in others:
            # Four counts of test images, where a difference of two students has two.
            resolution = math.sqrt(2) * 100 / (row.cells[way.name].images or math.inf)
            here, there = (_ends(row.cells[name], alone.cells[name]) for name in (way.name, first.name))
            found = paired_difference(here, there, resolution=resolution)
            if found is not None and found.ends is not None:
                told.append(f"{change(found.mean, found.ends)} ({way.label})")
        if told:
            yield (
                f"Nasty teacher, {row.how}: points that a student is spared that is not trained the first way "
                f"({first.label}), paired by seed: {', '.join(told)}."
            )


def _ends(student: Cell, alone: Cell) -> dict[int, float]:
    """Return by seed where a student ends against the same student alone, in points."""
    return {int(seed): student.values[seed] - alone.values[seed] for seed in student.values.keys() & alone.values}
