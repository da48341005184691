"""Images that were drawn out of a teacher: a grid a panel, a column a class."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from undistill.data.dataset import Images
from undistill.errors import DataError
from undistill.reporting.cell import Plain
from undistill.reporting.parts import Grid, Part, register_part
from undistill.reporting.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ImageGrids", "ImagePanel", "columns", "grid", "image_panel"]

_MOST_CLASSES = 20  # columns that can still be told apart
_GAP, _WHITE = 1, 255  # pixels between images, and their color
_PANEL_WIDTH, _HEAD, _LETTER = 3.5, 0.75, 0.05  # inches
_A_ROW = 2


class ImagePanel(Plain):
    """One grid of images, uint8 (H, W, C), and how many columns it has."""

    name: str
    title: str
    columns: int
    width: int
    height: int
    channels: int
    pixels_base64: str


@register_part("images")
class ImageGrids(Part):
    """Grids of images; where a run failed there are none.

    Attributes:
        runs: Folders by panel.
        classes: Names.
        panels: A grid each.
    """

    ends_with: ClassVar[tuple[str, ...]] = ("notes", "failed")

    kind: str = "images"
    runs: dict[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    panels: tuple[ImagePanel, ...] = ()

    def grids(self) -> Iterator[Grid]:
        """Yield nothing: images have no numbers."""
        yield from ()

    @property
    def drawn(self) -> bool:
        """Whether there are images."""
        return not self.failed

    def draw(self) -> Figure:
        """Return the panels, two a row, their columns above the names of the classes."""
        return _draw(self)


def image_panel(name: str, title: str, images: Images | None, classes: int, rows: int) -> ImagePanel:
    """Return the first images of every class.

    Args:
        name: ``"normal"``, say.
        title: Above the grid.
        images: With labels in 0..classes - 1.
        classes: How many there are; the first 20 are shown.
        rows: Images of a class, or fewer where there are fewer.

    Raises:
        DataError: There are no images.
    """
    if images is None or not len(images):
        raise DataError(f"{name}: the run made no images, or they were deleted; expected images.safetensors in it")
    found = columns(images, classes, rows)
    pixels = grid(found).permute(1, 2, 0).contiguous().numpy()
    height, width, channels = pixels.shape
    return ImagePanel(
        name=name,
        title=title,
        columns=len(found),
        width=width,
        height=height,
        channels=channels,
        pixels_base64=base64.b64encode(pixels.tobytes()).decode("ascii"),
    )


def columns(images: Images, classes: int, rows: int) -> list[Tensor]:
    """Return the first images of every class, uint8 (n, C, H, W) with n up to ``rows``; of the first 20 classes."""
    return [images.x[images.y == k][:rows].cpu() for k in range(min(classes, _MOST_CLASSES))]


def grid(columns: list[Tensor]) -> Tensor:
    """Return one image (C, H, W) of columns of images, uint8; where one is shorter than the others it is white.

    Args:
        columns: uint8 (n, C, h, w) each, n may be 0.
    """
    rows = max(len(column) for column in columns)
    channels, height, width = columns[0].shape[1:]
    shape = channels, rows * (height + _GAP) - _GAP, len(columns) * (width + _GAP) - _GAP
    whole = torch.full(shape, _WHITE, dtype=torch.uint8)
    for k, column in enumerate(columns):
        for row, image in enumerate(column):
            top, left = row * (height + _GAP), k * (width + _GAP)
            whole[:, top : top + height, left : left + width] = image
    return whole


def _draw(part: ImageGrids) -> Figure:
    names = _short(part.classes)
    longest = max(map(len, names))
    upright = longest > 2
    height = _PANEL_WIDTH * max(panel.height / panel.width for panel in part.panels) + _HEAD
    height += _LETTER * longest if upright else 0.0
    across = min(_A_ROW, len(part.panels))
    down = -(-len(part.panels) // across)
    figure = new_figure(_PANEL_WIDTH * across, height * down)
    spots = figure.subplots(down, across, squeeze=False).flatten()
    for axes in spots[len(part.panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(spots, part.panels, strict=False):
        shape = panel.height, panel.width, panel.channels
        pixels = np.frombuffer(base64.b64decode(panel.pixels_base64), dtype=np.uint8).reshape(shape)
        axes.imshow(
            pixels[:, :, 0] if shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
        )
        step = panel.width / panel.columns
        places = [step * (k + 0.5) - 0.5 for k in range(panel.columns)]
        axes.set_xticks(places, names[: panel.columns], rotation=90 if upright else 0)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(panel.title)
    return figure


def _short(classes: Sequence[str]) -> list[str]:
    return [textwrap.shorten(name, 14, placeholder="…") for name in classes]
