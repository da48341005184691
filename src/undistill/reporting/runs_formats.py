"""The table and the verdict as Markdown, LaTeX, plain values, and for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from undistill._version import __version__
from undistill.reporting.runs import RunGroup
from undistill.reporting.runs_table import COLLAPSED, ENDS_LOWER, Cell, Table
from undistill.reporting.verdict import Verdict

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["to_json", "to_markdown", "to_rich", "to_tex"]


def to_markdown(tables: Iterable[Table], verdicts: Iterable[Verdict]) -> str:
    """Write verdicts and tables as GitHub Markdown."""
    blocks = []
    for table, verdict in zip(tables, verdicts, strict=True):
        for finding in verdict.findings:
            items = "\n".join(f"- **{_md(lead)}** {_md(text)}" for lead, text in finding.items)
            blocks.append(f"**{_md(finding.subject)}: {_md(finding.headline)}**\n\n{items}")
        lines = [[_md(text) for text in line] for line in _lines(table)]
        rule = ["---" if i < _left(table) else "---:" for i in range(len(lines[0]))]
        grid = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
        blocks += [_md(table.caption), grid, "\n".join(f"- {_md(note)}" for note in table.notes)]
    return "\n\n".join(blocks) + "\n"


def to_tex(tables: Iterable[Table]) -> str:
    """Write tables as LaTeX; they need the package booktabs."""
    blocks = []
    for table in tables:
        lines = [" & ".join(_tex(text) for text in line) + r" \\" for line in _lines(table)]
        body = []
        for row, line in zip(table.rows, lines[1:], strict=True):
            body += [r"\midrule", line] if row.span and row.kind != "reference" else [line]
        left, right = _left(table), 1 + len(table.students)
        grid = [rf"\begin{{tabular}}{{{'l' * left}{'r' * right}}}", r"\toprule", lines[0]]
        grid += [r"\midrule"] * (body[:1] != [r"\midrule"]) + [*body, r"\bottomrule", r"\end{tabular}"]
        notes = [rf"\par\smallskip\footnotesize {_tex(' '.join(table.notes))}"]
        top = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.caption)}}}"]
        blocks.append("\n".join([*top, *grid, *notes, r"\end{table}"]))
    return "% \\usepackage{booktabs}\n" + "\n\n".join(blocks) + "\n"


def to_rich(table: Table) -> RichTable:
    """Return the table for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    header, *lines = _lines(table, short=True)
    grid = RichTable(title=Text(table.caption), box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    for i, name in enumerate(header):
        grid.add_column(Text(name), justify="left" if i < _left(table) else "right")
    for i, (row, line) in enumerate(zip(table.rows, lines, strict=True)):
        following = table.rows[i + 1] if i + 1 < len(table.rows) else None
        ends = following is not None and following.span > 0 and following.kind != "reference"
        cells = [Text(text, style="red" if COLLAPSED in text else "") for text in line]
        grid.add_row(*cells, end_section=ends, style="dim" if row.kind == "reference" else None)
    return grid


def to_json(studies: Sequence[RunGroup], tables: Sequence[Table], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return tables and verdicts as plain values; accuracies in percent, differences in points."""
    return {
        "undistill": __version__,
        "studies": [
            {
                "data": study.data,
                "caption": table.caption,
                "verdict": [
                    {"subject": f.subject, "headline": f.headline, "findings": [f"{a} {b}" for a, b in f.items]}
                    for f in verdict.findings
                ],
                "students": [student.label for student in table.students],
                "rows": [
                    {
                        "teacher": row.teacher or None,
                        "method": row.method or None,
                        "teacher_accuracy": _json(row.accuracy),
                        "students": [_json(cell) for cell in row.students],
                    }
                    for row in table.rows
                ],
                "notes": list(table.notes),
            }
            for study, table, verdict in zip(studies, tables, verdicts, strict=True)
        ],
    }


def _json(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    runs = cell.replicates.runs
    return {
        "mean": cell.accuracy.mean,
        "half_width": cell.accuracy.half_width,
        "n": cell.accuracy.n,
        "difference": cell.difference,
        "last_epoch_mean": cell.replicates.last_accuracy.mean,
        "selection": cell.replicates.recipe.selection,
        "runs": [
            {
                "hash": run.recipe.hash,
                "seed": run.recipe.seed,
                "accuracy": run.accuracy,
                "last_epoch_accuracy": last,
                "collapsed": run.collapsed,
                "top_class_share": run.result["selected"]["top_class_share"],
                "weights_sha256": run.result["weights_sha256"],
                "data_fingerprint": run.result["data_fingerprint"],
                "data_note": run.result["data_note"],
                "seconds": run.result["seconds"],
                "provenance": run.result["provenance"],
                "recipe": _recipe(run.recipe.model_dump(mode="json", exclude_none=True)),
            }
            for run, last in zip(runs, cell.replicates.last_accuracies, strict=True)
        ],
    }


def _recipe(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe without paths of the machine that it ran on."""
    return {
        key: _recipe(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in {"folder", "checkpoint"}
    }


def _lines(table: Table, *, short: bool = False) -> list[list[str]]:
    """Return the table as text: the header, then a line a row."""
    methods = _left(table) == 2
    students = [student.name if short else student.label for student in table.students]
    header = ["Teacher", *["Students learn by"] * methods, "Teacher accuracy", *students]
    lines = [header]
    for row in table.rows:
        name = row.teacher if row.span else ""
        accuracy = (
            row.accuracy.text(table.with_n) if row.accuracy is not None and row.span else "" if name == "" else "–"
        )
        cells = ["–" if cell is None else cell.text(table.with_n) for cell in row.students]
        lines.append([name, *[row.method] * methods, accuracy, *cells])
    return lines


def _left(table: Table) -> int:
    """Return how many columns are text: without students there is no way of learning to name."""
    return 2 if table.students else 1


def _md(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", text).replace("&", "&amp;")


_TEX = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"τ": r"$\tau$", "α": r"$\alpha$", "ω": r"$\omega$", "ε": r"$\varepsilon$"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", COLLAPSED: r"$^\dagger$", ENDS_LOWER: r"$^\ddagger$"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)
