"""How every figure looks, and how it is written: Matplotlib, imported when something is drawn.

Colors are told apart with any color vision, and lines in grey too: every line has its own marker. Whatever a number of
a paper is drawn with is hollow. In an SVG text is text, and colors and fonts are CSS custom properties, those of the
page, so that one file fits light, dark and print.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undistill.functional import Interval, clip
from undistill.storage import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from undistill.reporting.parts import Part

__all__ = [
    "ALONE",
    "CLASSES",
    "DEFENDED",
    "INK",
    "LINES",
    "NORMAL",
    "OTHER",
    "RULE",
    "SOFT",
    "TRUE",
    "arms",
    "draw",
    "handle",
    "new_figure",
    "save",
    "svg",
    "swatch",
    "symbols",
    "text_width",
]

# Each color, its custom property, and what it is on a dark page.
INK, SOFT, RULE = "#1d1f23", "#5c6068", "#d9d6cf"
NORMAL, DEFENDED, ALONE = "#0072b2", "#d55e00", "#55585f"
# Okabe and Ito (2008) without yellow, which is too light for a line, and without black, the teacher's.
LINES = (NORMAL, DEFENDED, "#007f5f", "#a8508a", "#8a6d00", "#2a93c9", "#6b4fa0", "#9b2f2f")
TRUE, OTHER = DEFENDED, "#9db8cc"
# Tol's "muted" (2021), ten colors; then as many as it takes from a colormap.
CLASSES = (
    "#332288",
    "#cc6677",
    "#117733",
    "#88ccee",
    "#882255",
    "#ddcc77",
    "#44aa99",
    "#aa4499",
    "#999933",
    "#777777",
)
_PROPERTIES = {
    INK: ("ink", "#e6e4df"),
    SOFT: ("soft", "#a2a5ab"),
    RULE: ("rule", "#363a41"),
    NORMAL: ("normal", "#56b4e9"),
    DEFENDED: ("defended", "#f08a45"),
    ALONE: ("c0", "#a9acb2"),
    "#007f5f": ("c3", "#2fc29a"),
    "#a8508a": ("c4", "#dd93c2"),
    "#8a6d00": ("c5", "#e0bd3f"),
    "#2a93c9": ("c6", "#8ccdf0"),
    "#6b4fa0": ("c8", "#b39ddb"),
    "#9b2f2f": ("c9", "#e58a8a"),
    OTHER: ("other", "#4d6577"),
    "#332288": ("k0", "#8f7fe0"),
    "#882255": ("k4", "#d0608f"),
    "#117733": ("k2", "#3fae63"),
}
_FONT = "DejaVu Sans"  # Matplotlib's own, by which it measures; a page puts its own in place
_STYLE: dict[Any, Any] = {
    "font.family": _FONT,
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "undistill",  # else the ids in the file are random
}
_DPI = 200
_NO_DATES: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def draw(part: Part) -> Figure:
    """Return the figure of a part that has one: the same part gives the same bytes."""
    with _style():
        figure = part.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:  # the solver's last digits depend on addresses in memory, and ids in an SVG on them
            axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as ``stem.png`` (200 dots an inch, on white) and ``stem.svg``: the same figure, the same bytes.

    Args:
        figure: What ``draw`` returned.
        stem: Path without a suffix.

    Raises:
        RunError: The disk is full or the folder is not writable.
    """
    with _style(), atomic_path(stem.with_name(f"{stem.name}.png")) as path:
        figure.savefig(path, format="png", facecolor="white", metadata=_NO_DATES["png"])
    write_text(stem.with_name(f"{stem.name}.svg"), svg(figure))


def svg(figure: Figure, name: str = "", alt: str = "") -> str:
    """Return a figure as SVG for a page or a file.

    Args:
        figure: What ``draw`` returned.
        name: Makes its ids differ from those of other figures of a page; empty for a file of its own.
        alt: Alternative text.
    """
    from html import escape

    file = io.StringIO()
    with _style():
        figure.savefig(file, format="svg", facecolor="none", metadata=_NO_DATES["svg"])
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    if name:
        text = re.sub(r'\bid="', f'id="{name}-', text)
        text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}", _property, text)
    text = re.sub(rf"'?{_FONT}'?", "var(--sans, system-ui, sans-serif)", text)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2]
    text = text.replace(f'width="{width}pt"', "", 1).replace(f'height="{height}pt"', "", 1)
    label = f'role="img" aria-label="{escape(alt)}" ' if alt else ""
    size = f"{float(width) * 4 / 3:.0f}px"
    text = text.replace("<svg ", f'<svg {label}style="max-width: {size}; min-width: min(30rem, {size})" ', 1)
    return text.replace("<defs>", f"<defs>\n  <style>{_dark()}</style>", 1)


@contextmanager
def _style() -> Iterator[None]:
    """Set our style, whatever the user's own is, and put that back."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _property(match: re.Match[str]) -> str:
    name = _PROPERTIES.get(match[0], ("", ""))[0]
    return f"var(--{name}, {match[0]})" if name else match[0]


def _dark() -> str:
    colors = "; ".join(f"--{name}: {dark}" for name, dark in _PROPERTIES.values())
    return f"@media (prefers-color-scheme: dark) {{ :root {{ {colors} }} }}"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def text_width(text: str) -> float:
    """Return how wide the widest line of a label is, in inches."""
    from matplotlib.textpath import TextPath

    return max(float(TextPath((0, 0), line, size=7.5).get_extents().width) for line in text.split("\n")) / 72


def symbols(text: str) -> str:
    """Set what is below a Greek letter as such: τ_A."""
    return re.sub(r"([α-ω])_(\w+)", r"$\1_{\2}$", text)


def arms(mean: float | None, half_width: float | None) -> tuple[float, float]:
    """Return how far the interval of an accuracy in percent reaches below and above it within 0..100; nan for none."""
    if mean is None or half_width is None:
        return math.nan, math.nan
    low, high = clip(Interval(mean, half_width, 0)) or (mean, mean)
    return mean - low, high - mean


def handle(**look: Any) -> Line2D:
    """Return a line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)


def swatch(color: str, label: str) -> Patch:
    """Return a spot of color for a legend."""
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)
