"""How a thief tunes: points that cover the settings of a method evenly, and more epochs for those that do well.

Every method gets as many trials, a reference too, and nothing is chosen on test images: a choice is made on held-out
ones of the thief's own, by their labels or, without any, by how often the victim names the same class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from undistill.methods import build_method, method_class
from undistill.objective import Range
from undistill.recipe import Recipe, make_recipe
from undistill.registry import Spec
from undistill.run import Run
from undistill.workspace import Workspace

__all__ = ["LR_FACTORS", "Tuned", "changed", "settings", "with_epochs"]

LR_FACTORS = Range(0.25, 4, log=True)
"""By what the learning rate is multiplied: the scale of a loss is a rate, and losses differ in scale."""

_SHORT, _KEPT = 4, 4  # a short trial has a quarter of the epochs; a quarter of the trials goes on to all of them
_SOBOL = 0  # the seed of the points' scramble


def settings(method: str, trials: int) -> list[tuple[str, float]]:
    """Return what a search tries of a method: specs, and factors on the learning rate.

    The first is the method as it was published, at the rate as it is; the others are Sobol points over the space that
    the method declares and over ``LR_FACTORS``.

    Args:
        method: Its name, or its spec with settings that are not searched.
        trials: 1 or more.
    """
    given = Spec.parse(method)
    space = {name: of for name, of in method_class(given.name).search.items() if name not in given.kwargs}
    found = [(build_method(method).spec, 1.0)]
    if trials > 1:
        sobol = torch.quasirandom.SobolEngine(len(space) + 1, scramble=True, seed=_SOBOL)  # type: ignore[no-untyped-call]
        points = sobol.draw(trials - 1)
        for *shares, rate in points.tolist():
            chosen = {name: _at(of, share) for (name, of), share in zip(space.items(), shares, strict=True)}
            spec = build_method(str(Spec(given.name, {**given.kwargs, **chosen}))).spec
            found.append((spec, LR_FACTORS.at(rate)))
    return list(dict.fromkeys(found))


def _at(of: Range | tuple[Any, ...], share: float) -> Any:
    return of.at(share) if isinstance(of, Range) else of[min(int(share * len(of)), len(of) - 1)]


@dataclass(frozen=True)
class Tuned:
    """A method whose settings are searched, and then tried with fresh seeds.

    Attributes:
        base: The recipe as published: its seed is the one that the search has.
        method: Its method by name, or with the settings that are not searched.
        trials: How many settings are tried.
        seeds: Those of the numbers, none of them the search's.
    """

    base: Recipe
    method: str
    trials: int
    seeds: tuple[int, ...]

    @cached_property
    def whole(self) -> tuple[Recipe, ...]:
        """Every setting for all epochs, the published one first."""
        tried = settings(self.method, self.trials)
        return tuple(changed(self.base, method=method, lr=self.base.lr * factor) for method, factor in tried)

    @cached_property
    def short(self) -> tuple[Recipe, ...]:
        """Every setting for a quarter of the epochs; none where there are few trials or epochs."""
        if len(self.whole) <= _KEPT or self.base.epochs < _SHORT:
            return ()
        return tuple(with_epochs(recipe, recipe.epochs // _SHORT) for recipe in self.whole)

    @property
    def published(self) -> tuple[Recipe, ...]:
        """The published settings with fresh seeds."""
        return self._fresh(self.whole[0])

    def ask(self, workspace: Workspace, failed: Collection[str]) -> Iterator[Recipe]:
        """Yield what is wanted now: short trials, then whole ones of the best, then the best with fresh seeds."""
        yield from self.published
        yield from self.short
        if not _settled(self.short, workspace, failed):
            return
        kept = self._kept(workspace)
        yield from kept
        if _settled(kept, workspace, failed) and (best := _best(kept, workspace)) is not None:
            yield from self._fresh(best)

    def done(self, workspace: Workspace, failed: Collection[str]) -> bool:
        """Whether nothing more will come of it."""
        return all(
            recipe.hash in failed or workspace.find(recipe) is not None for recipe in self.ask(workspace, failed)
        )

    def best(self, workspace: Workspace) -> tuple[Recipe, ...]:
        """Return the recipes, one a seed, of the settings that the search has chosen; empty if all trials failed."""
        found = _best(self._kept(workspace), workspace)
        return () if found is None else self._fresh(found)

    def choice(self, workspace: Workspace) -> float | None:
        """Return what the chosen settings came to in the search, on held-out images; None if all trials failed.

        The nets of the search are not those whose test accuracy counts, so that who is chosen by it is chosen without.
        """
        scores = _scores(self._kept(workspace), workspace)
        return max(scores.values(), default=None)

    def cost(self, workspace: Workspace, seconds: float) -> float:
        """Return about how many seconds the rest of it takes, at so many for a whole run.

        Args:
            workspace: Where the runs are.
            seconds: Of one run for all epochs.
        """
        short = sum(workspace.find(recipe) is None for recipe in self.short) / _SHORT
        fresh = sum(workspace.find(recipe) is None for recipe in self.published)
        if not short and all(workspace.find(recipe) is not None for recipe in self._kept(workspace)):
            return seconds * (fresh + sum(workspace.find(recipe) is None for recipe in self.best(workspace)))
        whole = len(self.whole) if not self.short else 1 + max(2, len(self.whole) // _KEPT)
        return seconds * (short + whole + fresh + len(self.seeds))

    @staticmethod
    def score(run: Run) -> float | None:
        """Return in percent what a thief chooses by: accuracy on held-out images with a label, else agreement."""
        accuracy, agreement = run.result.get("heldout"), run.result.get("agreement")
        return accuracy if accuracy is not None else None if agreement is None else 100 * agreement

    def _kept(self, workspace: Workspace) -> tuple[Recipe, ...]:
        """Return the trials for all epochs: of the settings that were best in a few, and of the published one."""
        if not self.short:
            return self.whole
        scores = _scores(self.short, workspace)
        ranked = sorted(scores, key=lambda at: -scores[at])
        chosen = {0, *ranked[: max(2, len(self.whole) // _KEPT)]}
        return tuple(self.whole[at] for at in sorted(chosen))

    def _fresh(self, recipe: Recipe) -> tuple[Recipe, ...]:
        return tuple(changed(recipe, seed=seed) for seed in self.seeds)


def _settled(recipes: Sequence[Recipe], workspace: Workspace, failed: Collection[str]) -> bool:
    """Whether each has its result or will have none."""
    return all(recipe.hash in failed or workspace.find(recipe) is not None for recipe in recipes)


def _best(recipes: Sequence[Recipe], workspace: Workspace) -> Recipe | None:
    """Return the one that is best on held-out images, the first of equals; None without any result."""
    scores = _scores(recipes, workspace)
    return recipes[max(scores, key=lambda at: scores[at])] if scores else None


def _scores(recipes: Sequence[Recipe], workspace: Workspace) -> dict[int, float]:
    """Return by position what those came to that have a result."""
    runs = {at: workspace.find(recipe) for at, recipe in enumerate(recipes)}
    scores = {at: Tuned.score(run) for at, run in runs.items() if run is not None}
    return {at: score for at, score in scores.items() if score is not None}


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe for another number of epochs; its milestones move in proportion."""
    milestones = tuple(sorted({at * epochs // recipe.epochs for at in recipe.milestones} - {0}))
    return changed(recipe, epochs=epochs, milestones=milestones)


def changed(recipe: Recipe, **fields: Any) -> Recipe:
    """Return another recipe, checked like any; its sources stay what they are, whatever seed it has."""
    kept = {key: getattr(recipe, key) for key in Recipe.model_fields if key not in ("name", "folder", "code")}
    return make_recipe({**kept, **fields})
