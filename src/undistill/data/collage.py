"""Images made of a few: what a thief who has hardly any asks about instead."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.data import load_dataset, register_dataset
from undistill.data.dataset import UNKNOWN, Dataset, Images
from undistill.errors import RecipeError

__all__ = ["collage"]

_TURN, _SCALE, _SHEAR, _SHIFT = math.radians(20), 0.15, 0.12, 0.15


@register_dataset("collage")
def collage(of: str, count: int, seed: int = 0) -> Dataset:
    """Return a data set's training images and, besides, images that are pieced together of two of them each.

    Both are turned (by up to 20 degrees), scaled (by 15 %), sheared and moved (by 15 % of half the width) at random,
    and everything on one side of a straight cut, level or upright, is of the other one. No label is known of what comes
    out: it may be of two classes, or of none. A classifier's soft answer says what it sees in it, its top-1 answer one
    class.

    Args:
        of: Spec of the data set, such as ``digits(subset=20)``.
        count: Number of images to make, 0 or more.
        seed: Of the draws.

    Raises:
        RecipeError: ``count`` is out of range.
        DataError: The data are missing, damaged or not usable.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise RecipeError(f"collage: count must be a whole number of 0 or more, got {count!r}")
    data = load_dataset(of)
    generator = torch.Generator().manual_seed(seed)
    one, other = (_moved(data.train, count, generator) for _ in range(2))
    size = data.image_size
    cut = torch.randint(1, size, (count,), generator=generator)
    before = torch.arange(size)[None, :] < cut[:, None]
    level = torch.rand(count, generator=generator) < 0.5
    mask = torch.where(level[:, None, None], before[:, :, None], before[:, None, :])[:, None]
    made = torch.where(mask, one, other)
    y = torch.cat((data.train.y, torch.full((count,), UNKNOWN)))
    note = "; ".join(filter(None, (data.note, f"{count:,} images pieced together of {len(data.train):,}")))
    return replace(data, name=f"collage of {data.name}", train=Images(torch.cat((data.train.x, made)), y), note=note)


def _moved(images: Images, count: int, generator: torch.Generator) -> Tensor:
    """Return as many of the images, any of them, each turned, scaled, sheared and moved at random; uint8."""

    def draw(most: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * most

    chosen = torch.randint(len(images), (count,), generator=generator)
    turn, wide, high, shear = draw(_TURN), 1 + draw(_SCALE), 1 + draw(_SCALE), draw(_SHEAR)
    top = torch.stack((wide * turn.cos(), shear - high * turn.sin(), draw(_SHIFT)), dim=1)
    bottom = torch.stack((wide * turn.sin(), high * turn.cos(), draw(_SHIFT)), dim=1)
    x = images.x[chosen].float()
    grid = F.affine_grid(torch.stack((top, bottom), dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)
