"""The demo: make a nasty teacher of handwritten digits, steal from it, and look at what was stolen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from undistill.engine.device import single_thread
from undistill.engine.job import Callback
from undistill.errors import RecipeError
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.document import Document
from undistill.reporting.report import make_document
from undistill.workspace import Workspace

__all__ = ["demo", "demo_recipes"]

STUDENTS = ("mlp", "cnn")


def demo(out: Path, *, seeds: int = 1, watch: Callable[[Recipe], Callback | None] = lambda recipe: None) -> Document:
    """Train the demo's nets and return its report.

    Args:
        out: Folder for the runs; runs that are there are not trained again.
        seeds: Repetitions, 1 or more.
        watch: Called with every recipe before its run.
    """
    if seeds < 1:
        raise RecipeError(f"seeds: must be 1 or more, got {seeds}")
    workspace = Workspace(out / "runs", device="cpu", watch=watch)
    with single_thread():
        runs = [workspace.run(recipe) for seed in range(seeds) for recipe in demo_recipes(seed)]
        return make_document(runs)


def demo_recipes(seed: int) -> Iterator[Recipe]:
    """Yield what the demo runs for one seed, in an order in which every victim comes before its thieves.

    A normal and a nasty teacher; each student alone, by the book from either teacher (at the temperature that the
    nasty one was made for), and twice from the nasty one by a thief who adapts.
    """
    teacher = load_recipe("demo/teacher", seed=seed, name="normal-teacher")
    nasty = load_recipe("demo/nasty_teacher", seed=seed, name="nasty-teacher")
    yield teacher
    yield nasty
    by_the_book = "kd(temperature=10, alpha=0.9)"
    thefts = (
        ("kd-from-normal", teacher, by_the_book),
        ("kd-from-nasty", nasty, by_the_book),
        ("cool-kd-from-nasty", nasty, "kd(temperature=1, alpha=0.9)"),
        ("hard-label-from-nasty", nasty, "hard_label"),
    )
    for student in STUDENTS:
        yield load_recipe(f"demo/{student}", seed=seed, name=f"{student}-alone")
        for name, victim, method in thefts:
            yield load_recipe(f"demo/{student}", seed=seed, name=f"{student}-{name}", victim=victim, method=method)
