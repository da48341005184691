"""Students of normal and of nasty teachers: a table, and where each of them ends against the same student alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from undistill.reporting.cell import Cell
from undistill.reporting.parts import register_part
from undistill.reporting.parts.table import Row, Table
from undistill.reporting.style import ALONE, DEFENDED, INK, NORMAL, RULE, SOFT, handle, new_figure, symbols

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Effect", "EffectRow"]

_MARKERS = "os^DvP"
_WIDTH, _LINE, _AROUND = 6.5, 0.24, 0.9  # inches


class EffectRow(Row):
    """One row: a way to ask one teacher.

    Attributes:
        of: Which teacher: ``normal``, or the name of a defended one; None for students alone.
        how: How it is asked, as it is shown; for students alone, how they learn.
    """

    of: str | None
    how: str


@register_part("effect")
class Effect(Table):
    """A table of students with a column ``teacher``; a student's difference is to the same student alone."""

    kind: str = "effect"
    rows: tuple[EffectRow, ...]

    @property
    def drawn(self) -> bool:
        """Whether a student was compared with itself alone."""
        return any(self._compared(row) for row in self.rows)

    def draw(self) -> Figure:
        """Return a line a row with a mark a student; hollow, what the paper has."""
        rows = [row for row in self.rows if self._compared(row)]
        figure = new_figure(_WIDTH, _LINE * len(rows) + _AROUND)
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        names = [column.name for column in self.columns if column.name != "teacher"]
        for y, row in enumerate(rows):
            if y and row.of != rows[y - 1].of:
                axes.axhline(y - 0.5, color=RULE, linewidth=0.6)
            for name, cell in self._compared(row).items():
                _mark(axes, y, cell, _color(row.of), _MARKERS[names.index(name)])
        axes.set_yticks(range(len(rows)), [symbols(row.label) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Test accuracy, points from the same student alone")
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        shown = {name for row in rows for name in self._compared(row)}
        legend = [
            handle(color=SOFT, marker=marker, linestyle="", label=column.label)
            for column, marker in zip([c for c in self.columns if c.name != "teacher"], _MARKERS, strict=False)
            if column.name in shown
        ]
        if any(cell.paper_difference is not None for row in rows for cell in self._compared(row).values()):
            hollow = {"markerfacecolor": "none", "linestyle": "", "label": self.printed or "paper"}
            legend.append(handle(color=SOFT, marker="o", **hollow))
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
        return figure

    def _compared(self, row: EffectRow) -> dict[str, Cell]:
        return {name: cell for name, cell in row.cells.items() if name != "teacher" and cell.difference is not None}


def _color(of: str | None) -> str:
    return ALONE if of is None else NORMAL if of == "normal" else DEFENDED


def _mark(axes: Axes, y: int, cell: Cell, color: str, marker: str) -> None:
    if cell.difference_interval is not None:
        axes.plot(cell.difference_interval, (y, y), color=color, linewidth=0.9, zorder=2)
    axes.plot(cell.difference or 0.0, y, marker, color=color, markeredgewidth=0, zorder=3)
    if cell.paper_difference is not None:
        axes.plot(cell.paper_difference, y, marker, markerfacecolor="none", markeredgecolor=color, zorder=3)
