"""How accuracy went while nets trained: small panels, one line a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import ALONE, DEFENDED, LINES, NORMAL, RULE, handle, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Chart", "Course", "Training"]

_WIDTH, _HEIGHT, _A_ROW, _LEGEND_LINE = 3.3, 2.1, 2, 0.17  # inches
_COLORS = {"alone": ALONE, "normal": NORMAL, "defended": DEFENDED}
_STYLES = ("-", "--", ":", "-.")


class Course(Plain):
    """The curves of one thing in training.

    Attributes:
        label: What it is.
        of: Whom it learns from, or what it is: ``alone``, ``normal`` or ``defended``; sets the color.
        curves: Epoch and value, a curve a seed.
    """

    label: str
    of: str
    curves: tuple[tuple[tuple[float, float], ...], ...]


class Chart(Plain):
    """One panel.

    Attributes:
        title: What is measured of whom.
        top: Where the axis ends; None to fit.
        courses: One or more.
    """

    title: str
    top: float | None
    courses: tuple[Course, ...]


@register_part("training")
class Training(Part):
    """Panels of curves over epochs."""

    kind: str = "training"
    charts: tuple[Chart, ...]

    def grids(self) -> Iterator[Grid]:
        """Yield where each curve ends, a table a panel."""
        for chart in self.charts:
            rows = tuple(
                GridRow((course.label,), (Shown(f"{fmean(curve[-1][1] for curve in course.curves):.2f}"),))
                for course in chart.courses
            )
            yield Grid(chart.title, ("",), ("at the last epoch",), rows, folded=True)

    @property
    def drawn(self) -> bool:
        """Always."""
        return True

    def draw(self) -> Figure:
        """Return the panels, two a row, each with its legend below."""
        rows = math.ceil(len(self.charts) / _A_ROW)
        across = min(_A_ROW, len(self.charts))
        below = _LEGEND_LINE * max(len(chart.courses) for chart in self.charts)
        figure = new_figure(_WIDTH * across, rows * (_HEIGHT + below))
        spots = figure.subplots(
            2 * rows, across, squeeze=False, gridspec_kw={"height_ratios": [_HEIGHT, below] * rows, "hspace": 0}
        )
        for spot in spots[1::2].flat:
            spot.set_axis_off()
        for spot in spots[::2].flatten()[len(self.charts) :]:
            spot.set_axis_off()
        for i, chart in enumerate(self.charts):
            row, column = divmod(i, _A_ROW)
            _draw_chart(spots[2 * row, column], spots[2 * row + 1, column], chart)
        return figure


def _draw_chart(axes: Axes, below: Axes, chart: Chart) -> None:
    seen: dict[str, int] = {}
    legend = []
    for course in chart.courses:
        rank = seen[course.of] = seen.get(course.of, -1) + 1
        color = _COLORS.get(course.of) or LINES[rank % len(LINES)]
        look: dict[str, Any] = {
            "color": color,
            "linestyle": _STYLES[rank % len(_STYLES)],
            "linewidth": 1.2 + 0.4 * (rank // 4),
        }
        for curve in course.curves:
            axes.plot(*zip(*curve, strict=True), **look)
        legend.append(handle(label=course.label, **look))
    axes.set_title(chart.title)
    axes.set_xlabel("epoch")
    axes.set_ylim(0, chart.top)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    below.legend(handles=legend, loc="upper left", borderaxespad=0)
