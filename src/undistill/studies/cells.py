"""The numbers of a study: what our runs say over seeds, beside what the paper prints; and the parts made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from undistill.functional import mean_interval
from undistill.recipe import Recipe
from undistill.reporting.cell import COLLAPSED, DISAGREES, Cell, Reason
from undistill.run import Failure, Run
from undistill.studies.paper import PaperCell
from undistill.studies.study import Study
from undistill.workspace import Workspace

__all__ = ["against", "cell_notes", "common", "make_cell", "why"]


def make_cell(
    recipes: Sequence[Recipe],
    workspace: Workspace,
    failures: Mapping[str, Failure],
    printed: PaperCell | None = None,
    *,
    read: Callable[[Run], float] = lambda run: run.accuracy,
) -> Cell:
    """Return what the runs of some recipes say.

    Args:
        recipes: One a seed.
        workspace: Where their runs are.
        failures: Why runs have no result, by hash.
        printed: The paper's number.
        read: What is read of a run, in percent.

    Raises:
        RunError: A result is damaged.
    """
    runs = {recipe.seed: run for recipe in recipes if (run := workspace.find(recipe)) is not None}
    printed = printed or PaperCell()
    values = {str(seed): read(run) for seed, run in runs.items()}
    interval = mean_interval(values.values()) if values else None
    mean, half_width = (interval.mean, interval.half_width) if interval else (None, None)
    known = mean is not None and half_width is not None and printed.value is not None
    return Cell(
        values=values,
        mean=mean,
        half_width=half_width,
        n=len(values),
        difference=None,
        paper=printed.value,
        paper_difference=printed.difference,
        disagrees=abs(mean - printed.value) > half_width if known else None,  # type: ignore[operator]
        collapsed_seeds=tuple(seed for seed, run in runs.items() if run.collapsed),
        runs={str(seed): run.folder.name for seed, run in runs.items()},
        failures={str(r.seed): _reason(failures.get(r.hash)) for r in recipes if r.seed not in runs},
    )


def against(cell: Cell, reference: Cell | None) -> Cell:
    """Return a cell with its difference to another one, over the seeds that both have, if they share any."""
    shared = sorted(set(cell.values) & set(reference.values)) if reference is not None else []
    if reference is None or not shared:
        return cell
    own, other = (mean_interval(each.values[seed] for seed in shared).mean for each in (cell, reference))
    return cell.model_copy(update={"difference": own - other})


def cell_notes(cells: Iterable[tuple[str, Cell]], seeds: int) -> Iterator[str]:
    """Yield what a reader must know beside cells, which come with their names."""
    cells = list(cells)
    if seeds == 1:
        yield "One seed (n=1): the spread over seeds is not known, so nothing says whether we agree with the paper."
    else:
        yield f"Mean ± 95 % interval (Student's t) over {seeds} seeds; n where there are fewer."
    if any(cell.disagrees for _, cell in cells):
        yield f"{DISAGREES} The paper's number is outside our interval."
    if any(cell.collapsed_seeds for _, cell in cells):
        yield f"{COLLAPSED} Collapsed: more than 90 % of the answers of a seed are one class."
    for name, cell in cells:
        for seed, failure in cell.failures.items():
            log = f" (log: {failure.log})" if failure.log else ""
            yield f"Failed: {name}, seed {seed}: {failure.reason}{log}"


def common(study: Study, cells: Iterable[tuple[str, Cell]], notes: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields that parts made of cells have in common.

    Args:
        study: The study that they are of: its name, title and number of seeds.
        cells: All of them, with their names.
        notes: What a reader must know besides.
    """
    cells = list(cells)
    return {
        "name": study.name,
        "title": study.title,
        "seeds": study.seeds,
        "notes": (*notes, *cell_notes(cells, study.seeds)),
        "failed": any(cell.failures for _, cell in cells),
    }


def why(failure: Failure | None) -> str:
    """Return in one line why a run has no result, with the name of its log."""
    if failure is None:
        return "not run"
    return f"{failure.reason} (log: {failure.log.name})" if failure.log else failure.reason


def _reason(failure: Failure | None) -> Reason:
    if failure is None:
        return Reason(reason="not run", log=None)
    return Reason(reason=failure.reason, log=failure.log.name if failure.log else None)
