"""The demo: what a thief who has 20 handwritten digits gets out of a normal and of a nasty teacher, on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from undistill.errors import RunError
from undistill.orchestrate.executors import make_executor
from undistill.orchestrate.progress import Observer, make_observer
from undistill.orchestrate.reproduce import carry_out, local_slots, runs_folder
from undistill.orchestrate.request import Request
from undistill.orchestrate.results import FinishedRuns
from undistill.reporting.document import Document
from undistill.reporting.report import make_document
from undistill.storage import locked

__all__ = ["demo"]


def demo(out: Path, *, seeds: int = 5, observe: Callable[[int], Observer] = make_observer) -> Document:
    """Train the demo's nets, one a core at a time, and return its page: the picture first, and then the report.

    Args:
        out: Folder for the runs; runs that are there are not trained again.
        seeds: Repetitions, 1 or more.
        observe: Called with the number of runs that are missing; returns who watches them.

    Raises:
        RecipeError: ``seeds`` is out of range.
        RunError: A run failed, or another process works in ``out``.
    """
    request = Request("demo", seeds)
    studies = request.load()
    slots, _ = local_slots(None, "cpu", request.changes)
    carrier = make_executor("local", runs=runs_folder(out), logs=out / "logs", jobs=slots, threads=1, device="cpu")
    with locked(out, RunError(f"another demo runs in {out}; wait for it, or choose another folder with --out")):
        workspace = FinishedRuns(runs_folder(out), device="cpu")
        _, failures = carry_out(studies, workspace, carrier, observe)
        if failures:
            first = next(iter(failures.values()))
            raise RunError(f"{len(failures)} of the demo's runs failed; the first: {first.reason} (log: {first.log})")
        picture = studies[0].evaluate(workspace, failures, out / "cache")
        found = [workspace.find(recipe) for recipe in studies[0].recipes]
        report = make_document([run for run in found if run is not None])
    opening = picture.model_copy(update={"header": "What a thief gets", "name": "theft"})
    return Document(report.title, (opening, *report.parts), report.content)
