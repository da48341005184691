"""This machine: a pool of processes, each of which carries out one unit after the other."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from undistill.engine.device import pick_device
from undistill.orchestrate.executors.schedule import At, Ended, Event, Executor, Lost, Outcome, Pool, Unit
from undistill.orchestrate.executors.worker import carry_out, describe
from undistill.recipe import Recipe
from undistill.workspace import Workspace

__all__ = ["LocalExecutor"]

_TAKEN = "taken"
_POLL_S = 0.2  # how soon Ctrl-C is noticed
_TELL_S = 0.5  # between two messages about one epoch
_PATIENCE_S = 60.0  # for a run to save its state and stop


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Carries out plans in processes of this machine: ``jobs`` of them, in turn on its CUDA devices."""

    def open(self) -> Pool:
        """Return the pool; its processes start when there is work for them.

        Raises:
            DeviceError: This machine does not have the device.
        """
        pick_device(self.device or "auto")
        return _LocalPool(self)


class _Worker:
    """A process, the line to it, and what it is at."""

    def __init__(self, executor: LocalExecutor, slot: int) -> None:
        context = mp.get_context("spawn")
        self.slot = slot
        self.line, theirs = context.Pipe()
        arguments = (theirs, executor.root, executor.device, executor.threads, slot)
        self.process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.unit: Unit | None = None
        self.fresh = True  # starting up, which takes seconds

    def take(self, unit: Unit) -> bool:
        """Return whether the process takes a unit; an idle one may have died, and says at once if it has not."""
        fresh, self.fresh = self.fresh, False
        try:
            self.line.send(unit.recipes)
            taken = fresh or self.line.recv() == _TAKEN
        except (EOFError, OSError):
            return False
        self.unit = unit
        return taken

    def receive(self) -> At | list[Outcome] | str | None:
        """Return the next message, or None once the process is gone."""
        try:
            message: At | list[Outcome] | str = self.line.recv()
        except (EOFError, OSError):
            self.process.join()  # with it go its locks
            return None
        return message


class _LocalPool(Pool):
    def __init__(self, executor: LocalExecutor) -> None:
        self.slots = executor.jobs or 1
        self._executor = executor
        self._workers: list[_Worker] = []

    def start(self, unit: Unit) -> None:
        for worker in [worker for worker in self._workers if worker.unit is None]:
            if worker.take(unit):
                return
            self._bury(worker)
        taken = {worker.slot for worker in self._workers}
        worker = _Worker(self._executor, next(slot for slot in range(self.slots) if slot not in taken))
        self._workers.append(worker)
        if not worker.take(unit):
            worker.unit = unit  # listen() finds it dead

    def listen(self) -> Iterable[Event]:
        lines: dict[Any, _Worker] = {worker.line: worker for worker in self._workers}
        for line in wait(list(lines), timeout=_POLL_S):
            worker = lines[line]
            message, unit = worker.receive(), worker.unit
            if message is None:
                self._bury(worker)
                if unit is not None:
                    code = worker.process.exitcode or 0
                    yield Lost(unit, f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
            elif isinstance(message, At):
                yield message
            elif unit is not None and not isinstance(message, str):
                worker.unit = None
                yield Ended(unit, message)

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for worker in self._workers:
            while worker.unit is not None and worker.line.poll(max(0.0, deadline - time.monotonic())):
                if not isinstance(worker.receive(), At | str):
                    break

    def close(self) -> None:
        for worker in list(self._workers):
            worker.process.kill()
            worker.process.join()
            self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.line.close()


def _work(line: Connection, root: Path, device: str | None, threads: int | None, slot: int) -> None:
    """Carry out one unit after the other, until nobody sends any."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the Ctrl-C of a terminal is for the coordinator, which asks each worker once
    if threads is not None:
        torch.set_num_threads(threads)
    _settle(device, slot)
    workspace = Workspace(root, device=device, watch=lambda recipe: _Teller(line, recipe))
    while True:
        try:
            recipes = line.recv()
        except EOFError:
            return
        line.send(_TAKEN)
        line.send(carry_out(workspace, recipes))


def _settle(device: str | None, slot: int) -> None:
    """Take turns on the CUDA devices: torch computes on the current one where a recipe does not say which."""
    where = pick_device(device or "auto")
    if where.type == "cuda" and where.index is None:
        torch.cuda.set_device(slot % torch.cuda.device_count())


def _leave_with_parent() -> None:
    """End this process when the coordinator is gone, however it went: nobody would read the outcome."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Teller:
    """Tells the coordinator how far a run is."""

    def __init__(self, line: Connection, recipe: Recipe) -> None:
        self._line, self._hash = line, recipe.hash
        self._text, self._told_at = "", 0.0

    def step(self, epoch: int, step: int, steps: int) -> None:
        if time.monotonic() - self._told_at > _TELL_S:
            self._tell(epoch - 1 + step / steps)

    def epoch(self, record: dict[str, Any]) -> None:
        self._text = describe(record)
        self._tell(record["epoch"])

    def _tell(self, epochs: float) -> None:
        self._told_at = time.monotonic()
        self._line.send(At(self._hash, epochs, self._text))
