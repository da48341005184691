"""One number of a study: what our runs say over seeds, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undistill.functional import mean_interval
from undistill.recipe import Recipe
from undistill.studies.paper import PaperCell
from undistill.workspace import Workspace

if TYPE_CHECKING:
    from undistill.run import Failure

__all__ = ["COLLAPSED", "DISAGREES", "Cell", "against", "cell_notes", "make_cell"]

DISAGREES, COLLAPSED = "≠", "†"

Cell = dict[str, Any]
"""Plain values: accuracies in percent, differences in points, by seed where there are several.

``values``, their ``mean`` with the ``half_width`` of its 95 % interval (Student's t) over ``n`` seeds; ``difference``
to our own reference; ``paper`` and ``paper_difference`` as printed; ``disagrees``: whether the paper's number lies
outside our interval; ``collapsed_seeds``; ``runs``, the folders; ``failures``, why a seed has no run. None: not known.
"""


def make_cell(
    recipes: Sequence[Recipe],
    workspace: Workspace,
    failures: Mapping[str, Failure],
    printed: PaperCell | None = None,
) -> Cell:
    """Return what the runs of some recipes say.

    Args:
        recipes: One a seed.
        workspace: Where their runs are.
        failures: Why runs have no result, by hash.
        printed: The paper's number.

    Raises:
        RunError: A result is damaged.
    """
    runs = {recipe.seed: run for recipe in recipes if (run := workspace.find(recipe)) is not None}
    printed = printed or PaperCell()
    values = {str(seed): run.accuracy for seed, run in runs.items()}
    interval = mean_interval(values.values()) if values else None
    mean, half_width = (interval.mean, interval.half_width) if interval else (None, None)
    known = mean is not None and half_width is not None and printed.value is not None
    return {
        "values": values,
        "mean": mean,
        "half_width": half_width,
        "n": len(values),
        "difference": None,
        "paper": printed.value,
        "paper_difference": printed.difference,
        "disagrees": abs(mean - printed.value) > half_width if known else None,  # type: ignore[operator]
        "collapsed_seeds": [seed for seed, run in runs.items() if run.collapsed],
        "runs": {str(seed): run.folder.name for seed, run in runs.items()},
        "failures": {str(r.seed): _reason(failures.get(r.hash)) for r in recipes if r.seed not in runs},
    }


def against(cell: Cell, reference: Cell | None) -> Cell:
    """Return a cell with its difference to another one, over the seeds that both have, if they share any."""
    common = sorted(set(cell["values"]) & set(reference["values"])) if reference is not None else []
    if reference is None or not common:
        return cell
    own, other = (mean_interval(each["values"][seed] for seed in common).mean for each in (cell, reference))
    return {**cell, "difference": own - other}


def cell_notes(cells: Iterable[tuple[str, Cell]], seeds: int) -> Iterator[str]:
    """Yield what a reader must know beside cells, which come with their names."""
    cells = list(cells)
    if seeds == 1:
        yield "One seed (n=1): the spread over seeds is not known, so nothing says whether we agree with the paper."
    else:
        yield f"Mean ± 95 % interval (Student's t) over {seeds} seeds; n where there are fewer."
    if any(cell["disagrees"] for _, cell in cells):
        yield f"{DISAGREES} The paper's number is outside our interval."
    if any(cell["collapsed_seeds"] for _, cell in cells):
        yield f"{COLLAPSED} Collapsed: more than 90 % of the answers of a seed are one class."
    for name, cell in cells:
        for seed, failure in cell["failures"].items():
            log = f" (log: {failure['log']})" if failure["log"] else ""
            yield f"Failed: {name}, seed {seed}: {failure['reason']}{log}"


def _reason(failure: Failure | None) -> dict[str, str | None]:
    if failure is None:
        return {"reason": "not run", "log": None}
    return {"reason": failure.reason, "log": failure.log.name if failure.log else None}
