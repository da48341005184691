"""What a study is, which studies there are, and which of them somebody asks for.

A new study is one new file in this package: a function that returns a ``Study``, registered under its name.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from undistill.errors import RecipeError, UnknownNameError
from undistill.recipe import Recipe
from undistill.registry import Registry, Spec
from undistill.run import Workspace
from undistill.studies.changes import PAPER, Changes, check_changes
from undistill.studies.plan import Plan

if TYPE_CHECKING:
    from undistill.studies.executors import Failure

__all__ = ["STUDIES", "Keep", "Part", "Request", "Study", "StudyFactory", "list_studies", "load_studies"]

Part = dict[str, Any]
"""What came out of a study, in plain JSON values; all that is written about it is made from this alone.

``kind`` is ``table``, ``curves``, ``responses`` or ``embeddings``; besides ``name``, ``title``, ``seeds``, ``notes``
(sentences), ``errata`` and ``failed``, a part has what its kind needs.
"""

_PRINTED = ("table", "figure")  # what the names of the studies begin with that the paper prints

Keep = Callable[..., bool]
"""Tells whether something that goes by one or several names was asked for."""


@dataclass(frozen=True)
class Study(ABC):
    """A question of the paper, a table or a figure, as runs.

    Attributes:
        name: ``"table1"``, ``"figure3"``.
        title: What it shows.
        seeds: Number of repetitions.
        changes: How the recipes depart from the paper's protocol.
    """

    name: str
    title: str
    seeds: int
    changes: Changes

    @property
    @abstractmethod
    def recipes(self) -> Iterator[Recipe]:
        """The recipes behind its numbers."""

    @abstractmethod
    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Read the finished runs: the same runs give the same part.

        Args:
            workspace: Where the runs are.
            failures: Why runs have no result, by hash.
            cache: Folder for what takes long to compute.

        Raises:
            RunError: A result is damaged.
        """

    @property
    def plan(self) -> Plan:
        """The runs behind all its numbers."""
        return Plan.of(self.recipes)

    @property
    def data(self) -> Iterator[str]:
        """Specs of the data sets that it looks at."""
        for step in self.plan.steps:
            yield step.recipe.data
            yield from step.recipe.targets

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of what can be run without the rest."""
        return ()

    def pick(self, keep: Keep) -> Self | None:
        """Return the part of the study that was asked for, None if nothing is left."""
        return self if keep(self.name) else None


class StudyFactory(Protocol):
    """Makes a study."""

    def __call__(self, *, seeds: int, changes: Changes) -> Study:
        """Return the study with seeds 0 to ``seeds - 1``, changed."""


STUDIES: Registry[StudyFactory] = Registry("study", "undistill.studies")


def list_studies() -> tuple[str, ...]:
    """Return the names of all studies: the tables, the figures, and what else there is."""
    names = STUDIES.names()
    return tuple(sorted(names, key=lambda name: next((i for i, o in enumerate(_PRINTED) if name.startswith(o)), 2)))


def load_studies(
    name: str,
    *,
    seeds: int = 1,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    changes: Changes = PAPER,
) -> tuple[Study, ...]:
    """Return one study, or all.

    Args:
        name: One of ``list_studies()``, or ``"all"``.
        seeds: Repetitions, 1 or more: seeds 0 to ``seeds - 1``.
        only: Names of the rows, lines or studies to run; all if empty.
        skip: Names of rows, lines or studies to leave out.
        changes: What to change in every recipe.

    Raises:
        RecipeError: A name or number is wrong, a change does not fit a recipe, or nothing is left.
    """
    if name != "all" and name not in STUDIES:
        raise UnknownNameError("study", name, (*STUDIES.names(), "all"))
    if seeds < 1:
        raise RecipeError(f"seeds: must be 1 or more, got {seeds}")
    check_changes(changes)
    names = list_studies() if name == "all" else (name,)
    if changes.data:
        _check_names(changes.data, names)
    studies = [STUDIES[each](seeds=seeds, changes=changes) for each in names]
    known = {row for study in studies for row in (study.name, *study.rows)}
    for row in (*only, *skip):
        if row not in known:
            raise UnknownNameError("row" if name == "all" else f"row of {name}", row, known)

    def keep(*names: str) -> bool:
        return (not only or not set(names).isdisjoint(only)) and set(names).isdisjoint(skip)

    found = tuple(part for study in studies if (part := study.pick(keep)) is not None)
    if not found:
        raise RecipeError("--only and --skip leave no row; remove one of them")
    return found


@dataclass(frozen=True)
class Request:
    """What somebody asked for: enough to plan it again.

    Attributes:
        study: Name of a study, or ``"all"``.
        seeds: As of ``load_studies``, and so are the others.
        only: Rows to run.
        skip: Rows to leave out.
        changes: To every recipe.
    """

    study: str
    seeds: int = 1
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    changes: Changes = PAPER

    @property
    def of_paper(self) -> bool:
        """Whether the protocol is the paper's, as of its tables and figures; any other study has one of our own."""
        return self.study == "all" or self.study.startswith(_PRINTED)

    @property
    def label(self) -> str:
        """The label of the changes; ``changed`` in place of ``reduced`` where the protocol is our own."""
        return self.changes.label if self.of_paper else self.changes.label.replace("reduced", "changed")

    @property
    def folder(self) -> str:
        """Name of the folder of what comes out."""
        return self.study if self.label == "paper" else f"{self.study}-{self.label}"

    @property
    def command(self) -> str:
        """The command line that asks for it."""
        changes = self.changes
        words = ["undistill", "reproduce", self.study, *(["--smoke"] if changes.smoke else [])]
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        words += [word for row in self.only for word in ("--only", row)]
        words += [word for row in self.skip for word in ("--skip", row)]
        words += [word for name, spec in (changes.data or {}).items() for word in ("--data", f"{name}={spec}")]
        words += ["--epochs", str(changes.epochs)] if changes.epochs is not None else []
        words += ["--width", f"{changes.width:g}"] if changes.width is not None else []
        words += ["--profile", changes.profile] if changes.profile != "exact" else []
        return shlex.join(words)

    def load(self) -> tuple[Study, ...]:
        """Return the studies; see ``load_studies``."""
        return load_studies(self.study, seeds=self.seeds, only=self.only, skip=self.skip, changes=self.changes)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "study": self.study,
            "seeds": self.seeds,
            "only": list(self.only),
            "skip": list(self.skip),
            "changes": self.changes.describe(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the request that ``to_json`` wrote."""
        rows = {key: tuple(values[key]) for key in ("only", "skip")}
        return cls(values["study"], values["seeds"], **rows, changes=Changes(**values["changes"]))


def _check_names(data: Collection[str], studies: Collection[str]) -> None:
    """Refuse to replace a data set that none of the studies looks at."""
    plain = (STUDIES[study](seeds=1, changes=PAPER) for study in studies)
    known = {Spec.parse(spec).name for study in plain for spec in study.data}
    for name in data:
        if name not in known:
            raise UnknownNameError("data set of this study", name, known)
