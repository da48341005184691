"""All training methods under one roof: references, defenses and attacks have distinct names."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from undistill.attacks import ATTACKS
from undistill.defenses import DEFENSES
from undistill.engine.objective import Objective
from undistill.errors import RecipeError, UnknownNameError
from undistill.problems import describe
from undistill.references import REFERENCES
from undistill.registry import Spec

__all__ = ["build_method", "method_class"]

_REGISTRIES = (REFERENCES, DEFENSES, ATTACKS)


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
    method = method_class(parsed.name)
    try:
        return method(**parsed.kwargs)
    except ValidationError as error:
        raise RecipeError([f"{parsed.name}: {problem}" for _, problem in describe(error, method)]) from error
