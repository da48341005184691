"""Every error that undistill raises on purpose.

    UndistillError                 exit code 1
    ├── RecipeError                2   a recipe, an override or an argument is wrong; holds every problem found
    │   └── UnknownNameError       2   no model, data set, method or recipe of that name
    ├── AccessError                2   an attack needs more of its victim than the victim gives
    ├── DeviceError                2   the device asked for is not on this machine
    ├── MissingExtraError          2   an optional dependency is not installed
    ├── ShapeError                 1   tensors whose shapes do not fit each other
    ├── DataError                  3   a data set is missing, damaged or not usable
    ├── CheckpointError            1   a checkpoint is damaged, foreign or does not fit the model
    ├── RunError                   1   a run folder belongs to another recipe, or a file cannot be written
    │   └── RunInUseError          1   another process works in a run folder
    ├── DivergenceError            4   the loss or a gradient stopped being finite
    └── InterruptedRunError      130   Ctrl-C; the run can be resumed

A message says what happened, what was expected and what to do. The command line prints it in one line (one line a
problem for a ``RecipeError``) and exits with the code above.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "AccessError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DivergenceError",
    "InterruptedRunError",
    "MissingExtraError",
    "RecipeError",
    "RunError",
    "RunInUseError",
    "ShapeError",
    "UndistillError",
    "UnknownNameError",
    "did_you_mean",
]


_LISTED = 20  # names that a message spells out


class UndistillError(Exception):
    """Base of all errors of this package."""

    exit_code: ClassVar[int] = 1


class RecipeError(UndistillError, ValueError):
    """A recipe, an override or an argument is wrong.

    Attributes:
        problems: One line for each mistake; all of them, not just the first.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(RecipeError, LookupError):
    """No model, data set, method or recipe of that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
        hint = did_you_mean(name, known) or f" known: {listed}"
        super().__init__(f"unknown {kind} {name!r};{hint}")


class AccessError(UndistillError):
    """An attack needs more of its victim than the victim gives."""

    exit_code = 2


class DeviceError(UndistillError):
    """The device asked for is not on this machine."""

    exit_code = 2


class MissingExtraError(UndistillError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs an optional dependency that is not installed: pip install 'undistill[{extra}]'"
        )


class ShapeError(UndistillError, ValueError):
    """Tensors whose shapes do not fit each other."""


class DataError(UndistillError):
    """A data set is missing, damaged or not usable."""

    exit_code = 3


class CheckpointError(UndistillError):
    """A checkpoint is damaged, foreign or does not fit the model."""


class RunError(UndistillError):
    """A run folder belongs to another recipe, or a file cannot be written."""


class RunInUseError(RunError):
    """Another process works in a run folder."""


class DivergenceError(UndistillError):
    """The loss or a gradient stopped being finite.

    Attributes:
        epoch: Epoch of the first non-finite value, counted from 1.
        step: Step within that epoch, counted from 1.
        last_finite_loss: Loss of the step before, or None if there was none.
    """

    exit_code = 4

    def __init__(self, message: str, *, epoch: int, step: int, last_finite_loss: float | None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.last_finite_loss = last_finite_loss


class InterruptedRunError(UndistillError):
    """Ctrl-C; what was computed is kept and the same command goes on from there."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" did you mean 'x'?"`` for the nearest known name, or an empty string if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" did you mean {near[0]!r}?" if near else ""
