"""Tiny-ImageNet-200 from its archive or an unpacked folder, decoded once."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from undistill.data import Remote, cache_dir, fetch, register_dataset
from undistill.data.dataset import Dataset, Shape
from undistill.data.download import REMOTES, atomic_write
from undistill.data.npz import npz
from undistill.errors import DataError

__all__ = ["tiny_imagenet"]

_CLASSES = 200
_SIZE = 64
_MEAN = (0.4802, 0.4481, 0.3975)
_STD = (0.2302, 0.2265, 0.2262)
_ANNOTATIONS = "val/val_annotations.txt"

Read = Callable[[str], bytes]


@register_dataset(
    "tiny_imagenet",
    Remote(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5:90528d7ca1a48142e341f4ef8d21d0de",
    ),
    shape=Shape(100_000, 10_000, num_classes=_CLASSES, in_channels=3, image_size=_SIZE),
)
def tiny_imagenet(path: str | Path | None = None) -> Dataset:
    """Return Tiny-ImageNet-200: 100,000 + 10,000 color images of 64x64 in 200 classes, sorted by WordNet id.

    The test set is the official ``val/``: flat, read through ``val_annotations.txt``, or re-arranged into class
    folders. The decoded images are kept in the cache folder (1.3 GB), so the second load takes seconds.

    Paper vs code: the Nasty Teacher code reads ``val/`` by folder and so, unless it is re-arranged first, gives every
    test image label 0.

    Args:
        path: An unpacked folder; the archive is downloaded if None.

    Raises:
        DataError: Not 200 classes, files missing or unreadable, or the archive cannot be downloaded.
    """
    decoded = _decoded(path)
    data = npz(decoded, mean=_MEAN, std=_STD, augment="rotation_flip")
    return Dataset("tiny_imagenet", data.train, data.test, data.classes, data.mean, data.std, data.augment)


def _decoded(path: str | Path | None) -> Path:
    """Return the file of decoded images, made now if this source has none yet."""
    if path is not None:
        root = Path(path).expanduser()
        names = _listing(root)
        target = _target(f"{root.resolve()}{[(name, *_stat(root / name)) for name in names]}")
        return target if target.is_file() else _decode(names, lambda name: (root / name).read_bytes(), root, target)
    target = _target(REMOTES["tiny_imagenet"][0].checksum)
    if target.is_file():
        return target
    (archive,) = fetch("tiny_imagenet")
    try:
        with zipfile.ZipFile(archive) as file:
            members = {name.partition("/")[2]: name for name in file.namelist()}
            return _decode(sorted(members), lambda name: file.read(members[name]), archive, target)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is truncated or damaged ({error}); delete it and fetch it again") from error


def _target(source: str) -> Path:
    return cache_dir() / "tiny_imagenet" / f"decoded-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npz"


def _listing(root: Path) -> list[str]:
    if not (root / "train").is_dir():
        raise DataError(f"{root} is no unpacked Tiny-ImageNet: expected train/ and val/ in it")
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())


def _stat(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _decode(names: Iterable[str], read: Read, source: Path, target: Path) -> Path:
    paths = [PurePosixPath(name) for name in names]
    train = [(str(path), path.parts[1]) for path in paths if _is_image(path, "train")]
    classes = sorted({wnid for _, wnid in train})
    test = _labeled_val([path for path in paths if _is_image(path, "val")], {str(path) for path in paths}, read, source)
    for part, found in (("train", set(classes)), ("val", {wnid for _, wnid in test})):
        if len(found) != _CLASSES or found != set(classes):
            raise DataError(f"{source}: {part}/ has {len(found)} classes; expected all {_CLASSES} of Tiny-ImageNet")
    words = read("words.txt").decode() if PurePosixPath("words.txt") in paths else ""
    known = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    arrays: dict[str, Any] = {"classes": np.array([known.get(wnid, wnid) for wnid in classes])}
    console = Console(stderr=True)
    for part, files in (("train", train), ("test", test)):
        x = np.empty((len(files), 3, _SIZE, _SIZE), np.uint8)
        bar = track(files, f"decoding {part}", console=console, disable=not console.is_terminal)
        for row, (name, _) in enumerate(bar):
            x[row] = _pixels(name, read, source)
        arrays[f"{part}_x"] = x
        arrays[f"{part}_y"] = np.searchsorted(classes, [wnid for _, wnid in files])
    with atomic_write(target) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return target


def _is_image(path: PurePosixPath, part: str) -> bool:
    return len(path.parts) > 2 and path.parts[0] == part and path.suffix.lower() in (".jpeg", ".jpg")


def _labeled_val(images: list[PurePosixPath], names: set[str], read: Read, source: Path) -> list[tuple[str, str]]:
    """Return each validation image with its WordNet id, from the annotations or from its folder."""
    if not any(path.parts[1] == "images" for path in images):
        return [(str(path), path.parts[1]) for path in images]
    if _ANNOTATIONS not in names:
        raise DataError(f"{source} lacks {_ANNOTATIONS}, without which the images in val/images have no labels")
    labels = dict(line.split("\t")[:2] for line in read(_ANNOTATIONS).decode().splitlines() if "\t" in line)
    files = {path.name: str(path) for path in images}
    if files.keys() != labels.keys():
        odd = sorted(files.keys() ^ labels.keys())
        raise DataError(f"{source}: val/images and {_ANNOTATIONS} differ in {len(odd)} file(s), e.g. {odd[0]}")
    return [(file, labels[name]) for name, file in sorted(files.items())]


def _pixels(name: str, read: Read, source: Path) -> np.ndarray[Any, Any]:
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read the image {name} of {source} ({error})") from error
    if pixels.shape != (_SIZE, _SIZE, 3):
        raise DataError(f"{name} of {source} is {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {_SIZE}x{_SIZE}")
    return pixels.transpose(2, 0, 1)
