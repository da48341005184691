"""``undistill demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from undistill.cli.options import AsJson, Quiet
from undistill.cli.output import print_document

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs and of the page.")] = Path(
        "undistill-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, for a mean with its interval.")] = 5,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Steal from a defended teacher with 20 digits.

    It trains on scikit-learn's handwritten digits, needs no download and no GPU, and takes about a minute on two cores.
    """
    from undistill.demo import demo as run_demo
    from undistill.orchestrate.progress import make_observer
    from undistill.reporting.report import write_report

    document = run_demo(out, seeds=seeds, observe=partial(make_observer, quiet=quiet))
    print_document(document, write_report(document, out / "report.html"), as_json=as_json)
