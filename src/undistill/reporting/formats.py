"""What came out of studies in words, with the paper's numbers beside ours: Markdown, LaTeX, CSV, HTML, a terminal.

All of it is made from the values that ``results.collect`` returns and nothing else.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undistill._version import __version__
from undistill.functional import Interval
from undistill.orchestrate.request import Request
from undistill.reporting.style import drawable
from undistill.reporting.wording import signed, value
from undistill.studies.cells import COLLAPSED, DISAGREES, Cell
from undistill.studies.study import Part

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "Grid",
    "Section",
    "Shown",
    "banner",
    "make_section",
    "markdown_text",
    "section_markdown",
    "summary",
    "to_csv",
    "to_html",
    "to_markdown",
    "to_rich",
    "to_tex",
]

_TEX = {
    "≠": r"$\neq$",
    "†": r"\dag{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "τₛ": r"$\tau_s$",
    "τ": r"$\tau$",
    "ω": r"$\omega$",
    "α": r"$\alpha$",
    "·": r"$\cdot$",
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
    difference: str = ""
    marks: str = ""
    paper: str = ""

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
        caption: What it is in a section with several; empty where there is one.
        corner: What the rows are.
        columns: Labels.
        rows: Label and cells; None where there is nothing.
    """

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Shown | None, ...]], ...]

    @property
    def lines(self) -> Iterator[tuple[bool, list[str]]]:
        """Of each row ours and, where it has a number, the paper's, which is marked so."""
        for label, cells in self.rows:
            yield False, [label, *("–" if cell is None else cell.mine for cell in cells)]
            if any(cell is not None and cell.paper for cell in cells):
                yield True, ["paper", *("–" if cell is None else cell.paper or "–" for cell in cells)]


@dataclass(frozen=True)
class Section:
    """One table or figure in words.

    Attributes:
        name: ``"table1"``.
        heading: ``"Table 1"``.
        title: What it shows.
        picture: Whether ``figures/<name>.png`` and ``.svg`` show it.
        grids: Its numbers.
        notes: What a reader must know beside them.
    """

    name: str
    heading: str
    title: str
    picture: bool
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]


def banner(request: Request) -> str:
    """Return what must stand above numbers that were not made by a study's own protocol; empty if they were."""
    changes = request.changes
    if changes.smoke:
        return (
            "Smoke: tiny nets on a few images of handwritten digits. It shows that the program works; the numbers "
            "mean nothing and cannot be compared with the paper's."
        )
    parts = [f"{name} replaced by {spec}" for name, spec in (changes.data or {}).items()]
    parts += [f"{changes.epochs} epochs"] if changes.epochs else []
    parts += [f"nets of width {changes.width:g}"] if changes.width else []
    parts += ["the turbo protocol, which is shorter"] if changes.profile == "turbo" else []
    if not parts:
        return ""
    if not request.of_paper:
        return f"Changed: {', '.join(parts)}. The protocol that this changes is our own: no paper prints its numbers."
    kind = "Turbo" if changes.label == "turbo" else "Reduced"
    return f"{kind}: {', '.join(parts)}. Not the paper's protocol; its numbers are there for orientation."


def summary(content: Mapping[str, Any]) -> str:
    """Return how a study was made, in one line."""
    request = Request.from_json(content["request"])
    seeds = "1 seed" if request.seeds == 1 else f"{request.seeds} seeds"
    return f"{seeds}, profile {request.changes.profile}, undistill {content['undistill']}"


def make_section(part: Part) -> Section:
    """Put a part of a study in words."""
    words = re.fullmatch(r"([a-z]+)(\d+)", part["name"])
    heading = f"{words[1].title()} {words[2]}" if words else part["name"]
    grids = tuple(_GRIDS.get(part["kind"], _no_grids)(part))
    return Section(part["name"], heading, part["title"], drawable(part), grids, tuple(part["notes"]))


def to_markdown(content: Mapping[str, Any]) -> str:
    """Write a study as GitHub Markdown: each row, and the paper's below it."""
    request = Request.from_json(content["request"])
    warning = banner(request)
    blocks = [f"**{markdown_text(warning)}**"] if warning else []
    blocks += [f"`{request.command}`: {markdown_text(summary(content))}."]
    blocks += [section_markdown(make_section(part)) for part in content["parts"]]
    return "\n\n".join(blocks) + "\n"


def section_markdown(section: Section, *, level: int = 2, folder: str = "") -> str:
    """Write one table or figure as GitHub Markdown.

    Args:
        section: What to write.
        level: Of its heading.
        folder: Prefix of the paths of figures.
    """
    blocks = [f"{'#' * level} {section.heading}: {markdown_text(section.title)}"]
    if section.picture:
        blocks.append(f"![{section.heading}]({folder}figures/{section.name}.png)")
    for grid in section.grids:
        lines = [[markdown_text(text) for text in line] for _, line in grid.lines]
        header = [markdown_text(text) for text in (grid.corner, *grid.columns)]
        rule = ["---", *["---:"] * len(grid.columns)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
        blocks += [f"**{markdown_text(grid.caption)}**", table] if grid.caption else [table]
    if section.notes:
        blocks.append("\n".join(f"- {markdown_text(note)}" for note in section.notes))
    return "\n\n".join(blocks)


def to_tex(content: Mapping[str, Any]) -> str:
    """Write a study as LaTeX; it needs the packages booktabs and graphicx."""
    warning = banner(Request.from_json(content["request"]))
    floats = []
    for section in map(make_section, content["parts"]):
        caption = " ".join(filter(None, [warning, f"{section.heading} of the paper: {section.title}."]))
        kind = "figure" if section.picture else "table"
        body = [rf"\includegraphics[width=\linewidth]{{figures/{section.name}.png}}"] if section.picture else []
        for grid in section.grids:
            body += [rf"\par\medskip {_tex(grid.caption)}\par\smallskip"] if grid.caption else []
            body += list(_tabular(grid))
        floats.append(
            "\n".join(
                [
                    rf"\begin{{{kind}}}",
                    r"\centering",
                    rf"\caption{{{_tex(caption)}}}",
                    *body,
                    rf"\par\smallskip\footnotesize {_tex(' '.join(section.notes))}",
                    rf"\end{{{kind}}}",
                ]
            )
        )
    return "% \\usepackage{booktabs,graphicx}\n" + "\n\n".join(floats) + "\n"


def to_csv(content: Mapping[str, Any]) -> str:
    """Write a study as CSV: a line for each number and seed.

    ``row`` and ``column`` are those of a table, or panel and line of a figure, whose normally trained nets have no
    ``x``; ``failure`` says why a seed has no accuracy.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["study", "row", "column", "x", "seed", "accuracy", "run", "failure", "paper"])
    for part in content["parts"]:
        for row, column, x, cell in _cells(part):
            for seed in sorted({**cell["values"], **cell["failures"]}, key=int):
                failure = cell["failures"].get(seed, {}).get("reason")
                mine = [cell["values"].get(seed), cell["runs"].get(seed), failure]
                writer.writerow([part["name"], row, column, x, seed, *mine, cell["paper"]])
    return file.getvalue()


def to_html(content: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study as one page that needs nothing beside it.

    Args:
        content: What came out.
        pictures: Data URIs of the figures by the names of their parts.
    """
    environment = Environment(
        loader=PackageLoader("undistill.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    request = Request.from_json(content["request"])
    style = Markup(environment.get_template("style.css").render())  # ours, and free of anything to escape
    provenance = [(key.replace("_", " "), ", ".join(map(str, found))) for key, found in content["provenance"].items()]
    return environment.get_template("study.html").render(
        sections=[make_section(part) for part in content["parts"]],
        pictures=pictures,
        banner=banner(request),
        of_paper=request.of_paper,
        label="" if request.label == "paper" else f" ({request.label})",
        command=request.command,
        summary=summary(content),
        provenance=provenance,
        style=style,
        version=__version__,
    )


def to_rich(section: Section) -> Iterator[RichTable]:
    """Yield the tables of a section for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for grid in section.grids:
        title = ", ".join(filter(None, [f"{section.heading}: {section.title}", grid.caption]))
        table = RichTable(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
        for i, name in enumerate((grid.corner, *grid.columns)):
            table.add_column(Text(name), justify="right" if i else "left")
        for paper, line in grid.lines:
            cells = [Text(text, style="red" if text == "failed" else "") for text in line]
            table.add_row(*cells, style="dim" if paper else None, end_section=paper)
        yield table


def _table_grids(part: Part) -> Iterator[Grid]:
    columns = part["columns"]
    several = len({column["data"] for column in columns}) > 1
    labels = tuple(f"{c['label']} ({c['data']})" if several else c["label"] for c in columns)
    rows = tuple(
        (row["label"], tuple(_shown(row["cells"].get(column["name"]), part["seeds"]) for column in columns))
        for row in part["rows"]
    )
    yield Grid("", "Network", labels, rows)


def _curve_grids(part: Part) -> Iterator[Grid]:
    for panel in part["panels"]:
        dashed = {reference["line"]: reference for reference in panel["references"]}
        swept = list(dict.fromkeys(point["x"] for line in panel["lines"] for point in line["points"]))
        rows = []
        for line in panel["lines"]:
            points = {point["x"]: point for point in line["points"]}
            cells = [points.get(x) for x in swept] + ([dashed.get(line["name"])] if dashed else [])
            rows.append((line["label"], tuple(_shown(cell, part["seeds"]) for cell in cells)))
        columns = (*(f"{x:g}" for x in swept), *(["trained normally"] if dashed else []))
        yield Grid(panel["title"], f"{panel['x']['label']} =", columns, tuple(rows))


def _response_grids(part: Part) -> Iterator[Grid]:
    classes = part.get("classes", ())

    def highest(probabilities: list[float]) -> Shown:
        order = sorted(range(len(classes)), key=lambda k: -probabilities[k])[:3]
        return Shown(", ".join(f"{classes[k]}: {probabilities[k]:.2f}" for k in order))

    rows = tuple(
        (
            f"{classes[example['label']]} (image {example['index']})",
            (highest(example["normal"]), highest(example["nasty"])),
        )
        for example in part.get("examples", ())
    )
    yield Grid("", "True class", ("Normal teacher, highest three", "Nasty teacher, highest three"), rows)


def _embedding_grids(part: Part) -> Iterator[Grid]:
    rows = tuple(
        (
            panel["title"],
            (
                Shown(str(panel["dimension"])),
                None if panel["silhouette"] is None else Shown(f"{panel['silhouette']:.2f}".replace("-", "−")),
                Shown(f"{100 * panel['knn_accuracy']:.1f}"),
            ),
        )
        for panel in part.get("panels", ())
    )
    yield Grid("", "Space", ("Dimensions", "Silhouette", "Nearest neighbors right, %"), rows)


def _no_grids(part: Part) -> Iterator[Grid]:
    yield from ()


_GRIDS: dict[str, Callable[[Part], Iterator[Grid]]] = {
    "table": _table_grids,
    "curves": _curve_grids,
    "responses": _response_grids,
    "embeddings": _embedding_grids,
}


def _cells(part: Part) -> Iterator[tuple[str, str, float | str, Cell]]:
    """Yield row, column, x and cell of each number."""
    for row in part.get("rows", ()) if part["kind"] == "table" else ():
        yield from ((row["name"], column, "", cell) for column, cell in row["cells"].items())
    for panel in part["panels"] if part["kind"] == "curves" else ():
        for line in panel["lines"]:
            yield from ((panel["name"], line["name"], point["x"], point) for point in line["points"])
        yield from ((panel["name"], reference["name"], "", reference) for reference in panel["references"])


def _shown(cell: Cell | None, seeds: int) -> Shown | None:
    if cell is None:
        return None
    interval = Interval(cell["mean"], cell["half_width"], cell["n"])
    ours = "" if cell["mean"] is None else value(interval, with_n=cell["n"] != seeds)
    difference = "" if cell["difference"] is None else f"({signed(cell['difference'])})"
    printed = "" if cell["paper"] is None else f"{cell['paper']:.2f}"
    if cell["paper_difference"] is not None:
        printed += f" ({signed(cell['paper_difference'])})"
    marks = DISAGREES * bool(cell["disagrees"]) + COLLAPSED * bool(cell["collapsed_seeds"])
    return Shown(ours, difference, marks, printed)


def _tabular(grid: Grid) -> Iterator[str]:
    yield rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}"
    yield r"\toprule"
    yield _tex_line([grid.corner, *grid.columns])
    for paper, line in grid.lines:
        yield r"\addlinespace[-2pt]" if paper else r"\midrule"
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
