"""All training methods under one roof: references, which are here, defenses and attacks have distinct names.

A reference trains without any other net: the yardstick of every defense and attack.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from undistill.attacks import ATTACKS
from undistill.data.loader import Batch
from undistill.defenses import DEFENSES
from undistill.errors import UnknownNameError
from undistill.objective import Nets, Objective, Paper, Range, Search, StepOutput, register_in
from undistill.registry import Registry, Spec

__all__ = [
    "REFERENCES",
    "Batch",
    "Field",
    "Nets",
    "Paper",
    "Range",
    "Reference",
    "Search",
    "StepOutput",
    "build_method",
    "list_references",
    "method_class",
    "register_reference",
]


class Reference(Objective):
    """An objective that needs nothing but labeled images."""

    kind = "reference"


REFERENCES: Registry[type[Reference]] = Registry("reference", "undistill.methods", group="undistill.references")
register_reference = register_in(REFERENCES)

_REGISTRIES = (REFERENCES, DEFENSES, ATTACKS)


def list_references() -> tuple[str, ...]:
    """Return the names of all references, sorted."""
    return REFERENCES.names()


def method_class(name: str) -> type[Objective]:
    """Return the reference, defense or attack called ``name``.

    Raises:
        UnknownNameError: There is none.
    """
    for registry in _REGISTRIES:
        if name in registry:
            return registry[name]
    raise UnknownNameError("method", name, [known for registry in _REGISTRIES for known in registry.names()])


def build_method(spec: str | dict[str, Any] | Spec) -> Objective:
    """Return the configured method of a spec such as ``kd(temperature=4, alpha=0.9)``.

    Raises:
        RecipeError: Unknown method, unknown hyperparameters or values out of range; every problem at once.
    """
    parsed = Spec.parse(spec)
    return method_class(parsed.name).of(parsed)
