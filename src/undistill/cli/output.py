"""How verbs print their results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from undistill.recipe import Recipe
    from undistill.reporting.document import Document
    from undistill.run import Run

__all__ = ["print_document", "print_heading", "print_json", "print_recipe", "print_table", "summary"]


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON has no form for (a path) is printed as text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def print_heading(text: str) -> None:
    """Print a line in bold."""
    typer.secho(text, bold=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Print a table.

    Args:
        columns: Headers.
        rows: Cells, in the order of the columns.
        right: Positions of the columns to align on the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from undistill.console import make_console

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", border_style="bright_black")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    make_console().print(table)


def print_document(document: Document, path: Path, *, as_json: bool) -> None:
    """Print the tables and findings of a document, and the path of what was written.

    Args:
        document: What to print.
        path: Of its page.
        as_json: Print its content, and the path on stderr.
    """
    from undistill.console import make_console
    from undistill.reporting.formats import to_rich
    from undistill.reporting.parts.findings import Findings

    if as_json:
        print_json(document.content)
        typer.echo(path, err=True)
        return
    console = make_console()
    for part in document.parts:
        for table in to_rich(part):
            console.print(table)
        for note in part.notes:
            typer.echo(note)
        for finding in part.findings if isinstance(part, Findings) else ():
            print_heading(f"{finding.subject}: {finding.headline}")
            typer.echo()
    if document.banner:
        typer.secho(document.banner, fg=typer.colors.YELLOW)
    typer.echo(path)


def print_recipe(recipe: Recipe, root: Path, *, as_json: bool) -> None:
    """Print a resolved recipe, its hash and the folder of its run; without JSON it is YAML that loads again."""
    from undistill.run import Run

    folder = Path(recipe.folder) if recipe.folder else root / recipe.folder_name
    run = Run(folder)
    if as_json:
        content = recipe.model_dump(mode="json", exclude_none=True)
        print_json({"recipe": content, "hash": recipe.hash, "folder": folder, "finished": run.finished})
        return
    state = "finished" if run.finished else f"{len(run.metrics)} of {recipe.epochs} epochs done"
    typer.echo(f"{recipe.to_yaml()}# hash: {recipe.hash}\n# run: {folder} ({state})")


def summary(run: Run) -> str:
    """Return what came out of a finished run, in one line."""
    found, recipe = run.result, run.recipe
    parts = [f"{run.accuracy:.2f} % on {found['test_images']:,} test images"]
    if recipe.selection == "paper":
        parts[0] += " (chosen on them, as in the paper)"
    if run.collapsed:
        selected = found["selected"]
        share = 100 * selected["top_class_share"]
        parts.append(f"collapsed: {share:.0f} % of its answers are class {selected['top_class']}")
    if found.get("fidelity") is not None:  # older runs have none
        parts.append(f"fidelity {100 * found['fidelity']:.2f} % after {found['queries']:,} queries")
    parts += [found["data_note"]] if found["data_note"] else []
    return f"{found['name']}: {'; '.join(parts)}; {run.folder}"
