"""``undistill report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from undistill.cli.options import AsJson, Runs
from undistill.cli.output import print_document
from undistill.errors import RecipeError

__all__ = ["report"]


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|STUDY",
            help="Run folders, or folders of runs; default: all runs. Or folders of what `reproduce` wrote.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of any form: .html, .md, .tex, .csv or .json; the others go beside it; default: report.html.",
            show_default=False,
        ),
    ] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about runs, and their table.

    The table is printed, and written beside the page as Markdown, LaTeX, CSV and JSON. What `undistill reproduce`
    wrote into a folder is written there again, from its study.json.
    """
    from undistill.api import default_root
    from undistill.orchestrate.results import find_studies
    from undistill.reporting.report import make_document, write_report

    given = sources or [runs or default_root()]
    studies = [found for source in given for found in find_studies(source)]
    if studies:
        _report_studies(studies, given, out, as_json=as_json)
        return
    document = make_document(given)
    print_document(document, write_report(document, out or Path("report.html")), as_json=as_json)


def _report_studies(studies: Sequence[Path], given: Sequence[Path], out: Path | None, *, as_json: bool) -> None:
    from undistill.orchestrate.results import document_of, find_studies, read_study, write_pages

    strange = [str(source) for source in given if not find_studies(source)]
    if strange:
        raise RecipeError(f"{', '.join(strange)}: no study, as others here are; report runs and studies by themselves")
    if out is not None:
        raise RecipeError("--out: the report of a study goes into its folder; leave --out out")
    for folder, document in [(folder, document_of(read_study(folder))) for folder in studies]:
        print_document(document, write_pages(document, folder), as_json=as_json)
