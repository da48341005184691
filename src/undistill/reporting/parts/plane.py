"""Leak against price: what soft answers give the strongest thief, over what each defense takes from honest users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import ALONE, INK, LINES, RULE, SOFT, handle, new_figure
from undistill.reporting.wording import change, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PRICES", "Deal", "Leak", "Plane"]

PRICES = {
    "accuracy": ("accuracy", "points lost", -1),
    "top5": ("top-5", "points lost", -1),
    "nll": ("NLL", "nats more", 1),
    "ece": ("ECE", "points more", 1),
    "aurc": ("AURC", "points more", 1),
}
"""By measure: its name, the unit of what an honest user loses, and the sign that makes a loss positive."""

_DRAWN = ("accuracy", "nll", "aurc")
_MARKERS = "os^Dv"
_FILLS = ("full", "none", "left", "top")  # tell apart what has the same color
_SHALLOW = 3.0  # points of loss that are shown at least; what is below is drawn at the edge
_SHORT = 42  # characters, of which two stand side by side
_WIDTH, _HEIGHT, _LINE = 6.5, 2.6, 0.16  # inches
_LABEL_ONLY = "label_only"


class Leak(Plain):
    """What the strongest thief of one person has beyond the best reference, in points, and its corrected interval."""

    person: str
    thief: str
    mean: float
    low: float
    high: float


class Deal(Plain):
    """A victim behind one defense on its answers.

    Attributes:
        name: Spec of the defense; empty for none.
        worth: What answers are worth to honest users, by measure: in percent or points, and in nats.
        price: What honest users lose by the defense, by measure; empty where there is nothing to compare with.
        leaks: One a person.
    """

    name: str
    worth: dict[str, float]
    price: dict[str, float]
    leaks: tuple[Leak, ...]

    @property
    def label(self) -> str:
        """As it is shown."""
        return self.name or "as it is"


@register_part("plane")
class Plane(Part):
    """Defenses in the plane of leak and price.

    Attributes:
        deals: Each priced beside what it would be without its defense; what has no price, and no defense, is at 0.
    """

    kind: str = "plane"
    deals: tuple[Deal, ...]

    @property
    def _persons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leak.person for deal in self.deals for leak in deal.leaks))

    def grids(self) -> Iterator[Grid]:
        """Yield one table: a row a defense, what it costs, and what leaks."""
        columns = (*(f"{label}, {unit}" for label, unit, _ in PRICES.values()), *(f"leak, {p}" for p in self._persons))
        rows = tuple(GridRow((deal.label,), (*self._costs(deal), *self._leaks(deal))) for deal in self.deals)
        yield Grid("", ("Defense",), columns, rows)

    def _costs(self, deal: Deal) -> Iterator[Shown | None]:
        for measure in PRICES:
            yield Shown(signed(deal.price[measure])) if measure in deal.price else None

    def _leaks(self, deal: Deal) -> Iterator[Shown | None]:
        by = {leak.person: leak for leak in deal.leaks}
        for person in self._persons:
            found = by.get(person)
            yield None if found is None else Shown(_leak(found))

    @property
    def drawn(self) -> bool:
        """Whether a thief was compared."""
        return bool(self._persons)

    def draw(self) -> Figure:
        """Return a panel a price: a color a defense, a marker a person, and what hiding all but the class would be."""
        across = len(_DRAWN)
        columns = 2 if max(len(deal.label) for deal in self.deals) <= _SHORT else 1
        figure = new_figure(_WIDTH, _HEIGHT + _LINE * (len(self.deals) + len(self._persons)) / columns)
        panels = figure.subplots(1, across, sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, _DRAWN, strict=True):
            self._panel(axes, measure)
        panels[0].set_ylabel("Leak: points beyond\nthe best reference")
        colors = [handle(**_look(at), marker="s", linestyle="", label=deal.label) for at, deal in enumerate(self.deals)]
        persons = [
            handle(color=SOFT, marker=marker, linestyle="", label=person)
            for person, marker in zip(self._persons, _MARKERS, strict=False)
        ]
        figure.legend(handles=[*colors, *persons], loc="outside lower center", ncols=columns)
        return figure

    def _panel(self, axes: Axes, measure: str) -> None:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
        floor = -max([_SHALLOW, *(leak.high for deal in self.deals for leak in deal.leaks)])
        marks = dict(zip(self._persons, _MARKERS, strict=False))
        for at, deal in enumerate(self.deals):
            for leak in deal.leaks:
                x, look = deal.price.get(measure, 0.0), _look(at)
                axes.plot((x, x), (leak.low, leak.high), color=look["color"], linewidth=0.9, zorder=2)
                axes.plot(x, max(leak.mean, floor), marks[leak.person], **look, zorder=3, clip_on=False)
        hidden = next((deal.price for deal in self.deals if _LABEL_ONLY in deal.name and measure in deal.price), {})
        for leak in self.deals[0].leaks if hidden else ():
            axes.plot(
                (0.0, hidden[measure]), (max(leak.mean, 0.0), 0.0), linestyle=":", color=ALONE, linewidth=0.8, zorder=1
            )
        if any(leak.low < floor for deal in self.deals for leak in deal.leaks):
            axes.set_ylim(bottom=floor)
        label, unit, _ = PRICES[measure]
        axes.set_xlabel(f"{label}, {unit}")
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)


def _look(at: int) -> dict[str, Any]:
    """Return the color and filling of a defense by its number; the first one is none."""
    if at == 0:
        return {"color": INK, "fillstyle": "full"}
    turn, color = divmod(at - 1, len(LINES))
    return {"color": LINES[color], "fillstyle": _FILLS[turn % len(_FILLS)]}


def _leak(found: Leak) -> str:
    return f"{change(found.mean, (found.low, found.high))} ({found.thief})"
