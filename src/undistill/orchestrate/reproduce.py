"""Plan, run and report what was asked for of the paper's tables and figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undistill.data import list_datasets, load_dataset, parse_dataset_spec, source_path, verify
from undistill.data.download import REMOTES
from undistill.engine.device import pick_device
from undistill.errors import DataError, RecipeError, RunError
from undistill.orchestrate.executors import Executor, Failure, make_executor
from undistill.orchestrate.plan import Plan, Step
from undistill.orchestrate.progress import Observer, make_observer
from undistill.orchestrate.request import Request
from undistill.orchestrate.results import FinishedRuns, collect, document_of, write_pages, write_study
from undistill.reporting.document import Document
from undistill.storage import locked
from undistill.studies.changes import Changes
from undistill.studies.study import Study
from undistill.workspace import Workspace

__all__ = ["Reproduction", "carry_out", "check_data", "local_slots", "plan_studies", "reproduce", "runs_folder"]


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        folder: Holds ``study.json``, and in other forms what it says: ``tables.md``, ``tables.tex``, ``tables.csv``,
            ``figures/`` and ``index.html``.
        document: What came out; its content is what ``study.json`` says.
        trained: Number of runs that were missing.
    """

    folder: Path
    document: Document
    trained: int

    @property
    def content(self) -> Mapping[str, Any]:
        """What ``study.json`` says."""
        return self.document.content

    @property
    def failed(self) -> bool:
        """Whether a number is missing, or one of its seeds."""
        return any(part.failed for part in self.document.parts)


def runs_folder(out: Path) -> Path:
    """Return the folder of all runs of the studies in ``out``, which share them."""
    return out / "runs"


def plan_studies(studies: Iterable[Study], out: Path) -> tuple[Plan, tuple[Step, ...]]:
    """Return the plan of what studies want now, and the steps of it that have no result in ``out`` yet.

    Raises:
        DataError: Such a step names a file or folder of data where there is nothing. What a download brings may be
            missing still.
    """
    workspace = FinishedRuns(runs_folder(out))
    plan = _plan(studies, workspace)
    missing = plan.missing(workspace)
    _check_paths(missing)
    return plan, missing


def reproduce(
    request: Request,
    out: Path,
    *,
    jobs: int | None = None,
    device: str | None = None,
    executor: str = "local",
    executor_options: Mapping[str, str] | None = None,
    address: str | None = None,
    observe: Callable[[int], Observer] = make_observer,
) -> Reproduction:
    """Run what is missing of studies, until they ask for nothing new, and write what came out.

    Args:
        request: Which studies, and how.
        out: Folder of the runs, which all studies in it share, and of what comes out.
        jobs: Runs at a time; default: one on CUDA, one a core on CPU.
        device: Overrides the recipes' device.
        executor: Where the runs are carried out: ``local``, ``ray`` or ``slurm``.
        executor_options: What that executor takes besides.
        address: Of the cluster.
        observe: Called with the number of runs that are missing, anew each time that a study asks for more; returns
            who watches them.

    Returns:
        What came out. A run that failed is a number that is missing, and is tried again by the next call.

    Raises:
        RecipeError: The request is wrong.
        DataError: A data set is missing; before anything is trained.
        InterruptedRunError: Ctrl-C; the same call goes on.
        RunError: Another process works in ``out``, or a file cannot be written.
    """
    studies = request.load()
    here = executor == "local"
    slots, threads = local_slots(jobs, device, request.changes) if here else (jobs, 1)
    carrier = make_executor(
        executor,
        runs=runs_folder(out),
        logs=out / "logs",
        jobs=slots,
        threads=threads,
        device=device,
        address=address,
        options=executor_options,
    )
    busy = RunError(f"another study runs in {out}; wait for it, or choose another folder with --out")
    with locked(out, busy):
        workspace = FinishedRuns(runs_folder(out), device=device if here else None)
        trained, failures = carry_out(studies, workspace, carrier, observe)
        content = collect(request, studies, workspace, failures, out / "cache")
        folder = out / request.folder
        document = document_of(content)
        write_pages(document, folder)
        write_study(content, folder)
    return Reproduction(folder, document, trained)


def _plan(studies: Iterable[Study], workspace: Workspace, failed: Collection[str] = ()) -> Plan:
    return Plan.of(recipe for study in studies for recipe in study.ask(workspace, failed))


def carry_out(
    studies: Sequence[Study], workspace: Workspace, carrier: Executor, observe: Callable[[int], Observer]
) -> tuple[int, dict[str, Failure]]:
    """Run what studies want until they want nothing new.

    Args:
        studies: What to run.
        workspace: Where the runs are.
        carrier: Carries them out.
        observe: As of ``reproduce``.

    Returns:
        How many runs were missing, and why some of them still are, by hash.
    """
    failures: dict[str, Failure] = {}
    tried: set[str] = set()  # what failed is left to the next call
    while steps := _untried(_plan(studies, workspace, failures).missing(workspace), tried, failures):
        recipes = [step.recipe for step in steps]
        check_data(spec for one in recipes for spec in (one.data, *one.targets, one.transfer) if spec is not None)
        tried.update(step.hash for step in steps)
        failures |= carrier.carry_out(steps, observe(len(steps)))
    return len(tried), failures


def _untried(missing: Iterable[Step], tried: Collection[str], failures: dict[str, Failure]) -> list[Step]:
    """Return the steps that can be tried, and add those to the failures that need one which failed before."""
    found = []
    for step in missing:
        lost = next((failures[need] for need in step.needs if need in failures), None)
        if step.hash in tried:
            continue
        if lost is None:
            found.append(step)
        else:
            failures[step.hash] = lost.passed_on()
    return found


def local_slots(jobs: int | None, device: str | None, changes: Changes) -> tuple[int, int | None]:
    """Return how many runs this machine takes at a time, and the CPU threads of each; None for all.

    Args:
        jobs: As asked for; default: one on CUDA, one a core on CPU.
        device: As asked for.
        changes: Smoke numbers are the same however many runs share the machine, which sums in another order are not.

    Raises:
        DeviceError: This machine does not have the device.
        RecipeError: ``jobs`` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise RecipeError(f"jobs: must be 1 or more, got {jobs}")
    cpu = pick_device(device or "auto").type == "cpu"
    slots = jobs or (os.cpu_count() or 1 if cpu else 1)
    return slots, 1 if cpu and (slots > 1 or changes.smoke) else None


def check_data(specs: Iterable[str]) -> None:
    """Refuse data sets that are not on this machine, whole and readable; nothing is downloaded.

    Raises:
        DataError: It names every one that is missing, and the command that fetches it.
    """
    list_datasets()  # sources declare their files when they are imported
    names = {spec: parse_dataset_spec(spec).name if source_path(spec) is None else spec for spec in specs}
    problems = []
    for name in dict.fromkeys(name for name in names.values() if name in REMOTES):
        bad = [file for file in verify(name) if file.state != "ok"]
        if bad:
            states = ", ".join(f"{file.path.name} is {file.state}" for file in bad)
            problems.append(f"{name}: {states}; run `undistill data fetch {name}`, or replace it: --data {name}=SPEC")
    if problems:
        raise DataError("; ".join(problems))
    for spec, name in names.items():
        if name not in REMOTES:
            load_dataset(spec)


def _check_paths(steps: Iterable[Step]) -> None:
    """Refuse data where there is nothing, before anything is read."""
    recipes = [step.recipe for step in steps]
    specs = {spec for recipe in recipes for spec in (recipe.data, *recipe.targets, recipe.transfer) if spec}
    gone = {path for path in map(source_path, specs) if path is not None and not path.exists()}
    if gone:
        named = " and no ".join(map(str, sorted(gone)))
        raise DataError(f"there is no {named}; correct the path in the spec of the data set")
