"""Thieves without data as recipes of a study."""

from __future__ import annotations

from typing import Any

from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.studies.changes import Changes, adapt

__all__ = ["data_free"]


def data_free(data: str, attack: str, victim: Recipe, changes: Changes) -> Recipe:
    """Return the recipe of a ResNet-18 that is learned without data from a ResNet-34, with the victim's seed.

    Args:
        data: ``"cifar10"`` or ``"cifar100"``.
        attack: ``"dafl"`` or, on CIFAR-10, ``"deep_inversion"``.
        victim: Normal or nasty, as the paper has it.
        changes: To both.
    """
    recipe = load_recipe(f"data_free/{data}/{attack}_resnet18__from_resnet34", seed=victim.seed, victim=victim)
    adapted = adapt(recipe, changes)
    method = adapted.objective
    if changes.smoke:
        smaller: dict[str, Any] = method.smoke
    elif attack == "deep_inversion" and adapted.epochs != recipe.epochs:
        # What it takes is to draw the images, so that is what fewer epochs stand for.
        iterations = method.model_dump()["iterations"] * adapted.epochs // recipe.epochs
        smaller = {**method.model_dump(), "iterations": max(1, iterations)}
    else:
        return adapted
    fields = {key: getattr(adapted, key) for key in Recipe.model_fields}
    return make_recipe({**fields, "method": type(method)(**smaller).spec})
