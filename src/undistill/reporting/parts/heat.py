"""Every thief against every defense on the answers: what each has beyond the best reference, as a table of colors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import DEFENDED, INK, NORMAL, new_figure
from undistill.reporting.wording import change, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Heat", "HeatMap", "Spot"]

_WIDTH, _ROW, _AROUND = 6.5, 0.28, 1.0  # inches
_FULL = 10.0  # points at which a color is full


class Spot(Plain):
    """What a thief gains behind a defense, in points, with its corrected interval."""

    mean: float
    low: float
    high: float


class HeatMap(Plain):
    """One person's thieves, by defense and thief; None where there is no number."""

    person: str
    defenses: tuple[str, ...]
    thieves: tuple[str, ...]
    spots: tuple[tuple[Spot | None, ...], ...]


@register_part("heat")
class Heat(Part):
    """A map a person."""

    kind: str = "heat"
    maps: tuple[HeatMap, ...]

    def grids(self) -> Iterator[Grid]:
        """Yield a table a person: a row a defense, a column a thief."""
        for one in self.maps:
            rows = tuple(
                GridRow((defense,), tuple(spot and Shown(change(spot.mean, (spot.low, spot.high))) for spot in row))  # type: ignore[misc]
                for defense, row in zip(one.defenses, one.spots, strict=True)
            )
            yield Grid(one.person.capitalize(), ("Defense on the answers",), one.thieves, rows)

    @property
    def drawn(self) -> bool:
        """Whether there is a number."""
        return any(spot is not None for one in self.maps for row in one.spots for spot in row)

    def draw(self) -> Figure:
        """Return the maps one below the other: warm where soft answers help, bold where the interval excludes 0."""
        heights = [len(one.defenses) for one in self.maps]
        figure = new_figure(_WIDTH, _ROW * sum(heights) + _AROUND * len(self.maps))
        grid = figure.subplots(len(self.maps), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, one in zip(grid[:, 0], self.maps, strict=True):
            _map(axes, one)
        return figure


def _map(axes: Axes, one: HeatMap) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(one.spots):
        for x, spot in enumerate(row):
            if spot is None:
                continue
            color, strength = DEFENDED if spot.mean > 0 else NORMAL, min(abs(spot.mean) / _FULL, 1.0)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, alpha=0.55 * strength, linewidth=0))
            bold = spot.low > 0 or spot.high < 0
            axes.text(
                x, y, signed(spot.mean, 1), ha="center", va="center", fontsize=7, color=INK,
                fontweight="bold" if bold else "normal",
            )  # fmt: skip
    axes.set_xlim(-0.5, len(one.thieves) - 0.5)
    axes.set_ylim(len(one.defenses) - 0.5, -0.5)
    axes.set_xticks(range(len(one.thieves)), one.thieves, rotation=20, ha="right")
    axes.set_yticks(range(len(one.defenses)), one.defenses)
    axes.tick_params(length=0)
    axes.set_title(one.person.capitalize(), loc="left")
    for spine in axes.spines.values():
        spine.set_visible(False)
