"""What a worker does with a unit, wherever it runs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

import torch

from undistill.engine.interrupt import stop_on_interrupt
from undistill.errors import InterruptedRunError, RunError, RunInUseError, UndistillError
from undistill.orchestrate.executors.schedule import At, Outcome, summary
from undistill.recipe import Recipe
from undistill.run import Run
from undistill.workspace import Workspace

__all__ = ["Progress", "carry_out", "work"]

_BUSY_S = 1.0  # between two looks at a run that another process has
_PROGRESS_S = 1.0  # between two looks at the metrics of runs under way


def carry_out(workspace: Workspace, recipes: Sequence[Recipe]) -> list[Outcome]:
    """Run recipes together, and say what became of each; nothing is raised.

    A run that another process has is waited for: the last worker may not be quite gone, or two coordinators may have
    started it. Runs that fail side by side by what is not their own fault, such as the memory, get a second chance
    alone.
    """
    outcomes = dict(zip(recipes, _attempt(workspace, recipes), strict=True))
    with stop_on_interrupt() as request:
        while busy := [recipe for recipe, outcome in outcomes.items() if outcome.kind == "busy"]:
            time.sleep(_BUSY_S)
            stopped = [Outcome("interrupted")] * len(busy)
            found = stopped if request.asked else _attempt(workspace, busy)
            outcomes.update(zip(busy, found, strict=True))
    return list(outcomes.values())


def _attempt(workspace: Workspace, recipes: Sequence[Recipe]) -> list[Outcome]:
    found: Sequence[Run | Exception]
    try:
        found = workspace.run_together(recipes)
    except Exception as error:  # Ctrl-C, or a bug: of all of them
        found = [error] * len(recipes)
    crowded = len(recipes) > 1
    return [
        _attempt(workspace, [recipe])[0] if crowded and _by_surprise(one) else _describe(one)
        for recipe, one in zip(recipes, found, strict=True)
    ]


def _by_surprise(found: Run | Exception) -> bool:
    return isinstance(found, Exception) and not isinstance(found, UndistillError)


def _describe(found: Run | Exception) -> Outcome:
    if isinstance(found, Run):
        return Outcome("finished", summary(found))
    if isinstance(found, InterruptedRunError):
        return Outcome("interrupted")
    if isinstance(found, RunInUseError):
        return Outcome("busy")
    reason = " ".join(str(found).split())
    kind = "" if isinstance(found, UndistillError) else f"{type(found).__name__}: "
    return Outcome("failed", f"{kind}{reason}", "".join(traceback.format_exception(found)))


def work(
    root: Path, here: Path, device: str | None, threads: int | None, recipes: Sequence[Recipe], token: str | None = None
) -> list[Outcome]:
    """Carry out a unit on a machine of a cluster.

    Args:
        root: Folder of all runs.
        here: Folder that relative paths in recipes start from.
        device: Overrides the recipes' device where it is given.
        threads: CPU threads.
        recipes: The unit.
        token: Name of a file in ``root`` that this machine must see; None to take it on trust.

    Raises:
        RunError: This machine does not see the folder.
    """
    if token is not None and not (root / token).is_file():
        raise RunError(f"this machine does not see {root}; choose a folder that every machine mounts: --out")
    if threads is not None:
        torch.set_num_threads(threads)
    with chdir(here if here.is_dir() else "."):
        return carry_out(Workspace(root, device=device), recipes)


class Progress:
    """How far runs on other machines are: their metrics are in the folder that all machines share."""

    def __init__(self, root: Path) -> None:
        self._root, self._told, self._looked_at = root, dict[str, int](), 0.0

    def look(self, recipes: Sequence[Recipe]) -> Iterator[At]:
        """Yield where those of the recipes are that have come further since the last look."""
        if time.monotonic() - self._looked_at < _PROGRESS_S:
            return
        self._looked_at = time.monotonic()
        for recipe in recipes:
            metrics = Run(self._root / recipe.folder_name).metrics
            if metrics and self._told.get(recipe.hash) != len(metrics):
                self._told[recipe.hash] = len(metrics)
                yield At(recipe.hash, metrics[-1]["epoch"], describe(metrics[-1]))


def describe(record: dict[str, float]) -> str:
    """Return what is told of an epoch: a thief without labels measures how often it agrees with the victim."""
    measured = next(key for key in ("heldout_accuracy", "test_accuracy", "heldout_agreement") if key in record)
    return f"loss {record['train_loss']:.3g}, {record[measured]:.1f} %{' agree' * measured.endswith('agreement')}"
