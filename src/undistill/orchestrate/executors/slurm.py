"""SLURM through submitit: every unit is a job. What is under way outlives the coordinator, and is found again."""

from __future__ import annotations

import ast
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undistill.errors import MissingExtraError, RecipeError, RunError, did_you_mean
from undistill.orchestrate.executors.schedule import Ended, Event, Executor, Lost, Outcome, Pool, Unit
from undistill.orchestrate.executors.worker import Progress, work
from undistill.orchestrate.plan import Step
from undistill.recipe import Recipe
from undistill.storage import write_json

__all__ = ["SlurmExecutor"]

_CLUSTERS = ("slurm", "local", "debug")
_DEFAULTS = {"timeout_min": 240, "name": "undistill"}
_NOTE = ".runs.json"
_JOBS = 64  # in the queue at a time, where nobody says how many
_TIMEOUTS = 100  # of one job, which goes on after each
_POLL_S = 1.0
_PATIENCE_S = 60.0  # for cancelled jobs to save their states and end


@dataclass(frozen=True)
class SlurmExecutor(Executor):
    """Carries out plans as SLURM jobs.

    Attributes:
        cluster: ``slurm``; ``local`` for processes of this machine, ``debug`` for this process, to try it out.
        parameters: submitit's, such as ``{"slurm_partition": "gpu", "timeout_min": 60, "gpus_per_node": 1}``.
    """

    cluster: str = "slurm"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(options: Mapping[str, str]) -> dict[str, Any]:
        """Return options as arguments of this class.

        Raises:
            MissingExtraError: submitit is not installed.
            RecipeError: submitit has no such parameter.
        """
        submitit = _import()
        generic = submitit.AutoExecutor._valid_parameters()
        known = ["cluster", *generic, *(f"slurm_{name}" for name in submitit.SlurmExecutor._valid_parameters())]
        problems = [
            f"executor 'slurm' has no option {name!r};{did_you_mean(name, known) or ' see submitit for its parameters'}"
            for name in options
            if name not in known
        ]
        cluster = options.get("cluster", "slurm")
        if cluster not in _CLUSTERS:
            problems.append(f"cluster: expected {', '.join(_CLUSTERS)}, got {cluster!r}")
        if problems:
            raise RecipeError(problems)
        return {
            "cluster": cluster,
            "parameters": {name: _literal(text) for name, text in options.items() if name != "cluster"},
        }

    def open(self) -> Pool:
        """Return the queue.

        Raises:
            MissingExtraError: submitit is not installed.
            RecipeError: A parameter has a value that submitit does not take.
            RunError: There is no SLURM on this machine.
        """
        submitit = _import()
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise RunError(
                "there is no sbatch on this machine: start the study on a login node of the cluster, or try it out "
                "with --executor-option cluster=local"
            )
        queue = submitit.AutoExecutor(
            self.logs / "slurm", cluster=self.cluster, slurm_max_num_timeout=_TIMEOUTS, local_max_num_timeout=_TIMEOUTS
        )
        try:
            queue.update_parameters(**{**_DEFAULTS, **self.parameters})
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise RecipeError(f"submitit does not take these options: {' '.join(str(error).split())}") from error
        return _SlurmPool(submitit, queue, self)


class Work:
    """A unit as a job; one that SLURM stops, for its time or for another job, is put back in the queue as it is."""

    def __init__(self, executor: SlurmExecutor, recipes: Sequence[Recipe]) -> None:
        self._arguments = (executor.root, Path.cwd(), executor.device, executor.threads, recipes)

    def __call__(self) -> list[Outcome]:
        """Carry it out, from the last state of every run."""
        return work(*self._arguments)

    def checkpoint(self) -> Any:
        """Return what goes on in its place: the runs have saved their states themselves."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _SlurmPool(Pool):
    """Jobs in the queue.

    A note beside each says which runs it has, so that a coordinator that was killed and starts again waits for the job
    in place of sending a second one. (Two of them would do no harm: the second waits for the lock of the run's folder,
    and finds it finished. That is how it is where there is no queue to ask.)
    """

    def __init__(self, submitit: Any, queue: Any, executor: SlurmExecutor) -> None:
        self.slots = executor.jobs or {"slurm": _JOBS, "local": os.cpu_count() or 1, "debug": 1}[executor.cluster]
        self._submitit, self._queue, self._executor = submitit, queue, executor
        self._folder = Path(queue.folder)
        self._progress = Progress(executor.root)
        self._units: dict[Any, Unit] = {}
        self._runs: dict[Any, list[str]] = {}

    def adopt(self, steps: Sequence[Step]) -> Iterable[Unit]:
        """Yield the units of jobs that an earlier coordinator left in the queue, or running."""
        open_ = {step.hash: step for step in steps}
        for note in sorted(self._folder.glob(f"*{_NOTE}")):
            job = self._submitit.SlurmJob(self._folder, note.name.removesuffix(_NOTE))
            runs = json.loads(note.read_text(encoding="utf-8"))
            found = tuple(open_.pop(one) for one in runs if one in open_)
            if found:
                unit = Unit(found)
                self._units[job], self._runs[job] = unit, runs
                yield unit

    def start(self, unit: Unit) -> None:
        try:
            job = self._queue.submit(Work(self._executor, unit.recipes))
        except Exception as error:  # submitit raises what it has of sbatch's
            raise RunError(f"sbatch does not take the job: {' '.join(str(error).split())}") from error
        self._units[job], self._runs[job] = unit, [step.hash for step in unit.steps]
        if self._executor.cluster == "slurm":
            write_json(self._folder / f"{job.job_id}{_NOTE}", self._runs[job])

    def listen(self) -> Iterable[Event]:
        deadline = time.monotonic() + _POLL_S
        while not (done := [job for job in self._units if job.done()]) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 10)
        yield from self._progress.look([recipe for unit in self._units.values() for recipe in unit.recipes])
        for job in done:
            yield self._event(job, self._units.pop(job), self._runs.pop(job))

    def _event(self, job: Any, unit: Unit, runs: Sequence[str]) -> Event:
        """Return what a job says of its unit, and clear up after it; what a lost one wrote is kept."""
        (self._folder / f"{job.job_id}{_NOTE}").unlink(missing_ok=True)
        try:
            if self._executor.cluster == "local" and not job.paths.result_pickle.exists():
                return Lost(unit, "killed", job.stderr() or "")  # submitit would wait for it, as for a shared folder
            outcomes = dict(zip(runs, job.result(), strict=True))
        except Exception as error:  # of two unrelated classes, neither of them public
            return Lost(unit, f"lost in the queue ({job.state})", str(error))
        for path in self._folder.glob(f"{job.job_id}_*"):
            path.unlink(missing_ok=True)
        return Ended(unit, [outcomes[step.hash] for step in unit.steps])

    def stop(self) -> None:
        for job in self._units:
            job.cancel(check=False)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not all(job.done(force_check=True) for job in self._units):
            time.sleep(_POLL_S)
        for job in self._units:
            (self._folder / f"{job.job_id}{_NOTE}").unlink(missing_ok=True)
        self._units.clear()

    def close(self) -> None:
        self.stop()


def _import() -> Any:
    try:
        import submitit
    except ImportError:
        raise MissingExtraError("executor 'slurm'", "slurm") from None
    return submitit


def _literal(text: str) -> Any:
    """Return the value of an option: a number or a list where it reads as one."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
