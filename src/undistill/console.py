"""What a run shows while it trains: a bar on a terminal, a few plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

if TYPE_CHECKING:
    from undistill.engine.job import Callback
    from undistill.recipe import Recipe

__all__ = ["make_console", "watch"]

_LINES = 10  # of a run, where there is no bar
_REFRESH_S = 0.1
_COLLAPSED = 0.9
_UNBOUNDED = 10_000  # columns
_SPLITS = {"heldout": "held-out", "test": "test"}


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is, and neither cuts nor wraps it where there is no terminal."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    return console


def watch(recipe: Recipe) -> Callback:
    """Return a callback that shows the progress of one run on stderr.

    Where training ends with more than 90 % of the answers on the monitored images in one class, it says so.
    """
    console = make_console(stderr=True)
    return _Bar(recipe, console) if console.is_interactive else _Lines(recipe, console)


class _Pace:
    """How fast a run goes, from the steps seen since it started or was resumed; evaluation included."""

    def __init__(self, recipe: Recipe) -> None:
        self._epochs, self._batch_size = recipe.epochs, recipe.batch_size
        self._began = time.perf_counter()
        self._images = 0.0
        self._first: float | None = None
        self.done = 0.0  # epochs

    def step(self, epoch: int, step: int, steps: int) -> None:
        # The last batch of an epoch holds between one image and a whole batch: half of one on average.
        self._images += self._batch_size if step < steps else self._batch_size / 2
        self.done = epoch - 1 + step / steps
        if self._first is None:
            self._first = self.done - 1 / steps

    @property
    def images_per_s(self) -> float:
        return self._images / max(time.perf_counter() - self._began, 1e-9)

    @property
    def left(self) -> str:
        seen = self.done - (self._first or 0)
        seconds = round((self._epochs - self.done) * (time.perf_counter() - self._began) / max(seen, 1e-9))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


class _Lines:
    """About ten lines a run."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._recipe, self._console, self._pace = recipe, console, _Pace(recipe)
        self._every = math.ceil(recipe.epochs / _LINES)

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._pace.step(epoch, step, steps)

    def epoch(self, record: dict[str, Any]) -> None:
        epoch, epochs = record["epoch"], self._recipe.epochs
        if epoch % self._every == 0 or epoch == epochs:
            left = "" if epoch == epochs else f", {self._pace.left} left"
            self._console.print(
                f"{self._recipe.folder_name}: epoch {epoch}/{epochs}, {_measured(record)}, "
                f"{self._pace.images_per_s:,.0f} images/s{left}"
            )
        _warn_if_collapsed(record, self._recipe, self._console)


class _Bar:
    """One bar a run, which stays when the run ends."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._recipe, self._console, self._pace = recipe, console, _Pace(recipe)
        self._shown_at, self._measured = 0.0, ""
        label_width = 25 if console.width >= 100 else None  # bars of several runs below each other, if there is room
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=label_width)),
            BarColumn(bar_width=12, style="bright_black", complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.fields[epoch]}", justify="right", markup=False),
            TextColumn("{task.fields[measured]}", markup=False),
            TextColumn("{task.fields[pace]}", style="bright_black", markup=False),
            console=console,
            auto_refresh=False,
        )
        label = recipe.folder_name.rpartition("-")[0]
        self._task = self._progress.add_task(label, total=recipe.epochs, epoch="", measured="", pace="")
        self._progress.start()

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._pace.step(epoch, step, steps)
        if time.perf_counter() - self._shown_at > _REFRESH_S:
            self._show(epoch, f"{self._pace.images_per_s:,.0f} img/s {self._pace.left}")

    def epoch(self, record: dict[str, Any]) -> None:
        self._measured = _measured(record)
        if record["epoch"] == self._recipe.epochs:
            self._show(record["epoch"], f"{self._pace.images_per_s:,.0f} img/s")
        _warn_if_collapsed(record, self._recipe, self._console)

    def close(self) -> None:
        self._progress.stop()

    def _show(self, epoch: int, pace: str) -> None:
        self._progress.update(
            self._task,
            completed=self._pace.done,
            refresh=True,
            epoch=f"{epoch}/{self._recipe.epochs}",
            measured=self._measured,
            pace=pace,
        )
        self._shown_at = time.perf_counter()


def _measured(record: dict[str, Any]) -> str:
    split = next(name for name in _SPLITS if f"{name}_accuracy" in record)
    return f"loss {record['train_loss']:.3g}, {_SPLITS[split]} {record[f'{split}_accuracy']:.1f} %"


def _warn_if_collapsed(record: dict[str, Any], recipe: Recipe, console: Console) -> None:
    split, share = next((split, record[key]) for split in _SPLITS if (key := f"{split}_top_class_share") in record)
    if record["epoch"] == recipe.epochs and share > _COLLAPSED:
        console.print(
            f"warning: {recipe.folder_name} collapsed: {100 * share:.0f} % of its answers on the {_SPLITS[split]} "
            "images are one class",
            style="yellow",
            soft_wrap=True,
        )
