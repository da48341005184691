"""``undistill leaderboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undistill.cli.options import AsJson
from undistill.cli.output import print_document

__all__ = ["app"]

app = typer.Typer(help="Rank audited defenses by what leaks, and at what price.", rich_markup_mode=None)
_Board = Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the entries, a JSON file each.")]


@app.command()
def add(
    audit: Annotated[Path, typer.Argument(metavar="AUDIT", help="Folder that `undistill audit` wrote.")],
    who: Annotated[str, typer.Option(help="Who enters it.")],
    paper: Annotated[str, typer.Option(help="Where the defense comes from.")] = "",
    reported: Annotated[str, typer.Option(help="What its authors report, in short.")] = "",
    flag: Annotated[
        list[str] | None, typer.Option(help="What a reader must know of it; repeatable.", show_default=False)
    ] = None,
    to: _Board = Path("leaderboard"),
) -> None:
    """Enter what an audit found: the victim, and each defense on its answers."""
    from undistill.orchestrate.leaderboard import add_entries

    for path in add_entries(audit, to, who=who, paper=paper, reported=reported, flags=tuple(flag or ())):
        typer.echo(path)


@app.command()
def build(
    board: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the entries.")] = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Write the page: ranks that the intervals tell apart, a table that sorts, leak against price."""
    from undistill.orchestrate.leaderboard import leaderboard, write_leaderboard

    document = leaderboard(board)
    print_document(document, write_leaderboard(document, board), as_json=as_json)
