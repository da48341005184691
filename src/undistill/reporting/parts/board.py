"""A leaderboard: defended victims by what leaks from them, in groups that the intervals tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.parts.audit import Judgement
from undistill.reporting.parts.plane import PRICES, Deal, Leak
from undistill.reporting.style import ALONE, DEFENDED, INK, NORMAL, RULE, handle, new_figure
from undistill.reporting.wording import change

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Board", "Entry", "ranks"]

_WIDTH, _LINE, _AROUND = 6.5, 0.24, 0.9  # inches
_COLORS = {"leaks": DEFENDED, "undistillable": NORMAL, "not decided": ALONE}


class Entry(Plain):
    """One victim behind its defense.

    Attributes:
        name: The victim and its defense, in words.
        victim: What tells it from others: a checksum of the victim and its defense.
        who: Who entered it.
        paper: Where the defense comes from; empty for none.
        reported: What its authors report, in their words' short form; empty for nothing.
        judgement: Of its audit.
        worth: What its answers are worth to honest users, by measure.
        price: What honest users lose by its defense, by measure; empty where that was not measured.
        leaks: What the strongest thief of each person has beyond the best reference.
        seeds: Of the numbers.
        flags: What a reader must know of this entry.
        sha256: Checksum of the audit that it is taken from.
    """

    name: str
    victim: str
    who: str
    paper: str = ""
    reported: str = ""
    judgement: Judgement
    worth: dict[str, float]
    price: dict[str, float]
    leaks: tuple[Leak, ...]
    seeds: int
    flags: tuple[str, ...] = ()
    sha256: str

    @property
    def worst(self) -> Leak | None:
        """What leaks at most and at least, to whomever, and to whom most on average."""
        most = max(self.leaks, key=lambda leak: leak.mean, default=None)
        if most is None:
            return None
        low, high = (max(getattr(leak, end) for leak in self.leaks) for end in ("low", "high"))
        return most.model_copy(update={"low": low, "high": high})


def ranks(leaks: Sequence[tuple[float, float] | None]) -> list[int]:
    """Return the rank of each of some leaks, given by the ends of their intervals: many may share one.

    It is 1, and one more for each that surely leaks less: whose interval lies below. A loss is no less than nothing: a
    thief can look at the named class alone. What is not known comes last.
    """
    known = [(max(low, 0.0), max(high, 0.0)) for low, high in (leak for leak in leaks if leak is not None)]
    return [
        1 + len(known) if leak is None else 1 + sum(high < max(leak[0], 0.0) for _, high in known) for leak in leaks
    ]


@register_part("board")
class Board(Part):
    """Entries of one board: the same data, persons, thieves and students.

    Attributes:
        entries: In any order.
    """

    kind: str = "board"
    entries: tuple[Entry, ...]

    @property
    def ranked(self) -> list[tuple[int, Entry]]:
        """Ranks and entries, what leaks least first."""
        leaks = [None if (leak := one.worst) is None else (leak.low, leak.high) for one in self.entries]
        found = zip(ranks(leaks), self.entries, strict=True)
        return sorted(found, key=lambda one: (one[0], _size(one[1]), one[1].name))

    @property
    def deals(self) -> tuple[Deal, ...]:
        """The entries in the plane of leak and price: those whose price is known, and first what has no defense."""
        known = [entry for entry in self.entries if entry.price or entry.name.endswith(", ce")]
        first = sorted(known, key=lambda entry: bool(entry.price))
        words = [entry.name.split(", ") for entry in first]
        shared = sum(1 for _ in takewhile(lambda word: len(set(word)) == 1, zip(*words, strict=False)))
        return tuple(
            Deal(name=", ".join(word[shared:]), worth=entry.worth, price=entry.price, leaks=entry.leaks)
            for word, entry in zip(words, first, strict=True)
        )

    def grids(self) -> Iterator[Grid]:
        """Yield one table, which a page can sort."""
        worth = ("accuracy, %", "top-5, %", "NLL", "ECE, %", "AURC, %")
        columns = ("rank", "leak, points", "to", "by", *worth, "seeds", "judgement", "entered by", "paper", "reported")
        rows = tuple(GridRow((entry.name,), tuple(_cells(rank, entry))) for rank, entry in self.ranked)
        yield Grid("", ("Victim and defense",), columns, rows, sortable=True)

    @property
    def drawn(self) -> bool:
        """Whether anything leaks, or does not."""
        return any(entry.worst is not None for entry in self.entries)

    def draw(self) -> Figure:
        """Return a line an entry, from the least leak to the largest, with its interval."""
        found = [(rank, entry, entry.worst) for rank, entry in self.ranked if entry.worst is not None]
        figure = new_figure(_WIDTH, _LINE * len(found) + _AROUND)
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for y, (_, entry, leak) in enumerate(found):
            if leak is not None:
                color = _COLORS[entry.judgement]
                axes.plot((leak.low, leak.high), (y, y), color=color, linewidth=1.0, zorder=2)
                axes.plot(leak.mean, y, "o", color=color, markeredgewidth=0, zorder=3)
        axes.set_yticks(range(len(found)), [f"{entry.name}  {rank}".replace("$", r"\$") for rank, entry, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Leak, points beyond the best reference")
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        legend = [handle(color=color, marker="o", label=label) for label, color in _COLORS.items()]
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
        return figure


def _size(entry: Entry) -> float:
    return max(entry.worst.mean, 0.0) if entry.worst is not None else 0.0


def _cells(rank: int, entry: Entry) -> Iterator[Shown]:
    leak = entry.worst
    yield Shown(str(rank))
    yield Shown("–" if leak is None else change(leak.mean, (leak.low, leak.high)))
    yield Shown("–" if leak is None else leak.person)
    yield Shown("–" if leak is None else leak.thief)
    for measure in PRICES:
        yield Shown(f"{entry.worth[measure]:.2f}" if measure in entry.worth else "–")
    yield Shown(str(entry.seeds))
    yield Shown(entry.judgement)
    for text in (entry.who, entry.paper, "; ".join(filter(None, [entry.reported, *entry.flags]))):
        yield Shown(text or "–")
