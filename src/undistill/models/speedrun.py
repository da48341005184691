"""The small net of CIFAR speedruns: high accuracy for little arithmetic, on two cores too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.errors import RecipeError, ShapeError
from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["Speedrun", "speedrun"]

_SMALLEST = 7
_PADDED = 9  # below, the stem adds a pixel instead of taking one: what is halved three times must leave one
_EPSILON = 5e-4  # added to the variance along every direction: the faintest are mostly noise


class Speedrun(nn.Module):
    """A whitening stem, three groups of two convolutions, the maximum over the image and the classifier ``head``.

    The stem maps every patch of 2x2 pixels onto the principal directions of such patches, both ways, each scaled to
    unit variance. It is never trained: before training, ``prepare_from_images`` estimates it from the training images.
    Until then its directions are random ones at right angles, and so they stay for a thief without images.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        widths: Channels of the three groups.
        scale: Factor on the logits.
        views: Of each image, in eval mode, whose logits are averaged: 1, 2 or 6.
        padding: Pixels of zeros around an image before the stem.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        widths: tuple[int, int, int],
        scale: float,
        views: int,
        padding: int = 0,
    ) -> None:
        super().__init__()
        directions = 4 * in_channels
        self.stem = nn.Conv2d(in_channels, 2 * directions, 2, padding=padding, bias=False).requires_grad_(False)
        _both_ways(self.stem.weight, nn.init.orthogonal_(torch.empty(directions, directions)))
        inputs = (2 * directions, *widths[:-1])
        self.groups = nn.Sequential(*(_group(*channels) for channels in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale, self.views = scale, views

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        if self.training or self.views == 1:
            return self._logits(x)
        mirrored = (self._logits(x) + self._logits(x.flip(3))) / 2
        if self.views == 2:
            return mirrored
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        shifted = [padded[..., at : at + height, at : at + width] for at in (0, 2)]
        return mirrored / 2 + sum(self._logits(view) + self._logits(view.flip(3)) for view in shifted) / 8

    def _logits(self, x: Tensor) -> Tensor:
        features = self.groups(F.gelu(self.stem(x))).amax((2, 3))
        logits: Tensor = self.head(features)
        return self.scale * logits

    def prepare_from_images(self, images: Tensor) -> None:
        """Estimate the stem from normalized training images (N, C, H, W); a few thousand are enough."""
        patches = F.unfold(images, 2).transpose(0, 1).flatten(1)  # (4 C, N patches)
        _both_ways(self.stem.weight, _whitening(torch.cov(patches)))


def _group(inputs: int, channels: int) -> nn.Sequential:
    first, second = (nn.Conv2d(c, channels, 3, padding=1, bias=False) for c in (inputs, channels))
    for conv in (first, second):  # as many filters as can pass a channel on as it is
        nn.init.dirac_(conv.weight[: conv.in_channels])
    return nn.Sequential(first, nn.MaxPool2d(2), _norm(channels), nn.GELU(), second, _norm(channels), nn.GELU())


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return a BatchNorm whose scale stays 1."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def _whitening(covariance: Tensor) -> Tensor:
    """Return one direction a row for patches whose covariance is (D, D): v / √(λ + ε) for each eigenvector v."""
    variances, directions = torch.linalg.eigh(covariance.double())
    # The sign of an eigenvector is the library's choice; with its largest entry above zero it is the same everywhere.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    whitening: Tensor = directions * largest.sign() / (variances.clamp(min=0) + _EPSILON).sqrt()
    return whitening.T


@torch.no_grad()
def _both_ways(weight: Tensor, directions: Tensor) -> None:
    """Fill filters (2 D, C, 2, 2) with directions (D, D) and their opposites."""
    weight.copy_(torch.cat((directions, -directions)).view_as(weight))


@register_model("speedrun")
def speedrun(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    widths: tuple[int, int, int] = (64, 128, 128),
    scale: float = 1 / 9,
    views: int = 1,
    width: float = 1.0,
) -> nn.Module:
    """Build the net of Jordan's CIFAR-10 speedruns, without the trained bias of its stem.

    The factor on the logits is part of the net: temperatures soften what is left after it. A net that is trained to be
    sure makes up for it, so that its answers are about as soft as other nets'.

    References:
        Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, https://arxiv.org/abs/2404.00498.

    Paper vs code:
        There, a bias after the stem is trained for three epochs and then frozen, labels are smoothed by 0.2, and the
        logits of a test image are those of ``views=6``.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels, at least 7; the published net is for 32. Images under
            9x9 are padded with a pixel of zeros.
        widths: Channels of the three groups: 64, 128 and 128 for 93 %, 64, 256 and 256 for 94 %.
        scale: Factor on the logits, above 0.
        views: Test-time augmentation, of whoever asks the net too: 2, an image and its mirror image; 6, these and both
            moved by one pixel up left and down right, which count half. By default 1, the image alone.
        width: Factor on ``widths``.

    Raises:
        RecipeError: A number is out of range.
        ShapeError: The images are smaller than 7x7.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    problems = []
    if len(widths) != 3 or not all(isinstance(c, int) and not isinstance(c, bool) and c > 0 for c in widths):
        problems.append(f"widths must be three whole numbers above 0, got {widths!r}")
    if not isinstance(scale, int | float) or not scale > 0:
        problems.append(f"scale must be a number above 0, got {scale!r}")
    if views not in (1, 2, 6):
        problems.append(f"views must be 1, 2 or 6, got {views!r}")
    if problems:
        raise RecipeError(problems)
    if image_size < _SMALLEST:
        raise ShapeError(
            f"speedrun halves its input three times and needs images of {_SMALLEST}x{_SMALLEST} or more, got "
            f"{image_size}x{image_size}"
        )
    first, second, third = (scaled(channels, width) for channels in widths)
    return Speedrun(num_classes, in_channels, (first, second, third), scale, views, int(image_size < _PADDED))
