"""The numbers that the paper prints, with what each difference is measured against and where they do not add up.

They are transcribed in ``paper.yaml``, beside this module.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021, Tables 1 to 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from undistill.errors import UnknownNameError

__all__ = ["PaperCell", "PaperColumn", "PaperErratum", "PaperRow", "PaperTable", "load_paper"]

_FILE = Path(__file__).with_name("paper.yaml")


class _Printed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PaperCell(_Printed):
    """One printed number.

    Attributes:
        value: Top-1 test accuracy in percent; None where the paper prints a dash.
        difference: The difference printed beside it, in points; None where there is none.
    """

    value: float | None = None
    difference: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return dict(zip(("value", "difference"), given, strict=False)) if isinstance(given, list) else given


class PaperColumn(_Printed):
    """One column of numbers.

    Attributes:
        label: As printed.
        dataset: Our name of the data set.
        measure: Whose accuracy: the teacher's, a student's after distillation (``kd``) or without data (``dafl``).
        student: Our name of the student's model; ``"self"`` for the row's own teacher, None where none is printed.
        against: What its differences are measured against: the ``baseline`` row or the same teacher's ``normal`` row
            in this column, or the accuracy of that normal ``teacher`` itself.
    """

    label: str
    dataset: str
    measure: Literal["teacher", "kd", "dafl"]
    student: str | None = None
    against: Literal["baseline", "normal", "teacher"]


class PaperRow(_Printed):
    """One row.

    Attributes:
        label: As printed.
        kind: Students alone, or the teacher trained normally or made nasty.
        teacher: Our name of the teacher's model; None in a baseline row.
        adversary: Our name of the adversary's model; None unless the row is nasty.
        cells: One for each column of the table.
    """

    label: str
    kind: Literal["baseline", "normal", "nasty"]
    teacher: str | None = None
    adversary: str | None = None
    cells: tuple[PaperCell, ...]


class PaperErratum(_Printed):
    """One place where the slides contradict themselves.

    Attributes:
        kind: A difference that is not the difference, a network's label spelled in a second way, or a claim of the
            text that the table does not bear out.
        row: Name of the row; None if there is no single one.
        column: Name of the column; None if there is no single one.
        printed: What the slides print; None for a claim.
        derived: What the rest of the slides says it should be; None for a claim.
        note: One line in words.
    """

    kind: Literal["difference", "label", "claim"]
    row: str | None = None
    column: str | None = None
    printed: float | str | None = None
    derived: float | str | None = None
    note: str


class PaperTable(_Printed):
    """One table of the paper.

    Attributes:
        id: ``"table1"`` to ``"table6"``.
        title: What it shows.
        columns: By name, in printed order: ``"teacher"`` and the students, after the data set where there are two
            (``"cifar10-resnet50"``).
        rows: By name, in printed order: ``"baseline"``, ``"resnet18-normal"``, ``"resnet18-nasty"``, and
            ``"resnet18-nasty-cnn"`` with an adversary of another architecture.
        errata: Where the slides contradict themselves.
    """

    id: str
    title: str
    columns: Mapping[str, PaperColumn]
    rows: Mapping[str, PaperRow]
    errata: tuple[PaperErratum, ...] = ()

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        ragged = [name for name, row in self.rows.items() if len(row.cells) != len(self.columns)]
        if ragged:
            raise ValueError(f"expected {len(self.columns)} cells in each row of {self.id}, not so in {ragged}")
        return self

    @property
    def datasets(self) -> tuple[str, ...]:
        """Our names of its data sets, in printed order."""
        return tuple(dict.fromkeys(column.dataset for column in self.columns.values()))

    def cell(self, row: str, column: str) -> PaperCell:
        """Return what is printed in one cell.

        Raises:
            UnknownNameError: The table has no such row or column.
        """
        self._check(row, column)
        return self.rows[row].cells[list(self.columns).index(column)]

    def student(self, row: str, column: str) -> str | None:
        """Return our name of the model that is the student of one cell, None where there is none or none is printed.

        Raises:
            UnknownNameError: The table has no such row or column.
        """
        self._check(row, column)
        student = self.columns[column].student
        return self.rows[row].teacher if student == "self" else student

    def reference(self, row: str, column: str) -> float | None:
        """Return the accuracy that the difference of one cell is measured against, None where there is none.

        Raises:
            UnknownNameError: The table has no such row or column.
        """
        self._check(row, column)
        against, kind = self.columns[column].against, self.rows[row].kind
        if kind in (against, "baseline"):
            return None  # the row is a reference itself
        if against == "baseline":
            return self.cell("baseline", column).value
        return self.cell(f"{self.rows[row].teacher}-normal", column if against == "normal" else "teacher").value

    def erratum(self, row: str, column: str) -> PaperErratum | None:
        """Return what is wrong with the number in one cell, None if it adds up."""
        here = (e for e in self.errata if e.kind == "difference" and (e.row, e.column) == (row, column))
        return next(here, None)

    def _check(self, row: str, column: str) -> None:
        if row not in self.rows:
            raise UnknownNameError(f"row of {self.id}", row, self.rows)
        if column not in self.columns:
            raise UnknownNameError(f"column of {self.id}", column, self.columns)


@cache
def load_paper() -> Mapping[str, PaperTable]:
    """Return the tables of the paper by id, ``"table1"`` to ``"table6"``; read once."""
    tables = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return MappingProxyType({name: PaperTable(id=name, **table) for name, table in tables.items()})
