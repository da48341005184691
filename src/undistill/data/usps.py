"""USPS: grey digits of 16x16 from envelopes, in the libsvm files of its official split."""

from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np

from undistill.data import Remote, fetch, register_dataset
from undistill.data.dataset import Dataset, Images, Shape, channel_stats
from undistill.errors import DataError

__all__ = ["usps"]

_BASE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_SIZE = 16


@register_dataset(
    "usps",
    Remote("usps.bz2", f"{_BASE}usps.bz2", "md5:ec16c51db3855ca6c91edd34d0e9b197"),
    Remote("usps.t.bz2", f"{_BASE}usps.t.bz2", "md5:8ea070ee2aca1ac39742fdd1ef5ed118"),
    shape=Shape(7_291, 2_007, num_classes=10, in_channels=1, image_size=_SIZE),
)
def usps() -> Dataset:
    """Return USPS (Hull, 1994; split of LeCun et al., 1990): 7,291 + 2,007 grey images of 16x16 in 10 classes.

    The files hold values in -1..1, which become ``round((value + 1) / 2 * 255)``. The other version that goes around,
    11,000 images without a split, is no download here: give it as ``npz(path=...)`` with arrays ``x`` and ``y``.

    Raises:
        DataError: A file cannot be downloaded, or is truncated or altered.
    """
    train, test = (_read(path) for path in fetch("usps"))
    return Dataset("usps", train, test, tuple("0123456789"), *channel_stats(train))


def _read(path: Path) -> Images:
    """Read lines of ``label 1:value 2:value ...``; labels are 1..10 for the digits 0..9."""
    try:
        with bz2.open(path, "rt", encoding="ascii") as stream:
            rows = [line.split() for line in stream]
        values = np.array([[cell.partition(":")[2] for cell in row[1:]] for row in rows], dtype=np.float64)
        labels = np.array([row[0] for row in rows], dtype=np.float64).astype(np.int64) - 1
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); delete it and fetch it again") from error
    if values.ndim != 2 or values.shape[1] != _SIZE**2:
        raise DataError(f"{path} is altered: expected {_SIZE**2} values a line, got {values.shape[1:]}; fetch it again")
    pixels = np.rint((values + 1) / 2 * 255).clip(0, 255).astype(np.uint8)
    return Images.from_numpy(pixels.reshape(-1, _SIZE, _SIZE), labels, what=str(path))
