"""What is written down while a net trains."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from undistill.engine.job import Callback
from undistill.errors import MissingExtraError
from undistill.storage import append_text, write_text

__all__ = ["Callbacks", "MetricsLog", "TensorBoard", "read_metrics"]


class Callbacks:
    """Several callbacks as one; closes those that can be closed."""

    def __init__(self, *callbacks: Callback | None) -> None:
        self._callbacks = [callback for callback in callbacks if callback is not None]

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Tell all."""
        for callback in self._callbacks:
            callback.step(epoch, step, steps)

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell all."""
        for callback in self._callbacks:
            callback.epoch(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for callback in self._callbacks:
            close = getattr(callback, "close", None)
            if close is not None:
                close()


class MetricsLog:
    """Appends one JSON line an epoch; a resumed run writes the epochs that it repeats over the old ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next: int | None = None

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Nothing is written for a step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the line of one epoch."""
        if self._next != record["epoch"]:
            kept = [old for old in read_metrics(self._path) if old["epoch"] < record["epoch"]]
            write_text(self._path, "".join(json.dumps(old) + "\n" for old in kept))
        append_text(self._path, json.dumps(record) + "\n")
        self._next = record["epoch"] + 1


class TensorBoard:
    """Writes every metric as a scalar of its epoch.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard=true", "track") from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Nothing is written for a step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the metrics of one epoch."""
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of ``metrics.jsonl``; a line that a killed process left half-written ends them."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records
