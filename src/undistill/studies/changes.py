"""How a study may depart from the paper's protocol, and what that makes of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from undistill.data import check_dataset_spec, parse_dataset_spec
from undistill.engine.config import Training
from undistill.errors import RecipeError, UnknownNameError
from undistill.models import check_model_spec
from undistill.recipe import Recipe, make_recipe
from undistill.registry import Spec

__all__ = ["PAPER", "Changes", "adapt", "check_changes", "turbo_protocol"]

_PROFILES = ("exact", "fast", "turbo")
_SMOKE_DATA = "digits(subset=100, test_subset=50)"  # a tenth of it, which Figure 5 asks for, still has every class
_SMOKE_WIDTHS = {"resnext29": 0.03, "resnet18": 0.125, "resnet50": 0.0625}
_SMOKE_WIDTH = 0.25
_TENTH = 10
_LR, _MOMENTUM, _BATCH = 0.03, 0.9, 128  # the rate is that of such a batch; it goes with the root of the size


@dataclass(frozen=True)
class Changes:
    """How a study departs from the paper's protocol. Nothing set: it does not.

    Attributes:
        smoke: Tiny data, nets and epochs: shows that everything works, and nothing else.
        data: What to train on in place of a data set, by the data set's name.
        epochs: Of every run; milestones move in proportion.
        width: Factor on the channels of every net.
        models: What to build in place of a net, by the net's name.
        profile: ``exact``, each recipe's own, which is exact for the paper's; ``fast``, the same protocol in faster
            arithmetic; or ``turbo``, another, shorter protocol.
    """

    smoke: bool = False
    data: Mapping[str, str] | None = None
    epochs: int | None = None
    width: float | None = None
    models: Mapping[str, str] | None = None
    profile: Literal["exact", "fast", "turbo"] = "exact"

    @property
    def label(self) -> str:
        """``smoke``, ``reduced`` (fewer epochs or channels, other data) or ``paper``, with a profile beside exact."""
        protocol = "smoke" if self.smoke else "reduced" if self._reduced() else "paper"
        if self.profile == "exact":
            return protocol
        return self.profile if protocol == "paper" else f"{protocol}-{self.profile}"

    def titled(self, name: str, title: str) -> str:
        """Return what a data set is called beside its numbers: a picture goes about without the page around it.

        Args:
            name: Ours, ``"cifar10"``.
            title: As printed, ``"CIFAR-10"``.
        """
        given = _SMOKE_DATA if self.smoke else (self.data or {}).get(name)
        if given is not None:
            spec = parse_dataset_spec(given)
            title = f"{Path(str(spec.kwargs.get('path', spec.name))).name} for {title}"
        return title if self.label in ("paper", "fast") else f"{title} ({self.label})"

    def describe(self) -> dict[str, Any]:
        """Return what is changed, as plain values from which ``Changes(**values)`` makes it again."""
        smoke = {"smoke": True} if self.smoke else {}
        profile = {"profile": self.profile} if self.profile != "exact" else {}
        return {**smoke, **self._reduced(), **profile}

    def _reduced(self) -> dict[str, Any]:
        replaced = {"data": dict(self.data or {}) or None, "models": dict(self.models or {}) or None}
        given = {**replaced, "epochs": self.epochs, "width": self.width}
        return {key: value for key, value in given.items() if value is not None}


PAPER = Changes()
"""None at all."""


def check_changes(changes: Changes) -> None:
    """Refuse changes that no study could make.

    Raises:
        RecipeError: A number is out of range, a data set's spec is wrong, or smoke is changed further.
    """
    if changes.profile not in _PROFILES:
        raise UnknownNameError("profile", changes.profile, _PROFILES)
    given = [key for key in changes.describe() if key not in ("smoke", "profile")]
    if changes.smoke and given:
        raise RecipeError(f"a smoke study is what it is: leave out {', '.join(given)}, or smoke")
    problems = [] if changes.width is None or changes.width > 0 else [f"width: must be above 0, got {changes.width}"]
    for spec in (changes.data or {}).values():
        problems += check_dataset_spec(spec)
    for spec in (changes.models or {}).values():
        problems += check_model_spec(spec)
    if problems:
        raise RecipeError(problems)


def adapt(recipe: Recipe, changes: Changes) -> Recipe:
    """Return a recipe with the changes made in it and in the recipes nested in it; its label says so."""
    if changes.label == "paper":
        return recipe
    fields: dict[str, Any] = {key: getattr(recipe, key) for key in Recipe.model_fields}
    if changes.profile != "exact" and recipe.profile != "turbo":  # what is in its turbo form already stays so
        fields |= turbo_protocol(recipe) if changes.profile == "turbo" else {"profile": changes.profile}
        if recipe.objective.images == "none":  # nothing to hold out
            fields["holdout"] = 0.0
    model = Spec.parse(recipe.model)
    model = Spec.parse((changes.models or {}).get(model.name, model))
    width, epochs = changes.width, changes.epochs
    if changes.smoke:
        width, epochs = _SMOKE_WIDTHS.get(model.name, _SMOKE_WIDTH), 2
        fields["batch_size"] = 64
    kwargs = model.kwargs if width is None else {**model.kwargs, "width": width}
    fields["model"] = str(Spec(model.name, kwargs))
    if epochs is not None:
        fields["milestones"] = tuple(sorted({epochs * old // fields["epochs"] for old in fields["milestones"]} - {0}))
        fields["epochs"] = epochs
    fields |= {what: adapt(source, changes) for what, source in recipe.nested.items()}
    fields["targets"] = tuple(_replace_data(target, changes) for target in recipe.targets)
    if recipe.transfer is not None:
        fields["transfer"] = _replace_data(recipe.transfer, changes)
    label = recipe.name or f"{Spec.parse(recipe.method).name}-{model.name}"
    data = _replace_data(recipe.data, changes)
    return make_recipe({**fields, "data": data, "name": f"{changes.label}-{label}", "folder": None})


def turbo_protocol(training: Training) -> dict[str, Any]:
    """Return the fields in which the turbo form of a protocol differs from it.

    A tenth of the epochs, at least 2, by Muon at one rate for every net, which falls to zero; images shift over
    reflected borders and flip in turns. Muon looks at the direction of a gradient alone: a loss that is larger, such as
    τ² KL, asks for no rate of its own. Batch size and objective stay; the last weights are kept, since training ends
    at its best. A tenth is held out where the protocol holds out nothing: for budgets, and for thieves who choose.

    Args:
        training: The protocol to shorten, a whole recipe for example.
    """
    return {
        "profile": "turbo",
        "epochs": max(2, training.epochs // _TENTH),
        "optimizer": "muon",
        "lr": round(_LR * math.sqrt(training.batch_size / _BATCH), 4),
        "momentum": _MOMENTUM,
        "weight_decay": 0.0,
        "schedule": "linear",
        "milestones": (),
        "augment": "alternating" if training.augment == "auto" else training.augment,
        "selection": "last",
        "holdout": training.holdout or Training.model_fields["holdout"].default,
    }


def _replace_data(data: str, changes: Changes) -> str:
    """Return what stands in for a data set of the paper; a share of that for a share of this."""
    asked = Spec.parse(data)
    if "of" in asked.kwargs:  # a set that is made of another
        return str(Spec(asked.name, {**asked.kwargs, "of": _replace_data(asked.kwargs["of"], changes)}))
    given = _SMOKE_DATA if changes.smoke else (changes.data or {}).get(asked.name)
    if given is None:
        return data
    replacement = parse_dataset_spec(given)
    share, size = asked.kwargs.get("subset"), replacement.kwargs.get("subset")
    if share is None:
        return given
    if size is not None:
        share = _part(share, size)
    return str(Spec(replacement.name, {**replacement.kwargs, "subset": share}))


def _part(share: float, size: float) -> float:
    """Return a share of a part; of a number of images, no more than the part has."""
    if isinstance(share, int):
        return min(share, size) if isinstance(size, int) else share
    return round(share * size) if isinstance(size, int) else share * size
