"""Which thieves of an audit fit into some minutes: references and the cheapest suite first, then one more at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from undistill.engine.device import pick_device
from undistill.errors import RecipeError
from undistill.orchestrate.estimate import estimate
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.reproduce import local_slots, runs_folder
from undistill.orchestrate.request import Request
from undistill.orchestrate.results import FinishedRuns
from undistill.recipe import Recipe
from undistill.studies.audit import AuditStudy
from undistill.studies.suite import SUITES

__all__ = ["afford"]

_RUN_S = 0.5  # what a run takes besides its training: reading data, measuring, writing
_SLACK = 0.8  # share of the time that is planned for


def afford(
    request: Request, out: Path, minutes: float, *, jobs: int | None = None, device: str | None = None
) -> Request:
    """Return an audit with as many thieves as are expected to fit; which are left out, its page says.

    Args:
        request: Of the study ``audit``.
        out: Its folder; what is there already costs nothing.
        minutes: For all of it on this machine.
        jobs: Runs at a time; default: one on CUDA, one a core on CPU.
        device: Overrides the recipes' device.

    Raises:
        RecipeError: Not even the references and one thief fit.
    """
    (study,) = request.load()
    if not isinstance(study, AuditStudy):
        raise RecipeError(f"{request.study} is no audit; leave out minutes")
    slots, threads = local_slots(jobs, device, request.changes)
    workspace = FinishedRuns(runs_folder(out))
    victims = [one for one in (study.twin, study.victim) if isinstance(one, Recipe)]
    missing = Plan.of(victims).missing(workspace)
    steps = [*missing, *Plan.of(arm.tuned.base for arm in study.arms).steps]
    cost = estimate(steps, device=pick_device(device or "auto"), threads=threads)
    seconds = {step.step.hash: step.seconds or 0.0 for step in cost.steps}
    soft = {arm.method for arm in study.arms if arm.thief}

    def price(method: str | None) -> float:
        """Return the seconds of a thief with its references, or of those references that all have."""
        arms = (arm for arm in study.arms if (arm.method == method if method else arm.method not in soft))
        return sum(arm.tuned.cost(workspace, seconds[arm.tuned.base.hash] + _RUN_S) for arm in arms)

    left = 60 * minutes * slots * _SLACK - price(None) - sum(seconds[step.hash] * slots for step in missing)
    kept: list[str] = []
    short = 0.0
    for name in _ranked(study):
        needed = price(name)
        if needed <= left:
            left -= needed
            kept.append(name)
        else:
            short = min(short or needed - left, needed - left)
    if short and not kept:
        raise RecipeError(
            f"minutes={minutes:g}: not even the references and one thief fit, by {short / slots / 60:.1f} minutes; "
            "raise it, or lower seeds, trials or the students' epochs"
        )
    if not kept:
        return request
    return replace(request, parameters={**request.parameters, "attacks": kept})


def _ranked(study: AuditStudy) -> Iterator[str]:
    """Yield the thieves, those of the smallest suite first."""
    thieves = dict.fromkeys(arm.method for arm in study.arms if arm.thief)
    first = [name for name in SUITES["quick"].thieves or () if name in thieves]
    yield from dict.fromkeys([*first, *thieves])
