"""Everything that has a name, for ``list`` and ``show``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["KINDS", "describe", "make_study", "members", "plain_doc"]

KINDS = ("models", "datasets", "defenses", "output_defenses", "attacks", "references", "recipes", "studies")


def members(kind: str) -> Mapping[str, Any]:
    """Return the classes and functions of one of ``KINDS`` by name; of a recipe, its name again."""
    from undistill.attacks import ATTACKS
    from undistill.data import DATASETS
    from undistill.defenses import DEFENSES, OUTPUT_DEFENSES
    from undistill.methods import REFERENCES
    from undistill.models import MODELS
    from undistill.recipe import list_recipes
    from undistill.studies.study import STUDIES, list_studies

    if kind == "recipes":
        return {name: name for name in list_recipes()}
    if kind == "studies":
        return {name: STUDIES[name] for name in list_studies()}
    registries: dict[str, Any] = {
        "models": MODELS,
        "datasets": DATASETS,
        "defenses": DEFENSES,
        "output_defenses": OUTPUT_DEFENSES,
        "attacks": ATTACKS,
        "references": REFERENCES,
    }
    return {name: registries[kind][name] for name in registries[kind].names()}


def describe(kind: str, member: Callable[..., Any] | str) -> str:
    """Return one line about a member of one of ``KINDS``."""
    if isinstance(member, str):
        return _describe_recipe(member)
    study = make_study(member) if kind == "studies" else None
    if study is not None:
        return str(study.title)
    line = plain_doc(member).partition("\n")[0].rstrip(".")
    line = re.sub(r"^(Build|Return) (the )?", "", line)
    return line[:1].upper() + line[1:]


def plain_doc(member: Callable[..., Any]) -> str:
    """Return the docstring without markup."""
    return (inspect.getdoc(member) or "").replace("``", "")


def make_study(factory: Callable[..., Any]) -> Any:
    """Return the study of a factory as the paper has it; None where it takes parameters that only somebody can give."""
    from undistill.studies.changes import PAPER
    from undistill.studies.study import parameters_of

    needed = any(parameter.default is parameter.empty for parameter in parameters_of(factory).values())
    return None if needed else factory(seeds=1, changes=PAPER)


def _describe_recipe(name: str) -> str:
    from undistill.recipe import load_recipe

    recipe = load_recipe(name)
    return f"{recipe.method} of {recipe.model} on {recipe.data}, {recipe.epochs} epochs"
