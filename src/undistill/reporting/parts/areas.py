"""Around a domain: how accurate nets are the further images are shifted from it, a direction an angle."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from undistill.functional import Interval
from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import new_figure
from undistill.reporting.wording import value

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

__all__ = ["Areas", "Disc", "area"]

_PANEL, _FOOT = 2.9, 0.75  # inches
_ARCS = 16  # cells of a sector
_COLORS = "viridis"
_USABLE = 50.0  # percent: where a line is drawn


class Disc(Plain):
    """One net.

    Attributes:
        name: Of the net.
        title: As it is shown.
        area: Share of the disc, in 0..1, on which it is usable; mean over seeds.
        half_width: Of its 95 % interval; None for one seed.
        areas: By seed.
        accuracies: Percent, by direction and radius.
    """

    name: str
    title: str
    area: float
    half_width: float | None
    areas: dict[str, float]
    accuracies: tuple[tuple[float, ...], ...]

    def usable(self, digits: int = 1) -> str:
        """Write the area in percent, with its interval where there is one."""
        half_width = None if self.half_width is None else 100 * self.half_width
        return value(Interval(100 * self.area, half_width, len(self.areas)), with_n=False, digits=digits)


@register_part("areas")
class Areas(Part):
    """Discs around a domain; where a net is missing there are none.

    Attributes:
        runs: Folders by net and seed.
        source: Label of the domain.
        directions: Labels.
        radii: Increasing, from 0.
        panels: A net each.
    """

    ends_with: ClassVar[tuple[str, ...]] = ("notes", "failed")

    kind: str = "areas"
    runs: dict[str, dict[str, str]] = Field(default_factory=dict)
    source: str = ""
    directions: tuple[str, ...] = ()
    radii: tuple[float, ...] = ()
    panels: tuple[Disc, ...] = ()

    def grids(self) -> Iterator[Grid]:
        """Yield the usable share of the disc of each net, and its accuracy at the rim in each direction."""
        rows = []
        for panel in self.panels:
            rim = (Shown(f"{row[-1]:.1f}") for row in panel.accuracies)
            rows.append(GridRow((panel.title,), (Shown(panel.usable()), *rim)))
        caption = "Usable share of the disc, and accuracy at the full shift in each direction, %"
        yield Grid(caption, ("Network",), ("usable", *self.directions), tuple(rows))

    @property
    def drawn(self) -> bool:
        """Whether all nets are there."""
        return not self.failed

    def draw(self) -> Figure:
        """Return one disc a net, the source in its center, colored by accuracy; a line where that falls below half."""
        return _draw(self)


def area(accuracies: Sequence[Sequence[float]], radii: Sequence[float], level: float = _USABLE) -> float:
    """Return the share of the disc around a domain, in 0..1, on which a net is at least so accurate.

    Every direction is a sector of the same angle. Between two measured distances the accuracy is taken to change
    linearly; what counts is the disc's area, so that what is far counts for more.

    Args:
        accuracies: Percent, of each direction at each radius.
        radii: Increasing, from 0.
        level: Percent.
    """
    fine = np.linspace(0, radii[-1], 2001)
    weights = fine / fine.sum()
    usable = [np.interp(fine, radii, row) >= level for row in accuracies]
    return float(np.mean([weights[inside].sum() for inside in usable]))


def _draw(part: Areas) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    panels, radii = part.panels, np.array(part.radii)
    figure = new_figure(_PANEL * len(panels), _PANEL + _FOOT)
    axes = figure.subplots(1, len(panels), squeeze=False, subplot_kw={"projection": "polar"})[0]
    for spot, panel in zip(axes, panels, strict=True):
        _disc(spot, np.array(panel.accuracies), radii, part.directions)
        spot.set_title(f"{panel.title}\n{panel.usable(0)} % of the disc usable", fontsize=8, pad=10)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100), _COLORS),
        ax=list(axes),
        orientation="horizontal",
        shrink=0.45,
        aspect=40,
        pad=0.1,
    )
    bar.set_label(f"accuracy, %; in the center {part.source}, at the rim the full shift; line: 50 %", fontsize=7)
    bar.ax.tick_params(labelsize=6.5)
    return figure


def _disc(axes: PolarAxes, accuracies: np.ndarray[Any, Any], radii: np.ndarray[Any, Any], names: Sequence[str]) -> None:
    count = len(names)
    angles = 2 * np.pi * np.arange(count) / count
    # A sector a direction: between two directions nothing was measured, so nothing is interpolated there.
    edges = np.append(angles, 2 * np.pi) - np.pi / count
    rings = np.linspace(0, radii[-1], 101)
    middle = (rings[1:] + rings[:-1]) / 2
    shades = np.stack([np.interp(middle, radii, row) for row in accuracies], axis=1)
    arcs = np.linspace(edges[0], edges[-1], count * _ARCS + 1)  # one cell a sector would have a straight rim
    axes.pcolormesh(arcs, rings, shades.repeat(_ARCS, axis=1), cmap=_COLORS, vmin=0, vmax=100, rasterized=True)
    for k, row in enumerate(accuracies):
        reach = _reach(row, radii)
        axes.plot(np.linspace(edges[k], edges[k + 1], 20), np.full(20, reach), color="white", linewidth=1.2)
    axes.set_xticks(angles, [textwrap.fill(name, 11) for name in names], fontsize=6)
    axes.set_yticks([])
    axes.set_ylim(0, radii[-1])
    axes.grid(visible=False)
    axes.tick_params(pad=5)


def _reach(row: np.ndarray[Any, Any], radii: np.ndarray[Any, Any]) -> float:
    """Return how far out a net stays usable in one direction."""
    fine = np.linspace(0, radii[-1], 501)
    below = np.interp(fine, radii, row) < _USABLE
    return float(fine[below.argmax()]) if below.any() else float(radii[-1])
