"""``undistill show``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undistill.cli.catalog import KINDS, describe, make_study, members, plain_doc
from undistill.cli.options import AsJson, Runs
from undistill.cli.output import print_heading, print_json, print_recipe, print_table, summary
from undistill.errors import UnknownNameError

if TYPE_CHECKING:
    from undistill.run import Run

__all__ = ["show"]

_GIVEN = ("num_classes", "in_channels", "image_size", "seeds", "changes")  # by the data set, and by whoever asks
_EPOCHS = 10  # shown of a run


def show(
    target: Annotated[
        str, typer.Argument(help="A run, a method, a model, a data set, a packaged recipe, a YAML file or a study.")
    ],
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Show a run, method, model, data set, recipe or study.

    A recipe is shown with every field resolved.
    """
    from undistill.api import default_root
    from undistill.recipe import load_recipe
    from undistill.run import Run

    root = runs or default_root()
    known: dict[str, list[tuple[str, Any]]] = {}
    for kind in KINDS:
        for name, member in members(kind).items():
            known.setdefault(name, []).append((kind, member))
    for folder in (Path(target), root / target):
        if (folder / "recipe.yaml").is_file():
            _show_run(Run(folder), as_json)
            return
    found = known.get(target, [])
    if "recipes" in dict(found) or (not found and Path(target).is_file()):
        print_recipe(load_recipe(target), root, as_json=as_json)
    elif found:
        _show_cards([_card(target, kind, member) for kind, member in found], as_json=as_json)
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
    measures = "heldout", "agreement", "fidelity", "kl", "queries", "images", "labels", "trained_images"
    known = [key for key in measures if result.get(key) is not None]  # older runs have none
    facts = {**result["provenance"], **{key: result[key] for key in ("parameters", "images_per_s", "seconds", *known)}}
    typer.echo("\n" + ", ".join(f"{key} {_short(value)}" for key, value in facts.items()))
    typer.echo(summary(run))


def _sample(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return some epochs, evenly spaced, the last one among them."""
    every = -(-len(records) // _EPOCHS)
    return records[::-1][::every][::-1]


def _card(name: str, kind: str, member: Any) -> dict[str, Any]:
    """Return what there is to say about a member: four entries that all have, and facts of its kind."""
    from pydantic import BaseModel

    is_method = inspect.isclass(member) and issubclass(member, BaseModel)
    card = {
        "name": name,
        "kind": "study" if kind == "studies" else kind.removesuffix("s").replace("_", " "),
        "description": describe(kind, member) if kind == "studies" else plain_doc(member),
        "parameters": list(_hyperparameters(member) if is_method else _arguments(member)),
    }
    facts = _facts(member) if is_method else _study_facts(member) if kind == "studies" else ()
    return {**card, **dict(facts)}


def _show_cards(cards: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print cards of one name, which more than one kind may have: ``ntl`` is a defense and a study."""
    if as_json:
        print_json({**cards[0], **({"also": cards[1:]} if cards[1:] else {})})
        return
    for i, card in enumerate(cards):
        if i:
            typer.echo()
        _show_card(**card)


def _show_card(name: str, kind: str, description: str, parameters: Sequence[dict[str, Any]], **facts: Any) -> None:
    print_heading(f"{name} ({kind})")
    typer.echo(f"{description}\n")
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
        if name not in _GIVEN:
            yield {"name": name, "default": "required" if parameter.default is parameter.empty else parameter.default}


def _facts(method: Any) -> Iterator[tuple[str, object]]:
    if method.kind == "attack":
        yield "access", str(method.access)
        yield "uses_labels", method.uses_labels
        yield "textbook", method.textbook
    if method.kind == "defense":
        yield "needs_adversary", method.needs_adversary
    if method.search:
        yield "an audit tries", "; ".join(f"{name} {of}" for name, of in method.search.items())
    if method.paper is not None:
        yield "paper", str(method.paper)


def _study_facts(factory: Any) -> Iterator[tuple[str, object]]:
    study = make_study(factory)
    if study is not None and study.rows:
        yield "rows", ", ".join(study.rows)
    if study is not None and study.asks_again:
        yield "asks_again", True


def _headers(keys: Iterable[str]) -> list[str]:
    return [key.replace("_", " ") for key in keys]


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
