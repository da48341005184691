"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Device", "DryRun", "Quiet", "RecipeArguments", "Runs"]

RecipeArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="What to start from (a packaged recipe, a YAML file or a run folder), and fields to set.",
        show_default=False,
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs", metavar="DIR", help="Folder of all runs; default: $UNDISTILL_RUNS, or ./runs.", show_default=False
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; default: the recipe's.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the resolved recipe and its folder; train nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
