"""``undistill list``."""

from __future__ import annotations

from typing import Annotated

import typer

from undistill.cli.catalog import KINDS, describe, members
from undistill.cli.options import AsJson
from undistill.cli.output import print_json, print_table
from undistill.errors import UnknownNameError

__all__ = ["list_"]


def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar=f"[{'|'.join(KINDS)}]", help="All if none is given.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models, data sets, methods, recipes and studies."""
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("list", kind, KINDS)
    found = {
        name: {member: describe(name, value) for member, value in members(name).items()}
        for name in ([kind] if kind else KINDS)
    }
    if as_json:
        print_json(found)
        return
    for name, lines in found.items():
        print_table((name, ""), lines.items())
        typer.echo()
