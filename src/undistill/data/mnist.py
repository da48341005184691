"""MNIST and Fashion-MNIST from their idx files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from undistill.data import Remote, fetch, register_dataset
from undistill.data.dataset import Dataset, Images, Shape
from undistill.errors import DataError

__all__ = ["fashion_mnist", "mnist"]

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_SHAPE = Shape(60_000, 10_000, num_classes=10, in_channels=1, image_size=28)


def _remotes(base: str, *md5s: str) -> list[Remote]:
    return [Remote(name, base + name, f"md5:{md5}") for name, md5 in zip(_FILES, md5s, strict=True)]


@register_dataset(
    "mnist",
    *_remotes(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    shape=_SHAPE,
)
def mnist() -> Dataset:
    """Return MNIST (LeCun et al., 1998): 60,000 + 10,000 grey images of 28x28 in 10 classes.

    Raises:
        DataError: A file cannot be downloaded, or is truncated or altered.
    """
    return _read("mnist", tuple("0123456789"), mean=0.1307, std=0.3081)


@register_dataset(
    "fashion_mnist",
    *_remotes(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    shape=_SHAPE,
)
def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28x28 in 10 classes.

    Raises:
        DataError: A file cannot be downloaded, or is truncated or altered.
    """
    return _read("fashion_mnist", _FASHION, mean=0.2860, std=0.3530)


def _read(name: str, classes: tuple[str, ...], mean: float, std: float) -> Dataset:
    train_x, train_y, test_x, test_y = (_idx(path) for path in fetch(name))
    train = Images.from_numpy(train_x, train_y, what=f"{name}: the training images")
    test = Images.from_numpy(test_x, test_y, what=f"{name}: the test images")
    return Dataset(name, train, test, classes, (mean,), (std,))


def _idx(path: Path) -> np.ndarray[Any, Any]:
    """Read an idx file of bytes: 0, 0, 8, number of dimensions, the sizes (big-endian, 4 bytes each), the values."""
    try:
        with gzip.open(path) as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); delete it and fetch it again") from error
    start = 4 + 4 * data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4")) if 4 < start <= len(data) else ()
    if not shape or len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} is altered: its header does not fit its {len(data):,} bytes; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
