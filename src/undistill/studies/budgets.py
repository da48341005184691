"""What a nasty teacher's students lose for how much of its accuracy, where it may cost so much and no more.

Each teacher starts from its twin's weights and is steered to its budget on held-out images; what it costs on the test
images is shown, with what students lose who ask it by the book and otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undistill.errors import RecipeError, UnknownNameError
from undistill.recipe import Recipe, load_recipe
from undistill.studies.changes import Changes, adapt
from undistill.studies.curves import CurveStudy, Line, Panel, Point, Reference
from undistill.studies.study import STUDIES
from undistill.studies.thieves import THIEVES

__all__ = ["budgets"]

# By data set: its title, and the recipes of the normal teacher, the nasty one and their student.
_NETS: Mapping[str, tuple[str, str, str, str]] = {
    "digits": ("Small digits", "budgets/digits_teacher", "budgets/digits_nasty", "budgets/digits_student"),
    "mnist": ("MNIST", "budgets/mnist_teacher", "budgets/mnist_nasty", "budgets/mnist_student"),
    "cifar10": (
        "CIFAR-10",
        "turbo/cifar10/speedrun",
        "turbo/cifar10/budget_speedrun",
        "turbo/cifar10/kd_cnn__from_speedrun",
    ),
}


@STUDIES.register("budgets")
def budgets(
    *,
    seeds: int,
    changes: Changes,
    data: Sequence[str] = ("digits", "mnist", "cifar10"),
    points: Sequence[float] = (0.25, 0.5, 1, 2),
) -> CurveStudy:
    """Return the study of nasty teachers with a budget of accuracy.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        data: Names of the data sets, a panel each: digits, mnist, cifar10.
        points: Budgets in points of accuracy, above 0.

    Raises:
        RecipeError: A budget or a data set is none.
    """
    if not points or any(isinstance(p, bool) or not isinstance(p, int | float) or p <= 0 for p in points):
        raise RecipeError(f"points: expected budgets above 0, in points of accuracy, got {list(points)}")
    for name in data:
        if name not in _NETS:
            raise UnknownNameError("data set of budgets", name, _NETS)
    panels = tuple(_panel(name, sorted(points), seeds, changes) for name in data)
    return CurveStudy(
        "budgets",
        "What a nasty teacher's students lose for how much of its accuracy",
        seeds,
        changes,
        "Budget, points of accuracy",
        "log",
        panels,
        (
            "A budget is what the teacher may lose against its normally trained twin on held-out images, which neither "
            "learned from; the weight of the defense is steered to it at each step. Shown is the accuracy on test "
            "images. What is less than one held-out image is worth cannot be kept: of the small digits about 130 are "
            "held out, 0.8 points each.",
            "In brackets: the difference, in points, of the teacher to its twin, and of a student to the same student "
            "of the twin, which is the dashed line.",
            "Settings were fixed before these runs; nothing is chosen on test images.",
        ),
    )


def _panel(name: str, points: Sequence[float], seeds: int, changes: Changes) -> Panel:
    title, teacher, defended, student = _NETS[name]
    twins = [load_recipe(teacher, seed=seed) for seed in range(seeds)]

    def defend(twin: Recipe, budget: float) -> Recipe:
        return load_recipe(defended, [f"method.accuracy_budget={budget}"], seed=twin.seed, adversary=twin)

    nasty = {budget: [defend(twin, budget) for twin in twins] for budget in points}

    def stolen(victims: Sequence[Recipe], fields: Mapping[str, Any]) -> list[Recipe]:
        return [load_recipe(student, seed=victim.seed, victim=victim, **fields) for victim in victims]

    def line(of: str, label: str, normal: Sequence[Recipe], swept: Mapping[float, Sequence[Recipe]]) -> Line:
        dashed = Reference(of, label, Point(None, _adapted(normal, changes)))
        found = tuple(Point(x, _adapted(recipes, changes), reference=dashed.point) for x, recipes in swept.items())
        return Line(of, label, None if of == "teacher" else "nasty", found, dashed)

    lines = [line("teacher", "T", twins, nasty)]
    for thief, (label, fields) in THIEVES.items():
        swept = {budget: stolen(victims, fields) for budget, victims in nasty.items()}
        lines.append(line(thief, f"S: {label}", stolen(twins, fields), swept))
    return Panel(name, changes.titled(name, title), tuple(lines))


def _adapted(recipes: Sequence[Recipe], changes: Changes) -> tuple[Recipe, ...]:
    return tuple(adapt(recipe, changes) for recipe in recipes)
