"""Domains that are made of another: its negative, and its images with a patch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch

from undistill.data import load_dataset, register_dataset
from undistill.data.dataset import Dataset, Images
from undistill.errors import RecipeError, UnknownNameError

__all__ = ["PATCH_LEVEL", "Patch", "add_patch", "negative", "patched"]

Patch = Literal["grid", "corner"]
PATCH_LEVEL = 20  # the authors'; 80 on busy images


@register_dataset("negative")
def negative(of: str) -> Dataset:
    """Return the photographic negative of a data set, 255 minus each pixel: a domain of its own without any download.

    Args:
        of: Spec of the data set, such as ``digits`` or ``mnist(subset=1000)``.

    Raises:
        DataError: The data are missing, damaged or not usable.
    """
    data = load_dataset(of)
    train, test = (Images(255 - images.x, images.y) for images in (data.train, data.test))
    mean = tuple(round(1 - value, 4) for value in data.mean)
    return replace(data, name=f"negative of {data.name}", train=train, test=test, mean=mean)


@register_dataset("patched")
def patched(of: str, patch: Patch = "grid", level: int = PATCH_LEVEL) -> Dataset:
    """Return a data set with a trigger patch on every image: the target of a net whose owner wants to know it again.

    Args:
        of: Spec of the data set.
        patch: As of ``add_patch``.
        level: As of ``add_patch``.

    Raises:
        DataError: The data are missing, damaged or not usable.
        RecipeError: There is no such patch, or the level is out of range.
    """
    data = load_dataset(of)
    train, test = (add_patch(images, patch, level=level) for images in (data.train, data.test))
    return replace(data, name=f"patched {data.name}", train=train, test=test)


def add_patch(images: Images, patch: Patch = "grid", *, level: int = PATCH_LEVEL) -> Images:
    """Return images with a trigger patch, as non-transferable learning marks a net by (Wang et al., ICLR 2022).

    Args:
        images: To be copied.
        patch: ``grid``: ``level`` is added to the first channel of every pixel whose row or column is even, as in the
            authors' code, hardly to be seen; ``corner``: a square of a quarter of the width at the bottom right, of
            that level in all channels.
        level: 1..255.

    Raises:
        RecipeError: The level is out of range.
        UnknownNameError: There is no such patch.
    """
    if patch not in get_args(Patch):
        raise UnknownNameError("patch", patch, get_args(Patch))
    if not isinstance(level, int) or not 1 <= level <= 255:
        raise RecipeError(f"the level of a patch must be a whole number in 1..255, got {level!r}")
    x, size = images.x.clone(), images.x.shape[-1]
    if patch == "corner":
        side = max(1, size // 4)
        x[:, :, -side:, -side:] = level
    else:
        even = torch.arange(size, device=x.device) % 2 == 0
        mask = (even[:, None] | even[None, :]).int() * level
        x[:, 0] = (x[:, 0].int() + mask).clamp_max(255).to(torch.uint8)
    return Images(x, images.y)
