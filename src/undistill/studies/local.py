"""Carry out a plan on this machine: a pool of processes, each of which takes one ready run after the other."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from undistill.engine.interrupt import stop_on_interrupt
from undistill.errors import InterruptedRunError, UndistillError
from undistill.recipe import Recipe
from undistill.run import Workspace
from undistill.storage import write_text
from undistill.studies.plan import Step
from undistill.studies.progress import Observer, Silence

__all__ = ["Failure", "LocalExecutor"]

_POLL_S = 0.2  # how soon Ctrl-C is noticed
_TELL_S = 0.5  # between two messages about one epoch
_PATIENCE_S = 60.0  # for a run to save its state and stop
_ATTEMPTS = 2


@dataclass(frozen=True)
class Failure:
    """Why a run has no result.

    Attributes:
        reason: In one line.
        log: File with the whole story; None for a run that was not started, because one that it needs failed.
        name: Of the folder of the run that failed; empty for one that was not started.
    """

    reason: str
    log: Path | None = None
    name: str = ""


@dataclass(frozen=True)
class LocalExecutor:
    """Runs the steps of a plan in processes of this machine.

    Attributes:
        root: Folder of all runs.
        logs: Folder for what is known about runs that failed.
        jobs: Number of processes.
        threads: CPU threads of each; None for as many as torch takes.
        device: Overrides the recipes' device where it is given.
    """

    root: Path
    logs: Path
    jobs: int = 1
    threads: int | None = None
    device: str | None = None

    def carry_out(self, steps: Sequence[Step], observer: Observer | None = None) -> dict[str, Failure]:
        """Run steps, each as soon as what it needs is finished.

        A run that fails does not stop the others; what needs it is skipped. One whose process dies (killed, out of
        memory) is tried once more and goes on from its last state.

        Args:
            steps: In topological order; what they need besides each other has its result.
            observer: Told about everything that happens.

        Returns:
            Why runs have no result, by hash.

        Raises:
            InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.
        """
        job = _Job(self, list(steps), observer or Silence())
        try:
            with stop_on_interrupt() as request:
                while job.waiting or job.busy:
                    job.start_ready()
                    job.listen()
                    if request.asked:
                        job.stop()
                        raise InterruptedRunError(
                            f"interrupted with {job.finished} of {len(steps)} runs finished; "
                            "run the same command again to go on"
                        )
        finally:
            job.close()
        return job.failures


class _Worker:
    """A process, the line to it, and what it is at."""

    def __init__(self, executor: LocalExecutor) -> None:
        context = mp.get_context("spawn")
        self.line, theirs = context.Pipe()
        arguments = (theirs, executor.root, executor.device, executor.threads)
        self.process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.step: Step | None = None

    def receive(self) -> tuple[Any, ...] | None:
        """Return the next message, or None once the process is gone."""
        try:
            message: tuple[Any, ...] = self.line.recv()
        except (EOFError, OSError):
            self.process.join()  # with it go its locks
            return None
        return message


@dataclass
class _Job:
    executor: LocalExecutor
    waiting: list[Step]
    observer: Observer
    failures: dict[str, Failure] = field(default_factory=dict)
    finished: int = 0
    workers: list[_Worker] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.step is not None]

    def start_ready(self) -> None:
        """Give every idle worker a run that can start, and start workers while there is work for them."""
        self.skip_hopeless()
        for step in list(self._ready()):
            idle = next((worker for worker in self.workers if worker.step is None), None)
            if idle is None:
                if len(self.workers) == self.executor.jobs:
                    return
                idle = _Worker(self.executor)
                self.workers.append(idle)
            try:
                if not idle.process.is_alive():  # a line takes a message for a while after its reader is gone
                    raise BrokenPipeError
                idle.line.send(step.recipe)
            except OSError:  # it died while it was idle
                self.workers.remove(idle)
                continue
            idle.step = step
            self.waiting.remove(step)
            self.observer.started(step.recipe)

    def skip_hopeless(self) -> None:
        """Lose every run that needs a lost one; in topological order, so that what needs it in turn comes after."""
        for step in list(self.waiting):
            lost = next((self.failures[need] for need in step.needs if need in self.failures), None)
            if lost is not None:
                self.waiting.remove(step)
                self.lose(step, lost if lost.log is None else Failure(f"not run: {lost.name} failed: {lost.reason}"))

    def listen(self) -> None:
        """Wait a moment for workers to say something, or to die."""
        lines = {worker.line: worker for worker in self.workers}
        for line in wait(list(lines), timeout=_POLL_S):
            worker = lines[line]  # type: ignore[index]
            message = worker.receive()
            if message is None:
                self.bury(worker)
            elif worker.step is not None:
                self.hear(worker, worker.step, *message)

    def hear(self, worker: _Worker, step: Step, kind: str, *details: Any) -> None:
        if kind == "at":
            self.observer.at(step.recipe, *details)
            return
        worker.step = None
        if kind == "finished":
            self.finished += 1
            self.observer.ended(step.recipe, *details, ok=True)
        elif kind == "failed":
            self.lose(step, self._logged(step, *details))
        else:  # interrupted, by a signal to the worker alone, or by stop()
            self.again(step, "interrupted by a signal")

    def bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.line.close()
        if worker.step is not None:
            code = worker.process.exitcode or 0
            self.again(worker.step, f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")

    def again(self, step: Step, what: str) -> None:
        """Put a run back in line whose process was lost, unless that happens too often."""
        attempts = self.attempts[step.hash] = self.attempts.get(step.hash, 0) + 1
        if attempts < _ATTEMPTS:
            self.waiting.insert(0, step)
        else:
            reason = f"its process was {what}, {attempts} times"
            self.lose(step, self._logged(step, reason, reason))

    def lose(self, step: Step, failure: Failure) -> None:
        self.failures[step.hash] = failure
        self.observer.ended(step.recipe, failure.reason, ok=False)

    def stop(self) -> None:
        """Ask all workers to save their states and stop, and see them do so."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for worker in self.busy:
            while worker.line.poll(max(0.0, deadline - time.monotonic())):
                message = worker.receive()
                if message is None or message[0] != "at":
                    break

    def close(self) -> None:
        self.observer.close()
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.line.close()

    def _ready(self) -> Iterator[Step]:
        open_ = {step.hash for step in (*self.waiting, *(worker.step for worker in self.workers)) if step is not None}
        return (step for step in self.waiting if not open_ & set(step.needs))

    def _logged(self, step: Step, reason: str, story: str) -> Failure:
        log = self.executor.logs / f"{step.recipe.folder_name}.log"
        write_text(log, f"{step.recipe.to_yaml()}\n{story}\n")
        return Failure(reason, log, step.recipe.folder_name)


def _work(line: Connection, root: Path, device: str | None, threads: int | None) -> None:
    """Carry out one recipe after the other, until nobody sends any."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the Ctrl-C of a terminal is for the coordinator, which asks each worker once
    if threads is not None:
        torch.set_num_threads(threads)
    workspace = Workspace(root, device=device, watch=lambda recipe: _Teller(line))
    while True:
        try:
            recipe = line.recv()
        except EOFError:
            return
        line.send(_carry_out(workspace, recipe))


def _leave_with_parent() -> None:
    """End this process when the coordinator is gone, however it went: nobody would read the outcome."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _carry_out(workspace: Workspace, recipe: Recipe) -> tuple[str, ...]:
    try:
        run = workspace.run(recipe)
        collapsed = ", collapsed" if run.collapsed else ""
        return "finished", f"{run.accuracy:.2f} %{collapsed}, {run.result['seconds']:,.1f} s"
    except InterruptedRunError:
        return ("interrupted",)
    except UndistillError as error:
        return "failed", " ".join(str(error).split()), traceback.format_exc()
    except Exception as error:  # a bug, or no memory: of this run only
        reason = " ".join(str(error).split())
        return "failed", f"{type(error).__name__}: {reason}", traceback.format_exc()


class _Teller:
    """Tells the coordinator how far a run is."""

    def __init__(self, line: Connection) -> None:
        self._line, self._text, self._told_at = line, "", 0.0

    def step(self, epoch: int, step: int, steps: int) -> None:
        if time.monotonic() - self._told_at > _TELL_S:
            self._tell(epoch - 1 + step / steps)

    def epoch(self, record: dict[str, Any]) -> None:
        accuracy = next(record[key] for key in ("heldout_accuracy", "test_accuracy") if key in record)
        self._text = f"loss {record['train_loss']:.3g}, {accuracy:.1f} %"
        self._tell(record["epoch"])

    def _tell(self, epochs: float) -> None:
        self._told_at = time.monotonic()
        self._line.send(("at", epochs, self._text))
