"""Any folder of images, one subfolder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from undistill.data import register_dataset
from undistill.data.dataset import Dataset, Images, channel_stats, stratified_split
from undistill.data.files import files_below
from undistill.errors import DataError, RecipeError

__all__ = ["image_folder"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_SHARE = 0.2

Pixels = np.ndarray[Any, Any]


@register_dataset("image_folder")
def image_folder(path: str | Path, size: int | None = None) -> Dataset:
    """Return the images below a folder, classes in alphabetical order.

    Either ``train/`` and ``test/`` (or ``val/``), each with one subfolder a class, or the class subfolders alone: then
    a fifth of every class becomes the test set, always the same one, and a note says so. Grey images stay grey if all
    of them are. Links are followed; hidden files, whose names start with a dot, are no images.

    Args:
        path: The folder.
        size: Height and width in pixels to bring all images to: center-cropped to a square, resized bilinearly. None
            if all are square and of one size already.

    Raises:
        DataError: No such folder, no images, one that cannot be read, sizes or classes that differ.
        RecipeError: ``size`` is not a whole number above 0.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; expected one with a subfolder of images for each class")
    if size is not None and (type(size) is not int or size < 1):
        raise RecipeError(f"size must be a whole number of pixels above 0, got {size!r}")
    train, test, classes, note = _split(root, size)
    return Dataset(root.resolve().name, train, test, classes, *channel_stats(train), note=note)


def _split(root: Path, size: int | None) -> tuple[Images, Images, tuple[str, ...], str]:
    if not (root / "train").is_dir():
        files = _files(root)
        images = _decode(_labeled(files), size, root)
        count = max(round(_TEST_SHARE * len(images)), len(files))
        train, test = (images.subset(index) for index in stratified_split(images.y, count, seed=0))
        return train, test, tuple(files), "no official split: a stratified fifth of the images is the test set"
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held_out is None:
        raise DataError(f"{root} has train/ but neither test/ nor val/; add one, or give a folder with classes only")
    train_files, test_files = _files(root / "train"), _files(held_out)
    if train_files.keys() != test_files.keys():
        only = ", ".join(sorted(train_files.keys() ^ test_files.keys())[:5])
        raise DataError(f"{root}: train/ and {held_out.name}/ must have the same classes; only one of them has {only}")
    train_list = _labeled(train_files)
    images = _decode(train_list + _labeled(test_files), size, root)
    end = len(train_list)
    return Images(images.x[:end], images.y[:end]), Images(images.x[end:], images.y[end:]), tuple(train_files), ""


def _labeled(files: dict[str, list[Path]]) -> list[tuple[Path, int]]:
    return [(file, label) for label, found in enumerate(files.values()) for file in found]


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class below ``folder``, both sorted."""
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no subfolders; expected one for each class")
    files = {
        child.name: sorted(child / name for name in files_below(child) if Path(name).suffix.lower() in _SUFFIXES)
        for child in classes
    }
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise DataError(
            f"{folder / empty[0]} holds no images; expected files that end in {', '.join(sorted(_SUFFIXES))}"
        )
    return files


def _decode(files: list[tuple[Path, int]], size: int | None, root: Path) -> Images:
    console = Console(stderr=True)
    bar = track(files, f"reading {root.name}", console=console, disable=not console.is_terminal)
    pixels = [_pixels(file, size) for file, _ in bar]
    for (file, _), image in zip(files, pixels, strict=True):
        if image.shape[:2] != pixels[0].shape[:2] or image.shape[0] != image.shape[1]:
            raise DataError(
                f"{file} is {image.shape[1]}x{image.shape[0]} pixels, the first image "
                f"{pixels[0].shape[1]}x{pixels[0].shape[0]}; all must be square and of one size: give size=..."
            )
    if any(image.ndim == 3 for image in pixels):
        pixels = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in pixels]
    return Images.from_numpy(np.stack(pixels), np.array([label for _, label in files]), what=str(root))


def _pixels(file: Path, size: int | None) -> Pixels:
    """Return one image as (H, W) if it is grey, else (H, W, 3)."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{file} has more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits")
            plain = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {file} ({error}); remove or replace it") from error
    return np.asarray(plain if size is None else _square(plain, size))


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
