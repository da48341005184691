"""Tables 1 to 5 of the paper as recipes: one for each cell and seed, under the names that its numbers have.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from undistill.data import check_dataset_spec
from undistill.errors import RecipeError, UnknownNameError
from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.registry import Spec
from undistill.studies.paper import PaperTable, load_paper
from undistill.studies.plan import Plan

__all__ = ["TABLES", "Changes", "TableStudy", "adapt", "load_studies"]

TABLES = ("table1", "table2", "table3", "table4", "table5")
_SMOKE_DATA = "digits(subset=128, test_subset=100)"
_SMOKE_WIDTHS = {"resnext29": 0.03, "resnet18": 0.125, "resnet50": 0.0625}
_SMOKE_WIDTH = 0.25


@dataclass(frozen=True)
class Changes:
    """How a study departs from the paper's protocol. Nothing set: it does not.

    Attributes:
        smoke: Tiny data, nets and epochs: shows that everything works, and nothing else.
        data: What to train on in place of a data set, by the data set's name.
        epochs: Of every run; milestones move in proportion.
        width: Factor on the channels of every net.
    """

    smoke: bool = False
    data: Mapping[str, str] | None = None
    epochs: int | None = None
    width: float | None = None

    @property
    def label(self) -> str:
        """``smoke``, ``reduced`` (fewer epochs or channels, other data) or ``paper``."""
        if self.smoke:
            return "smoke"
        return "reduced" if self.describe() else "paper"

    def describe(self) -> dict[str, Any]:
        """Return what is changed, as plain values."""
        given = {"data": dict(self.data or {}) or None, "epochs": self.epochs, "width": self.width}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class TableStudy:
    """One table of the paper, to be run.

    Attributes:
        paper: What the paper prints.
        cells: Recipes of each (row, column), one a seed, by the paper's row and column names.
        seeds: Number of seeds.
        changes: How the recipes depart from the paper's protocol.
    """

    paper: PaperTable
    cells: Mapping[tuple[str, str], tuple[Recipe, ...]]
    seeds: int
    changes: Changes

    @property
    def name(self) -> str:
        """``"table1"`` to ``"table5"``."""
        return self.paper.id

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows that are run, in printed order."""
        return tuple(dict.fromkeys(row for row, _ in self.cells))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all cells."""
        for recipes in self.cells.values():
            yield from recipes

    @property
    def plan(self) -> Plan:
        """The runs behind all cells."""
        return Plan.of(self.recipes)


def load_studies(
    name: str,
    *,
    seeds: int = 1,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    changes: Changes = Changes(),
) -> tuple[TableStudy, ...]:
    """Return one table of the paper as a study, or all five.

    Args:
        name: ``"table1"`` to ``"table5"``, or ``"all"``.
        seeds: Repetitions, 1 or more: seeds 0 to ``seeds - 1``.
        only: Names of the rows to run; all if empty.
        skip: Names of rows to leave out.
        changes: What to change in every recipe.

    Raises:
        RecipeError: A name or number is wrong, a change does not fit a recipe, or no row is left.
    """
    if name not in (*TABLES, "all"):
        raise UnknownNameError("study", name, (*TABLES, "all"))
    if seeds < 1:
        raise RecipeError(f"seeds: must be 1 or more, got {seeds}")
    papers = [load_paper()[table] for table in (TABLES if name == "all" else (name,))]
    known = {row: None for paper in papers for row in paper.rows}
    for row in (*only, *skip):
        if row not in known:
            raise UnknownNameError(f"row of {name}" if name != "all" else "row", row, known)
    _check_changes(changes, papers)
    rows = [row for row in known if (not only or row in only) and row not in skip]
    studies = [_study(paper, rows, seeds, changes) for paper in papers]
    studies = [study for study in studies if study.cells]
    if not studies:
        raise RecipeError("--only and --skip leave no row; remove one of them")
    return tuple(studies)


def adapt(recipe: Recipe, changes: Changes) -> Recipe:
    """Return a recipe with the changes made in it and in the recipes nested in it; its label says so."""
    if changes.label == "paper":
        return recipe
    fields: dict[str, Any] = {key: getattr(recipe, key) for key in Recipe.model_fields}
    model = Spec.parse(recipe.model)
    width, epochs, data = changes.width, changes.epochs, (changes.data or {}).get(recipe.data, recipe.data)
    if changes.smoke:
        width, epochs, data = _SMOKE_WIDTHS.get(model.name, _SMOKE_WIDTH), 2, _SMOKE_DATA
        fields["batch_size"] = 64
    if width is not None:
        fields["model"] = str(Spec(model.name, {**model.kwargs, "width": width}))
    if epochs is not None:
        fields["epochs"] = epochs
        fields["milestones"] = tuple(sorted({epochs * old // recipe.epochs for old in recipe.milestones}))
    for key in ("adversary", "victim"):
        if isinstance(fields[key], Recipe):
            fields[key] = adapt(fields[key], changes)
    label = recipe.name or f"{Spec.parse(recipe.method).name}-{model.name}"
    return make_recipe({**fields, "data": data, "name": f"{changes.label}-{label}", "folder": None})


def _study(paper: PaperTable, rows: Collection[str], seeds: int, changes: Changes) -> TableStudy:
    cells: dict[tuple[str, str], tuple[Recipe, ...]] = {}
    for row in paper.rows:
        for column in paper.columns:
            recipes = [_recipe(paper, row, column, seed) for seed in range(seeds)] if row in rows else []
            found = tuple(adapt(recipe, changes) for recipe in recipes if recipe is not None)
            if found:
                cells[row, column] = found
    return TableStudy(paper, cells, seeds, changes)


def _recipe(paper: PaperTable, row: str, column: str, seed: int) -> Recipe | None:
    """Return the recipe of one cell; None where the paper's table has a dash."""
    folder = f"paper/{paper.columns[column].dataset}"
    teacher = None if paper.rows[row].kind == "baseline" else _teacher(paper, row, folder, seed)
    if paper.columns[column].measure == "teacher":
        return teacher
    student = paper.student(row, column)
    if student is None:
        return None
    if teacher is None:
        return load_recipe(f"{folder}/{student}", seed=seed)
    name = f"{folder}/kd_{student}__from_{paper.rows[row].teacher}"
    return load_recipe(name, seed=seed, victim=teacher)


def _teacher(paper: PaperTable, row: str, folder: str, seed: int) -> Recipe:
    printed = paper.rows[row]
    if printed.kind == "normal":
        return load_recipe(f"{folder}/{printed.teacher}", seed=seed)
    # As a recipe of its own: the other adversaries of Table 4 have a protocol of their own.
    adversary = load_recipe(f"{folder}/{printed.adversary}", seed=seed)
    return load_recipe(f"{folder}/nasty_{printed.teacher}", seed=seed, adversary=adversary)


def _check_changes(changes: Changes, papers: Collection[PaperTable]) -> None:
    if changes.smoke and changes.describe():
        raise RecipeError(f"a smoke study is what it is: leave out {', '.join(changes.describe())}, or smoke")
    known = list(dict.fromkeys(dataset for paper in papers for dataset in paper.datasets))
    problems = [] if changes.width is None or changes.width > 0 else [f"width: must be above 0, got {changes.width}"]
    for name, spec in (changes.data or {}).items():
        if name not in known:
            raise UnknownNameError("data set of this study", name, known)
        problems += check_dataset_spec(spec)
    if problems:
        raise RecipeError(problems)
