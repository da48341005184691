"""The report: what a thief gets, as one page that opens offline and as tables.

``collect`` groups runs into studies, ``make_table`` and ``judge`` put one into a table and into words, and ``report``
writes them down with the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from undistill.errors import RecipeError
from undistill.reporting.page import render
from undistill.reporting.runs import RunGroup, collect
from undistill.reporting.runs_formats import to_json, to_markdown, to_rich, to_tex
from undistill.reporting.runs_table import Table, make_table
from undistill.reporting.verdict import Verdict, judge
from undistill.run import Run
from undistill.storage import write_json, write_text

__all__ = ["RunGroup", "Table", "Verdict", "collect", "judge", "make_table", "report", "to_rich"]


def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path = "report.html",
) -> Path:
    """Write one self-contained HTML page about runs, and its table beside it as Markdown, LaTeX and JSON.

    Runs that differ in their seeds only become one number, the mean with its 95 % interval. The runs of victims and
    adversaries that lie beside a run belong to it. The same runs give the same files on the same machine.

    Args:
        runs: Runs, run folders, or folders that hold runs (down to two levels); unfinished runs in such a folder are
            left out.
        out: The page, ``….html``; the other files have its stem. A folder gets a ``report.html``.

    Returns:
        The path of the page.

    Raises:
        RecipeError: ``out`` has another ending, or a run's method is not installed.
        RunError: There is no finished run, a result is damaged, or ``out`` cannot be written.
        CheckpointError: A teacher's weights are not those that its run wrote.
    """
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    if out.suffix != ".html":
        raise RecipeError(f"out: expected a path that ends in .html, got {str(out)!r}")
    studies = collect(runs)
    tables = [make_table(study) for study in studies]
    verdicts = [judge(study) for study in studies]
    page = render(studies, tables, verdicts)
    write_text(out.with_suffix(".md"), to_markdown(tables, verdicts))
    write_text(out.with_suffix(".tex"), to_tex(tables))
    write_json(out.with_suffix(".json"), to_json(studies, tables, verdicts))
    write_text(out, page)
    return out
