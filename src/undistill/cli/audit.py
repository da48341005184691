"""``undistill audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from undistill.cli.options import AsJson, Device, Quiet
from undistill.cli.output import print_document
from undistill.errors import RecipeError

__all__ = ["EXAMPLES", "audit"]

EXAMPLES = """\b
Examples:
  undistill audit demo/nasty_teacher --suite quick
  undistill audit runs/nasty-cnn-0123456789ab model=cnn epochs=20 --minutes 30
  undistill audit victim.checkpoint=net.pt victim.model=resnet18 data=cifar10 model=cnn --policy "rounding(digits=1)"
"""


def audit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="VICTIM|KEY=VALUE",
            help="A run folder, recipe or packaged recipe; or victim.checkpoint=FILE victim.model=NET. Then fields of "
            "the students' recipes, by default the victim's: model=cnn epochs=20.",
            show_default=False,
        ),
    ],
    suite: Annotated[str, typer.Option(help="How much is tried: quick, standard or full.")] = "standard",
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Leave out the thieves that do not fit; the page says which.", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Of the numbers; default: the suite's.", show_default=False)
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings of each thief; default: the suite's.", show_default=False)
    ] = None,
    access: Annotated[str, typer.Option(help="The most that the victim gives away: labels, probs, logits.")] = "probs",
    insider: Annotated[
        float, typer.Option(help="Share of the training images that an insider has with labels; 0 for none.")
    ] = 0.1,
    queries: Annotated[int, typer.Option(min=0, help="Images that customer and stranger ask about.")] = 1000,
    surrogate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images of a stranger, with none of the owner's.", show_default=False),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTACK", help="Try this one, not the suite's; repeatable.", show_default=False),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEFENSE",
            help="Say what this defense on the answers would change: top_k(k=1); repeatable.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="Points that all gains must surely stay below to say: undistillable.")
    ] = 1.0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; default: one a core on CPU, one on a GPU.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs and of the page.")] = Path(
        "undistill-audit"
    ),
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a classifier's answers give away, and to whom.

    Thieves and the references that they have to beat are tuned alike and tried with fresh seeds. The same command goes
    on after Ctrl-C. `undistill reproduce audit` takes the same as parameters, and runs it on a cluster.
    """
    from undistill.api import audit as carry_out

    victim, student = _given(arguments)
    found = carry_out(
        victim,
        student=student,
        suite=suite,
        minutes=minutes,
        seeds=seeds,
        trials=trials,
        access=access,
        insider=insider,
        queries=queries,
        surrogate=surrogate,
        attacks=attack,
        policies=policy or (),
        margin=margin,
        out=out,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    if not found.trained and not quiet:
        typer.echo("every run has its result already: nothing to train", err=True)
    print_document(found.document, found.folder / "index.html", as_json=as_json)
    if found.failed:
        raise typer.Exit(1)


def _given(arguments: list[str]) -> tuple[str | dict[str, Any], dict[str, Any]]:
    """Return the victim, and fields of the students' recipes."""
    from undistill.recipe import read_override

    named = [text for text in arguments if "=" not in text]
    fields = dict(read_override(text) for text in arguments if "=" in text)
    parts = {key.removeprefix("victim."): fields.pop(key) for key in [*fields] if key.startswith("victim.")}
    whole = [fields.pop("victim")] if "victim" in fields else []
    victims = [*named, *whole, *([parts] if parts else [])]
    if len(victims) != 1:
        told = "none" if not victims else ", ".join(map(str, victims))
        raise RecipeError(
            f"expected one victim (a run folder, a recipe, or victim.checkpoint=FILE victim.model=NET), got {told}"
        )
    return victims[0], fields
