"""Figures 3, 4 and 5 of the paper: accuracies over ω, over the student's temperature, over the student's data.

What is swept where is in ``curves.yaml``, beside this module.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from undistill.recipe import Recipe
from undistill.reporting.cell import Cell
from undistill.reporting.parts import Part
from undistill.reporting.parts import curves as parts
from undistill.reporting.parts.curves import Curves
from undistill.run import Failure
from undistill.studies.cells import against, common, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.paper import PaperCell, PaperTable, load_paper
from undistill.studies.protocol import nasty, normal, student
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["CURVES", "CurveStudy", "Line", "Panel", "Point", "Reference", "make_curves"]

CURVES = ("figure3", "figure4", "figure5")

_FILE = Path(__file__).with_name("curves.yaml")


@dataclass(frozen=True)
class Point:
    """One number of a line.

    Attributes:
        x: Value of what is swept; None for a net that has none of it.
        recipes: One a seed.
        printed: The paper's number, where one of its tables has it.
        reference: What the number is measured against.
    """

    x: float | None
    recipes: tuple[Recipe, ...]
    printed: PaperCell | None = None
    reference: Point | None = None


@dataclass(frozen=True)
class Reference:
    """A net that was trained normally: a dashed line.

    Attributes:
        name: Of the net.
        label: As it is shown.
        point: Its number.
    """

    name: str
    label: str
    point: Point


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: ``"cnn"``, or ``"cnn-nasty"`` where there are several of a net.
        label: As it is shown.
        against: A student's teacher, ``normal`` or ``nasty``; None for a teacher itself, and for a student alone.
        points: By increasing x.
        dashed: The dashed line that belongs to it.
    """

    name: str
    label: str
    against: str | None
    points: tuple[Point, ...]
    dashed: Reference | None = None


@dataclass(frozen=True)
class Panel:
    """The curves of one data set.

    Attributes:
        name: Of the data set.
        title: As it is shown.
        lines: One or more.
    """

    name: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class CurveStudy(Study):
    """A figure of curves, to be run.

    Attributes:
        axis: What is swept, as it is shown.
        scale: ``log`` or ``linear``.
        panels: One a data set.
        remarks: What a reader must know beside the numbers.
    """

    axis: str
    scale: str
    panels: tuple[Panel, ...]
    remarks: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the panels and of their lines."""
        names = (name for panel in self.panels for name in (panel.name, *(line.name for line in panel.lines)))
        return tuple(dict.fromkeys(names))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all points, and of what they are measured against."""
        for point in (point for panel in self.panels for line in panel.lines for point in line.points):
            yield from point.recipes
            yield from point.reference.recipes if point.reference else ()

    def pick(self, keep: Keep) -> CurveStudy | None:
        """Return the figure with the panels and lines that were asked for, None if there are none."""
        kept = (
            replace(panel, lines=tuple(line for line in panel.lines if keep(self.name, panel.name, line.name)))
            for panel in self.panels
        )
        panels = tuple(panel for panel in kept if panel.lines)
        return replace(self, panels=panels) if panels else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``curves``: ``panels`` with ``lines`` of points and ``references``."""

        def cell(point: Point) -> Cell:
            found = make_cell(point.recipes, workspace, failures, point.printed)
            return against(found, cell(point.reference)) if point.reference else found

        panels = tuple(self._panel(panel, cell) for panel in self.panels)
        return Curves.make(**common(self, _named_cells(panels), self.remarks), panels=panels)

    def _panel(self, panel: Panel, cell: Callable[[Point], Cell]) -> parts.Panel:
        dashed: dict[str, tuple[Line, Reference]] = {}
        for line in panel.lines:
            if line.dashed is not None:
                dashed.setdefault(line.dashed.name, (line, line.dashed))
        return parts.Panel(
            name=panel.name,
            title=panel.title,
            x=parts.Scale(label=self.axis, scale=self.scale),
            y=parts.Axis(label="Test accuracy, %"),
            lines=tuple(
                parts.Line(
                    name=line.name,
                    label=line.label,
                    role="teacher" if line.name == "teacher" else "student",
                    against=line.against,
                    points=tuple(parts.Point(x=point.x, **dict(cell(point))) for point in line.points),
                )
                for line in panel.lines
            ),
            references=tuple(
                parts.Reference(name=name, label=reference.label, line=line.name, **dict(cell(reference.point)))
                for name, (line, reference) in dashed.items()
            ),
        )


def make_curves(name: str, *, seeds: int, changes: Changes) -> CurveStudy:
    """Return one of ``CURVES`` as a study."""
    sweep, given = _SWEEPS[name], _grids()
    panels = []
    for data, panel in given["panels"].items():
        table, grid = load_paper()[panel["table"]], given["grids"][name][data]
        names = [*(["teacher"] if sweep.with_teacher else []), *panel["students"]]
        nets = [_Net(data, given["teacher"], net, kind, table) for net in names for kind in sweep.kinds]
        title = changes.titled(data, panel["title"])
        panels.append(Panel(data, title, tuple(_line(sweep, net, grid, seeds, changes) for net in nets)))
    return CurveStudy(name, sweep.title, seeds, changes, sweep.axis, sweep.scale, tuple(panels), sweep.remarks)


for _name in CURVES:
    STUDIES.register(_name)(partial(make_curves, _name))


@dataclass(frozen=True)
class _Net:
    """A net of a panel: the ``"teacher"`` or a student, ``alone`` or after a ``normal`` or ``nasty`` teacher."""

    data: str
    teacher: str
    name: str
    kind: str
    paper: PaperTable

    @property
    def model(self) -> str:
        return self.teacher if self.name == "teacher" else self.name

    @property
    def label(self) -> str:
        """As in the paper's legends, with the paper's spelling."""
        initial = "T" if self.name == "teacher" else "S"
        return f"{initial}: {next(c.label for c in self.paper.columns.values() if c.student == self.model)}"

    def victim(self, seed: int) -> Recipe:
        return (normal if self.kind == "normal" else nasty)(self.data, self.teacher, seed)

    def printed(self) -> PaperCell:
        """Return what the table of this data set has for the net."""
        lone_student = self.kind == "alone" and self.name != "teacher"
        row = "baseline" if lone_student else f"{self.teacher}-{'nasty' if self.kind == 'nasty' else 'normal'}"
        return self.paper.cell(row, self.name)


_Recipe = Callable[[_Net, int, float | None], Recipe]  # of a seed and a value; with None the recipe of the tables


def _over_weights(net: _Net, seed: int, weight: float | None) -> Recipe:
    teacher = nasty(net.data, net.teacher, seed, weight=weight)
    return teacher if net.name == "teacher" else student(net.data, net.model, teacher)


def _over_temperatures(net: _Net, seed: int, temperature: float | None) -> Recipe:
    return student(net.data, net.model, net.victim(seed), temperature=temperature)


def _over_shares(net: _Net, seed: int, share: float | None) -> Recipe:
    if net.kind == "alone":
        return normal(net.data, net.model, seed, share=share or 1)
    return student(net.data, net.model, net.victim(seed), share=share or 1)


@dataclass(frozen=True)
class _Sweep:
    """What one figure is about.

    Attributes:
        title: As of the study, and so are ``axis``, ``scale`` and ``remarks``.
        recipe: What is run.
        kinds: Of students that it compares.
        with_teacher: Whether it shows the teacher too.
    """

    title: str
    axis: str
    scale: str
    recipe: _Recipe
    kinds: tuple[str, ...]
    remarks: tuple[str, ...]
    with_teacher: bool = False


_UNKNOWN = "The slides print no number of this figure, not even along its axes: where the points lie is our choice."
_SWEEPS = {
    "figure3": _Sweep(
        "A nasty teacher and its students over the weight ω of the defense",
        "ω",
        "log",
        _over_weights,
        ("nasty",),
        (
            _UNKNOWN,
            "The paper's numbers are those of Tables 1 and 2, at the ω of these tables: 0.04 on CIFAR-10, 0.005 on "
            "CIFAR-100.",
            "In brackets: the difference, in points, to the same net trained normally, which is the dashed line.",
        ),
        with_teacher=True,
    ),
    "figure4": _Sweep(
        "Students of a normal and of a nasty teacher over their temperature τₛ",
        "τₛ",
        "log",
        _over_temperatures,
        ("normal", "nasty"),
        (
            _UNKNOWN,
            "The paper's numbers are those of Tables 1 and 2, where τₛ is the τ of the nasty teacher: 4 on CIFAR-10, "
            "20 on CIFAR-100.",
            "In brackets: the difference, in points, to the same student alone, which is the dashed line.",
        ),
    ),
    "figure5": _Sweep(
        "Students with a part of the training set: alone, of a normal and of a nasty teacher",
        "Share of the training set",
        "linear",
        _over_shares,
        ("alone", "normal", "nasty"),
        (
            "The slides leave this figure of the paper out: where the points lie is our choice.",
            "The teachers are trained on the whole training set. The images of a smaller share are among those of a "
            "larger one.",
            "The paper's numbers are those of Tables 1 and 2, at the whole training set.",
            "In brackets: the difference, in points, to the same student alone with the same images.",
        ),
    ),
}


def _line(sweep: _Sweep, net: _Net, grid: list[float], seeds: int, changes: Changes) -> Line:
    """Return the curve of a net, measured against the same net alone: a curve as well, or else a dashed line."""

    def point(net: _Net, x: float | None, recipe: _Recipe, reference: Point | None = None) -> Point:
        recipes = [recipe(net, seed, x) for seed in range(seeds)]
        of_table = recipes[0].hash == recipe(net, 0, None).hash
        printed = net.printed() if of_table else None
        return Point(x, tuple(adapt(recipe, changes) for recipe in recipes), printed, reference)

    alone = replace(net, kind="alone")
    dashed = None
    if "alone" not in sweep.kinds:
        dashed = Reference(net.name, net.label, point(alone, None, _over_shares))
        references = dict.fromkeys(grid, dashed.point)
    elif net.kind != "alone":
        references = {x: point(alone, x, _over_shares) for x in grid}
    else:
        references = {}
    points = tuple(point(net, x, sweep.recipe, references.get(x)) for x in grid)
    several = len(sweep.kinds) > 1
    return Line(
        f"{net.name}-{net.kind}" if several else net.name,
        f"{net.label} ({net.kind})" if several else net.label,
        None if net.kind == "alone" or net.name == "teacher" else net.kind,
        points,
        dashed,
    )


def _named_cells(panels: Iterable[parts.Panel]) -> Iterator[tuple[str, Cell]]:
    """Yield every number with where it is."""
    for panel in panels:
        for line in panel.lines:
            for point in line.points:
                yield f"{panel.title}, {line.label}, {panel.x.label} = {point.x:g}", point
        for reference in panel.references:
            yield f"{panel.title}, {reference.label}, trained normally", reference


@cache
def _grids() -> dict[str, Any]:
    return dict(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
