"""``undistill reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from undistill.cli.options import AsJson, Device, Quiet
from undistill.cli.output import print_document, print_json, print_table
from undistill.errors import RecipeError

if TYPE_CHECKING:
    from undistill.orchestrate.request import Request

__all__ = ["EXAMPLES", "Reproduce", "reproduce"]

EXAMPLES = (
    "Examples: undistill reproduce table1 --smoke · undistill reproduce table1 --seeds 3 · "
    "undistill reproduce all --dry-run · undistill reproduce figure4 --only cifar10 --profile fast · "
    "undistill reproduce table1 --data cifar10=cifar10(subset=5000) --epochs 10 --width 0.25 · "
    "undistill reproduce all --executor ray --address auto"
)


class Reproduce(TyperCommand):
    """The verb, whose help names every study; these are imported when somebody reads it."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        from undistill.studies.study import list_studies

        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.name == "study":
                parameter.help = f"{', '.join(list_studies())}, or all."
        return super().get_help(ctx)


def reproduce(
    study: Annotated[str, typer.Argument(help="Name of a study, or all.")],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Parameters of the study; `undistill show STUDY` names them.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, for a mean with its interval.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny nets and data: shows that all of it works.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW",
            help="Run this row of a table, panel or line of a figure, or study: resnet18-nasty, cifar10; repeatable.",
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="ROW", help="Leave this out; repeatable.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC",
            help="Train on SPEC in place of a data set: cifar10=npz(path='x.npz', augment='crop_flip').",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SPEC", help="Build SPEC in place of a net: resnet18=speedrun; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Fewer epochs; labels the study as reduced.")] = None,
    width: Annotated[float | None, typer.Option(help="Narrower nets; labels the study as reduced.")] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="exact: as recipes say; fast: the same protocol in faster arithmetic; turbo: another, shorter one."
        ),
    ] = "exact",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; default: one a core on CPU, one on a GPU.", show_default=False),
    ] = None,
    executor: Annotated[str, typer.Option(help="Where the runs are carried out: local, ray or slurm.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster: auto, or ray://host:port.", show_default=False)
    ] = None,
    executor_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For the executor: gpus_per_run=0.25, slurm_partition=gpu; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs and of what comes out.")] = Path(
        "undistill-studies"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, which are there, and what the others cost; train nothing.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the paper's tables and figures, its numbers beside ours.

    A run that several numbers need happens once; what is there already is not trained again, so that the same command
    goes on after Ctrl-C. Runs that fail leave a number marked so, and exit code 1.
    """
    from undistill.orchestrate.progress import make_observer
    from undistill.orchestrate.reproduce import reproduce as run_studies
    from undistill.orchestrate.request import Request
    from undistill.recipe import read_override
    from undistill.studies.changes import Changes

    sets, nets = _pairs("--data", "NAME=SPEC", data), _pairs("--model", "NAME=SPEC", model)
    changes = Changes(smoke, sets or None, epochs, width, nets or None, profile)  # type: ignore[arg-type]
    given = dict(map(read_override, parameters or ()))
    request = Request(study, seeds, tuple(only or ()), tuple(skip or ()), changes, given)
    if dry_run:
        _print_plan(request, out, jobs=jobs, device=device, as_json=as_json)
        return
    found = run_studies(
        request,
        out,
        jobs=jobs,
        device=device,
        executor=executor,
        executor_options=_pairs("--executor-option", "KEY=VALUE", executor_option),
        address=address,
        observe=lambda total: make_observer(total, quiet=quiet),
    )
    if not found.trained and not quiet:
        typer.echo("every run has its result already: nothing to train", err=True)
    print_document(found.document, found.folder / "index.html", as_json=as_json)
    if found.failed:
        raise typer.Exit(1)


def _pairs(option: str, form: str, given: list[str] | None) -> dict[str, str]:
    stray = [f"{option}: expected {form}, got {text!r}" for text in given or () if not all(text.partition("=")[::2])]
    if stray:
        raise RecipeError(stray)
    return {name: value for name, _, value in (text.partition("=") for text in given or ())}


def _print_plan(request: Request, out: Path, *, jobs: int | None, device: str | None, as_json: bool) -> None:
    from undistill.engine.device import pick_device
    from undistill.orchestrate.estimate import estimate, format_flops, format_seconds, rows, totals
    from undistill.orchestrate.reproduce import local_slots, plan_studies

    slots, threads = local_slots(jobs, device, request.changes)
    studies = request.load()
    plan, missing = plan_studies(studies, out)
    cost = estimate(missing, device=pick_device(device or "auto"), threads=threads)
    costs = {row["hash"]: row for row in rows(cost)}
    again = [study.name for study in studies if study.asks_again]
    if as_json:
        runs = [
            {
                "name": step.recipe.folder_name,
                "data": step.recipe.data,
                "needs": step.needs,
                "cached": step.hash not in costs,
                "estimate": costs.get(step.hash),
            }
            for step in plan.steps
        ]
        found = {"runs": runs, "total": len(runs), "missing": len(missing), "estimate": totals(cost, slots)}
        print_json({**found, **({"asks_again": again} if again else {})})
        return
    lines = []
    for step in plan.steps:
        run = (step.recipe.folder_name, step.recipe.data, step.recipe.epochs)
        row = costs.get(step.hash)
        if row is None:
            lines.append(("there", *run, "", ""))
        else:
            lines.append(("to run", *run, format_flops(row["flops"]), format_seconds(row["seconds"])))
    print_table(("state", "run", "data", "epochs", "operations", "time alone"), lines, right=[3, 4, 5])
    typer.echo(f"\n{len(lines)} runs: {len(lines) - len(missing)} there, {len(missing)} to run")
    if again:
        typer.echo(f"then whatever is asked for once these are there: {', '.join(again)}")
    if missing:
        low, high = map(format_seconds, cost.duration(slots))
        unknown = f", and {cost.unknown} runs of unknown cost" if cost.unknown else ""
        typer.echo(
            f"estimated from a short probe: {format_flops(cost.flops)}, {low} to {high} with {slots} at a time on this "
            f"machine ({cost.device}){unknown}"
        )
