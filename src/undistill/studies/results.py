"""What came out of a study: every cell beside the paper's number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undistill._version import __version__
from undistill.functional import Interval, mean_interval
from undistill.run import Run, Workspace
from undistill.studies.local import Failure
from undistill.studies.paper import PaperCell
from undistill.studies.tables import TableStudy

__all__ = ["CellResult", "TableResult", "evaluate", "to_json"]

_FORMAT = 1


@dataclass(frozen=True)
class CellResult:
    """One cell of a table.

    Attributes:
        paper: What the paper prints there.
        runs: Finished runs by seed.
        failures: Why a seed has no run, by seed.
        reference: Mean accuracy in percent that ``difference`` is measured against, None where the cell is a
            reference itself, or its reference was left out or failed.
    """

    paper: PaperCell
    runs: Mapping[int, Run]
    failures: Mapping[int, Failure]
    reference: float | None = None

    @property
    def values(self) -> dict[int, float]:
        """Test accuracy in percent by seed."""
        return {seed: run.accuracy for seed, run in self.runs.items()}

    @property
    def accuracy(self) -> Interval | None:
        """Mean over seeds with its 95 % interval (Student's t); None if every seed failed."""
        return mean_interval(self.values.values()) if self.runs else None

    @property
    def difference(self) -> float | None:
        """Points above the reference."""
        if self.accuracy is None or self.reference is None:
            return None
        return self.accuracy.mean - self.reference

    @property
    def disagrees(self) -> bool | None:
        """Whether the paper's number lies outside our interval; None where one of the two is missing."""
        if self.accuracy is None or self.accuracy.half_width is None or self.paper.value is None:
            return None
        return abs(self.accuracy.mean - self.paper.value) > self.accuracy.half_width

    @property
    def collapsed(self) -> tuple[int, ...]:
        """Seeds whose net gives nearly one answer to everything."""
        return tuple(seed for seed, run in self.runs.items() if run.collapsed)


@dataclass(frozen=True)
class TableResult:
    """One table.

    Attributes:
        study: What was to be run.
        cells: By (row, column).
    """

    study: TableStudy
    cells: Mapping[tuple[str, str], CellResult]

    @property
    def failed(self) -> bool:
        """Whether a seed of a cell has no result."""
        return any(cell.failures for cell in self.cells.values())


def evaluate(study: TableStudy, workspace: Workspace, failures: Mapping[str, Failure]) -> TableResult:
    """Read the finished runs of a study.

    Args:
        study: The table.
        workspace: Where its runs are.
        failures: Why runs have no result, by hash.

    Raises:
        RunError: A result is damaged.
    """
    cells: dict[tuple[str, str], CellResult] = {}
    for (row, column), recipes in study.cells.items():
        runs = {recipe.seed: run for recipe in recipes if (run := workspace.find(recipe)) is not None}
        lost = {r.seed: failures.get(r.hash, Failure("not run")) for r in recipes if r.seed not in runs}
        cells[row, column] = CellResult(study.paper.cell(row, column), runs, lost)
    for where in cells:
        reference = cells.get(_reference(study, *where))
        if reference is not None and reference.accuracy is not None:
            cells[where] = replace(cells[where], reference=reference.accuracy.mean)
    return TableResult(study, cells)


def to_json(name: str, results: Sequence[TableResult]) -> dict[str, Any]:
    """Return the results of a study as plain values: accuracies in percent, differences in points.

    They hold nothing of when or how often the study was interrupted: the same runs give the same values.

    Args:
        name: The study: a table's name, or ``"all"``.
        results: Its tables, one or more.
    """
    study = results[0].study
    runs = [run for result in results for cell in result.cells.values() for run in cell.runs.values()]
    return {
        "format": _FORMAT,
        "undistill": __version__,
        "study": name,
        "kind": study.changes.label,
        "changes": study.changes.describe(),
        "seeds": study.seeds,
        "provenance": _provenance(runs),
        "tables": [_table(result) for result in results],
    }


def _reference(study: TableStudy, row: str, column: str) -> tuple[str, str]:
    """Return the cell that the difference of a cell is measured against; no cell's name if there is none."""
    against, printed = study.paper.columns[column].against, study.paper.rows[row]
    if printed.kind in (against, "baseline"):
        return "", ""
    if against == "baseline":
        return "baseline", column
    return f"{printed.teacher}-normal", column if against == "normal" else "teacher"


def _provenance(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Return every value that occurs among the runs."""
    found: dict[str, set[Any]] = {}
    for run in runs:
        own = {**run.result["provenance"], "selection": run.recipe.selection, "data": run.recipe.data}
        own["data_fingerprint"] = run.result["data_fingerprint"]
        for key, value in own.items():
            if key != "seed":
                found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in found.items()}


def _table(result: TableResult) -> dict[str, Any]:
    paper = result.study.paper
    return {
        "table": paper.id,
        "title": paper.title,
        "columns": [
            {"name": name, "label": column.label, "data": column.dataset} for name, column in paper.columns.items()
        ],
        "rows": [
            {
                "name": row,
                "label": paper.rows[row].label,
                "cells": {
                    column: _cell(result.cells[row, column])
                    for column in paper.columns
                    if (row, column) in result.cells
                },
            }
            for row in result.study.rows
        ],
        "errata": [erratum.model_dump(mode="json", exclude_none=True) for erratum in paper.errata],
    }


def _cell(cell: CellResult) -> dict[str, Any]:
    accuracy = cell.accuracy
    return {
        "values": {str(seed): value for seed, value in cell.values.items()},
        "mean": accuracy.mean if accuracy else None,
        "half_width": accuracy.half_width if accuracy else None,
        "n": accuracy.n if accuracy else 0,
        "difference": cell.difference,
        "paper": cell.paper.value,
        "paper_difference": cell.paper.difference,
        "disagrees": cell.disagrees,
        "collapsed_seeds": list(cell.collapsed),
        "runs": {str(seed): run.folder.name for seed, run in cell.runs.items()},
        "failures": {
            str(seed): {"reason": failure.reason, "log": failure.log.name if failure.log else None}
            for seed, failure in cell.failures.items()
        },
    }
