"""MNIST-M: MNIST's digits blended over photographs, in the folder that its authors distribute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from undistill.data import register_dataset
from undistill.data.dataset import Dataset, Images, Shape, channel_stats
from undistill.errors import DataError

__all__ = ["mnist_m"]


@register_dataset("mnist_m", shape=Shape(59_001, 9_001, num_classes=10, in_channels=3, image_size=32))
def mnist_m(path: str | Path | None = None) -> Dataset:
    """Return MNIST-M (Ganin et al., JMLR 2016): 59,001 + 9,001 color images of 32x32 in 10 classes.

    There is no download: no archive of it has a checksum that its authors vouch for, and some are pickles. Arrays of it
    can be given as ``npz(path=...)`` instead.

    Args:
        path: The unpacked folder: ``mnist_m_train/`` and ``mnist_m_test/`` with images, and beside them
            ``mnist_m_train_labels.txt`` and ``mnist_m_test_labels.txt`` with lines of a file's name and its label.

    Raises:
        DataError: No folder is given, a file is missing, or an image cannot be read.
    """
    if path is None:
        raise DataError(
            "mnist_m is no download; give its unpacked folder as mnist_m(path='...'), or arrays as npz(path='...')"
        )
    train, test = (_read(Path(path).expanduser(), part) for part in ("train", "test"))
    return Dataset("mnist_m", train, test, tuple("0123456789"), *channel_stats(train))


def _read(root: Path, part: str) -> Images:
    listing = root / f"mnist_m_{part}_labels.txt"
    try:
        rows = [line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        labels = np.array([int(label) for _, label in rows])
        pixels = [_pixels(root / f"mnist_m_{part}" / name) for name, _ in rows]
        return Images.from_numpy(np.stack(pixels), labels, what=str(listing))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read MNIST-M from {root} ({error}); expected {listing.name}, and its images in mnist_m_{part}/"
        ) from error


def _pixels(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
