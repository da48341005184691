"""What a study is, which studies there are, and which of them somebody asks for.

A new study is one new file in this package: a function that returns a ``Study``, registered under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from undistill.recipe import Recipe
from undistill.registry import Registry
from undistill.reporting.parts import Part
from undistill.run import Failure
from undistill.studies.changes import Changes
from undistill.workspace import Workspace

__all__ = ["PRINTED", "STUDIES", "Keep", "Study", "StudyFactory", "list_studies"]

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
    def data(self) -> Iterator[str]:
        """Specs of the data sets that it looks at."""
        for recipe in self.recipes:
            yield from _data(recipe)

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
    return tuple(sorted(names, key=lambda name: next((i for i, o in enumerate(PRINTED) if name.startswith(o)), 2)))


def _data(recipe: Recipe) -> Iterator[str]:
    for source in recipe.sources:
        yield from _data(source)
    yield recipe.data
    yield from recipe.targets
