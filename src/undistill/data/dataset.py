"""Images with labels, held whole in memory as uint8, and the checks that every data set passes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from undistill.data.augment import AUGMENTATIONS
from undistill.errors import DataError, RecipeError, UnknownNameError

__all__ = ["Dataset", "Images", "Shape", "channel_stats", "hold_out", "stratified_split"]


@dataclass(frozen=True)
class Shape:
    """The size of a data set, which a source can declare, so that it is known before anything is downloaded.

    Attributes:
        train: Number of training images.
        test: Number of test images.
        num_classes: Number of classes.
        in_channels: Number of image channels.
        image_size: Height and width in pixels.
    """

    train: int
    test: int
    num_classes: int
    in_channels: int
    image_size: int


@dataclass(frozen=True)
class Frame:
    """What is known of a data set without looking at one image.

    Attributes:
        num_classes: Number of classes.
        in_channels: Number of image channels.
        image_size: Height and width in pixels.
        mean: Mean of each channel of pixels scaled to 0..1, with which images are normalized.
        std: Standard deviation of each channel, on the same scale.
    """

    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: Dataset) -> Self:
        """Return the frame of a data set."""
        return cls(data.num_classes, data.in_channels, data.image_size, data.mean, data.std)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels.

    Attributes:
        x: uint8 pixels (N, C, H, W), made contiguous.
        y: int64 labels (N,).

    Raises:
        DataError: A wrong type or shape, or float pixels with NaN or infinity.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.is_floating_point() and not bool(self.x.isfinite().all()):
            raise DataError("the images hold NaN or infinity; expected uint8 pixels")
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise DataError(f"expected uint8 images (N, C, H, W), got {_describe(self.x)}; see Images.from_numpy")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise DataError(f"expected {len(self.x):,} int64 labels, one an image, got {_describe(self.y)}")
        object.__setattr__(self, "x", self.x.contiguous())

    @classmethod
    def from_numpy(cls, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], *, what: str = "the images") -> Images:
        """Read arrays as other programs write them.

        Args:
            x: (N, H, W), (N, H, W, C) or (N, C, H, W). Four dimensions are channels-last if the last one is 1 or 3,
                else channels-first. uint8 in 0..255, or floats in 0..1, which are rounded to the nearest of the
                256 levels.
            y: Whole-number labels (N,).
            what: Subject of the error messages.

        Raises:
            DataError: Any other type, shape or range.
        """
        if x.ndim not in (3, 4):
            raise DataError(f"{what}: expected (N, H, W), (N, H, W, C) or (N, C, H, W), got shape {x.shape}")
        if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iu":
            raise DataError(f"{what}: expected {len(x):,} whole-number labels, got {y.dtype} of shape {y.shape}")
        pixels = torch.from_numpy(np.require(_to_uint8(x, what), requirements=["C", "W"]))
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[-1] in (1, 3):
            pixels = pixels.permute(0, 3, 1, 2)
        return cls(pixels, torch.from_numpy(y.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, index: Tensor) -> Images:
        """Return the images at ``index`` (int64 positions or a boolean mask) as a copy."""
        return Images(self.x[index], self.y[index])

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on ``device``."""
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set of one image shape.

    Attributes:
        name: Name for reports.
        train: Training images.
        test: Test images.
        classes: Class names; label ``k`` is ``classes[k]``.
        mean: Mean of each channel of pixels scaled to 0..1.
        std: Standard deviation of each channel, on the same scale.
        augment: Default augmentation, one of ``augment.AUGMENTATIONS``.
        note: A caveat to print beside any result.

    Raises:
        DataError: An empty or one-class set, labels outside the classes, train and test of different shapes,
            images that are not square, statistics that do not fit the channels.
        UnknownNameError: There is no augmentation of that name.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    note: str = ""

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTATIONS:
            raise UnknownNameError("augmentation", self.augment, AUGMENTATIONS)
        for part, images in (("training", self.train), ("test", self.test)):
            if not len(images):
                raise DataError(f"{self.name}: the {part} set is empty; expected at least one image a class")
            self._check_labels(part, images.y)
        if len(self.classes) < 2 or _count_classes(self.train.y) < 2:
            raise DataError(f"{self.name}: the training set has one class only; a classifier needs two or more")
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            shapes = f"{_shape(self.train.x)} and {_shape(self.test.x)}"
            raise DataError(f"{self.name}: training and test images differ in shape ({shapes}); they must be the same")
        if self.train.x.shape[2] != self.train.x.shape[3] or not self.train.x[0].numel():
            raise DataError(f"{self.name}: images are {_shape(self.train.x)}; expected square ones (C, S, S)")
        if not len(self.mean) == len(self.std) == self.in_channels or min(self.std) <= 0:
            raise DataError(
                f"{self.name}: expected a mean and a std above 0 for each of {self.in_channels} channel(s), "
                f"got mean {self.mean} and std {self.std}"
            )

    def _check_labels(self, part: str, y: Tensor) -> None:
        outside = ((y < 0) | (y >= len(self.classes))).nonzero()
        if len(outside):
            at = int(outside[0])
            raise DataError(
                f"{self.name}: label {int(y[at])} of {part} image {at} (counted from 0) is outside the "
                f"{len(self.classes)} classes 0..{len(self.classes) - 1}; {len(outside):,} label(s) are"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return self.train.x.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.x.shape[2]

    @property
    def shape(self) -> Shape:
        """Numbers of images and classes, and the shape of an image."""
        return Shape(len(self.train), len(self.test), self.num_classes, self.in_channels, self.image_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the shapes, images and labels of both parts, in their order."""
        digest = hashlib.sha256()
        for tensor in (self.train.x, self.train.y, self.test.x, self.test.y):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def holdout(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """Split the training set for choices that must not see the test set; see ``hold_out``.

        Returns:
            The rest and the held-out part; with fraction 0 all images and none.
        """
        rest, held_out = hold_out(self.train.y, fraction, seed)
        return self.train if fraction == 0 else self.train.subset(rest), self.train.subset(held_out)

    def take(self, train: int | float | None = None, test: int | float | None = None) -> Dataset:
        """Return a smaller set: so many images, of every class alike, always the same ones.

        The images of a class are taken in one order: a smaller set is a part of a larger one, up to the rounding of
        classes of unlike sizes.

        Args:
            train: Number of training images, or their share as a float between 0 and 1; None for all.
            test: Number or share of test images; None for all.

        Raises:
            DataError: More than there are, or fewer than there are classes.
        """
        smaller_train = _take(self.train, train, f"{self.name}: subset")
        smaller_test = _take(self.test, test, f"{self.name}: test_subset")
        if smaller_train is self.train and smaller_test is self.test:
            return self
        size = f"a subset: {len(smaller_train):,} training and {len(smaller_test):,} test images"
        note = "; ".join(filter(None, (self.note, size)))
        return replace(self, train=smaller_train, test=smaller_test, note=note)


def hold_out(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the positions of training images for choices that must not see the test set.

    Args:
        y: Labels (N,); images whose label is not known count as a class.
        fraction: Share to hold out, 0 <= fraction < 1, of every class alike; at least one image of every class stays
            in each part.
        seed: Seed of the draw.

    Returns:
        Positions of the rest and of the held-out part; with fraction 0 all and none.

    Raises:
        RecipeError: ``fraction`` is out of range.
        DataError: A class has fewer than two images.
    """
    if not 0 <= fraction < 1:
        raise RecipeError(f"the held-out fraction must be at least 0 and below 1, got {fraction}")
    if fraction == 0:
        return torch.arange(len(y)), torch.arange(0)
    present = len(torch.unique(y))
    return stratified_split(y, min(max(round(fraction * len(y)), present), len(y) - present), seed)


def stratified_split(y: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions so that both parts hold every class in proportion and at least once.

    Args:
        y: Labels (N,).
        size: Number of positions in the second part.
        seed: Seed of the draw, 0..2**32-1.

    Returns:
        Positions of the first and of the second part, each ascending.

    Raises:
        DataError: A class has fewer than two images, or a part would be smaller than the number of classes.
    """
    labels, counts = np.unique(y.cpu().numpy(), return_counts=True)
    if counts.min() < 2:
        label = int(labels[counts.argmin()])
        raise DataError(f"cannot split: class {label} has only one image; expected two or more of every class")
    if not len(labels) <= size <= len(y) - len(labels):
        raise DataError(
            f"cannot put {size:,} of {len(y):,} images aside: each part needs one of each of {len(labels)} classes"
        )
    # RandomState: NumPy promises that its stream never changes, so a split is the same under every version.
    rng = np.random.RandomState(seed)
    chosen = np.zeros(len(y), dtype=bool)
    for label, share in zip(labels, _shares(counts, size), strict=True):
        members = np.flatnonzero(y.cpu().numpy() == label)
        chosen[rng.permutation(members)[:share]] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def channel_stats(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of pixels scaled to 0..1, rounded to 4 decimals.

    A constant channel gets the standard deviation of one grey level (1/255), so that it can be divided by.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.x.unbind(1):
        weight = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        center = (weight * levels).sum()
        mean.append(round(center.item(), 4))
        std.append(round(max((weight * (levels - center) ** 2).sum().sqrt().item(), 1 / 255), 4))
    return tuple(mean), tuple(std)


def _take(images: Images, size: int | float | None, what: str) -> Images:
    count = round(size * len(images)) if isinstance(size, float) else size
    if count is None or count == len(images):
        return images
    try:
        return images.subset(stratified_split(images.y, count, seed=0)[1])
    except DataError as error:
        raise DataError(f"{what}={size}: {error}") from None


def _shares(counts: np.ndarray[Any, Any], size: int) -> Sequence[int]:
    """Divide ``size`` in proportion to ``counts``, each share between 1 and its count less 1."""
    quota = counts * (size / counts.sum())
    shares = np.clip(np.floor(quota), 1, counts - 1).astype(int)
    while (missing := size - shares.sum()) != 0:
        step = 1 if missing > 0 else -1
        movable = shares < counts - 1 if step > 0 else shares > 1
        shares[np.where(movable, step * (quota - shares), -np.inf).argmax()] += step
    return [int(share) for share in shares]


def _to_uint8(x: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{what}: expected uint8 or float pixels, got {x.dtype}")
    if not np.isfinite(x).all():
        image = int(np.argwhere(~np.isfinite(x))[0][0])
        raise DataError(f"{what}: image {image} (counted from 0) holds NaN or infinity; expected floats in 0..1")
    if x.size and (x.min() < 0 or x.max() > 1):
        raise DataError(f"{what}: float pixels span {x.min():.4g}..{x.max():.4g}; expected 0..1 (or uint8 in 0..255)")
    levels: np.ndarray[Any, Any] = np.rint(x.astype(np.float32, copy=False) * 255).astype(np.uint8)
    return levels


def _count_classes(y: Tensor) -> int:
    return int((torch.bincount(y) > 0).sum())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _shape(x: Tensor) -> str:
    return "x".join(str(size) for size in x.shape[1:])
