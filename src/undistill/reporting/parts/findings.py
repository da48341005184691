"""What the numbers say, in words, and one picture of it: what each student ends at, alone and after each teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from undistill.reporting.cell import Plain
from undistill.reporting.parts import Grid, Part, register_part
from undistill.reporting.style import ALONE, DEFENDED, NORMAL, RULE, arms, handle, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Dot", "Finding", "Findings", "Ladder"]

_LOOKS = {
    "alone": ("alone", ALONE, "o"),
    "normal": ("from the normal teacher, at best", NORMAL, "s"),
    "textbook": ("from the defended teacher, by the textbook", DEFENDED, "^"),
    "adaptive": ("from the defended teacher, at best in another way", DEFENDED, "D"),
}
_WIDTH, _ROW, _FOOT = 6.4, 0.36, 1.0  # inches


class Finding(Plain):
    """What is known of one teacher: who that is, one sentence, and statements with their lead-ins."""

    subject: str
    headline: str
    items: tuple[tuple[str, str], ...]


class Dot(Plain):
    """An accuracy in percent with the half-width of its 95 % interval, and of whom: a key of the legend."""

    of: str
    mean: float
    half_width: float | None


class Ladder(Plain):
    """A line of the picture: a student, and what it ends at."""

    label: str
    dots: tuple[Dot, ...]


@register_part("findings")
class Findings(Part):
    """A verdict: of every defended teacher, or of the normal ones where none is defended.

    Attributes:
        about: What was measured, in one sentence.
        findings: One a teacher.
        ladders: One a student and defended teacher.
    """

    kind: str = "findings"
    about: str = ""
    findings: tuple[Finding, ...] = ()
    ladders: tuple[Ladder, ...] = ()

    def grids(self) -> Iterator[Grid]:
        """Yield nothing: the numbers are those of the table."""
        yield from ()

    @property
    def drawn(self) -> bool:
        """Whether there is something to compare."""
        return any(len(ladder.dots) > 1 for ladder in self.ladders)

    def draw(self) -> Figure:
        """Return one line a student, with a dot for everything that it ended at, and intervals where there are."""
        figure = new_figure(_WIDTH, _ROW * len(self.ladders) + _FOOT)
        axes = figure.subplots()
        for height, ladder in enumerate(reversed(self.ladders)):
            axes.axhline(height, color=RULE, linewidth=0.6, zorder=0)
            for dot in ladder.dots:
                _, color, marker = _LOOKS[dot.of]
                bar = None if dot.half_width is None else [[arm] for arm in arms(dot.mean, dot.half_width)]
                axes.errorbar(dot.mean, height, xerr=bar, color=color, marker=marker, markersize=6, capsize=2)
        axes.set_yticks(range(len(self.ladders)), [ladder.label for ladder in reversed(self.ladders)])
        axes.set_ylim(-0.6, len(self.ladders) - 0.4)
        axes.set_xlabel("Test accuracy, %")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, low), min(100.5, max(high, low + 2)))
        used = {dot.of for ladder in self.ladders for dot in ladder.dots}
        legend = [
            handle(label=label, color=color, marker=marker, linestyle="none")
            for of, (label, color, marker) in _LOOKS.items()
            if of in used
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
        return figure
