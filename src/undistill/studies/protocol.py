"""The nets of the paper as recipes: one trained normally, a nasty teacher, a student of either."""

from __future__ import annotations

from functools import cache

from undistill.recipe import Recipe, load_recipe
from undistill.registry import Spec

__all__ = ["nasty", "normal", "student"]


@cache
def normal(data: str, model: str, seed: int, *, share: float = 1) -> Recipe:
    """Return the recipe of a net that is trained on labels.

    Args:
        data: ``"cifar10"``, ``"cifar100"`` or ``"tiny_imagenet"``, as of the other functions here.
        model: Name of a net that the paper trains on that data set.
        seed: Of the run.
        share: Of the training set that it sees, 0 < share <= 1.
    """
    return load_recipe(f"paper/{data}/{model}", _part(share), seed=seed)


@cache
def nasty(data: str, model: str, seed: int, *, adversary: str | None = None, weight: float | None = None) -> Recipe:
    """Return the recipe of a nasty teacher.

    Args:
        data: Name of the data set.
        model: Name of the teacher's net.
        seed: Of its run and of its adversary's.
        adversary: Name of the adversary's net; default: the teacher's.
        weight: ω; default: the paper's for this data set.
    """
    # As a recipe of its own: the other adversaries of Table 4 have a protocol of their own.
    twin = normal(data, adversary or model, seed)
    overrides = [] if weight is None else [f"method.weight={weight}"]
    return load_recipe(f"paper/{data}/nasty_{model}", overrides, seed=seed, adversary=twin)


def student(data: str, model: str, victim: Recipe, *, temperature: float | None = None, share: float = 1) -> Recipe:
    """Return the recipe of a student that is distilled from a victim, with the victim's seed.

    Args:
        data: Name of the data set.
        model: Name of the student's net.
        victim: Normal or nasty.
        temperature: τ_s; default: the paper's for this data set.
        share: Of the training set that the student sees, 0 < share <= 1; the victim was trained on all of it.
    """
    overrides = [*_part(share), *([] if temperature is None else [f"method.temperature={temperature}"])]
    name = f"paper/{data}/kd_{model}__from_{Spec.parse(victim.model).name}"
    return load_recipe(name, overrides, seed=victim.seed, victim=victim)


def _part(share: float) -> list[str]:
    return [] if share == 1 else [f"data.subset={share}"]  # all of it is the recipe of the tables, and the same run
