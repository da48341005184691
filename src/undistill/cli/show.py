"""``undistill show``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undistill.cli.catalog import KINDS, members, plain_doc
from undistill.cli.options import AsJson, Runs
from undistill.cli.output import print_heading, print_json, print_recipe, print_table, summary
from undistill.errors import UnknownNameError

if TYPE_CHECKING:
    from undistill.run import Run

__all__ = ["show"]

_FROM_DATA = ("num_classes", "in_channels", "image_size")
_EPOCHS = 10  # shown of a run


def show(
    target: Annotated[
        str, typer.Argument(help="A run, a method, a model, a data set, a packaged recipe or a YAML file.")
    ],
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Show a run, a method, a model, a data set or a recipe.

    A recipe is shown with every field resolved.
    """
    from undistill.api import default_root
    from undistill.recipe import load_recipe
    from undistill.run import Run

    root = runs or default_root()
    known = {name: (kind, member) for kind in KINDS for name, member in members(kind).items()}
    for folder in (Path(target), root / target):
        if (folder / "recipe.yaml").is_file():
            _show_run(Run(folder), as_json)
            return
    kind, member = known.get(target, ("recipes", None) if Path(target).is_file() else ("", None))
    if kind == "recipes":
        print_recipe(load_recipe(target), root, as_json=as_json)
    elif kind:
        _show_card(target, kind.removesuffix("s").replace("_", " "), member, as_json)
    else:
        folders = [path.parent.name for path in root.glob("*/recipe.yaml")]
        raise UnknownNameError("target", target, [*known, *folders])


def _show_run(run: Run, as_json: bool) -> None:
    records, result = run.metrics, run.result if run.finished else None
    if as_json:
        recipe = run.recipe.model_dump(mode="json", exclude_none=True)
        print_json({"folder": run.folder, "recipe": recipe, "result": result, "metrics": records})
        return
    print_heading("recipe")
    typer.echo(run.recipe.to_yaml())
    if records:
        print_heading("training")
        keys = [key for key in records[-1] if key in {"epoch", "lr", "train_loss"} or key.endswith("_accuracy")]
        print_table(_headers(keys), [[_short(record[key]) for key in keys] for record in _sample(records)])
        typer.echo()
    print_heading("result")
    if result is None:
        typer.echo(f"{len(records)} of {run.recipe.epochs} epochs done; run the same command again to go on")
        return
    last, selected = result["last"], result["selected"]
    names = zip(_headers(last), last, strict=True)
    print_table(
        ("on the test set", "last epoch", f"selected (epoch {result['selected_epoch']})"),
        [(name, _short(last[key]), _short(selected[key])) for name, key in names],
    )
    known = [key for key in ("heldout", "agreement") if result.get(key) is not None]  # older runs have none
    facts = {**result["provenance"], **{key: result[key] for key in ("parameters", "images_per_s", "seconds", *known)}}
    typer.echo("\n" + ", ".join(f"{key} {_short(value)}" for key, value in facts.items()))
    typer.echo(summary(run))


def _sample(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return some epochs, evenly spaced, the last one among them."""
    every = -(-len(records) // _EPOCHS)
    return records[::-1][::every][::-1]


def _show_card(name: str, kind: str, member: Any, as_json: bool) -> None:
    from pydantic import BaseModel

    is_method = inspect.isclass(member) and issubclass(member, BaseModel)
    parameters = list(_hyperparameters(member) if is_method else _arguments(member))
    facts = dict(_facts(member)) if is_method else {}
    if as_json:
        print_json({"name": name, "kind": kind, "description": plain_doc(member), "parameters": parameters, **facts})
        return
    print_heading(f"{name} ({kind})")
    typer.echo(f"{plain_doc(member)}\n")
    if parameters:
        columns = [key for key in ("name", "default", "range", "description") if any(key in row for row in parameters)]
        print_table(columns, [[row[key] for key in columns] for row in parameters])
        typer.echo()
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' ')}: {str(value).lower() if isinstance(value, bool) else value}")


def _hyperparameters(method: Any) -> Iterator[dict[str, Any]]:
    for name, field in method.model_fields.items():
        yield {
            "name": name,
            "default": field.default,
            "range": ", ".join(_bounds(field.metadata)),
            "description": field.description or "",
        }


def _bounds(constraints: list[Any]) -> Iterator[str]:
    for constraint in constraints:
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if hasattr(constraint, attribute):
                yield f"{sign} {getattr(constraint, attribute)}"


def _arguments(factory: Any) -> Iterator[dict[str, Any]]:
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in _FROM_DATA:
            yield {"name": name, "default": "required" if parameter.default is parameter.empty else parameter.default}


def _facts(method: Any) -> Iterator[tuple[str, object]]:
    if method.kind == "attack":
        yield "access", str(method.access)
        yield "uses_labels", method.uses_labels
        yield "textbook", method.textbook
    if method.kind == "defense":
        yield "needs_adversary", method.needs_adversary
    if method.paper is not None:
        yield "paper", str(method.paper)


def _headers(keys: Iterable[str]) -> list[str]:
    return [key.replace("_", " ") for key in keys]


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
