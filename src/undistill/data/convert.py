"""One input for several domains: data sets of the same classes, brought to a common size, channels and scale.

Every source takes ``image_size=`` and ``channels=`` for it: ``mnist(image_size=32, channels=3)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.data.dataset import Dataset, Images
from undistill.errors import DataError

__all__ = ["check_domains", "convert", "convert_images"]

_CHUNK = 4096  # images at a time: in floats they take four times their room
# ITU-R 601 luma in 1/65536, as PIL rounds it.
_LUMA = (19595, 38470, 7471)


def convert(data: Dataset, image_size: int | None = None, channels: int | None = None) -> Dataset:
    """Return a data set as one of several domains: in another size, other channels, and pixels normalized to -1..1.

    Mean and std become 0.5, whatever is converted: a net takes all domains alike, and the statistics of one domain say
    nothing of the others.

    Args:
        data: What to convert.
        image_size: Height and width in pixels, 1 or more; None to keep.
        channels: 1 or 3; None to keep.

    Raises:
        DataError: There is no rule for these channels.
    """
    size, channels = image_size or data.image_size, channels or data.in_channels
    train, test = (
        Images(convert_images(images.x, size, channels, what=data.name), images.y) for images in (data.train, data.test)
    )
    half = (0.5,) * channels
    shown = f"converted to {size}x{size}, {'grey' if channels == 1 else 'color'}"
    changed = (size, channels) != (data.image_size, data.in_channels)
    note = "; ".join(filter(None, (data.note, shown if changed else "")))
    return replace(data, train=train, test=test, mean=half, std=half, note=note)


def convert_images(x: Tensor, image_size: int, channels: int, *, what: str = "the images") -> Tensor:
    """Return images at another size and number of channels.

    Color becomes grey by ITU-R 601, ``L = 0.299 R + 0.587 G + 0.114 B``, bit-equal to PIL's mode ``L``; grey becomes
    color by repeating it. The size changes by bilinear interpolation, which averages when it shrinks (PIL's
    ``BILINEAR``, but that a value halfway between two levels may be rounded the other way).

    Args:
        x: uint8 (N, C, H, W), C being 1 or 3.
        image_size: New height and width in pixels.
        channels: New number of channels, 1 or 3.
        what: Subject of the error message.

    Returns:
        uint8 (N, channels, image_size, image_size).

    Raises:
        DataError: There is no rule for these channels.
    """
    if x.shape[1] != channels and {x.shape[1], channels} != {1, 3}:
        raise DataError(f"{what}: cannot turn {x.shape[1]} channel(s) into {channels}; expected 1 (grey) or 3 (RGB)")
    parts = [_resize(_grey(part) if channels < x.shape[1] else part, image_size) for part in torch.split(x, _CHUNK)]
    return torch.cat(parts).expand(-1, channels, -1, -1).contiguous()


def check_domains(source: Dataset, targets: Iterable[Dataset]) -> None:
    """Refuse target domains whose images the source's net could not take, or whose classes are others.

    Raises:
        DataError: It names every target that does not fit, and what would make it.
    """
    problems = []
    size, channels = source.image_size, source.in_channels
    for target in targets:
        if target.classes != source.classes and target.num_classes != source.num_classes:
            problems.append(f"{target.name} has {target.num_classes} classes, {source.name} {source.num_classes}")
        if (target.image_size, target.in_channels) != (size, channels):
            problems.append(
                f"{target.name} has {target.in_channels}x{target.image_size}x{target.image_size} images, {source.name} "
                f"{channels}x{size}x{size}; give both the same, such as {target.name}(image_size={size}, "
                f"channels={channels})"
            )
    if problems:
        raise DataError(f"domains do not fit: {'; '.join(problems)}")


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=torch.int32).reshape(1, 3, 1, 1)
    total: Tensor = (x.int() * weights).sum(dim=1, keepdim=True, dtype=torch.int32)
    return ((total + 0x8000) >> 16).to(torch.uint8)


def _resize(x: Tensor, size: int) -> Tensor:
    if x.shape[2:] == (size, size):
        return x
    for shape in ((x.shape[2], size), (size, size)):  # rows first, rounded in between, halves up: so does PIL
        levels = F.interpolate(x.float(), shape, mode="bilinear", antialias=True, align_corners=False)
        x = (levels + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return x
