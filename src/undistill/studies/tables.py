"""The tables of the paper as recipes: one for each cell and seed, under the names that its numbers have.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
    Chen et al., "Data-Free Learning of Student Networks", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from undistill.recipe import Recipe
from undistill.reporting.cell import Cell
from undistill.reporting.parts.table import Column, Row, Table
from undistill.run import Failure
from undistill.studies.cells import against, cell_notes, common, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.datafree import data_free
from undistill.studies.paper import PaperTable, load_paper
from undistill.studies.protocol import nasty, normal, student
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["TABLES", "TableStudy", "make_table", "table6"]

TABLES = ("table1", "table2", "table3", "table4", "table5")


@dataclass(frozen=True)
class TableStudy(Study):
    """One table of the paper, to be run.

    Attributes:
        paper: What the paper prints.
        cells: Recipes of each (row, column), one a seed, by the paper's row and column names.
        remarks: What a reader must know beside the numbers.
        printed: How the paper's numbers are called, where they are of another protocol: they are shown, and no more.
    """

    paper: PaperTable
    cells: Mapping[tuple[str, str], tuple[Recipe, ...]]
    remarks: tuple[str, ...] = ()
    printed: str | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows that are run, in printed order."""
        return tuple(dict.fromkeys(row for row, _ in self.cells))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all cells."""
        for recipes in self.cells.values():
            yield from recipes

    def pick(self, keep: Keep) -> TableStudy | None:
        """Return the table with the rows that were asked for, None if there are none."""
        cells = {(row, column): found for (row, column), found in self.cells.items() if keep(self.name, row)}
        return replace(self, cells=cells) if cells else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Table:
        """Return a part of kind ``table``: ``columns``, and ``rows`` with cells by column."""
        cells = {
            where: make_cell(recipes, workspace, failures, self.paper.cell(*where))
            for where, recipes in self.cells.items()
        }
        if self.printed is not None:
            cells = {where: cell.model_copy(update={"disagrees": None}) for where, cell in cells.items()}
        for where in cells:
            cells[where] = against(cells[where], cells.get(_reference(self.paper, *where)))
        named = [(f"{self.paper.rows[r].label}, {self.paper.columns[c].label}", cells[r, c]) for r, c in cells]
        return Table.make(
            **{**common(self, named), "notes": (*self.remarks, *self._notes(cells))},
            columns=tuple(
                Column(name=name, label=column.label, data=column.dataset)
                for name, column in self.paper.columns.items()
            ),
            rows=tuple(
                Row(
                    name=row,
                    label=self.paper.rows[row].label,
                    cells={column: cells[row, column] for column in self.paper.columns if (row, column) in cells},
                )
                for row in self.rows
            ),
            errata=tuple(erratum.model_dump(mode="json", exclude_none=True) for erratum in self.paper.errata),
            printed=self.printed,
        )

    def _notes(self, cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
        yield (
            "In brackets: the difference, in points, to the reference that the paper takes, which is of the same table."
        )
        named = {(r, c): f"{self.paper.rows[r].label}, {self.paper.columns[c].label}" for r, c in cells}
        yield from cell_notes([(name, cells[where]) for where, name in named.items()], self.seeds)
        for where, name in named.items():
            erratum = self.paper.erratum(*where)
            if erratum is not None:
                yield f"In the paper, {name}: {erratum.note}"


def make_table(name: str, *, seeds: int, changes: Changes) -> TableStudy:
    """Return one of ``TABLES`` as a study."""
    paper = load_paper()[name]
    cells: dict[tuple[str, str], tuple[Recipe, ...]] = {}
    for row in paper.rows:
        for column in paper.columns:
            recipes = [_recipe(paper, row, column, seed) for seed in range(seeds)]
            found = tuple(adapt(recipe, changes) for recipe in recipes if recipe is not None)
            if found:
                cells[row, column] = found
    return TableStudy(name, paper.title, seeds, changes, paper, cells)


for _name in TABLES:
    STUDIES.register(_name)(partial(make_table, _name))


@STUDIES.register("table6")
def table6(*, seeds: int, changes: Changes) -> TableStudy:
    """Return Table 6: what a thief without data (DAFL) gets from a ResNet-34 on CIFAR-10 and CIFAR-100.

    The paper does not name the students; they are ResNet-18, as in the DAFL paper.
    """
    paper = load_paper()["table6"]

    def recipe(row: str, column: str, seed: int) -> Recipe:
        data, kind = paper.columns[column].dataset, paper.rows[row].kind
        teacher = (normal if kind == "normal" else nasty)(data, "resnet34", seed)
        if paper.columns[column].measure == "teacher":
            return adapt(teacher, changes)
        return data_free(data, "dafl", teacher, changes)

    cells = {
        (row, column): tuple(recipe(row, column, seed) for seed in range(seeds))
        for row in paper.rows
        for column in paper.columns
    }
    return TableStudy("table6", paper.title, seeds, changes, paper, cells)


def _recipe(paper: PaperTable, row: str, column: str, seed: int) -> Recipe | None:
    """Return the recipe of one cell; None where the paper's table has a dash."""
    data = paper.columns[column].dataset
    teacher = None if paper.rows[row].kind == "baseline" else _teacher(paper, row, data, seed)
    if paper.columns[column].measure == "teacher":
        return teacher
    model = paper.student(row, column)
    if model is None:
        return None
    return normal(data, model, seed) if teacher is None else student(data, model, teacher)


def _teacher(paper: PaperTable, row: str, data: str, seed: int) -> Recipe:
    printed = paper.rows[row]
    model = str(printed.teacher)
    if printed.kind == "normal":
        return normal(data, model, seed)
    return nasty(data, model, seed, adversary=printed.adversary)


def _reference(paper: PaperTable, row: str, column: str) -> tuple[str, str]:
    """Return the cell that the difference of a cell is measured against; no cell's name if there is none."""
    against, printed = paper.columns[column].against, paper.rows[row]
    if against == "baseline":
        return ("", "") if row == "baseline" else ("baseline", column)
    if printed.kind in (against, "baseline"):
        return "", ""
    return f"{printed.teacher}-normal", column if against == "normal" else "teacher"
