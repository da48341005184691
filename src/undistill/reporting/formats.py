"""A document in the forms in which people read it: HTML, Markdown, LaTeX, CSV, a terminal.

All of it is made from a ``Document`` and nothing else: the same document gives the same bytes.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undistill._version import __version__
from undistill.reporting.document import Document
from undistill.reporting.parts import Grid, Part
from undistill.reporting.parts.findings import Findings
from undistill.reporting.style import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

__all__ = ["markdown_text", "part_markdown", "to_csv", "to_html", "to_markdown", "to_rich", "to_tex"]

_GAP = ("difference", "difference_low", "difference_high")
_SMALL = 400_000  # characters of an SVG that goes into the page; beyond, of thousands of dots, pixels do
_TEX = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"τₛ": r"$\tau_s$", "τ": r"$\tau$", "α": r"$\alpha$", "ω": r"$\omega$", "ε": r"$\varepsilon$"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "·": r"$\cdot$", "≠": r"$\neq$", "≈": r"$\approx$"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$"},
}


def to_markdown(document: Document, figures: str = "figures") -> str:
    """Write a document as GitHub Markdown: each row, and a paper's numbers below it.

    Args:
        document: What to write.
        figures: Folder of the pictures, from where the text will be.
    """
    blocks = [f"**{markdown_text(document.banner)}**"] if document.banner else []
    if document.command:
        blocks.append(f"`{document.command}`: {markdown_text(document.summary)}.")
    blocks += [part_markdown(part, figures=figures) for part in document.parts if _in_text(part)]
    return "\n\n".join(blocks) + "\n"


def part_markdown(part: Part, *, level: int = 2, figures: str = "figures") -> str:
    """Write one part as GitHub Markdown.

    Args:
        part: What to write.
        level: Of its heading.
        figures: Folder of the pictures, from where the text will be.
    """
    blocks = [f"{'#' * level} {part.heading}: {markdown_text(part.title)}"]
    for finding in part.findings if isinstance(part, Findings) else ():
        items = "\n".join(f"- **{markdown_text(lead)}** {markdown_text(text)}" for lead, text in finding.items)
        blocks += [f"**{markdown_text(f'{finding.subject}: {finding.headline}')}**", items]
    if part.drawn:
        blocks.append(f"![{part.heading}]({figures}/{part.name}.png)")
    for grid in part.grids():
        lines = [[markdown_text(text) for text in line] for _, _, line in grid.lines]
        header = [markdown_text(text) for text in (*grid.heads, *grid.columns)]
        rule = [*["---"] * len(grid.heads), *["---" if grid.of_text else "---:"] * len(grid.columns)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
        blocks += [f"**{markdown_text(grid.caption)}**", table] if grid.caption else [table]
    if part.notes:
        blocks.append("\n".join(f"- {markdown_text(note)}" for note in part.notes))
    return "\n\n".join(filter(None, blocks))


def to_tex(document: Document, figures: str = "figures") -> str:
    """Write a document as LaTeX; it needs the packages booktabs and graphicx."""
    floats = []
    for part in (part for part in document.parts if _in_text(part) and (part.drawn or any(part.grids()))):
        caption = " ".join(filter(None, [document.banner, f"{part.heading}{document.source}: {part.title}."]))
        kind = "figure" if part.drawn else "table"
        body = [rf"\includegraphics[width=\linewidth]{{{figures}/{part.name}.png}}"] if part.drawn else []
        for grid in part.grids():
            body += [rf"\par\medskip {_tex(grid.caption)}\par\smallskip"] if grid.caption else []
            body += list(_tabular(grid))
        notes = [rf"\par\smallskip\footnotesize {_tex(' '.join(part.notes))}"] if part.notes else []
        top = [rf"\begin{{{kind}}}", r"\centering", rf"\caption{{{_tex(caption)}}}"]
        floats.append("\n".join([*top, *body, *notes, rf"\end{{{kind}}}"]))
    return "% \\usepackage{booktabs,graphicx}\n" + "\n\n".join(floats) + "\n"


def to_csv(document: Document) -> str:
    """Write the numbers of a document as CSV: a line for each number and seed.

    ``row`` and ``column`` are those of a table, or panel and line of a figure, whose normally trained nets have no
    ``x``; ``failure`` says why a seed has no accuracy. The difference is that of the mean over seeds, with the ends of
    its interval, the same in each line of a number.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["study", "row", "column", "x", "seed", "accuracy", "run", "failure", "paper", *_GAP])
    for part in document.parts:
        for row, column, x, cell in part.cells():
            for seed in sorted({**cell.values, **cell.failures}, key=int):
                failure = cell.failures[seed].reason if seed in cell.failures else None
                mine = [cell.values.get(seed), cell.runs.get(seed), failure]
                gap = [cell.difference, *(cell.difference_interval or (None, None))]
                writer.writerow([part.name, row, column, x, seed, *mine, cell.paper, *gap])
    return file.getvalue()


def to_html(document: Document, figures: Mapping[str, Figure]) -> str:
    """Write a document as one page that needs nothing beside it.

    Args:
        document: What to write.
        figures: Of the parts that have one, by name.
    """
    environment = Environment(
        loader=PackageLoader("undistill.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    parts = {part.name: part for part in document.parts}
    pictures = {
        name: _inline(figure, name, f"{parts[name].heading}: {parts[name].title}") for name, figure in figures.items()
    }
    style = Markup(environment.get_template("style.css").render())  # ours, and free of anything to escape
    sorts = any(grid.sortable for part in document.parts for grid in part.grids())
    sorting = Markup(environment.get_template("sort.js").render()) if sorts else ""
    return environment.get_template("page.html").render(
        document=document, pictures=pictures, style=style, sorting=sorting, version=__version__
    )


def to_rich(part: Part) -> Iterator[RichTable]:
    """Yield the tables of a part for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for grid in part.grids() if _in_text(part) else ():
        title = ", ".join(filter(None, [f"{part.heading}: {part.title}", grid.caption]))
        table = RichTable(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="")
        for i, name in enumerate((*grid.heads, *grid.columns)):
            table.add_column(Text(name), justify="left" if i < len(grid.heads) or grid.of_text else "right")
        lines = list(grid.lines)
        for i, (row, paper, line) in enumerate(lines):
            warnings = [False] * len(grid.heads) + [cell is not None and cell.warning for cell in row.cells]
            cells = [
                Text(text, style="red" if warn and not paper else "") for text, warn in zip(line, warnings, strict=True)
            ]
            ends = paper or (i + 1 < len(lines) and lines[i + 1][0].begins)
            table.add_row(*cells, style="dim" if paper or row.muted else None, end_section=ends)
        yield table


def _in_text(part: Part) -> bool:
    """Tell whether a part is for those who read text: provenance and recipes of runs are on the page."""
    return part.kind != "recipes" and not part.name.startswith("provenance")


def _inline(figure: Figure, name: str, alt: str) -> Markup:
    vector = svg(figure, name, alt)
    if len(vector) <= _SMALL:
        return Markup(vector)  # Matplotlib's, which escapes what it writes
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    pixels = base64.b64encode(file.getvalue()).decode("ascii")
    return Markup('<img class="pixels" alt="{}" src="data:image/png;base64,{}">').format(alt, pixels)


def _tabular(grid: Grid) -> Iterator[str]:
    yield rf"\begin{{tabular}}{{{'l' * len(grid.heads)}{('l' if grid.of_text else 'r') * len(grid.columns)}}}"
    yield r"\toprule"
    yield _tex_line([*grid.heads, *grid.columns])
    grouped = any(row.begins for row in grid.rows)
    for i, (row, paper, line) in enumerate(grid.lines):
        if paper:
            yield r"\addlinespace[-2pt]"
        elif i == 0 or not grouped or row.begins:
            yield r"\midrule"
        yield _tex_line(line)
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _tex_line(texts: list[str]) -> str:
    return " & ".join(_tex(text) for text in texts) + r" \\"


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)
