"""What must run, in which order, so that every recipe of a study has its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from undistill.recipe import Recipe
from undistill.workspace import Workspace

__all__ = ["Plan", "Step"]


@dataclass(frozen=True)
class Step:
    """One run.

    Attributes:
        recipe: What to run.
        needs: Hashes of the recipes whose runs it builds on: its adversary or its victim.
    """

    recipe: Recipe
    needs: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """Hash of the recipe, which names the run."""
        return self.recipe.hash


@dataclass(frozen=True)
class Plan:
    """The runs behind some recipes: each once, and after all that it builds on.

    Attributes:
        steps: In topological order.
        wanted: Hashes of the recipes that were asked for; the others are only there for these.
    """

    steps: tuple[Step, ...]
    wanted: frozenset[str]

    @classmethod
    def of(cls, recipes: Iterable[Recipe]) -> Self:
        """Return the plan of recipes, with the recipes nested in them."""
        recipes = tuple(recipes)
        steps: dict[str, Step] = {}
        for recipe in recipes:
            _add(recipe, steps)
        return cls(tuple(steps.values()), frozenset(recipe.hash for recipe in recipes))

    def missing(self, workspace: Workspace) -> tuple[Step, ...]:
        """Return the steps to carry out, in order: unfinished ones that are wanted, or needed by such a one."""
        found: list[Step] = []
        needed = set(self.wanted)
        for step in reversed(self.steps):
            if step.hash in needed and workspace.find(step.recipe) is None:
                found.insert(0, step)
                needed.update(step.needs)
        return tuple(found)


def _add(recipe: Recipe, steps: dict[str, Step]) -> None:
    """Add a recipe after those that it builds on."""
    if recipe.hash in steps:
        return
    for source in recipe.sources:
        _add(source, steps)
    steps[recipe.hash] = Step(recipe, tuple(source.hash for source in recipe.sources))
