"""Curves over something that is swept, a panel a data set, with nets that were trained normally as dashed lines."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from undistill.reporting.cell import Cell, Plain, show
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import (
    ALONE,
    DEFENDED,
    INK,
    LINES,
    NORMAL,
    RULE,
    SOFT,
    arms,
    handle,
    new_figure,
    symbols,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["Axis", "Curves", "Line", "Panel", "Point", "Reference", "Scale"]

# Markers, line style and marker size of a student, by what it learns from.
_KINDS = {"nasty": ("os^DvP", "-", 4.5), "normal": ("X<>ph8", ":", 4.5), "alone": ("os^DvP", "--", 3.0)}
_COLORS = {"nasty": DEFENDED, "normal": NORMAL, "alone": ALONE}
_STUDENTS = LINES[2:]  # the first two are the teachers'
_STYLES = ("-", "--", ":", "-.")  # of the ways to learn, where the color is the teacher's
_A_ROW = 3
_PANEL_WIDTH, _PANEL_HEIGHT, _Y_AXIS, _LEGEND_LINE = 3.5, 2.5, 0.6, 0.16  # inches
_ASIDE = 1.02
_LARGER = 1.3  # is the panel of a figure that has no other
_TIGHT: dict[str, Any] = {"columnspacing": 0.8, "handletextpad": 0.4, "borderpad": 0.2}


class Scale(Plain):
    """An axis of what is swept: its label, and ``log``, ``linear`` or ``category``."""

    label: str
    scale: str


class Axis(Plain):
    """An axis of what is measured."""

    label: str


class _Place(Plain):
    x: float | int | str  # of what is swept


class Point(Cell, _Place):
    """A number with its place on the axis of what is swept."""


class _Net(Plain):
    name: str
    label: str
    line: str  # to which it belongs


class Reference(Cell, _Net):
    """The number of a net that was trained normally: a dashed line in the look of a curve."""


class Line(Plain):
    """One curve.

    Attributes:
        name: ``"cnn"``, or ``"cnn-nasty"`` where there are several of a net.
        label: As it is shown.
        role: ``teacher`` or ``student``.
        against: A student's teacher, ``normal`` or ``nasty``; None for a teacher itself, and for a student alone.
        points: In the order of the axis.
    """

    name: str
    label: str
    role: str
    against: str | None
    points: tuple[Point, ...]


class Panel(Plain):
    """The curves of one data set."""

    name: str
    title: str
    x: Scale
    y: Axis
    lines: tuple[Line, ...]
    references: tuple[Reference, ...]


@register_part("curves")
class Curves(Part):
    """A figure of curves."""

    kind: str = "curves"
    panels: tuple[Panel, ...]

    def grids(self) -> Iterator[Grid]:
        """Yield a table a panel: a row a line, a column a point, and the dashed line last."""
        for panel in self.panels:
            dashed = {reference.line: reference for reference in panel.references}
            swept = list(dict.fromkeys(point.x for line in panel.lines for point in line.points))
            if panel.x.scale != "category":
                swept.sort()
            rows = []
            for line in panel.lines:
                points: dict[Any, Cell] = {point.x: point for point in line.points}
                cells = [points.get(x) for x in swept] + ([dashed.get(line.name)] if dashed else [])
                rows.append(GridRow((line.label,), tuple(show(cell, self.seeds) for cell in cells)))
            columns = (*(_named(x) for x in swept), *(["trained normally"] if dashed else []))
            yield Grid(panel.title, (f"{panel.x.label} =",), columns, tuple(rows))

    def cells(self) -> Iterator[tuple[str, str, float | str, Cell]]:
        """Yield panel, line, x and cell; nets that were trained normally have no x."""
        for panel in self.panels:
            for line in panel.lines:
                yield from ((panel.name, line.name, point.x, point) for point in line.points)
            yield from ((panel.name, reference.name, "", reference) for reference in panel.references)

    @property
    def drawn(self) -> bool:
        """Always: where a run failed there is a gap."""
        return True

    def draw(self) -> Figure:
        """Return the panels side by side, their legends below."""
        return _draw(self.panels)


def _named(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def _draw(panels: Sequence[Panel]) -> Figure:
    looks = _looks(panels)
    groups = [list(_multiples(panel)) for panel in panels]
    shown = [small for group in groups for small in group]
    legends = [_line_legend(panel, looks) for panel in shown]
    signs = _signs(shown)
    below = _LEGEND_LINE * max(_height(legend) for legend in legends)
    across = min(_A_ROW, len(shown))
    down = -(-len(shown) // across)
    larger = _LARGER if _is_one_picture(panels) else 1.0
    height = down * (_PANEL_HEIGHT * larger + below) + _LEGEND_LINE * 2 * bool(signs)
    figure = new_figure(_PANEL_WIDTH * larger * across, height)
    ratios = {"height_ratios": [_PANEL_HEIGHT * larger, below] * down, "hspace": 0}
    spots = figure.subplots(2 * down, across, squeeze=False, gridspec_kw=ratios)
    plots, unders = spots[::2].flatten(), spots[1::2].flatten()
    for spot in (*unders, *plots[len(shown) :]):
        spot.set_axis_off()
    for panel, legend, plot, under in zip(shown, legends, plots, unders, strict=False):
        _draw_panel(plot, panel, looks, apart=larger > 1 and panel.x.scale == "log")
        under.legend(handles=legend, loc="upper center", ncols=_columns(legend), borderaxespad=0, **_TIGHT)
    rest = iter(plots)
    for group in groups:  # what is compared has one scale
        _share_y([next(rest) for _ in group])
    if signs:
        figure.legend(handles=signs, loc="outside lower center", ncols=len(signs) if across > 1 else 2)
    return figure


def _share_y(plots: Sequence[Axes]) -> None:
    lows, highs = zip(*(plot.get_ylim() for plot in plots), strict=True)
    for plot in plots:
        plot.set_ylim(min(lows), max(highs))


def _multiples(panel: Panel) -> Iterator[Panel]:
    """Yield a panel a net, where lines differ in what a net learns from: many lines in one panel tell nothing."""
    nets = dict.fromkeys(_net(line.name)[0] for line in panel.lines)
    if len({line.against for line in panel.lines}) == 1 or len(nets) == 1 or "teacher" in nets:
        yield panel
        return
    for net in nets:
        lines = tuple(line for line in panel.lines if _net(line.name)[0] == net)
        names = {line.name for line in lines}
        references = tuple(reference for reference in panel.references if reference.line in names)
        yield panel.model_copy(update={"lines": lines, "references": references})


def _net(name: str) -> tuple[str, str]:
    """Return the net of a line, and what it learns from: a last ``normal``, ``nasty`` or ``alone`` of its name."""
    net, _, kind = name.rpartition("-")
    return (net, kind) if kind in _KINDS else (name, "nasty")


def _is_one_picture(panels: Sequence[Panel]) -> bool:
    """Tell whether lines of several teachers are to be compared in one panel: the color is then the teacher's alone."""
    lines = [line for panel in panels for line in panel.lines]
    kinds = {_net(line.name)[1] for line in lines if line.role == "student"}
    return len(panels) == 1 and len(kinds) > 1 and any(line.role == "teacher" for line in lines)


def _looks(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """Return color, marker and line style of each line by name.

    A marker a net. The color is that of the teacher where lines differ in it, else the net's, the same in all panels.
    """
    nets: dict[str, int] = {}
    looks: dict[str, dict[str, Any]] = {}
    lines = [line for panel in panels for line in panel.lines]
    by_teacher = len({_net(line.name)[1] for line in lines}) > 1
    one_picture = _is_one_picture(panels)
    for line in lines:
        net, kind = _net(line.name)
        teacher = line.role == "teacher"
        rank = 0 if teacher else nets.setdefault(net, len(nets))
        markers, style, size = _KINDS[kind]
        own = _COLORS[kind] if by_teacher else _STUDENTS[rank % len(_STUDENTS)]
        if one_picture:
            style, size = _STYLES[rank % len(_STYLES)], 5.0
        looks[line.name] = {
            "color": INK if teacher else own,
            "marker": "*" if teacher else markers[(rank + rank // len(_STUDENTS)) % len(markers)],
            "markersize": 8 if teacher else size,  # a star looks small
            "linestyle": style,
        }
    return looks


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Mapping[str, Any]], *, apart: bool) -> None:
    """Draw the lines of a panel; ``apart`` moves them a little, so that their intervals stand beside each other."""
    places = _place_x(axes, panel)
    several = len({line.against for line in panel.lines if line.role == "student"}) > 1
    for reference in panel.references:
        own = {"color": ALONE} if several else {}
        _draw_reference(axes, reference, {**looks[reference.line], **own})
    failed: dict[float, int] = {}
    for rank, line in enumerate(panel.lines):
        look = looks[line.name]
        aside = _ASIDE ** (rank - len(panel.lines) / 2) if apart and line.role == "student" else 1.0
        _draw_line(axes, [(places[point.x] * aside, point) for point in line.points], look)
        for x in (places[point.x] for point in line.points if point.failures):
            # On the axis, one above the other, so that no failure hides another.
            height = 0.02 + 0.04 * failed.setdefault(x, 0)
            axes.plot(
                x, height, "x", color=look["color"], transform=axes.get_xaxis_transform(), clip_on=False, zorder=5
            )
            failed[x] += 1
    axes.set_title(symbols(panel.title))
    axes.set_xlabel(symbols(panel.x.label))
    axes.set_ylabel(symbols(panel.y.label))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    _limit_y(axes, panel)


def _place_x(axes: Axes, panel: Panel) -> dict[Any, float]:
    """Set up the x axis with the values that were run as ticks, and return where each is."""
    values = list(dict.fromkeys(point.x for line in panel.lines for point in line.points))
    if panel.x.scale == "category":
        places = {value: float(i) for i, value in enumerate(values)}
    else:
        values.sort()
        places = {value: float(value) for value in values}
        axes.set_xscale(panel.x.scale)
    labels = [value if isinstance(value, str) else f"{value:g}" for value in values]
    axes.set_xticks(list(places.values()), labels, minor=False)
    axes.minorticks_off()
    spots = np.array(list(places.values()))
    if panel.x.scale == "log":
        spots = np.log(spots)
    pad = 0.06 * float(np.ptp(spots)) if len(spots) > 1 else 0.5
    low, high = (spots.min() - pad, spots.max() + pad) if len(spots) else (0.0, 1.0)
    axes.set_xlim(*(np.exp([low, high]) if panel.x.scale == "log" else (low, high)))
    _turn_labels(axes, labels, (np.diff(spots) / (high - low) * (_PANEL_WIDTH - _Y_AXIS)).tolist())
    return places


def _turn_labels(axes: Axes, labels: Sequence[str], gaps: Sequence[float]) -> None:
    """Turn the labels of the x axis as far as they need so as not to touch, given the gaps between ticks in inches."""
    widths = [0.05 + (text_width(left) + text_width(right)) / 2 for left, right in itertools.pairwise(labels)]
    if any(gap < width for gap, width in zip(gaps, widths, strict=True)):
        axes.tick_params(axis="x", labelrotation=45 if min(gaps) > 0.15 else 90)
        if min(gaps) > 0.15:
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")


def _draw_line(axes: Axes, points: Sequence[tuple[float, Point]], look: Mapping[str, Any]) -> None:
    printed = [(x, point.paper) for x, point in points if point.paper is not None]
    if printed:
        axes.plot(*zip(*printed, strict=True), **_hollow(look), zorder=4)
    # Not a number where there is no result: the line has a gap there, for nobody knows what it hides.
    ours = [(x, _number(point.mean), *arms(point.mean, point.half_width)) for x, point in sorted(points, key=_place)]
    x, mean, *bars_of = zip(*ours, strict=True)
    axes.plot(x, mean, **look, zorder=3, markeredgewidth=0)
    if any(bar > 0 for bar in bars_of[0] + bars_of[1]):
        bars: dict[str, Any] = {"ecolor": look["color"], "elinewidth": 0.9, "capsize": 2, "capthick": 0.9}
        axes.errorbar(x, mean, bars_of, fmt="none", **bars, zorder=3)
    for place, point in points:
        if point.mean is not None and point.collapsed_seeds:
            axes.annotate(
                "†", (place, point.mean), (3, 2), textcoords="offset points", color=look["color"], weight="bold"
            )


def _place(point: tuple[float, Point]) -> float:
    return point[0]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _draw_reference(axes: Axes, reference: Reference, look: Mapping[str, Any]) -> None:
    color, mean, half_width = look["color"], reference.mean, reference.half_width
    if mean is not None:
        axes.axhline(mean, color=color, linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
        if half_width:
            below, above = arms(mean, half_width)
            axes.axhspan(mean - below, mean + above, color=color, alpha=0.1, linewidth=0, zorder=0)
    if reference.paper is not None:
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot(1, reference.paper, **_hollow(look), **place, zorder=4)


def _hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    """Return the look of the paper's value beside ours: it may lie around it."""
    size = look["markersize"] + 3
    return {**look, "linestyle": "none", "markerfacecolor": "none", "markersize": size, "markeredgewidth": 0.9}


def _limit_y(axes: Axes, panel: Panel) -> None:
    """Show at least two points of accuracy, so that noise does not look like an effect, and all if there is none."""
    cells = [*panel.references, *(point for line in panel.lines for point in line.points)]
    if all(cell.mean is None and cell.paper is None for cell in cells):
        axes.set_ylim(0, 100)
        axes.text(0.5, 0.5, "no result", transform=axes.transAxes, ha="center", color=SOFT)
        return
    low, high = axes.get_ylim()
    if high - low < 2:
        middle = (low + high) / 2
        axes.set_ylim(middle - 1, middle + 1)


def _line_legend(panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    return [
        handle(**looks[line.name], markeredgewidth=0, label=symbols(textwrap.fill(line.label, 42)))
        for line in panel.lines
    ]


def _columns(legend: Sequence[Line2D]) -> int:
    """Return how many columns of labels a panel has room for."""
    widest = max(text_width(str(line.get_label())) for line in legend)
    return 2 if 2 * (widest + 0.28) <= _PANEL_WIDTH else 1  # with a line, a gap and half a gap to the other column


def _height(legend: Sequence[Line2D]) -> int:
    """Return the number of lines of text that a legend takes."""
    return math.ceil(sum(str(line.get_label()).count("\n") + 1 for line in legend) / _columns(legend))


def _signs(panels: Sequence[Panel]) -> list[Line2D]:
    """Return a legend of the signs that occur."""
    references = [reference for panel in panels for reference in panel.references]
    points = [point for panel in panels for line in panel.lines for point in line.points]
    cells = [*references, *points]
    signs: list[tuple[bool, dict[str, Any]]] = [
        (bool(references), {"linestyle": (0, (5, 3)), "linewidth": 0.9, "label": "trained normally"}),
        (
            any(cell.paper is not None for cell in cells),
            {**_hollow({"marker": "o", "markersize": 4.5}), "label": "the paper's value"},
        ),
        (
            any(point.half_width for point in points),
            {"linestyle": "none", "marker": "|", "markersize": 8, "label": "95 % interval"},
        ),
        (any(point.failures for point in points), {"linestyle": "none", "marker": "x", "label": "a run failed"}),
        (
            any(point.collapsed_seeds for point in points),
            {"linestyle": "none", "marker": "$†$", "markersize": 6, "markeredgewidth": 0, "label": "collapsed"},
        ),
    ]
    return [handle(color=SOFT, **look) for occurs, look in signs if occurs]
