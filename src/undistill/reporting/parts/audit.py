"""An audit: in words first, then what each thief has beyond the best reference, with intervals, and the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from undistill.reporting.cell import Cell, Plain, Shown, show
from undistill.reporting.parts import Grid, GridRow, register_part
from undistill.reporting.parts.findings import Findings
from undistill.reporting.parts.plane import Deal
from undistill.reporting.style import ALONE, DEFENDED, INK, NORMAL, RULE, SOFT, handle, new_figure
from undistill.reporting.wording import change

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Audit", "Front", "Gain", "Judgement", "Rival", "judge"]

Judgement = Literal["leaks", "undistillable", "not decided"]

_WIDTH, _LINE, _HEAD, _AROUND = 6.5, 0.22, 0.3, 1.1  # inches


class Gain(Plain):
    """What a thief has beyond the best reference, in points.

    Attributes:
        mean: Over the seeds that both have.
        low: Lower end of its interval; those of all thieves of the audit hold together.
        high: Upper end, which holds for this thief by itself.
        beyond: Name of the reference.
    """

    mean: float
    low: float
    high: float
    beyond: str


class Rival(Plain):
    """One way to learn: a thief's, or a reference's.

    Attributes:
        name: Of the method.
        role: ``thief``: learns from soft answers; ``reference``: what these have to beat.
        published: Test accuracy with the settings as published; None where none came out.
        tuned: Test accuracy with those that the search chose.
        settings: These settings, in words.
        heldout: Percent right, or of the victim's mind, on held-out images: what the choice was made by.
        fidelity: Percent of the test images for which it names the class that the victim names; None without a victim.
        gain: Of a thief, tuned; None where it is not known.
    """

    name: str
    role: Literal["thief", "reference"]
    published: Cell
    tuned: Cell
    settings: str
    heldout: float | None = None
    fidelity: Cell | None = None
    gain: Gain | None = None


class Front(Plain):
    """Everybody who learned with the same means.

    Attributes:
        name: The person who has them, and the defense on the answers where there is one.
        title: The same in words.
        about: What the person has.
        favourite: Name of the thief who is best on held-out images; None without one.
        rivals: References first.
    """

    name: str
    title: str
    about: str
    favourite: str | None
    rivals: tuple[Rival, ...]

    @property
    def person(self) -> str:
        """Who learns, whatever the defense on the answers."""
        return self.name.partition(", ")[0]

    @property
    def defense(self) -> str:
        """Spec of the defense on the answers; ``""`` for none."""
        return self.name.partition(", ")[2]

    @property
    def gains(self) -> list[Gain | None]:
        """Those of all thieves."""
        return [rival.gain for rival in self.rivals if rival.role == "thief"]


def judge(gains: Sequence[Gain | None], margin: float) -> Judgement:
    """Return what the gains of all thieves say together.

    Args:
        gains: One a thief; None for a thief of whom there is none, about whom nothing is known.
        margin: Points that gains must surely stay below for ``undistillable``, 0 or more.

    Returns:
        ``leaks`` where an interval lies above 0; ``undistillable`` where there are thieves, all are known, and no
        interval reaches above the margin; ``not decided`` otherwise.
    """
    if any(gain is not None and gain.low > 0 for gain in gains):
        return "leaks"
    if gains and all(gain is not None and gain.high <= margin for gain in gains):
        return "undistillable"
    return "not decided"


@register_part("audit")
class Audit(Findings):
    """A verdict on one victim, and what it rests on.

    Attributes:
        judgement: ``leaks``, ``undistillable`` or ``not decided``, under the suite that was run.
        margin: Points that gains must surely stay below for ``undistillable``.
        board: What audits must have in common for their victims to be compared.
        fronts: One a person and defense.
        deals: What each defense on the answers, none first, costs and lets out.
    """

    kind: str = "audit"
    judgement: Judgement
    margin: float
    board: dict[str, Any]
    fronts: tuple[Front, ...]
    deals: tuple[Deal, ...]

    def verdict_of(self, defense: str) -> Judgement:
        """Return the judgement on the victim behind a defense on its answers; ``""`` for none."""
        return judge([gain for front in self.fronts if front.defense == defense for gain in front.gains], self.margin)

    def grids(self) -> Iterator[Grid]:
        """Yield a table a front: a row a way to learn."""
        for front in self.fronts:
            rows = tuple(_row(rival, rival.name == front.favourite, self.seeds) for rival in front.rivals)
            columns = ("tuned", "beyond the best reference", "as published", "fidelity", "held-out", "settings")
            caption = front.title if front.defense else f"{front.title}: {front.about}"
            yield Grid(caption, ("Learns by",), columns, rows, folded=bool(front.defense))

    def cells(self) -> Iterator[tuple[str, str, float | str, Cell]]:
        """Yield front, way to learn, no x, and cell."""
        for front in self.fronts:
            for rival in front.rivals:
                yield from ((front.name, f"{rival.name}, {how}", "", cell) for how, cell in _cells(rival))

    @property
    def drawn(self) -> bool:
        """Whether a thief was compared."""
        return any(rival.gain is not None for front in self.fronts for rival in front.rivals if not front.defense)

    def draw(self) -> Figure:
        """Return a line a thief: what it has beyond the best reference, and its interval; zero, and the margin.

        Shown is the victim as it is: a map of colors shows what defenses on its answers change.
        """
        plain = [front for front in self.fronts if not front.defense]
        fronts = [(front, [one for one in front.rivals if one.gain is not None]) for front in plain]
        fronts = [(front, rivals) for front, rivals in fronts if rivals]
        lines = sum(len(rivals) for _, rivals in fronts)
        figure = new_figure(_WIDTH, _LINE * lines + _HEAD * len(fronts) + _AROUND)
        heights = [len(rivals) for _, rivals in fronts]
        grid = figure.subplots(len(fronts), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (front, rivals) in zip(grid[:, 0], fronts, strict=True):
            self._panel(axes, front, rivals)
        grid[-1, 0].set_xlabel("Test accuracy, points beyond the best reference with the same means")
        legend = [
            handle(color=NORMAL, marker="o", label="thief, tuned"),
            handle(color=DEFENDED, marker="D", label="best on held-out images"),
            handle(color=ALONE, linestyle=":", label=f"margin, {self.margin:g} points"),
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
        return figure

    def _panel(self, axes: Axes, front: Front, rivals: list[Rival]) -> None:
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        axes.axvline(self.margin, color=ALONE, linewidth=0.8, linestyle=":", zorder=1)
        for y, rival in enumerate(rivals):
            if rival.gain is not None:
                best = rival.name == front.favourite
                color, marker = (DEFENDED, "D") if best else (NORMAL, "o")
                axes.plot((rival.gain.low, rival.gain.high), (y, y), color=color, linewidth=1.0, zorder=2)
                axes.plot(rival.gain.mean, y, marker, color=color, markeredgewidth=0, zorder=3)
        axes.set_title(front.title, loc="left", color=SOFT)
        axes.set_yticks(range(len(rivals)), [rival.name for rival in rivals])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rivals) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)


def _cells(rival: Rival) -> Iterator[tuple[str, Cell]]:
    yield "tuned", rival.tuned
    yield "as published", rival.published
    if rival.fidelity is not None:
        yield "fidelity", rival.fidelity


def _row(rival: Rival, favourite: bool, seeds: int) -> GridRow:
    gain = rival.gain
    told = "" if gain is None else change(gain.mean, (gain.low, gain.high))
    cells = (
        show(rival.tuned, seeds),
        Shown(told or "–"),
        show(rival.published, seeds),
        show(rival.fidelity, seeds),
        None if rival.heldout is None else Shown(f"{rival.heldout:.1f}" + " *" * favourite),
        Shown(rival.settings),
    )
    return GridRow((rival.name,), cells, muted=rival.role == "reference")
