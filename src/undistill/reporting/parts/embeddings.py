"""Test images as points, by the features and by the logits of teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import CLASSES, handle, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Embeddings", "Space"]

_NAMED_CLASSES = 20  # more names than that do not fit into a legend
_CLASS_MARKERS = "o^sDv"


class Space(Plain):
    """One map.

    Attributes:
        name: ``features-normal``.
        title: As it is shown.
        dimension: Of the original space.
        points: Places (x, y).
        silhouette: Of the classes in the original space, -1..1; None where it is not defined.
        knn_accuracy: Share of images, in 0..1, whose class most of their nearest neighbors there have.
    """

    name: str
    title: str
    dimension: int
    points: tuple[tuple[float | int, float | int], ...]
    silhouette: float | None
    knn_accuracy: float


@register_part("embeddings")
class Embeddings(Part):
    """Maps; where a teacher is missing there are none.

    Attributes:
        runs: Folders of the teachers.
        classes: Names.
        labels: Of the points.
        neighbors: How many nearest ones count.
        panels: A map each.
        cka: Of the teachers, in 0..1, by ``features`` and ``logits``.
    """

    ends_with: ClassVar[tuple[str, ...]] = ("notes", "failed")

    kind: str = "embeddings"
    runs: dict[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    neighbors: int = 5
    panels: tuple[Space, ...] = ()
    cka: dict[str, float] = Field(default_factory=dict)

    def grids(self) -> Iterator[Grid]:
        """Yield what was measured of each space."""
        rows = tuple(
            GridRow(
                (panel.title,),
                (
                    Shown(str(panel.dimension)),
                    None if panel.silhouette is None else Shown(f"{panel.silhouette:.2f}".replace("-", "−")),
                    Shown(f"{100 * panel.knn_accuracy:.1f}"),
                ),
            )
            for panel in self.panels
        )
        yield Grid("", ("Space",), ("Dimensions", "Silhouette", "Nearest neighbors right, %"), rows)

    @property
    def drawn(self) -> bool:
        """Whether both teachers are there."""
        return not self.failed

    def draw(self) -> Figure:
        """Return the maps, two a row."""
        return _draw(self)


def _draw(part: Embeddings) -> Figure:
    panels, classes, labels = part.panels, part.classes, np.array(part.labels)
    named = len(classes) <= _NAMED_CLASSES
    rows = (len(panels) + 1) // 2
    figure = new_figure(6.4, 3.1 * rows + (0.5 if named else 0))
    axes = figure.subplots(rows, 2, squeeze=False)
    for spot in axes.flat[len(panels) :]:
        spot.set_axis_off()
    looks = _class_looks(len(classes))
    for spot, panel in zip(axes.flat, panels, strict=False):
        points = np.array(panel.points)
        for k, look in enumerate(looks):
            spot.scatter(*points[labels == k].T, s=7, linewidths=0, alpha=0.85, **look)
        spot.set(xticks=[], yticks=[], title=panel.title)
        spot.spines[["top", "right"]].set_visible(True)
        silhouette = "–" if panel.silhouette is None else f"{panel.silhouette:.2f}"
        right = f"nearest neighbors right {100 * panel.knn_accuracy:.1f} %"
        spot.set_xlabel(f"{panel.dimension} dimensions · silhouette {silhouette} · {right}", fontsize=7)
    if named:
        handles = [
            handle(linestyle="none", markeredgewidth=0, label=name, **look)
            for name, look in zip(classes, looks, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, handletextpad=0.1)
    return figure


def _class_looks(count: int) -> list[dict[str, Any]]:
    import matplotlib

    if count <= len(CLASSES):
        colors: Sequence[Any] = CLASSES[:count]
    else:
        colors = [tuple(color) for color in matplotlib.colormaps["turbo"](np.linspace(0.02, 0.98, count))]
    return [{"color": color, "marker": _CLASS_MARKERS[k % 5]} for k, color in enumerate(colors)]
