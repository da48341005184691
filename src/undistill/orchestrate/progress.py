"""What a study shows while it runs: bars on a terminal, one plain line a run elsewhere. All of it goes to stderr."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from undistill.console import make_console
from undistill.recipe import Recipe

__all__ = ["Bars", "Lines", "Observer", "Silence", "make_observer"]


class Observer(Protocol):
    """Whoever wants to see the progress of a study."""

    def started(self, recipe: Recipe) -> None:
        """A worker took the run."""

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        """So many epochs of the run are done; ``text`` is what was measured last."""

    def ended(self, recipe: Recipe, text: str, *, ok: bool) -> None:
        """The run is finished, failed or skipped; ``text`` is its accuracy or the reason."""

    def close(self) -> None:
        """Nothing more comes."""


def make_observer(total: int, *, quiet: bool = False) -> Observer:
    """Return an observer of a study of ``total`` runs."""
    console = make_console(stderr=True)
    if quiet:
        return Silence()
    return Bars(total, console) if console.is_interactive else Lines(total, console)


class Silence:
    """Shows nothing."""

    def started(self, recipe: Recipe) -> None:
        """Nothing."""

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        """Nothing."""

    def ended(self, recipe: Recipe, text: str, *, ok: bool) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """One line when a run ends."""

    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console, self._done = total, console, 0

    def started(self, recipe: Recipe) -> None:
        """Nothing."""

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        """Nothing."""

    def ended(self, recipe: Recipe, text: str, *, ok: bool) -> None:
        """Print the line."""
        self._done += 1
        self._console.print(f"[{self._done}/{self._total}] {recipe.folder_name}: {text}")

    def close(self) -> None:
        """Nothing."""


class Bars:
    """One bar for the study, and one for each run while it trains."""

    def __init__(self, total: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20, style="bright_black", complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.fields[count]}", justify="right", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._total, self._done = total, 0
        self._all = self._progress.add_task("study", total=total, count=f"0/{total} runs", text="")
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def started(self, recipe: Recipe) -> None:
        """Show its bar; a new one where its process was lost and it starts again."""
        self._remove(recipe)
        label, count = recipe.folder_name.rpartition("-")[0], f"0/{recipe.epochs}"
        self._tasks[recipe.hash] = self._progress.add_task(label, total=recipe.epochs, count=count, text="")

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        """Move its bar."""
        count = f"{int(epochs)}/{recipe.epochs}"
        self._progress.update(self._tasks[recipe.hash], completed=epochs, count=count, text=text)

    def ended(self, recipe: Recipe, text: str, *, ok: bool) -> None:
        """Put a line in place of its bar."""
        self._remove(recipe)
        self._progress.console.print(f"{recipe.folder_name}: {text}", style=None if ok else "red", soft_wrap=True)
        self._done += 1
        self._progress.update(self._all, completed=self._done, count=f"{self._done}/{self._total} runs")

    def close(self) -> None:
        """Leave the study's bar as it is."""
        self._progress.stop()

    def _remove(self, recipe: Recipe) -> None:
        task = self._tasks.pop(recipe.hash, None)
        if task is not None:
            self._progress.remove_task(task)
