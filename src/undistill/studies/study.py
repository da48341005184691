"""What a study is, which studies there are, and which of them somebody asks for.

A new study is one new file in this package: a function that returns a ``Study``, registered under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Self

from undistill.recipe import Recipe
from undistill.registry import Registry
from undistill.reporting.parts import Part
from undistill.run import Failure
from undistill.studies.changes import Changes
from undistill.workspace import Workspace

__all__ = ["PRINTED", "STUDIES", "Keep", "Study", "StudyFactory", "list_studies", "parameters_of"]

PRINTED = ("table", "figure")  # what the names of the studies begin with that the paper prints

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
        """The recipes behind its numbers that are known before anything has run."""

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterable[Recipe]:
        """Return all recipes that it wants, given what has finished: it is asked until nothing of them is missing.

        The same finished runs must lead to the same recipes, so that a study that was interrupted goes on as it would
        have. One that fails is missing for good: the study may choose among the others, or want no more.

        Args:
            workspace: Where the runs are.
            failed: Hashes of recipes that were tried and have no result.
        """
        return self.recipes

    @property
    def asks_again(self) -> bool:
        """Whether what it wants depends on what has finished."""
        return type(self).ask is not Study.ask

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

    def parts(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Iterator[Part]:
        """Yield what its page shows: by default, what ``evaluate`` returns.

        Raises:
            RunError: A result is damaged.
        """
        yield self.evaluate(workspace, failures, cache)

    @property
    def data(self) -> Iterator[str]:
        """Specs of the data sets that it looks at."""
        for recipe in self.recipes:
            yield from _data(recipe)

    @property
    def models(self) -> Iterator[str]:
        """Specs of the nets that it trains."""
        for recipe in self.recipes:
            yield from _models(recipe)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of what can be run without the rest."""
        return ()

    def pick(self, keep: Keep) -> Self | None:
        """Return the part of the study that was asked for, None if nothing is left."""
        return self if keep(self.name) else None


StudyFactory = Callable[..., Study]
"""Called with ``seeds=`` and ``changes=``, returns the study with seeds 0 to ``seeds - 1``, changed.

Its further keyword arguments are the parameters of the study, plain JSON values; one without a default must be given.
"""

STUDIES: Registry[StudyFactory] = Registry("study", "undistill.studies")


def list_studies() -> tuple[str, ...]:
    """Return the names of all studies: the tables, the figures, and what else there is."""
    names = STUDIES.names()
    return tuple(sorted(names, key=lambda name: next((i for i, o in enumerate(PRINTED) if name.startswith(o)), 2)))


def parameters_of(factory: StudyFactory) -> dict[str, Parameter]:
    """Return what a study can be asked for with, by name."""
    found = signature(factory).parameters
    return {name: parameter for name, parameter in found.items() if name not in ("seeds", "changes")}


def _models(recipe: Recipe) -> Iterator[str]:
    for source in recipe.sources:
        yield from _models(source)
    yield recipe.model


def _data(recipe: Recipe) -> Iterator[str]:
    for source in recipe.sources:
        yield from _data(source)
    yield recipe.data
    yield from recipe.targets
    if recipe.transfer is not None:
        yield recipe.transfer
