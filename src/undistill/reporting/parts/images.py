"""Grids of images, a column a class, as plain values and as a figure."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from undistill.data.dataset import Images
from undistill.errors import DataError
from undistill.reporting.images import columns, grid

__all__ = ["draw_images", "image_panel"]

_PANEL_WIDTH, _HEAD, _LETTER = 3.5, 0.75, 0.05  # inches


def image_panel(name: str, title: str, images: Images | None, classes: int, rows: int) -> dict[str, Any]:
    """Return the first images of every class as plain values.

    Args:
        name: ``"normal"``, say.
        title: Above the grid.
        images: With labels in 0..classes - 1.
        classes: How many there are; the first 20 are shown.
        rows: Images of a class, or fewer where there are fewer.

    Returns:
        ``name``, ``title``, and the grid: ``columns``, their number, ``width``, ``height``, ``channels``, and
        ``pixels_base64``, uint8 (H, W, C).

    Raises:
        DataError: There are no images.
    """
    if images is None or not len(images):
        raise DataError(f"{name}: the run made no images, or they were deleted; expected images.safetensors in it")
    found = columns(images, classes, rows)
    pixels = grid(found).permute(1, 2, 0).contiguous().numpy()
    height, width, channels = pixels.shape
    return {
        "name": name,
        "title": title,
        "columns": len(found),
        "width": width,
        "height": height,
        "channels": channels,
        "pixels_base64": base64.b64encode(pixels.tobytes()).decode("ascii"),
    }


def draw_images(part: Mapping[str, Any]) -> Figure:
    """Return the figure of a part of kind ``images``: its panels side by side, columns above the names of classes."""
    panels = part["panels"]
    longest = max(map(len, _short(part["classes"])))
    upright = longest > 2
    height = _PANEL_WIDTH * max(panel["height"] / panel["width"] for panel in panels) + _HEAD
    height += _LETTER * longest if upright else 0.0
    figure = Figure(figsize=(_PANEL_WIDTH * len(panels), height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shape = panel["height"], panel["width"], panel["channels"]
        pixels = np.frombuffer(base64.b64decode(panel["pixels_base64"]), dtype=np.uint8).reshape(shape)
        axes.imshow(
            pixels[:, :, 0] if shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
        )
        names = _short(part["classes"])[: panel["columns"]]
        step = panel["width"] / len(names)
        places = [step * (k + 0.5) - 0.5 for k in range(len(names))]
        axes.set_xticks(places, names, rotation=90 if upright else 0)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(panel["title"])
    return figure


def _short(classes: Sequence[str]) -> list[str]:
    return [textwrap.shorten(name, 14, placeholder="…") for name in classes]
