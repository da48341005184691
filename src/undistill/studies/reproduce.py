"""Plan, run and report tables of the paper."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from undistill.data import list_datasets, load_dataset, verify
from undistill.data.download import REMOTES
from undistill.engine.device import pick_device
from undistill.errors import DataError, RecipeError, RunError
from undistill.registry import Spec
from undistill.run import Workspace
from undistill.storage import write_json, write_text
from undistill.studies.formats import make_grid, to_html, to_markdown, to_tex
from undistill.studies.local import LocalExecutor
from undistill.studies.plan import Plan, Step
from undistill.studies.progress import Observer, make_observer
from undistill.studies.results import TableResult, evaluate, to_json
from undistill.studies.tables import TableStudy

__all__ = ["Reproduction", "check_data", "plan_studies", "reproduce", "runs_folder"]


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        folder: Holds ``study.json``, ``tables.md``, ``tables.tex`` and ``index.html``.
        results: One a table.
        trained: Number of runs that were missing.
    """

    folder: Path
    results: tuple[TableResult, ...]
    trained: int

    @property
    def failed(self) -> bool:
        """Whether a cell has no result, or not of every seed."""
        return any(result.failed for result in self.results)


def runs_folder(out: Path) -> Path:
    """Return the folder of all runs of the studies in ``out``, which share them."""
    return out / "runs"


def plan_studies(studies: Iterable[TableStudy], out: Path) -> tuple[Plan, tuple[Step, ...]]:
    """Return the plan of studies, and the steps of it that have no result in ``out`` yet."""
    plan = Plan.of(recipe for study in studies for recipe in study.recipes)
    return plan, plan.missing(Workspace(runs_folder(out)))


def reproduce(
    name: str,
    studies: Sequence[TableStudy],
    out: Path,
    *,
    jobs: int | None = None,
    device: str | None = None,
    observe: Callable[[int], Observer] = make_observer,
) -> Reproduction:
    """Run what is missing of studies, and write their tables.

    Args:
        name: Of the study: a table's, or ``"all"``; names the folder of the tables.
        studies: From ``load_studies``, one or more.
        out: Folder of the runs, which all studies in it share, and of the tables.
        jobs: Runs at a time; default: one on CUDA, one a core on CPU.
        device: Overrides the recipes' device.
        observe: Called with the number of runs that are missing; returns who watches them.

    Returns:
        What came out. A run that failed is a cell without a number, and is tried again by the next call.

    Raises:
        DataError: A data set is missing; before anything is trained.
        InterruptedRunError: Ctrl-C; the same call goes on.
        RunError: Another process works in ``out``, or a file cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise RecipeError(f"jobs: must be 1 or more, got {jobs}")
    where = pick_device(device or "auto")
    jobs = jobs or (1 if where.type == "cuda" else os.cpu_count() or 1)
    changes = studies[0].changes
    folder = out / (name if changes.label == "paper" else f"{name}-{changes.label}")
    with _locked(out):
        _, missing = plan_studies(studies, out)
        check_data(step.recipe.data for step in missing)
        # Smoke numbers are the same however many runs share the machine; sums in another order would change them.
        threads = 1 if where.type == "cpu" and (jobs > 1 or changes.smoke) else None
        executor = LocalExecutor(runs_folder(out), out / "logs", jobs, threads, device)
        failures = executor.carry_out(missing, observe(len(missing))) if missing else {}
        results = tuple(evaluate(study, Workspace(runs_folder(out)), failures) for study in studies)
        _write(name, results, folder)
    return Reproduction(folder, results, len(missing))


def check_data(specs: Iterable[str]) -> None:
    """Refuse data sets that are not on this machine, whole and readable; nothing is downloaded.

    Raises:
        DataError: It names every one that is missing, and the command that fetches it.
    """
    list_datasets()  # sources declare their files when they are imported
    problems = []
    for spec in dict.fromkeys(specs):
        name = Spec.parse(spec).name if "/" not in spec.partition("(")[0] else spec
        if name not in REMOTES:
            load_dataset(spec)
            continue
        bad = [file for file in verify(name) if file.state != "ok"]
        if bad:
            states = ", ".join(f"{file.path.name} is {file.state}" for file in bad)
            problems.append(f"{name}: {states}; run `undistill data fetch {name}`, or replace it: --data {name}=SPEC")
    if problems:
        raise DataError("; ".join(problems))


def _write(name: str, results: Sequence[TableResult], folder: Path) -> None:
    changes = results[0].study.changes
    content = to_json(name, results)
    grids = [make_grid(result) for result in results]
    write_text(folder / "tables.md", to_markdown(grids, changes))
    write_text(folder / "tables.tex", to_tex(grids, changes))
    write_text(folder / "index.html", to_html(grids, changes, content["provenance"]))
    write_json(folder / "study.json", content)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Refuse a second study in the same folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"another study runs in {out}; wait for it, or choose another folder with --out") from None
    except OSError as error:
        raise RunError(f"cannot write in {out}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()
