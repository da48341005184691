"""``undistill reproduce``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undistill.cli.options import AsJson, Device, Quiet
from undistill.cli.output import print_json, print_table
from undistill.errors import RecipeError

if TYPE_CHECKING:
    from undistill.studies.reproduce import Reproduction
    from undistill.studies.tables import TableStudy

__all__ = ["EXAMPLES", "reproduce"]

EXAMPLES = (
    "Examples: undistill reproduce table1 --smoke · undistill reproduce table1 --seeds 3 · "
    "undistill reproduce all --dry-run · undistill reproduce table1 --data cifar10=cifar10(subset=5000) --epochs 10 "
    "--width 0.25"
)


def reproduce(
    study: Annotated[str, typer.Argument(help="table1, table2, table3, table4, table5 or all.")],
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, for a mean with its interval.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny nets and data: shows that all of it works.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Run this row, such as resnet18-nasty; repeatable.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="ROW", help="Leave this row out; repeatable.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC",
            help="Train on SPEC in place of a data set: cifar10=npz(path='x.npz', augment='crop_flip').",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Fewer epochs; labels the study as reduced.")] = None,
    width: Annotated[float | None, typer.Option(help="Narrower nets; labels the study as reduced.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; default: one a core on CPU, one on a GPU.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs and of the tables.")] = Path(
        "undistill-studies"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and which are there; train nothing.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run tables of the paper, and put its numbers beside ours.

    A run that several cells need happens once; what is there already is not trained again, so that the same command
    goes on after Ctrl-C. Runs that fail leave a cell marked so, and exit code 1.
    """
    from undistill.studies.progress import make_observer
    from undistill.studies.reproduce import reproduce as run_studies
    from undistill.studies.tables import Changes, load_studies

    changes = Changes(smoke=smoke, data=_replacements(data or []), epochs=epochs, width=width)
    studies = load_studies(study, seeds=seeds, only=only or (), skip=skip or (), changes=changes)
    if dry_run:
        _print_plan(studies, out, as_json=as_json)
        return
    found = run_studies(
        study, studies, out, jobs=jobs, device=device, observe=lambda total: make_observer(total, quiet=quiet)
    )
    _print_tables(found, quiet=quiet, as_json=as_json)
    if found.failed:
        raise typer.Exit(1)


def _replacements(given: list[str]) -> dict[str, str]:
    stray = [f"--data: expected NAME=SPEC, got {text!r}" for text in given if not all(text.partition("=")[::2])]
    if stray:
        raise RecipeError(stray)
    return {name: spec for name, _, spec in (text.partition("=") for text in given)}


def _print_plan(studies: tuple[TableStudy, ...], out: Path, *, as_json: bool) -> None:
    from undistill.studies.reproduce import plan_studies

    plan, missing = plan_studies(studies, out)
    todo = {step.hash for step in missing}
    steps = [(step, "to run" if step.hash in todo else "there") for step in plan.steps]
    if as_json:
        runs = [
            {"name": step.recipe.folder_name, "data": step.recipe.data, "needs": step.needs, "cached": state == "there"}
            for step, state in steps
        ]
        print_json({"runs": runs, "total": len(steps), "missing": len(todo)})
        return
    print_table(
        ("state", "run", "data", "epochs"),
        [(state, step.recipe.folder_name, step.recipe.data, step.recipe.epochs) for step, state in steps],
        right=[3],
    )
    typer.echo(f"\n{len(steps)} runs: {len(steps) - len(todo)} there, {len(todo)} to run")


def _print_tables(found: Reproduction, *, quiet: bool, as_json: bool) -> None:
    from undistill.console import make_console
    from undistill.studies.formats import banner, make_grid, to_rich

    if not found.trained and not quiet:
        typer.echo("every run has its result already: nothing to train", err=True)
    page = found.folder / "index.html"
    if as_json:
        print_json(json.loads((found.folder / "study.json").read_text(encoding="utf-8")))
        typer.echo(page, err=True)
        return
    console = make_console()
    for result in found.results:
        grid = make_grid(result)
        console.print(to_rich(grid))
        for note in grid.notes:
            typer.echo(note)
        typer.echo()
    warning = banner(found.results[0].study.changes)
    if warning:
        typer.secho(warning, fg=typer.colors.YELLOW)
    typer.echo(page)
