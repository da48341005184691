"""Tiny-ImageNet-200 from its archive or an unpacked folder, decoded once."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from undistill.data import Remote, cache_dir, fetch, register_dataset
from undistill.data.dataset import Dataset, Shape
from undistill.data.download import REMOTES, atomic_write
from undistill.data.files import files_below, tree_state
from undistill.data.npz import npz
from undistill.errors import DataError

__all__ = ["tiny_imagenet"]

_CLASSES = 200
_SIZE = 64
_PUBLISHED = Shape(100_000, 10_000, num_classes=_CLASSES, in_channels=3, image_size=_SIZE)
_MEAN = (0.4802, 0.4481, 0.3975)
_STD = (0.2302, 0.2265, 0.2262)
_ANNOTATIONS = "val/val_annotations.txt"

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class _Listing:
    """What a source holds: a WordNet id for each image file, before any is decoded."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    classes: list[str]


def _shape(path: str | Path | None = None) -> Shape:
    """Return the size of the published set, or of what an unpacked folder holds."""
    if path is None:
        return _PUBLISHED
    root = Path(path).expanduser()
    listing = _list(_names(root), _reader(root), root)
    return replace(_PUBLISHED, train=len(listing.train), test=len(listing.test))


@register_dataset(
    "tiny_imagenet",
    Remote(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5:90528d7ca1a48142e341f4ef8d21d0de",
    ),
    shape=_shape,
)
def tiny_imagenet(path: str | Path | None = None) -> Dataset:
    """Return Tiny-ImageNet-200: 100,000 + 10,000 color images of 64x64 in 200 classes, sorted by WordNet id.

    The test set is the official ``val/``: flat, read through ``val_annotations.txt``, or re-arranged into class
    folders. A set with other numbers of images carries a note that says so. The decoded images are kept in the cache
    folder (1.3 GB), so the second load takes seconds; of each folder only the newest are.

    Paper vs code: the Nasty Teacher code reads ``val/`` by folder and so, unless it is re-arranged first, gives every
    test image label 0.

    Paper vs code: the Nasty Teacher code normalizes with mean (.4802, .4481, .3975) and std (.2302, .2265, .2262), and
    so does this. The mean is that of the training pixels; their std is (.2764, .2689, .2816), so that inputs are 1.2
    times as wide as with unit variance. The code does not say where its std is from. The std within an image, averaged
    over images, is within .001 of it (measured on 100 training images a class).

    Args:
        path: An unpacked folder; the archive is downloaded if None.

    Raises:
        DataError: Not 200 classes, files missing or unreadable, or the archive cannot be downloaded.
    """
    data = _from_archive() if path is None else _from_folder(Path(path).expanduser())
    found, whole = data.shape, _PUBLISHED
    counts = f"{found.train:,} training and {found.test:,} test images instead of {whole.train:,} and {whole.test:,}"
    return replace(data, name="tiny_imagenet", note="" if found == whole else f"not the published set: {counts}")


def _from_folder(root: Path) -> Dataset:
    names, read = _names(root), _reader(root)
    source, state = str(root.resolve()), tree_state(root)
    return _decoded(source, state, lambda target: _decode(names, read, root, target))


def _from_archive() -> Dataset:
    return _decoded(REMOTES["tiny_imagenet"][0].checksum, "", _decode_archive)


def _decode_archive(target: Path) -> None:
    (archive,) = fetch("tiny_imagenet")
    try:
        with zipfile.ZipFile(archive) as file:
            members = {name.partition("/")[2]: name for name in file.namelist()}
            _decode(sorted(members), lambda name: file.read(members[name]), archive, target)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is truncated or damaged ({error}); delete it and fetch it again") from error


def _decoded(source: str, state: str, decode: Callable[[Path], None]) -> Dataset:
    """Return the decoded images of a source in this state, made now if there are none yet or they are damaged."""
    folder, stem = cache_dir() / "tiny_imagenet", f"decoded-{_digest(source)}"
    target = folder / (f"{stem}-{_digest(state)}.npz" if state else f"{stem}.npz")
    if target.is_file():
        with suppress(DataError):  # damaged: made anew
            return _load(target)
    decode(target)
    for older in set(folder.glob(f"{stem}-*.npz")) - {target}:
        with suppress(OSError):  # another process has it open or removed it: the next one that decodes tries again
            older.unlink()
    return _load(target)


def _load(target: Path) -> Dataset:
    return npz(target, mean=_MEAN, std=_STD, augment="rotation_flip")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _names(root: Path) -> list[str]:
    if not (root / "train").is_dir():
        raise DataError(f"{root} is no unpacked Tiny-ImageNet: expected train/ and val/ in it")
    return sorted(files_below(root))


def _reader(root: Path) -> Read:
    return lambda name: (root / name).read_bytes()


def _list(names: Iterable[str], read: Read, source: Path) -> _Listing:
    paths = [PurePosixPath(name) for name in names]
    train = [(str(path), path.parts[1]) for path in paths if _is_image(path, "train")]
    classes = sorted({wnid for _, wnid in train})
    test = _labeled_val([path for path in paths if _is_image(path, "val")], {str(path) for path in paths}, read, source)
    for part, found in (("train", set(classes)), ("val", {wnid for _, wnid in test})):
        if len(found) != _CLASSES or found != set(classes):
            raise DataError(f"{source}: {part}/ has {len(found)} classes; expected all {_CLASSES} of Tiny-ImageNet")
    return _Listing(train, test, classes)


def _decode(names: Sequence[str], read: Read, source: Path, target: Path) -> None:
    listing = _list(names, read, source)
    words = _text(read("words.txt")) if "words.txt" in names else ""
    known = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    arrays: dict[str, Any] = {"classes": np.array([known.get(wnid, wnid) for wnid in listing.classes])}
    console = Console(stderr=True)
    for part, files in (("train", listing.train), ("test", listing.test)):
        x = np.empty((len(files), 3, _SIZE, _SIZE), np.uint8)
        bar = track(files, f"decoding {part}", console=console, disable=not console.is_terminal)
        for row, (name, _) in enumerate(bar):
            x[row] = _pixels(name, read, source)
        arrays[f"{part}_x"] = x
        arrays[f"{part}_y"] = np.searchsorted(listing.classes, [wnid for _, wnid in files])
    with atomic_write(target) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _text(data: bytes) -> str:
    """Return text in UTF-8, or, of an older tool, in Latin-1, in which every byte is a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_image(path: PurePosixPath, part: str) -> bool:
    return len(path.parts) > 2 and path.parts[0] == part and path.suffix.lower() in (".jpeg", ".jpg")


def _labeled_val(images: list[PurePosixPath], names: set[str], read: Read, source: Path) -> list[tuple[str, str]]:
    """Return each validation image with its WordNet id, from the annotations or from its folder."""
    if not any(path.parts[1] == "images" for path in images):
        return [(str(path), path.parts[1]) for path in images]
    if _ANNOTATIONS not in names:
        raise DataError(f"{source} lacks {_ANNOTATIONS}, without which the images in val/images have no labels")
    labels = dict(line.split("\t")[:2] for line in _text(read(_ANNOTATIONS)).splitlines() if "\t" in line)
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
