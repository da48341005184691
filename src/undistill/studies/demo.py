"""The demo: a thief with 20 handwritten digits of its own, and what it gets out of a normal and of a nasty teacher.

It asks about images that it pieces together of its digits. Digits are too easy to show anything with real ones: about
these a teacher's soft answers say hardly more than the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undistill.recipe import Recipe, load_recipe
from undistill.studies.changes import Changes, adapt
from undistill.studies.queries import Curve, QueryStudy, check_budgets
from undistill.studies.study import STUDIES

__all__ = ["demo"]

_TEACHERS = {"normal": "demo/teacher", "nasty": "demo/nasty_teacher"}
_TEXTBOOK: dict[str, Any] = {"method": "kd(temperature=10, alpha=0.9)", "access": "probs"}
_NAMED: dict[str, Any] = {"method": "hard_label", "access": "labels"}
_HTC: dict[str, Any] = {"method": "htc(temperature=16, multiplier=3)", "access": "probs"}
# By name, whose last word is the teacher: the label, and what the thief's recipe says.
_THIEVES = {
    "textbook-normal": ("normal teacher, soft answers, textbook", _TEXTBOOK),
    "named-normal": ("normal teacher, named class", _NAMED),
    "textbook-nasty": ("nasty teacher, soft answers, textbook", _TEXTBOOK),
    "htc-nasty": ("nasty teacher, soft answers, HTC", _HTC),
    "named-nasty": ("nasty teacher, named class", _NAMED),
}
_ALONE = {
    "labels-alone": ("no teacher, 20 labels", "ce"),
    "smoothed-alone": ("no teacher, 20 labels, smoothed", "label_smoothing(smoothing=0.05)"),
}


@STUDIES.register("demo")
def demo(*, seeds: int, changes: Changes, budgets: Sequence[int] = (100, 300, 1000)) -> QueryStudy:
    """Return the study of ``undistill demo``.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        budgets: Numbers of queries, each 20 or more: the images with a label are asked about first.

    Raises:
        RecipeError: A budget is no number of queries.
    """
    asked = check_budgets(budgets)
    victims = {name: [load_recipe(of, seed=seed) for seed in range(seeds)] for name, of in _TEACHERS.items()}
    owned = {name: tuple(adapt(victim, changes) for victim in found) for name, found in victims.items()}

    def thief(victim: Recipe, budget: int, fields: dict[str, Any]) -> Recipe:
        return adapt(load_recipe("demo/mlp", victim=victim, seed=victim.seed, queries=budget, **fields), changes)

    curves = [Curve("teacher", "the normal teacher itself", "normal", dict.fromkeys(asked, owned["normal"]))]
    for name, (label, fields) in _THIEVES.items():
        teacher = name.rpartition("-")[2]
        points = {budget: tuple(thief(victim, budget, fields) for victim in victims[teacher]) for budget in asked}
        named = f"named-{teacher}"
        curves.append(Curve(name, label, teacher, points, "labels-alone" if name == named else named))
    for name, (label, method) in _ALONE.items():
        alone = tuple(adapt(load_recipe("demo/mlp", seed=seed, method=method), changes) for seed in range(seeds))
        beside = None if name == "labels-alone" else "labels-alone"
        curves.append(Curve(name, label, None, dict.fromkeys(asked, alone), beside))
    return QueryStudy(
        "demo",
        "What a thief gets who has 20 digits",
        seeds,
        changes,
        {"digits": tuple(curves)},
        owned,
        ("accuracy",),
        (
            "The thief has 20 digits with labels, none of them the owner's, and asks about images that it makes of "
            "them: halves of two, turned and moved. Each is asked about once. Seeds differ in the nets, not in the "
            "images.",
            "Without a teacher the same student takes as many steps on its 20 digits.",
            "In brackets, in points: soft answers against the named class of the same teacher, all others against 20 "
            "labels; with its interval, not corrected for the number of these.",
            "Settings were fixed before these runs, in rehearsals with other seeds and another split; so were the kind "
            "and the number of images, which were chosen because something is to be seen there.",
        ),
    )
