"""The table of a group of runs, in the form of the paper's: references, then every teacher with every attack on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from undistill.functional import Difference, Interval
from undistill.reporting.cell import CHANCE, COLLAPSED, Shown
from undistill.reporting.measures import is_tautology
from undistill.reporting.parts import Grid, GridRow
from undistill.reporting.runs import Extraction, Replicates, RunGroup, Student, Teacher
from undistill.reporting.verdict import COLLAPSE_WARNING, collapse_share
from undistill.reporting.wording import difference, join, method_label, model_label, value

__all__ = ["COLLAPSED", "ENDS_LOWER", "Cell", "Row", "Table", "make_table"]

ENDS_LOWER, TAUTOLOGY = "‡", " ="
_FALL = 3.0  # points between the kept and the last weights that a reader must know of
_SELECTION = {
    "heldout": "the weights of the best epoch on held-out training images",
    "last": "the weights of the last epoch",
    "paper": (
        "the paper's way (selection: paper): the best epoch on the test set itself, the mean of the accuracies of "
        "batches of 128"
    ),
}


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        replicates: The runs behind it.
        difference: To its reference, in points, over common seeds; None where it is the reference or there is none.
        marks: ``†`` for a collapsed student, ``≈`` for one that may be guessing, ``‡`` for one whose last weights are
            much worse than those kept.
    """

    replicates: Replicates
    difference: Difference | None
    marks: str

    @property
    def accuracy(self) -> Interval:
        """Percent."""
        return self.replicates.accuracy

    @property
    def difference_text(self) -> str:
        """Write the difference in brackets, with its interval."""
        found = self.difference
        return "" if found is None else difference(found.mean, found.ends)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        teacher: Its label; empty for students without one.
        name: Its short name.
        method: How the students learned.
        accuracy: Of the teacher.
        students: In the order of the columns.
        span: Number of rows of this teacher in its first row, 0 in the others.
        kind: ``reference``, ``normal`` or ``defended``.
    """

    teacher: str
    name: str
    method: str
    accuracy: Cell | None
    students: tuple[Cell | None, ...]
    span: int
    kind: str


@dataclass(frozen=True)
class Table:
    """The table of one study.

    Attributes:
        caption: What is shown.
        students: The columns after teacher, method and teacher accuracy.
        rows: References first.
        notes: What a reader must know beside the numbers.
        with_n: Whether each number carries its number of seeds, because they are not all alike.
    """

    caption: str
    students: tuple[Student, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    with_n: bool

    @property
    def grid(self) -> Grid:
        """The table in words: without students there is no way of learning to name."""
        heads = ("Teacher", "Students learn by") if self.students else ("Teacher",)
        return Grid(
            caption="",
            heads=heads,
            columns=("Teacher accuracy", *(student.label for student in self.students)),
            rows=tuple(map(self._row, self.rows)),
        )

    def _row(self, row: Row) -> GridRow:
        own = Shown("") if not (row.span and row.teacher) else self._shown(row.accuracy)
        heads = (row.teacher if row.span else "", *[row.method] * bool(self.students))
        cells = (own, *(self._shown(cell) for cell in row.students))
        return GridRow(heads, cells, begins=row.span > 0 and row.kind != "reference", muted=row.kind == "reference")

    def _shown(self, cell: Cell | None) -> Shown | None:
        if cell is None:
            return None
        runs, collapsed = len(cell.replicates.runs), len(cell.replicates.collapsed)
        some = f" in {collapsed} of {runs}" if runs > 1 else ""
        return Shown(
            value(cell.accuracy, with_n=self.with_n),
            cell.difference_text,
            cell.marks,
            warning=bool(collapsed) or _lost(cell.difference),
            remark=f"collapsed{some}" if collapsed else "",
        )

    @property
    def cells(self) -> Iterator[Cell]:
        """All numbers."""
        for row in self.rows:
            yield from (cell for cell in (row.accuracy if row.span else None, *row.students) if cell is not None)


def make_table(study: RunGroup) -> Table:
    """Put a study into the form of the paper's tables: references, then every teacher with every attack on it."""
    rows = (*_references(study), *(row for teacher in study.teachers for row in _teacher_rows(study, teacher)))
    table = Table(_caption(study), study.students, tuple(rows), (), False)
    sizes = {cell.accuracy.n for cell in table.cells}
    notes = tuple(_notes(study, table, sizes))
    return replace(table, notes=notes, with_n=len(sizes) > 1)


def _references(study: RunGroup) -> Iterator[Row]:
    known = sorted({means for _, means in study.references}, key=lambda means: means.order)
    for means in known:
        of = [study.references.get((student.key, means), {}) for student in study.students]
        methods = {method for found in of for method in found}
        for method in sorted(methods, key=lambda method: (method != "ce", method)):
            cells = (
                _cell(found[method], None if method == "ce" else found.get("ce")) if method in found else None
                for found in of
            )
            label = "Student baseline" if method == "ce" else f"Student alone, {method_label(method)}"
            label += f", {told}" if (told := means.among(known)) else ""
            yield Row("", "", label, None, tuple(cells), 1, "reference")


def _teacher_rows(study: RunGroup, teacher: Teacher) -> Iterator[Row]:
    twin = study.teacher(teacher.twin)
    reference = twin.replicates if twin is not None else None
    accuracy = _cell(teacher.replicates, reference) if teacher.replicates is not None else None
    extractions: list[Extraction | None] = [*study.extractions_from(teacher.key)] or [None]
    for i, extraction in enumerate(extractions):
        by = extraction.by if extraction is not None else {}
        cells = (
            _cell(by[student.key], _reference(study, extraction, student))
            if extraction is not None and student.key in by
            else None
            for student in study.students
        )
        label = "" if extraction is None else extraction.label + TAUTOLOGY * is_tautology(study, extraction)
        kind = "defended" if teacher.defended else "normal"
        yield Row(teacher.label, teacher.name, label, accuracy, tuple(cells), len(extractions) if i == 0 else 0, kind)


def _reference(study: RunGroup, extraction: Extraction, student: Student) -> Replicates | None:
    found = study.alone(extraction, student)
    return None if found is None else found[1]


def _cell(replicates: Replicates, reference: Replicates | None) -> Cell:
    fallen = replicates.accuracy.mean - replicates.last_accuracy.mean >= _FALL
    marks = COLLAPSED * bool(replicates.collapsed) + CHANCE * replicates.chance + ENDS_LOWER * fallen
    return Cell(replicates, None if reference is None else replicates.beyond(reference), marks)


def _lost(found: Difference | None) -> bool:
    """Tell whether a difference is a loss; of one seed, whose spread nobody knows, whether it is one of a point."""
    return found is not None and (
        (found.high is not None and found.high < 0) or (found.low is None and found.mean <= -1)
    )


def _caption(study: RunGroup) -> str:
    images = study.runs[0].result["test_images"]
    return f"Accuracy on the {images:,} test images of {study.data}, in percent."


def _notes(study: RunGroup, table: Table, sizes: set[int]) -> Iterator[str]:
    named = list(_named_cells(table))
    means = {one.means for one in study.extractions}
    if means:
        shared = means.pop().shared(means)
        if shared:
            yield f"What a thief has, where a row does not say otherwise: {join(shared)}."
    if any(cell.difference is not None for _, cell in named):
        yield (
            "In brackets, in points, with its 95 % interval: for a student the difference to the same student alone "
            "with the same labels or, without any, on the classes that the victim names; for a defended teacher that "
            "to its normal twin. Over common seeds; of one seed over the test images, which tells two "
            "nets apart and not two ways of training."
        )
    if any(is_tautology(study, one) for one in study.extractions):
        yield (
            f"{TAUTOLOGY.strip()} The thief has the labels of these images and the victim names them: this is the "
            "student alone once more, and nothing stolen."
        )
    if sizes == {1}:
        yield "One seed (n=1): the spread over seeds is not known."
    elif sizes:
        count = str(*sizes) if len(sizes) == 1 else "n"
        yield f"Mean ± 95 % interval (Student's t) over {count} seeds."
    yield from _selections(study)
    collapsed = [f"{name} ({collapse_share(cell.replicates)})" for name, cell in named if COLLAPSED in cell.marks]
    if collapsed:
        yield f"{COLLAPSED} Collapsed: {'; '.join(collapsed)}. {COLLAPSE_WARNING}"
    if any(CHANCE in cell.marks for _, cell in named):
        yield f"{CHANCE} Not decidedly better than chance."
    fallen = [
        f"{name} to {cell.replicates.last_accuracy.mean:.1f} %" for name, cell in named if ENDS_LOWER in cell.marks
    ]
    if fallen:
        yield f"{ENDS_LOWER} Saved by early stopping; at the last epoch accuracy is down: {'; '.join(fallen)}."
    if study.unknown:
        yield f"Runs of methods that are unknown here, left out: {', '.join(study.unknown)}."
    if study.unfinished:
        yield f"Unfinished runs that are left out: {study.unfinished}."


def _selections(study: RunGroup) -> Iterator[str]:
    used = sorted({run.recipe.selection for run in study.runs})
    if len(used) == 1:
        yield f"Measured with {_SELECTION[used[0]]}."
        return
    for selection in used:
        recipes = (run.recipe for run in study.runs if run.recipe.selection == selection)
        names = sorted({f"{model_label(recipe.model)}, {method_label(recipe.method)}" for recipe in recipes})
        yield f"Measured with {_SELECTION[selection]}: {'; '.join(names)}."


def _named_cells(table: Table) -> Iterator[tuple[str, Cell]]:
    for row in table.rows:
        if row.span and row.accuracy is not None:
            yield row.name, row.accuracy
        for student, cell in zip(table.students, row.students, strict=True):
            if cell is not None:
                yield f"{student.name}, {row.method}{f' from {row.name}' if row.name else ''}", cell
