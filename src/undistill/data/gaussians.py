"""Noise around a few means: images of which the best possible answers are known, to try the instruments on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undistill.data import register_dataset
from undistill.data.dataset import Dataset, Images, Shape, channel_stats
from undistill.errors import RecipeError

__all__ = ["gaussians"]

_SPREAD, _MIDDLE = 20.0, 128.0  # of a pixel, in steps of 1/255: six standard deviations fit


def _shape(
    classes: int = 3, size: int = 8, distance: float = 2.3, train: int = 3000, test: int = 2000, seed: int = 0
) -> Shape:
    return Shape(train, test, classes, 1, size)


@register_dataset("gaussians", shape=_shape)
def gaussians(
    classes: int = 3, size: int = 8, distance: float = 2.3, train: int = 3000, test: int = 2000, seed: int = 0
) -> Dataset:
    """Return grey images of independent normal noise around one mean a class, every two of them as far apart.

    Classes are equally frequent and overlap, so what a net should answer is known: the posterior is softmax of a linear
    function of the pixels, a net without a hidden layer can be right about it, and none names more of the images than
    ∫ φ(t) Φ(t + d/√2)^(K-1) dt, for two classes Φ(d/2), where d is the distance. Of such images a soft answer says far
    more than the class: with as many of them as pixels a student knows the net. Clipping to 0..255 and whole numbers
    change that by less than a part in a thousand.

    Args:
        classes: K, 2 or more, and no more than there are pixels.
        size: Height and width in pixels.
        distance: Between two means, in standard deviations, above 0, at most 3.
        train: Number of training images, 1 or more.
        test: Number of test images, 1 or more.
        seed: Of means and noise.

    Raises:
        RecipeError: A number is out of range.
    """
    for name, value, least in (("classes", classes, 2), ("size", size, 2), ("train", train, 1), ("test", test, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RecipeError(f"gaussians: {name} must be a whole number of {least} or more, got {value!r}")
    if classes > size**2:
        raise RecipeError(f"gaussians: {classes} means as far apart need as many pixels; raise size={size}")
    reach = math.floor(math.sqrt(2) * ((_MIDDLE - 1) / _SPREAD - 4))  # beyond it noise would be cut off at 0 and 255
    if not 0 < distance <= reach:
        raise RecipeError(f"gaussians: distance must be above 0 and at most {reach:g}, got {distance!r}")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size**2, classes, generator=generator, dtype=torch.float64)
    means = torch.linalg.qr(noise).Q.T * (distance / math.sqrt(2))
    learn, hold = (_draw(means, count, size, generator) for count in (train, test))
    mean, std = channel_stats(learn)
    return Dataset("gaussians", learn, hold, tuple(map(str, range(classes))), mean, std)


def _draw(means: Tensor, count: int, size: int, generator: torch.Generator) -> Images:
    y = torch.arange(count) % len(means)
    x = means[y] + torch.randn(count, means.shape[1], generator=generator, dtype=torch.float64)
    pixels = (_MIDDLE + _SPREAD * x).round().clamp(0, 255).to(torch.uint8)
    return Images(pixels.reshape(count, 1, size, size), y)
