"""The tables of a study with the paper's numbers beside ours: Markdown, LaTeX, one HTML page, and for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undistill._version import __version__
from undistill.reporting.wording import signed, value
from undistill.studies.results import CellResult, TableResult
from undistill.studies.tables import Changes

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["DISAGREES", "Grid", "Shown", "banner", "make_grid", "to_html", "to_markdown", "to_rich", "to_tex"]

DISAGREES, COLLAPSED = "≠", "†"
_TEX = {
    "≠": r"$\neq$",
    "†": r"\dag{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


@dataclass(frozen=True)
class Shown:
    """One cell in words.

    Attributes:
        ours: Mean with its interval; empty if every seed failed.
        difference: To our own reference, in brackets, or empty.
        marks: ``≠`` where the paper's number is outside our interval, ``†`` for a collapsed net.
        paper: The paper's number with its difference, or empty.
    """

    ours: str
    difference: str
    marks: str
    paper: str

    @property
    def failed(self) -> bool:
        """Whether there is no number of ours."""
        return not self.ours

    @property
    def collapsed(self) -> bool:
        """Whether a seed collapsed."""
        return COLLAPSED in self.marks

    @property
    def mine(self) -> str:
        """Ours in one line."""
        return " ".join(filter(None, [f"{self.ours}{self.marks}", self.difference])) if self.ours else "failed"


@dataclass(frozen=True)
class Grid:
    """One table in words.

    Attributes:
        name: ``"table1"``.
        heading: ``"Table 1"``.
        title: As the paper has it.
        columns: Labels.
        rows: Label and cells; None where the paper's table has a dash.
        notes: What a reader must know beside the numbers.
    """

    name: str
    heading: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Shown | None, ...]], ...]
    notes: tuple[str, ...]


def banner(changes: Changes) -> str:
    """Return what must stand above numbers that were not made by the paper's protocol; empty if they were."""
    if changes.label == "smoke":
        return (
            "Smoke: tiny nets on a few images of handwritten digits. It shows that the program works; the numbers "
            "mean nothing and cannot be compared with the paper's."
        )
    if changes.label == "reduced":
        parts = [f"{name} replaced by {spec}" for name, spec in (changes.data or {}).items()]
        parts += [f"{changes.epochs} epochs"] if changes.epochs else []
        parts += [f"nets of width {changes.width:g}"] if changes.width else []
        return f"Reduced: {', '.join(parts)}. Not the paper's protocol; its numbers are there for orientation."
    return ""


def make_grid(result: TableResult) -> Grid:
    """Put the results of a table in words."""
    paper, cells = result.study.paper, result.cells
    several = len(paper.datasets) > 1
    labels = tuple(f"{c.label} ({c.dataset})" if several else c.label for c in paper.columns.values())
    rows = []
    for row in result.study.rows:
        line = tuple(
            _shown(cells[row, column], result.study.seeds) if (row, column) in cells else None
            for column in paper.columns
        )
        rows.append((paper.rows[row].label, line))
    heading = f"Table {paper.id.removeprefix('table')}"
    return Grid(paper.id, heading, paper.title, labels, tuple(rows), tuple(_notes(result)))


def to_markdown(grids: Sequence[Grid], changes: Changes) -> str:
    """Write tables as GitHub Markdown: each row, and the paper's below it."""
    blocks = [f"**{_md(banner(changes))}**"] if banner(changes) else []
    for grid in grids:
        lines = [[_md(text) for text in line] for line in _lines(grid)]
        rule = ["---", *["---:"] * len(grid.columns)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
        blocks += [f"## {grid.heading}: {_md(grid.title)}", table, "\n".join(f"- {_md(note)}" for note in grid.notes)]
    return "\n\n".join(blocks) + "\n"


def to_tex(grids: Sequence[Grid], changes: Changes) -> str:
    """Write tables as LaTeX; they need the package booktabs."""
    blocks = []
    for grid in grids:
        header, *lines = [" & ".join(_tex(text) for text in line) + r" \\" for line in _lines(grid)]
        body = [r"\midrule" if i % 2 == 0 else r"\addlinespace[-2pt]" for i in range(len(lines))]
        rows = [part for pair in zip(body, lines, strict=True) for part in pair]
        caption = " ".join(filter(None, [banner(changes), f"{grid.heading} of the paper: {grid.title}."]))
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_tex(caption)}}}",
                    rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}",
                    r"\toprule",
                    header,
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    rf"\par\smallskip\footnotesize {_tex(' '.join(grid.notes))}",
                    r"\end{table}",
                ]
            )
        )
    return "% \\usepackage{booktabs}\n" + "\n\n".join(blocks) + "\n"


def to_html(grids: Sequence[Grid], changes: Changes, provenance: dict[str, list[Any]]) -> str:
    """Write tables as one page that needs nothing beside it."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("undistill.studies", "."), PackageLoader("undistill.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(environment.get_template("style.css").render())  # ours, and free of anything to escape
    shown = [(key.replace("_", " "), ", ".join(map(str, values))) for key, values in provenance.items()]
    return environment.get_template("study.html").render(
        grids=grids,
        banner=banner(changes),
        label="" if changes.label == "paper" else f" ({changes.label})",
        provenance=shown,
        style=style,
        version=__version__,
    )


def to_rich(grid: Grid) -> RichTable:
    """Return a table for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    header, *lines = _lines(grid)
    table = RichTable(title=Text(f"{grid.heading}: {grid.title}"), box=box.SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for i, line in enumerate(lines):
        cells = [Text(text, style="red" if text == "failed" else "") for text in line]
        table.add_row(*cells, style="dim" if i % 2 else None, end_section=bool(i % 2))
    return table


def _lines(grid: Grid) -> Iterator[list[str]]:
    """Yield the header, and of each row ours and the paper's."""
    yield ["Network", *grid.columns]
    for label, cells in grid.rows:
        yield [label, *("–" if cell is None else cell.mine for cell in cells)]
        yield ["paper", *("–" if cell is None else cell.paper or "–" for cell in cells)]


def _shown(cell: CellResult, seeds: int) -> Shown:
    ours = "" if cell.accuracy is None else value(cell.accuracy, with_n=cell.accuracy.n != seeds)
    difference = "" if cell.difference is None else f"({signed(cell.difference)})"
    printed = "" if cell.paper.value is None else f"{cell.paper.value:.2f}"
    if cell.paper.difference is not None:
        printed += f" ({signed(cell.paper.difference)})"
    return Shown(ours, difference, DISAGREES * bool(cell.disagrees) + COLLAPSED * bool(cell.collapsed), printed)


def _notes(result: TableResult) -> Iterator[str]:
    paper, study = result.study.paper, result.study
    yield "In brackets: the difference, in points, to the reference that the paper takes, which is of the same table."
    if study.seeds == 1:
        yield "One seed (n=1): the spread over seeds is not known, so nothing says whether we agree with the paper."
    else:
        yield f"Mean ± 95 % interval (Student's t) over {study.seeds} seeds; n where there are fewer."
    if any(cell.disagrees for cell in result.cells.values()):
        yield f"{DISAGREES} The paper's number is outside our interval."
    if any(cell.collapsed for cell in result.cells.values()):
        yield f"{COLLAPSED} Collapsed: more than 90 % of the answers of a seed are one class."
    for (row, column), cell in result.cells.items():
        where = f"{paper.rows[row].label}, {paper.columns[column].label}"
        for seed, failure in cell.failures.items():
            log = f" (log: {failure.log.name})" if failure.log else ""
            yield f"Failed: {where}, seed {seed}: {failure.reason}{log}"
        erratum = paper.erratum(row, column)
        if erratum is not None:
            yield f"In the paper, {where}: {erratum.note}"


def _md(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
