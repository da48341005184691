"""A table of accuracies: a row a net, a column a student, a data set or a domain."""

from __future__ import annotations

from collections.abc import Iterator

from undistill.reporting.cell import Cell, Plain, show
from undistill.reporting.parts import Grid, GridRow, Part, register_part

__all__ = ["Column", "Row", "Table"]


class Column(Plain):
    """One column: its name, how it is shown, and which data set it is of."""

    name: str
    label: str
    data: str


class Row(Plain):
    """One row: its name, how it is shown, and its cells by column.

    A study of ownership adds whether the net comes from the owner's (``marked``) and, by seed, what the patch costs it
    in points (``gaps``) and whether that shows ownership (``shows``).
    """

    name: str
    label: str
    marked: bool | None = None
    cells: dict[str, Cell]
    gaps: dict[str, float] | None = None
    shows: dict[str, bool] | None = None


@register_part("table")
class Table(Part):
    """A table of accuracies.

    Attributes:
        columns: Left to right.
        rows: Top to bottom.
        printed: How the paper's numbers are called, where they are of another protocol than ours.
    """

    kind: str = "table"
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    printed: str | None = None

    def grids(self) -> Iterator[Grid]:
        """Yield the table in words; columns of several data sets are told apart."""
        several = len({column.data for column in self.columns}) > 1
        labels = tuple(f"{c.label} ({c.data})" if several else c.label for c in self.columns)
        rows = tuple(
            GridRow((row.label,), tuple(show(row.cells.get(column.name), self.seeds) for column in self.columns))
            for row in self.rows
        )
        yield Grid("", ("Network",), labels, rows, printed=self.printed or "paper")

    def cells(self) -> Iterator[tuple[str, str, float | str, Cell]]:
        """Yield row, column, no x, and cell."""
        for row in self.rows:
            yield from ((row.name, column, "", cell) for column, cell in row.cells.items())
