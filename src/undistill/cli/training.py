"""What ``train``, ``defend`` and ``attack`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undistill.cli.output import print_json, print_recipe, summary
from undistill.errors import RecipeError

if TYPE_CHECKING:
    from undistill.recipe import Recipe

__all__ = ["carry_out"]


def carry_out(
    kind: str,
    default: str,
    arguments: list[str],
    runs: Path | None,
    device: str | None,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Resolve the recipe of the arguments, run it and print what came out.

    Args:
        kind: Of the methods that the verb takes: ``reference``, ``defense`` or ``attack``.
        default: Its method where none is given.
        arguments: A recipe to start from, or none, and ``key=value`` overrides.
        runs: Folder of all runs, or None for the default.
        device: Overrides the recipe's.
        dry_run: Print the recipe only.
        as_json: Print JSON.
        quiet: Show no progress.
    """
    from undistill.api import check_kind, default_root
    from undistill.console import watch
    from undistill.workspace import Workspace

    recipe = _resolve(arguments, default)
    check_kind(recipe, kind)
    root = runs or default_root()
    if dry_run:
        print_recipe(recipe, root, as_json=as_json)
        return
    workspace = Workspace(root, device=device) if quiet else Workspace(root, device=device, watch=watch)
    if workspace.find(recipe) and not quiet:
        typer.echo("this recipe has its result already: nothing to train", err=True)
    run = workspace.run(recipe)
    if as_json:
        print_json({"folder": run.folder, "accuracy": run.accuracy, "collapsed": run.collapsed, **run.result})
    else:
        typer.echo(summary(run))


def _resolve(arguments: list[str], default: str) -> Recipe:
    from undistill.recipe import load_recipe

    source = arguments[0] if arguments and "=" not in arguments[0] else None
    overrides = arguments[source is not None :]
    stray = [f"expected key=value, got {given!r}" for given in overrides if "=" not in given]
    if stray:
        raise RecipeError(stray)
    if source is not None:
        return load_recipe(source, overrides)
    return load_recipe(None, [f"method={default}", *overrides])
