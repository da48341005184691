"""The figures of a study, drawn from its parts with Matplotlib: the same part gives the same bytes.

Colors are told apart with any color vision, and lines in grey too: every line has its own marker. Whatever a number of
the paper is drawn with is hollow.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from undistill.reporting.parts.areas import draw_areas
from undistill.reporting.parts.images import draw_images
from undistill.storage import atomic_path

__all__ = ["draw", "drawable", "save"]

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "svg.hashsalt": "undistill",  # else the ids in the file are random
}
_DPI = 200

_TEACHER = "#222222"
# Okabe and Ito (2008) without yellow, which is too light for a line, and without black, the teacher's.
_STUDENTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Tol's "muted" (2021), ten colors; then as many as it takes from a colormap.
_CLASSES = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#DDCC77",
    "#44AA99",
    "#AA4499",
    "#999933",
    "#777777",
)
# Markers, line style and marker size of a student, by what it learns from.
_KINDS = {"nasty": ("os^DvP", "-", 4.5), "normal": ("X<>ph8", ":", 4.5), "alone": ("os^DvP", "--", 3.0)}
_CLASS_MARKERS = "o^sDv"
_TRUE, _OTHER = "#D55E00", "#9DB8CC"

_PANEL_WIDTH, _PANEL_HEIGHT, _Y_AXIS, _LEGEND_LINE = 3.5, 2.5, 0.6, 0.16  # inches
_TIGHT: dict[str, Any] = {"columnspacing": 0.8, "handletextpad": 0.4, "borderpad": 0.2}
_NAMED_CLASSES = 20  # more names than that do not fit below bars, or into a legend


def drawable(part: Mapping[str, Any]) -> bool:
    """Tell whether a part of a study has a figure: tables have none, nor has a picture whose runs failed."""
    return part["kind"] in _DRAW and (part["kind"] == "curves" or not part["failed"])


def draw(part: Mapping[str, Any]) -> Figure:
    """Return the figure of a part of a study; see ``drawable``.

    Args:
        part: Plain values of kind ``curves``, ``responses`` or ``embeddings``.

    Raises:
        KeyError: The kind has no figure, or the part lacks what its kind needs.
    """
    with _style():
        figure = _DRAW[part["kind"]](part)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:  # the solver's last digits depend on addresses in memory, and ids in an SVG on them
            axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as ``stem.png`` (200 dots an inch) and ``stem.svg``: the same figure, the same bytes.

    Args:
        figure: What ``draw`` returned.
        stem: Path without a suffix.

    Raises:
        RunError: The disk is full or the folder is not writable.
    """
    no_dates: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    with _style():
        for kind, metadata in no_dates.items():
            with atomic_path(stem.with_name(f"{stem.name}.{kind}")) as path:
                figure.savefig(path, format=kind, metadata=metadata)


@contextmanager
def _style() -> Iterator[None]:
    """Set our style, whatever the user's own is, and put that back."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _width(text: str) -> float:
    """Return how wide the widest line of a label is, in inches."""
    return max(float(TextPath((0, 0), line, size=7.5).get_extents().width) for line in text.split("\n")) / 72


def _symbols(text: str) -> str:
    """Set what is below a Greek letter as such: τ_A."""
    return re.sub(r"([α-ω])_(\w+)", r"$\1_{\2}$", text)


# --- Curves ---


def _curves(part: Mapping[str, Any]) -> Figure:
    panels = part["panels"]
    looks = _looks(panels)
    legends = [_line_legend(panel, looks) for panel in panels]
    signs = _signs(panels)
    below = _LEGEND_LINE * max(_height(legend) for legend in legends)
    figure = _figure(_PANEL_WIDTH * len(panels), _PANEL_HEIGHT + below + _LEGEND_LINE * 2 * bool(signs))
    axes = figure.subplots(
        2, len(panels), squeeze=False, gridspec_kw={"height_ratios": [_PANEL_HEIGHT, below], "hspace": 0}
    )
    for panel, legend, plot, under in zip(panels, legends, axes[0], axes[1], strict=True):
        _draw_panel(plot, panel, looks)
        under.set_axis_off()
        under.legend(handles=legend, loc="upper center", ncols=_columns(legend), borderaxespad=0, **_TIGHT)
    if signs:
        figure.legend(handles=signs, loc="outside lower center", ncols=len(signs) if len(panels) > 1 else 2)
    return figure


def _looks(panels: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return color, marker and line style of each line by name: one color a net, in all panels.

    Lines are of one net where their names differ in a last ``normal``, ``nasty`` or ``alone`` only.
    """
    nets: dict[str, int] = {}
    looks: dict[str, dict[str, Any]] = {}
    for line in (line for panel in panels for line in panel["lines"]):
        net, _, kind = line["name"].rpartition("-")
        if kind not in _KINDS:
            net, kind = line["name"], "nasty"
        teacher = line["role"] == "teacher"
        rank = 0 if teacher else nets.setdefault(net, len(nets))
        markers, style, size = _KINDS[kind]
        looks[line["name"]] = {
            "color": _TEACHER if teacher else _STUDENTS[rank % len(_STUDENTS)],
            "marker": "*" if teacher else markers[(rank + rank // len(_STUDENTS)) % len(markers)],
            "markersize": 8 if teacher else size,  # a star looks small
            "linestyle": style,
        }
    return looks


def _draw_panel(axes: Axes, panel: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> None:
    places = _place_x(axes, panel)
    for reference in panel["references"]:
        _draw_reference(axes, reference, looks[reference["line"]])
    failed: dict[float, int] = {}
    for line in panel["lines"]:
        look = looks[line["name"]]
        _draw_line(axes, [(places[point["x"]], point) for point in line["points"]], look)
        for x in (places[point["x"]] for point in line["points"] if point["failures"]):
            # On the axis, one above the other, so that no failure hides another.
            height = 0.02 + 0.04 * failed.setdefault(x, 0)
            axes.plot(
                x, height, "x", color=look["color"], transform=axes.get_xaxis_transform(), clip_on=False, zorder=5
            )
            failed[x] += 1
    axes.set_title(_symbols(panel["title"]))
    axes.set_xlabel(_symbols(panel["x"]["label"]))
    axes.set_ylabel(_symbols(panel["y"]["label"]))
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    _limit_y(axes, panel)


def _place_x(axes: Axes, panel: Mapping[str, Any]) -> dict[Any, float]:
    """Set up the x axis with the values that were run as ticks, and return where each is."""
    values = list(dict.fromkeys(point["x"] for line in panel["lines"] for point in line["points"]))
    if panel["x"]["scale"] == "category":
        places = {value: float(i) for i, value in enumerate(values)}
    else:
        values.sort()
        places = {value: float(value) for value in values}
        axes.set_xscale(panel["x"]["scale"])
    labels = [value if isinstance(value, str) else f"{value:g}" for value in values]
    axes.set_xticks(list(places.values()), labels, minor=False)
    axes.minorticks_off()
    spots = np.array(list(places.values()))
    if panel["x"]["scale"] == "log":
        spots = np.log(spots)
    pad = 0.06 * float(np.ptp(spots)) if len(spots) > 1 else 0.5
    low, high = (spots.min() - pad, spots.max() + pad) if len(spots) else (0.0, 1.0)
    axes.set_xlim(*(np.exp([low, high]) if panel["x"]["scale"] == "log" else (low, high)))
    _turn_labels(axes, labels, (np.diff(spots) / (high - low) * (_PANEL_WIDTH - _Y_AXIS)).tolist())
    return places


def _turn_labels(axes: Axes, labels: Sequence[str], gaps: Sequence[float]) -> None:
    """Turn the labels of the x axis as far as they need so as not to touch, given the gaps between ticks in inches."""
    widths = [0.05 + (_width(left) + _width(right)) / 2 for left, right in itertools.pairwise(labels)]
    if any(gap < width for gap, width in zip(gaps, widths, strict=True)):
        axes.tick_params(axis="x", labelrotation=45 if min(gaps) > 0.15 else 90)
        if min(gaps) > 0.15:
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")


def _draw_line(axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], look: Mapping[str, Any]) -> None:
    printed = [(x, point["paper"]) for x, point in points if point["paper"] is not None]
    if printed:
        axes.plot(*zip(*printed, strict=True), **_hollow(look), zorder=4)
    # Not a number where there is no result: the line has a gap there, for nobody knows what it hides.
    ours = [(x, _number(point["mean"]), _number(point["half_width"])) for x, point in sorted(points, key=_place)]
    x, mean, half_width = zip(*ours, strict=True)
    axes.plot(x, mean, **look, zorder=3, markeredgewidth=0)
    if any(bar > 0 for bar in half_width):
        bars: dict[str, Any] = {"ecolor": look["color"], "elinewidth": 0.9, "capsize": 2, "capthick": 0.9}
        axes.errorbar(x, mean, half_width, fmt="none", **bars, zorder=3)
    for place, point in points:
        if point["mean"] is not None and point["collapsed_seeds"]:
            axes.annotate(
                "†", (place, point["mean"]), (3, 2), textcoords="offset points", color=look["color"], weight="bold"
            )


def _place(point: tuple[float, Mapping[str, Any]]) -> float:
    return point[0]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _draw_reference(axes: Axes, reference: Mapping[str, Any], look: Mapping[str, Any]) -> None:
    color, mean, half_width = look["color"], reference["mean"], reference["half_width"]
    if mean is not None:
        axes.axhline(mean, color=color, linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
        if half_width:
            axes.axhspan(mean - half_width, mean + half_width, color=color, alpha=0.1, linewidth=0, zorder=0)
    if reference["paper"] is not None:
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot(1, reference["paper"], **_hollow(look), **place, zorder=4)


def _hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    """Return the look of the paper's value beside ours: it may lie around it."""
    size = look["markersize"] + 3
    return {**look, "linestyle": "none", "markerfacecolor": "none", "markersize": size, "markeredgewidth": 0.9}


def _limit_y(axes: Axes, panel: Mapping[str, Any]) -> None:
    """Show at least two points of accuracy, so that noise does not look like an effect, and all if there is none."""
    cells = [*panel["references"], *(point for line in panel["lines"] for point in line["points"])]
    if all(cell["mean"] is None and cell["paper"] is None for cell in cells):
        axes.set_ylim(0, 100)
        axes.text(0.5, 0.5, "no result", transform=axes.transAxes, ha="center", color="#777777")
        return
    low, high = axes.get_ylim()
    if high - low < 2:
        middle = (low + high) / 2
        axes.set_ylim(middle - 1, middle + 1)


def _line_legend(panel: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    return [
        Line2D([], [], **looks[line["name"]], markeredgewidth=0, label=_symbols(textwrap.fill(line["label"], 42)))
        for line in panel["lines"]
    ]


def _columns(legend: Sequence[Line2D]) -> int:
    """Return how many columns of labels a panel has room for."""
    widest = max(_width(str(line.get_label())) for line in legend)
    return 2 if 2 * (widest + 0.28) <= _PANEL_WIDTH else 1  # with a line, a gap and half a gap to the other column


def _height(legend: Sequence[Line2D]) -> int:
    """Return the number of lines of text that a legend takes."""
    return math.ceil(sum(str(line.get_label()).count("\n") + 1 for line in legend) / _columns(legend))


def _signs(panels: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    """Return a legend of the signs that occur."""
    references = [reference for panel in panels for reference in panel["references"]]
    points = [point for panel in panels for line in panel["lines"] for point in line["points"]]
    cells = [*references, *points]
    signs: list[tuple[bool, dict[str, Any]]] = [
        (bool(references), {"linestyle": (0, (5, 3)), "linewidth": 0.9, "label": "trained normally"}),
        (
            any(cell["paper"] is not None for cell in cells),
            {**_hollow({"marker": "o", "markersize": 4.5}), "label": "the paper's value"},
        ),
        (
            any(point["half_width"] for point in points),
            {"linestyle": "none", "marker": "|", "markersize": 8, "label": "95 % interval"},
        ),
        (any(point["failures"] for point in points), {"linestyle": "none", "marker": "x", "label": "a run failed"}),
        (
            any(point["collapsed_seeds"] for point in points),
            {"linestyle": "none", "marker": "$†$", "markersize": 6, "markeredgewidth": 0, "label": "collapsed"},
        ),
    ]
    return [Line2D([], [], color="#555555", **look) for occurs, look in signs if occurs]


# --- Responses ---


def _responses(part: Mapping[str, Any]) -> Figure:
    examples, classes = part["examples"], part["classes"]
    rows = (len(examples) + 1) // 2
    named = len(classes) <= _NAMED_CLASSES
    top = _top(max(max(*example["normal"], *example["nasty"]) for example in examples))
    figure = _figure(7.2, 1.05 * rows + (0.9 if named else 0.7))
    axes = figure.subplots(rows, 6, squeeze=False, gridspec_kw={"width_ratios": [1, 1.5, 1.5] * 2})
    for spot in axes.flat[3 * len(examples) :]:
        spot.set_axis_off()
    for i, example in enumerate(examples):
        image, *bars = axes[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        _draw_image(image, example["image"], classes[example["label"]])
        for spot, teacher in zip(bars, ("normal", "nasty"), strict=True):
            _draw_bars(spot, example[teacher], example["label"], top)
            if i < 2:
                spot.set_title(f"{teacher} teacher", fontsize=8)
            lowest = i + 2 >= len(examples)
            _name_classes(spot, classes, named=named, shown=lowest)
        bars[1].tick_params(labelleft=False)
    handles = [Patch(color=_TRUE, label="true class"), Patch(color=_OTHER, label="other classes")]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        title=f"softmax(logits / τ), τ = {part['temperature']:g}",
        title_fontsize=7.5,
    )
    return figure


def _top(highest: float) -> float:
    """Return where the axis of probabilities ends: at 1, unless all bars would be stubs."""
    return next(top for top in (0.05, 0.1, 0.2, 0.5, 1.0) if highest <= top or top == 1.0)


def _draw_image(axes: Axes, image: Mapping[str, Any], label: str) -> None:
    shape = image["height"], image["width"], image["channels"]
    pixels = np.frombuffer(base64.b64decode(image["pixels_base64"]), dtype=np.uint8).reshape(shape)
    axes.imshow(pixels[:, :, 0] if shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(textwrap.shorten(label, 18, placeholder="…"), fontsize=7.5, pad=3)
    axes.set_axis_off()


def _draw_bars(axes: Axes, probabilities: Sequence[float], label: int, top: float) -> None:
    colors = [_TRUE if k == label else _OTHER for k in range(len(probabilities))]
    axes.bar(range(len(probabilities)), probabilities, color=colors, width=0.85 if len(colors) <= _NAMED_CLASSES else 1)
    axes.set_xlim(-0.7, len(probabilities) - 0.3)
    axes.set_ylim(0, top)
    axes.set_yticks([0, top / 2, top], ["0", f"{top / 2:g}", f"{top:g}"])
    axes.tick_params(labelsize=6.5, length=2)


def _name_classes(axes: Axes, classes: Sequence[str], *, named: bool, shown: bool) -> None:
    if named:
        names = [textwrap.shorten(name, 14, placeholder="…") for name in classes]
        rotation = 90 if max(map(len, names)) > 1 else 0
        axes.set_xticks(range(len(classes)), names if shown else [""] * len(names), rotation=rotation)
    else:
        axes.set_xticks(range(0, len(classes), len(classes) // 4))
        axes.tick_params(labelbottom=shown)
        axes.set_xlabel("class" if shown else "", fontsize=7)


# --- Embeddings ---


def _embeddings(part: Mapping[str, Any]) -> Figure:
    panels, classes, labels = part["panels"], part["classes"], np.array(part["labels"])
    named = len(classes) <= _NAMED_CLASSES
    rows = (len(panels) + 1) // 2
    figure = _figure(6.4, 3.1 * rows + (0.5 if named else 0))
    axes = figure.subplots(rows, 2, squeeze=False)
    for spot in axes.flat[len(panels) :]:
        spot.set_axis_off()
    looks = _class_looks(len(classes))
    for spot, panel in zip(axes.flat, panels, strict=False):
        points = np.array(panel["points"])
        for k, look in enumerate(looks):
            spot.scatter(*points[labels == k].T, s=7, linewidths=0, alpha=0.85, **look)
        spot.set(xticks=[], yticks=[], title=panel["title"])
        spot.spines[["top", "right"]].set_visible(True)
        silhouette = "–" if panel["silhouette"] is None else f"{panel['silhouette']:.2f}"
        right = f"nearest neighbors right {100 * panel['knn_accuracy']:.1f} %"
        spot.set_xlabel(f"{panel['dimension']} dimensions · silhouette {silhouette} · {right}", fontsize=7)
    if named:
        handles = [
            Line2D([], [], linestyle="none", markeredgewidth=0, label=name, **look)
            for name, look in zip(classes, looks, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, handletextpad=0.1)
    return figure


def _class_looks(count: int) -> list[dict[str, Any]]:
    if count <= len(_CLASSES):
        colors: Sequence[Any] = _CLASSES[:count]
    else:
        colors = [tuple(color) for color in matplotlib.colormaps["turbo"](np.linspace(0.02, 0.98, count))]
    return [{"color": color, "marker": _CLASS_MARKERS[k % 5]} for k, color in enumerate(colors)]


_DRAW: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "areas": draw_areas,
    "curves": _curves,
    "responses": _responses,
    "embeddings": _embeddings,
    "images": draw_images,
}
