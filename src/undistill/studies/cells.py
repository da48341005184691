"""The numbers of a study: what our runs say over seeds, beside what the paper prints; and the parts made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from undistill.functional import may_be_chance, mean_interval, paired_difference, prediction_half_width
from undistill.recipe import Recipe
from undistill.reporting.cell import CHANCE, COLLAPSED, DISAGREES, Cell, Reason
from undistill.run import Failure, Run
from undistill.studies.paper import PaperCell
from undistill.studies.study import Study
from undistill.workspace import Workspace

__all__ = ["against", "cell_notes", "chance_seeds", "common", "fidelity_of", "make_cell", "why"]


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
    accuracies = {str(seed): run.accuracy for seed, run in runs.items()}
    interval = mean_interval(values.values()) if values else None
    mean, half_width = (interval.mean, interval.half_width) if interval else (None, None)
    reach = prediction_half_width(interval) if interval else None
    known = mean is not None and reach is not None and printed.value is not None
    measured = next((run.result for run in runs.values()), None)
    return Cell(
        values=values,
        mean=mean,
        half_width=half_width,
        n=len(values),
        difference=None,
        difference_interval=None,
        paper=printed.value,
        paper_difference=printed.difference,
        disagrees=abs(mean - printed.value) > reach if known else None,  # type: ignore[operator]
        collapsed_seeds=tuple(seed for seed, run in runs.items() if run.collapsed),
        runs={str(seed): run.folder.name for seed, run in runs.items()},
        failures={str(r.seed): _reason(failures.get(r.hash)) for r in recipes if r.seed not in runs},
        images=measured["test_images"] if measured else None,
        chance_seeds=chance_seeds(accuracies, measured["test_images"], measured["classes"]) if measured else (),
    )


def fidelity_of(run: Run) -> float:
    """Return for how many percent of the test images a student names the class that its victim names."""
    return 100 * float(run.result["fidelity"])


def chance_seeds(values: Mapping[str, float], images: int, classes: int) -> tuple[int, ...]:
    """Return the seeds whose net may be guessing; see ``may_be_chance``.

    Args:
        values: Accuracies in percent, by seed.
        images: Number of test images.
        classes: Number of classes.
    """
    return tuple(int(seed) for seed, value in values.items() if may_be_chance(value, images, classes))


def against(cell: Cell, reference: Cell | None) -> Cell:
    """Return a cell with its difference to another one and its interval, over the seeds that both have, if any."""
    if reference is None:
        return cell
    own, other = ({int(seed): value for seed, value in each.values.items()} for each in (cell, reference))
    found = paired_difference(own, other, resolution=100 / cell.images if cell.images else 0.0)
    if found is None:
        return cell
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    return cell.model_copy(update={"difference": found.mean, "difference_interval": interval})


def cell_notes(cells: Iterable[tuple[str, Cell]], seeds: int) -> Iterator[str]:
    """Yield what a reader must know beside cells, which come with their names."""
    cells = list(cells)
    if seeds == 1:
        yield "One seed (n=1): the spread over seeds is not known, so nothing says whether we agree with the paper."
    else:
        yield (
            f"Mean ± 95 % interval (Student's t; its ends where it meets 0 or 100) over {seeds} seeds; n where there "
            "are fewer."
        )
    if any(cell.difference_interval for _, cell in cells):
        yield (
            "After a difference: its 95 % interval, paired by seed over the seeds that both have; where it holds 0, "
            "no difference is decided."
        )
    if any(cell.disagrees for _, cell in cells):
        yield (
            f"{DISAGREES} The paper's number, taken as one run, is outside the 95 % interval in which one more run of "
            "ours is expected."
        )
    if any(cell.collapsed_seeds for _, cell in cells):
        yield f"{COLLAPSED} Collapsed: more than 90 % of the answers of a seed are one class."
    if any(set(cell.chance_seeds) - set(cell.collapsed_seeds) for _, cell in cells):
        yield f"{CHANCE} Of a seed, Wilson's 95 % interval over the test images does not exclude guessing."
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
