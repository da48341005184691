"""What a document is made of: parts of several kinds, one file a kind, each with its numbers in words and its drawing.

A new kind is one new file in this package. Nothing that draws is imported before something is drawn.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationError

from undistill.errors import RunError
from undistill.registry import Registry
from undistill.reporting.cell import Cell, Plain, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PARTS", "Grid", "GridRow", "Part", "part_of", "register_part"]


@dataclass(frozen=True)
class GridRow:
    """One row of a table in words.

    Attributes:
        heads: What it is, as many texts as the table has columns of text.
        cells: Its numbers; None where there is nothing.
        begins: Whether a group of rows begins with it.
        muted: Whether it is there to compare with.
    """

    heads: tuple[str, ...]
    cells: tuple[Shown | None, ...]
    begins: bool = False
    muted: bool = False


@dataclass(frozen=True)
class Grid:
    """One table in words.

    Attributes:
        caption: What it is in a part with several; empty where there is one.
        heads: Names of the columns of text.
        columns: Names of the columns of numbers.
        rows: Top to bottom.
        of_text: Whether the cells are text, too, and stand to the left.
        printed: How the paper's numbers are called.
        folded: Whether a page shows it on demand only.
        sortable: Whether a page sorts it by the column that is clicked.
    """

    caption: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]
    of_text: bool = False
    printed: str = "paper"
    folded: bool = False
    sortable: bool = False

    @property
    def lines(self) -> Iterator[tuple[GridRow, bool, list[str]]]:
        """Of each row ours and, where it has a number, the paper's: the row, whether it is the paper's, the texts."""
        for row in self.rows:
            yield row, False, [*row.heads, *("–" if cell is None else cell.line for cell in row.cells)]
            if any(cell is not None and cell.paper for cell in row.cells):
                blank = [""] * (len(row.heads) - 1)
                yield (
                    row,
                    True,
                    [*blank, self.printed, *("–" if cell is None else cell.paper or "–" for cell in row.cells)],
                )


class Part(Plain, ABC):
    """One table, figure or text of a document, in plain values: all that is written about it is made from them alone.

    Attributes:
        kind: Which file of this package knows it.
        name: Of files and links: ``"table1"``.
        title: What it shows.
        seeds: Number of repetitions.
        header: Its heading, where that is not its name in words.
        notes: What a reader must know beside it, in sentences.
        errata: Where the paper contradicts itself.
        failed: Whether a number is missing, or one of its seeds.
    """

    ends_with: ClassVar[tuple[str, ...]] = ("notes", "errata", "failed")

    kind: str
    name: str
    title: str
    seeds: int = 1
    header: str = ""
    notes: tuple[str, ...] = ()
    errata: tuple[dict[str, Any], ...] = ()
    failed: bool = False

    @property
    def heading(self) -> str:
        """Its name as a heading: ``"Table 1"``."""
        if self.header:
            return self.header
        words = re.fullmatch(r"([a-z]+)(\d+)", self.name)
        return f"{words[1].title()} {words[2]}" if words else self.name

    @abstractmethod
    def grids(self) -> Iterator[Grid]:
        """Yield its numbers in words."""

    def cells(self) -> Iterator[tuple[str, str, float | str, Cell]]:
        """Yield row, column, x and cell of each number that has seeds."""
        yield from ()

    @property
    def drawn(self) -> bool:
        """Whether it has a figure."""
        return False

    def draw(self) -> Figure:
        """Return its figure."""
        raise NotImplementedError(f"a part of kind {self.kind!r} has no figure")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values: what was given, in the order in which it has always been written."""
        given = self.model_dump(mode="json", exclude_unset=True)
        last = {key: given.pop(key) for key in self.ends_with if key in given}
        return {**given, **last}

    @classmethod
    def make(cls, **given: Any) -> Self:
        """Return a part of this kind."""
        return cls(**{"kind": cls.model_fields["kind"].default, "errata": (), **given})


PARTS: Registry[type[Part]] = Registry("kind of part", "undistill.reporting.parts")
register_part = PARTS.register


def part_of(values: Mapping[str, Any]) -> Part:
    """Return the part that ``to_json`` wrote.

    Raises:
        RunError: The values are not those of a part.
        UnknownNameError: There is no such kind.
    """
    try:
        return PARTS[str(values.get("kind"))](**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"part {values.get('name')!r} is damaged ({where}: {first['msg']})") from error
