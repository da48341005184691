"""Images that thieves without data made, in grids with a column a class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from undistill.data.dataset import Images
from undistill.reporting.figures import png_uri
from undistill.reporting.runs import RunGroup
from undistill.run import Run

__all__ = ["MOST_CLASSES", "columns", "drawn_images", "grid"]

MOST_CLASSES = 20  # columns that can still be told apart
_ROWS = 6
_GAP, _WHITE = 1, 255  # pixels between images, and their color


def drawn_images(study: RunGroup) -> Iterator[dict[str, str]]:
    """Yield ``title``, ``image`` (a data URI) and ``alt`` for every thief who made his images; the first seed's."""
    classes: tuple[str, ...] | None = None
    for extraction in study.extractions:
        for key, replicates in extraction.by.items():
            run: Run = replicates.runs[0]
            images = run.images()
            if images is None or not len(images):
                continue
            classes = classes or run.dataset().classes
            name = next(student.name for student in study.students if student.key == key)
            title = f"{extraction.label} from {study.teacher_name(extraction.teacher)}, student {name}"
            alt = f"Synthetic images, a column for each of {', '.join(classes[:MOST_CLASSES])}"
            yield {"title": title, "image": png_uri(grid(columns(images, len(classes), _ROWS))), "alt": alt}


def columns(images: Images, classes: int, rows: int) -> list[Tensor]:
    """Return the first images of every class, uint8 (n, C, H, W) with n up to ``rows``; of the first 20 classes."""
    return [images.x[images.y == k][:rows].cpu() for k in range(min(classes, MOST_CLASSES))]


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
