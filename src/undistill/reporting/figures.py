"""Figures as inline SVG: text stays text, and colors are the page's own, so that they follow its dark mode.

Every function returns one ``<svg role="img">`` with its alternative text. Classes ``c0``, ``c1``, ... are the colors of
lines, ``k0``, ``k1``, ... those of classes; both are defined in the page's style sheet.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from torch import Tensor

__all__ = ["LINE_STYLES", "Line", "class_map", "line_chart", "png_uri", "response_chart"]

LINE_STYLES = 8
_WIDTH, _HEIGHT = 380.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 12.0, 8.0, 32.0


@dataclass(frozen=True)
class Line:
    """One curve for each seed, all in one style.

    Attributes:
        label: What it shows.
        style: 0 to ``LINE_STYLES`` - 1.
        curves: Points (x, y) of each seed, finite and at least one.
    """

    label: str
    style: int
    curves: Sequence[Sequence[tuple[float, float]]]


def line_chart(lines: Sequence[Line], *, top: float | None, x_name: str, alt: str) -> Markup:
    """Draw curves over a common x from 0 up.

    Args:
        lines: At least one.
        top: Highest y of the axis; None to fit.
        x_name: Name of the x axis.
        alt: Alternative text.
    """
    curves = [(line, curve) for line in lines for curve in line.curves]
    right = max(x for _, curve in curves for x, _ in curve)
    y_ticks = _ticks(top if top is not None else max(y for _, curve in curves for _, y in curve))
    x_ticks = [tick for tick in _ticks(right) if tick <= right and tick == round(tick)]

    def x_at(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / right

    def y_at(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / y_ticks[-1]

    parts = [_tag("line", "grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y_at(y), y2=y_at(y)) for y in y_ticks]
    parts += [_text(f"{y:g}", _LEFT - 6, y_at(y) + 3.5, "end") for y in y_ticks]
    parts += [_text(f"{x:g}", x_at(x), _HEIGHT - _BOTTOM + 14, "middle") for x in x_ticks]
    parts.append(_text(x_name, _WIDTH - _RIGHT, _HEIGHT - 4, "end"))
    for line, curve in reversed(curves):  # the first lines are those to compare with: on top
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in curve)
        parts.append(_tag("polyline", f"line c{line.style % LINE_STYLES}", points=path))
    return _svg(_WIDTH, _HEIGHT, alt, parts)


def response_chart(
    names: Sequence[str], true: int, answers: Sequence[tuple[str, Sequence[float]]], *, scale: float, alt: str
) -> Markup:
    """Draw the softened answers of two nets to one image: bars to the left and to the right of the class names.

    Args:
        names: Of the classes shown.
        true: Which of them the image is.
        answers: Name of each net and its probability of each class shown.
        scale: Probability of the longest possible bar.
        alt: Alternative text.
    """
    width, row, gutter = 340.0, 17.0, 12.0 + 3.2 * max(len(name) for name in names)
    middle = width / 2
    reach = middle - gutter - 28
    parts = [_text(name, middle, (i + 1) * row + 13.5, "middle", "true" * (i == true)) for i, name in enumerate(names)]
    for side, anchor, style, (owner, shares) in zip(
        (-1, 1), ("end", "start"), ("normal", "defended"), answers, strict=True
    ):
        start = middle + side * gutter
        parts.append(_text(owner, start, 11, anchor, style))
        for i, share in enumerate(shares):
            y, length = (i + 1) * row + 3, reach * share / scale
            parts.append(_tag("rect", style, x=start - length * (side < 0), y=y, width=length, height=row - 4))
            if share >= 0.005:
                parts.append(_text(f"{100 * share:.0f}", start + side * (length + 4), y + 10.5, anchor, "value"))
    return _svg(width, row * (len(names) + 1) + 4, alt, parts)


def class_map(layout: np.ndarray[Any, Any], labels: Sequence[int], names: Sequence[str], *, alt: str) -> Markup:
    """Draw points colored by class, each class named above its middle.

    Args:
        layout: Coordinates (n, 2).
        labels: Class of each point, 0 up.
        names: Of the classes that occur.
        alt: Alternative text.
    """
    low, span = layout.min(axis=0), max(float(np.ptp(layout, axis=0).max()), 1e-12)
    size, margin = 300.0, 12.0
    places = margin + (layout - low) * ((size - 2 * margin) / span)
    classes = sorted(set(labels))
    parts = []
    for k in classes:
        own = places[np.asarray(labels) == k]
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in own)
        parts.append(_tag("path", f"dots k{classes.index(k)}", d=path))
    written: list[tuple[float, float]] = []
    for k in classes:
        own = places[np.asarray(labels) == k]
        x, y = float(np.median(own[:, 0])), max(float(np.quantile(own[:, 1], 0.1)) - 7, margin)
        width = 9.0 * len(names[k])
        while any(abs(x - other_x) < width and abs(y - other_y) < 13 for other_x, other_y in written):
            x += width  # two classes in one place: their names stand side by side
        written.append((x, y))
        parts.append(_text(names[k], x, y, "middle", "name"))
    return _svg(size, size, alt, parts)


def png_uri(image: Tensor) -> str:
    """Return an image (C, H, W) of uint8 as a data URI: in color with three channels, else its first one in grey."""
    from PIL import Image

    pixels = image.cpu().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _ticks(top: float) -> list[float]:
    """Return four to seven round numbers from 0 to at least ``top``."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top))
    step = next(power * factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2) if top / (power * factor) <= 6)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _svg(width: float, height: float, alt: str, parts: Sequence[str]) -> Markup:
    label = escape(alt)
    return Markup(  # every part is made of numbers and escaped text
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}">{"".join(parts)}</svg>'
    )


def _tag(name: str, css: str, **attributes: float | str) -> str:
    written = (f'{key}="{value if isinstance(value, str) else f"{value:.1f}"}"' for key, value in attributes.items())
    return f'<{name} class="{css}" {" ".join(written)}/>'


def _text(text: str, x: float, y: float, anchor: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
