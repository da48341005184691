"""Any data set as plain arrays in one ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undistill.data import register_dataset
from undistill.data.dataset import Dataset, Images, channel_stats, stratified_split
from undistill.errors import DataError

__all__ = ["npz"]

_NEEDED = ("train_x", "train_y", "test_x", "test_y")
_UNSPLIT = ("x", "y")
_TEST_SHARE = 0.2
_NO_SPLIT = "no official split: a stratified fifth of the images is the test set"
_OPTIONAL = ("classes", "train_lossless", "test_lossless")


@register_dataset("npz")
def npz(
    path: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: str = "none",
) -> Dataset:
    """Return the data set in a ``.npz`` file; nothing pickled is ever read.

    The file holds ``train_x``, ``train_y``, ``test_x``, ``test_y`` in the shapes and types of
    ``Images.from_numpy``, or ``x`` and ``y``, of which a fifth of every class becomes the test set, always the same
    one, and a note says so. It may hold ``classes`` (names; else the labels 0 to the largest one, each of which
    has a training image) and ``train_lossless``, ``test_lossless`` (boolean, one an image; what is not becomes a
    note). Other arrays are ignored.

    Args:
        path: The file.
        mean: Mean of each channel, in 0..1; from the training images if None.
        std: Standard deviation of each channel, in 0..1; from the training images if None.
        augment: Augmentation for training.

    Raises:
        DataError: The file is missing, damaged, lacks an array or holds one of another kind, or names no classes and
            has no training image for a label below the largest.
    """
    path = Path(path).expanduser()
    arrays = _arrays(path)
    train, test = _parts(arrays, path)
    measured_mean, measured_std = channel_stats(train) if len(train) else ((), ())
    return Dataset(
        path.stem,
        train,
        test,
        _classes(arrays.get("classes"), train, path),
        measured_mean if mean is None else tuple(float(value) for value in mean),
        measured_std if std is None else tuple(float(value) for value in std),
        augment,
        "; ".join(filter(None, ("" if "x" not in arrays else _NO_SPLIT, _lossless_note(arrays)))),
    )


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        # opened here: np.load leaves the file open when it is damaged
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            needed = _UNSPLIT if not set(_NEEDED) & set(file) and set(_UNSPLIT) <= set(file) else _NEEDED
            missing = [name for name in needed if name not in file]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(file) or 'nothing'}")
            return {name: file[name] for name in (*needed, *_OPTIONAL) if name in file}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; expected an .npz with {', '.join(_NEEDED)}") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):  # numpy's text advises to allow it, which would run what the file says
            raise DataError(f"cannot read {path}: expected an .npz of plain arrays, without pickle") from None
        # TypeError: a lone array (.npy) under this name is no context manager
        raise DataError(f"cannot read {path} ({error}); expected an .npz of plain arrays, without pickle") from error


def _parts(arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> tuple[Images, Images]:
    if "x" in arrays:
        images = Images.from_numpy(arrays["x"], arrays["y"], what=f"{path}: x")
        size = max(round(_TEST_SHARE * len(images)), len(torch.unique(images.y)))
        rest, aside = stratified_split(images.y, size, seed=0)
        return images.subset(rest), images.subset(aside)
    train, test = (
        Images.from_numpy(arrays[f"{part}_x"], arrays[f"{part}_y"], what=f"{path}: {part}_x")
        for part in ("train", "test")
    )
    return train, test


def _classes(names: np.ndarray[Any, Any] | None, train: Images, path: Path) -> tuple[str, ...]:
    if names is None:
        return _classes_by_label(train, path)
    if names.ndim != 1:
        raise DataError(f"{path}: expected 'classes' as a list of names, got shape {names.shape}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())


def _classes_by_label(train: Images, path: Path) -> tuple[str, ...]:
    """Return the labels as names; one stray large label must not make a net of a million logits."""
    labels = torch.unique(train.y[train.y >= 0]).tolist()  # sorted; a negative one is refused with the other labels
    for expected, label in enumerate(labels):
        if label != expected:
            raise DataError(
                f"{path} has no training image of class {expected}, but labels up to {labels[-1]}; expected all of "
                "0 to the largest: store the names as 'classes', or correct train_y"
            )
    return tuple(map(str, labels))


def _lossless_note(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    counts = [
        f"{int((~lossless.astype(bool)).sum()):,} of {lossless.size:,} {part} images"
        for key, part in (("train_lossless", "training"), ("test_lossless", "test"))
        if (lossless := arrays.get(key)) is not None and not lossless.all()
    ]
    return f"in the source {' and '.join(counts)} are not bit-exact copies of the original" if counts else ""
