"""Augmentation of whole uint8 batches, bit-equal to the PIL pipeline of the paper's code given the same random draws.

Three steps: an augmentation is built once over a data set, ``draw`` makes the random numbers of a whole epoch on the
CPU (so every device and profile sees the same ones), ``apply`` makes one batch with a handful of tensor operations: no
loop over samples, no synchronization with the device.

*Paper vs code*: the published code augments image by image, with torchvision over PIL, before normalizing. The draws
here follow the same distribution and, given the same draws, the pixels are the same; only the stream of random numbers
differs.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from undistill.errors import UnknownNameError

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Crop",
    "CropFlip",
    "Draws",
    "Identity",
    "RotationFlip",
    "ShiftFlip",
    "choose_augmentation",
    "crop",
    "flip",
    "make_augmentation",
    "pil_affine",
    "rotate",
]

Draws = dict[str, Tensor]  # one row a sample

CIFAR_PADDING = 4
MAX_DEGREES = 20.0


class Augmentation(Protocol):
    """Random changes to the images of one resident data set.

    Args:
        x: Images, uint8 (N, C, H, W), on the device where batches are wanted.
    """

    def __init__(self, x: Tensor) -> None: ...

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return the random numbers for ``n`` samples, on the CPU, from a CPU ``generator``."""

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return images ``index``, augmented.

        Args:
            index: Rows of the data set, int64 (B,), on its device.
            draws: One row of draws for each of them, on the same device; and ``seen``, int64 (B,), how often each came
                before.

        Returns:
            uint8 (B, C, H, W), a fresh tensor.
        """


class Identity:
    """No augmentation."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return nothing."""
        return {}

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return images ``index`` as they are."""
        return self.x.index_select(0, index)


class Crop:
    """A random window, back to the size of the image, out of an image padded with zeros by an eighth of that size.

    That is 1 pixel at 8x8, 4 at 28x28 and 32x32. There is no flip: this is for digits and the like.
    """

    def __init__(self, x: Tensor, padding: int | None = None) -> None:
        self.height, self.width = x.shape[-2:]
        self.padding = math.ceil(min(self.height, self.width) / 8) if padding is None else padding
        self.padded = F.pad(x, (self.padding,) * 4).contiguous()

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return ``top`` and ``left``, int64 (n,), uniform on 0..2·padding."""
        sides = 2 * self.padding + 1
        return {side: torch.randint(sides, (n,), generator=generator) for side in ("top", "left")}

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return a window of each of the images ``index``."""
        return crop(self.padded, index, draws["top"], draws["left"], self.height, self.width)


class CropFlip(Crop):
    """The paper's augmentation for CIFAR: zero padding of 4, random crop back to the size, flip with probability ½.

    torchvision: ``RandomCrop(size, padding=4)``, ``RandomHorizontalFlip()``.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, CIFAR_PADDING)

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return ``top`` and ``left``, int64 (n,), uniform on 0..8, and ``flip``, bool (n,)."""
        return super().draw(n, generator) | {"flip": torch.rand(n, generator=generator) < 0.5}

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return a window of each of the images ``index``, mirrored where ``flip``."""
        return flip(super().apply(index, draws), draws["flip"])


class ShiftFlip(Crop):
    """The augmentation of CIFAR speedruns: small shifts over reflected borders, and every image in both mirror forms.

    A window out of an image that is padded by a sixteenth of its size (2 pixels at 28x28 and 32x32) with its own
    reflection. Which form an image has at first is decided once for all runs by its row; each time it comes it has
    the other one. Chance alone would show a quarter of the images twice in a row the same way, and again.

    References:
        Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498, section 3.6.
    """

    def __init__(self, x: Tensor) -> None:
        self.height, self.width = x.shape[-2:]
        self.padding = math.ceil(min(self.height, self.width) / 16)
        rows, columns = (_reflected(size, self.padding, x.device) for size in (self.height, self.width))
        self.padded = x.index_select(2, rows).index_select(3, columns).contiguous()
        # By the row alone, so that all runs agree; drawn on the CPU, so that all devices do.
        self.mirrored = (torch.rand(len(x), generator=torch.Generator().manual_seed(0)) < 0.5).to(x.device)

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return ``top`` and ``left``, int64 (n,), and ``seen``: never before, unless who asks knows better."""
        return super().draw(n, generator) | {"seen": torch.zeros(n, dtype=torch.int64)}

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return a window of each of the images ``index``, mirrored every other time that it comes."""
        return flip(super().apply(index, draws), self.mirrored[index] ^ (draws["seen"] % 2 == 1))


class RotationFlip:
    """The paper's augmentation for Tiny-ImageNet: rotation uniform in ±20°, flip with probability ½.

    torchvision: ``RandomRotation(20)`` (nearest pixel, corners filled with zeros), ``RandomHorizontalFlip()``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Return ``affine``, int32 (n, 6), the rotations as ``pil_affine`` gives them, and ``flip``, bool (n,)."""
        angle = torch.empty(n).uniform_(-MAX_DEGREES, MAX_DEGREES, generator=generator)
        height, width = self.x.shape[-2:]
        return {"affine": pil_affine(angle, height, width), "flip": torch.rand(n, generator=generator) < 0.5}

    def apply(self, index: Tensor, draws: Draws) -> Tensor:
        """Return the images ``index``, rotated, then mirrored where ``flip``."""
        return rotate(self.x.index_select(0, index), draws["affine"], draws["flip"])


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "crop": Crop,
    "crop_flip": CropFlip,
    "none": Identity,
    "rotation_flip": RotationFlip,
    "shift_flip": ShiftFlip,
}
_ALTERNATING = {"crop_flip": "shift_flip", "rotation_flip": "shift_flip"}


def choose_augmentation(asked: str, usual: str) -> str:
    """Return the name of the augmentation to use.

    Args:
        asked: Such a name; ``auto`` for the usual one; ``alternating`` for ``shift_flip`` where that mirrors images, so
            that digits are not.
        usual: Of the data set.
    """
    if asked == "alternating":
        return _ALTERNATING.get(usual, usual)
    return usual if asked == "auto" else asked


def make_augmentation(name: str, x: Tensor) -> Augmentation:
    """Return the augmentation called ``name`` over images ``x``, uint8 (N, C, H, W).

    Raises:
        UnknownNameError: There is no augmentation of that name.
    """
    if name not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name](x)


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """Return the rows of an image that is continued by its reflection on both sides: 2 1 0 1 2 … for a padding of 2."""
    places = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def crop(padded: Tensor, index: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Return the window ``height`` x ``width`` at (``top``, ``left``) of each of the images ``index``.

    Args:
        padded: uint8 (N, C, H, W), contiguous.
        index: Rows of ``padded``, int64 (B,).
        top: First row of each window, int64 (B,), 0..H-height.
        left: First column of each window, int64 (B,), 0..W-width.
        height: Rows of a window.
        width: Columns of a window.

    Returns:
        uint8 (B, C, height, width).
    """
    _, c, h, w = padded.shape
    # A view of the windows that start at any byte. A batch of crops is then one index_select by sample, which copies
    # whole rows: on a CPU, fourteen times as fast as an index by pixel.
    starts = padded.numel() - ((c - 1) * h * w + (height - 1) * w + width - 1)
    windows = padded.as_strided((starts, c, height, width), (1, h * w, w, 1))
    return windows.index_select(0, index * (c * h * w) + top * w + left)


def flip(x: Tensor, flip: Tensor) -> Tensor:
    """Return images (B, C, H, W), mirrored left to right where ``flip``, bool (B,), is true."""
    # Choosing between the images and their mirrors by whole samples is three times as fast as torch.where on uint8.
    rows = torch.arange(len(x), device=x.device)
    return torch.cat((x, x.flip(-1))).index_select(0, rows + len(x) * flip)


def pil_affine(angle: Tensor, height: int, width: int) -> Tensor:
    """Return the 16.16 fixed-point numbers with which PIL's ``Image.rotate`` walks through an image.

    An output pixel (row y, column x) comes from column ``(a·x + b·y + c) >> 16`` and row ``(d·x + e·y + f) >> 16``.
    The matrix is rounded to 15 decimals before it is made fixed, as PIL does.

    Args:
        angle: Degrees counterclockwise, (B,).
        height: Rows of the images, below 32768.
        width: Columns of the images, below 32768.

    Returns:
        a, b, c, d, e, f: int32 (B, 6).
    """
    radians = -torch.deg2rad(angle.double().remainder(360.0))
    cos, sin = radians.cos().round(decimals=15), radians.sin().round(decimals=15)
    x0 = cos * (-width / 2) + sin * (-height / 2) + width / 2
    y0 = -sin * (-width / 2) + cos * (-height / 2) + height / 2
    # An output pixel is looked up at its center, half a pixel further on.
    matrix = torch.stack((cos, sin, x0 + cos * 0.5 + sin * 0.5, -sin, cos, y0 - sin * 0.5 + cos * 0.5), dim=1)
    return (matrix * 65536.0 + 0.5).floor().int()


def rotate(x: Tensor, affine: Tensor, flip: Tensor) -> Tensor:
    """Return images rotated as PIL does (nearest pixel, same size, zeros outside), then mirrored where ``flip``.

    Args:
        x: uint8 (B, C, H, W).
        affine: int32 (B, 6) from ``pil_affine``, angles within ±20°.
        flip: bool (B,).

    Returns:
        uint8 (B, C, H, W).
    """
    n, channels, height, width = x.shape
    # A margin of zeros as wide as a corner can swing out, so that no source pixel has to be checked.
    margin = math.ceil(math.sin(math.radians(MAX_DEGREES)) * max(height, width) / 2) + 1
    a, b, c, d, e, f = (column[:, None] for column in affine.unbind(1))
    rows = torch.arange(height, dtype=torch.int32, device=x.device)
    columns = torch.arange(width, dtype=torch.int32, device=x.device)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    # In place, the row first: temporaries are larger than the batch itself, and few of them fit into a cache.
    source = (e * rows + f + (margin << 16))[:, :, None] + (d * columns)[:, None, :]
    source.bitwise_right_shift_(16).mul_(width + 2 * margin)
    source_x = (b * rows + c + (margin << 16))[:, :, None] + (a * columns)[:, None, :]
    source.add_(source_x.bitwise_right_shift_(16))
    index = source.view(n, 1, -1).long().expand(-1, channels, -1)
    return F.pad(x, (margin,) * 4).flatten(2).gather(2, index).view_as(x)
