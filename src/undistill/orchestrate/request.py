"""Which studies somebody asks for, and with what changes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, Self

import yaml

from undistill.errors import RecipeError, UnknownNameError
from undistill.registry import Spec
from undistill.storage import digest_of
from undistill.studies.changes import PAPER, Changes, check_changes
from undistill.studies.study import PRINTED, STUDIES, Study, list_studies, parameters_of

__all__ = ["Request", "load_studies"]


@dataclass(frozen=True)
class Request:
    """What somebody asked for: enough to plan it again.

    Attributes:
        study: Name of a study, or ``"all"``.
        seeds: As of ``load_studies``, and so are the others.
        only: Rows to run.
        skip: Rows to leave out.
        changes: To every recipe.
        parameters: Of the study, by name; plain JSON values.

    Raises:
        RecipeError: A parameter is no such value.
    """

    study: str
    seeds: int = 1
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    changes: Changes = PAPER
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = {name: _plain(name, value) for name, value in self.parameters.items()}
        object.__setattr__(self, "parameters", plain)

    @property
    def of_paper(self) -> bool:
        """Whether the protocol is the paper's, as of its tables and figures; any other study has one of our own."""
        return self.study == "all" or self.study.startswith(PRINTED)

    @property
    def label(self) -> str:
        """The label of the changes; ``changed`` in place of ``reduced`` where the protocol is our own."""
        return self.changes.label if self.of_paper else self.changes.label.replace("reduced", "changed")

    @property
    def folder(self) -> str:
        """Name of the folder of what comes out; other parameters are another question, and have their own."""
        label = [] if self.label == "paper" else [self.label]
        return "-".join([self.study, *label, *([digest_of(self.parameters)[:6]] if self.parameters else [])])

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers may stand beside ours: the data and the protocol are the paper's."""
        return self.of_paper and self.changes.label in ("paper", "fast")

    @property
    def banner(self) -> str:
        """What must stand above numbers that were not made by a study's own protocol; empty if they were."""
        changes = self.changes
        if changes.smoke:
            return (
                "Smoke: tiny nets on a few images of handwritten digits. It shows that the program works; the numbers "
                "mean nothing and cannot be compared with the paper's."
            )
        parts = [f"{name} replaced by {spec}" for name, spec in (changes.data or {}).items()]
        parts += [f"{changes.epochs} epochs"] if changes.epochs else []
        parts += [f"{name} replaced by {spec}" for name, spec in (changes.models or {}).items()]
        parts += [f"nets of width {changes.width:g}"] if changes.width else []
        parts += ["the turbo protocol, which is shorter"] if changes.profile == "turbo" else []
        if not parts:
            return ""
        if not self.of_paper:
            changed = f"Changed: {', '.join(parts)}."
            return f"{changed} The protocol that this changes is our own: no paper prints its numbers."
        kind = "Turbo" if changes.label == "turbo" else "Reduced"
        return f"{kind}: {', '.join(parts)}. Not the paper's protocol, and not to be compared with its numbers."

    @property
    def command(self) -> str:
        """The command line that asks for it."""
        changes = self.changes
        words = ["undistill", "reproduce", self.study, *(f"{key}={_text(v)}" for key, v in self.parameters.items())]
        words += ["--smoke"] if changes.smoke else []
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        words += [word for row in self.only for word in ("--only", row)]
        words += [word for row in self.skip for word in ("--skip", row)]
        words += [word for name, spec in (changes.data or {}).items() for word in ("--data", f"{name}={spec}")]
        words += [word for name, spec in (changes.models or {}).items() for word in ("--model", f"{name}={spec}")]
        words += ["--epochs", str(changes.epochs)] if changes.epochs is not None else []
        words += ["--width", f"{changes.width:g}"] if changes.width is not None else []
        words += ["--profile", changes.profile] if changes.profile != "exact" else []
        return shlex.join(words)

    def load(self) -> tuple[Study, ...]:
        """Return the studies; see ``load_studies``."""
        return load_studies(
            self.study,
            seeds=self.seeds,
            only=self.only,
            skip=self.skip,
            changes=self.changes,
            parameters=self.parameters,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "study": self.study,
            "seeds": self.seeds,
            "only": list(self.only),
            "skip": list(self.skip),
            "changes": self.changes.describe(),
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the request that ``to_json`` wrote."""
        rows = {key: tuple(values[key]) for key in ("only", "skip")}
        changes, parameters = Changes(**values["changes"]), values.get("parameters", {})
        return cls(values["study"], values["seeds"], **rows, changes=changes, parameters=parameters)


def load_studies(
    name: str,
    *,
    seeds: int = 1,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    changes: Changes = PAPER,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Study, ...]:
    """Return one study, or all that need no parameters.

    Args:
        name: One of ``list_studies()``, or ``"all"``.
        seeds: Repetitions, 1 or more: seeds 0 to ``seeds - 1``.
        only: Names of the rows, lines or studies to run; all if empty.
        skip: Names of rows, lines or studies to leave out.
        changes: What to change in every recipe.
        parameters: Of the study, by name.

    Raises:
        RecipeError: A name, number or parameter is wrong, one is missing, a change does not fit a recipe, or nothing
            is left.
    """
    if name != "all" and name not in STUDIES:
        raise UnknownNameError("study", name, (*STUDIES.names(), "all"))
    if seeds < 1:
        raise RecipeError(f"seeds: must be 1 or more, got {seeds}")
    check_changes(changes)
    parameters = dict(parameters or {})
    _check_parameters(name, parameters)
    # A study that is skipped by name need not fit the changes.
    names = [each for each in list_studies() if each not in skip and not _required(each)] if name == "all" else [name]
    if changes.data or changes.models:
        _check_replaced(changes, names, parameters)
    studies = [STUDIES[each](seeds=seeds, changes=changes, **parameters) for each in names]
    known = {row for study in studies for row in (study.name, *study.rows)}
    if name == "all":
        known |= set(skip) & set(list_studies())
    for row in (*only, *skip):
        if row not in known:
            raise UnknownNameError("row" if name == "all" else f"row of {name}", row, known)

    def keep(*names: str) -> bool:
        return (not only or not set(names).isdisjoint(only)) and set(names).isdisjoint(skip)

    found = tuple(part for study in studies if (part := study.pick(keep)) is not None)
    if not found:
        raise RecipeError("--only and --skip leave no row; remove one of them")
    return found


def _required(study: str) -> list[str]:
    """Return the parameters that a study cannot do without."""
    return [name for name, each in parameters_of(STUDIES[study]).items() if each.default is Parameter.empty]


def _check_parameters(study: str, given: Collection[str]) -> None:
    """Refuse parameters that a study does not take, and the lack of those that it needs."""
    known = [] if study == "all" else list(parameters_of(STUDIES[study]))
    for name in given:
        if not known:
            raise RecipeError(f"{study} takes no parameters, got {name!r}; leave it out")
        if name not in known:
            raise UnknownNameError(f"parameter of {study}", name, known)
    missing = [] if study == "all" else [name for name in _required(study) if name not in given]
    if missing:
        raise RecipeError(f"{study} needs {', '.join(missing)}; give {' '.join(f'{name}=…' for name in missing)}")


def _plain(name: str, value: Any) -> Any:
    """Return a value as it comes back from JSON; a path is its text."""
    try:
        return json.loads(json.dumps(value, default=os.fspath, allow_nan=False))
    except (TypeError, ValueError):
        raise RecipeError(f"{name}: expected a number, text, or a list or mapping of them, got {value!r}") from None


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip("\n")


def _check_replaced(changes: Changes, studies: Collection[str], parameters: Mapping[str, Any]) -> None:
    """Refuse to replace a data set or a net that none of the studies has."""
    plain = [STUDIES[study](seeds=1, changes=PAPER, **parameters) for study in studies]
    sets = {Spec.parse(spec).name for study in plain for spec in study.data}
    nets = {Spec.parse(model).name for study in plain for model in study.models}
    for kind, given, known in (("data set", changes.data, sets), ("net", changes.models, nets)):
        for name in given or ():
            if name not in known:
                raise UnknownNameError(f"{kind} of this study", name, known)
