"""``undistill report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from undistill.cli.options import AsJson, Runs
from undistill.cli.output import print_heading, print_json
from undistill.errors import RecipeError

__all__ = ["print_report", "report"]


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
            metavar="FILE.html",
            help="The page; the table's other forms go beside it; default: report.html.",
            show_default=False,
        ),
    ] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about runs, and their table.

    The table is printed, and written beside the page as Markdown, LaTeX and JSON. What `undistill reproduce` wrote into
    a folder is written there again, from its study.json.
    """
    from undistill.api import default_root
    from undistill.orchestrate.results import find_studies
    from undistill.reporting import report as write_report

    given = sources or [runs or default_root()]
    studies = [found for source in given for found in find_studies(source)]
    if studies:
        _report_studies(studies, given, out, as_json=as_json)
        return
    page = write_report(given, out=out or Path("report.html"))
    print_report(page, given, as_json=as_json)


def _report_studies(studies: Sequence[Path], given: Sequence[Path], out: Path | None, *, as_json: bool) -> None:
    from undistill.cli.reproduce import print_study
    from undistill.orchestrate.results import find_studies, read_study
    from undistill.reporting.write import render

    strange = [str(source) for source in given if not find_studies(source)]
    if strange:
        raise RecipeError(f"{', '.join(strange)}: no study, as others here are; report runs and studies by themselves")
    if out is not None:
        raise RecipeError("--out: the report of a study goes into its folder; leave --out out")
    for folder, content in [(folder, read_study(folder)) for folder in studies]:
        render(content, folder)
        print_study(content, folder, as_json=as_json)


def print_report(page: Path, runs: Sequence[Path], *, as_json: bool) -> None:
    """Print the tables of a report and the path of its page.

    Args:
        page: The page that was written.
        runs: What it is about.
        as_json: Print the JSON beside the page, and the path on stderr.
    """
    from undistill.console import make_console
    from undistill.reporting import collect, judge, make_table, to_rich

    if as_json:
        print_json(json.loads(page.with_suffix(".json").read_text(encoding="utf-8")))
        typer.echo(page, err=True)
        return
    console = make_console()
    for study in collect(runs):
        table = make_table(study)
        console.print(to_rich(table))
        for note in table.notes:
            typer.echo(note)
        for finding in judge(study).findings:
            typer.echo()
            print_heading(f"{finding.subject}: {finding.headline}")
        typer.echo()
    typer.echo(page)
