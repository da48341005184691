"""The paper's plain CNN, its smallest student on CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from undistill.errors import RecipeError, ShapeError
from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["CNN", "cnn"]


class CNN(nn.Module):
    """Three times 3x3 convolution, BatchNorm, 2x2 max-pooling, ReLU; then a hidden layer and the classifier ``fc2``.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, at least 8; the hidden layer depends on it.
        channels: Channels of the first convolution. The others have 2 and 4 times as many, the hidden layer 4 times.
        dropout: Probability that a hidden unit is dropped in training.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.input_shape = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.fc1 = nn.Linear(4 * channels * (image_size // 8) ** 2, 4 * channels)
        self.fcbn1 = nn.BatchNorm1d(4 * channels)
        self.fc2 = nn.Linear(4 * channels, num_classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)``.

        Raises:
            ShapeError: The images are not of the shape that the net was built for.
        """
        if x.shape[1:] != self.input_shape:
            raise ShapeError(f"cnn was built for images of shape {self.input_shape}, got {tuple(x.shape[1:])}")
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(F.max_pool2d(bn(conv(x)), 2))
        x = F.relu(self.fcbn1(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(F.dropout(x, self.dropout, self.training))
        return logits


@register_model("cnn")
def cnn(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    channels: int = 32,
    dropout: float = 0.0,
    width: float = 1.0,
) -> nn.Module:
    """Build the paper's ``net``: 357,514 parameters at 10 classes and 32x32.

    Paper vs code: the public code works at 32x32 only; at 64x64 it returns four rows an image. This one works at
    any size from 8x8 up.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels, at least 8.
        channels: Channels of the first convolution: 32 gives 32-64-128, 4 gives 4-8-16.
        dropout: Probability in [0, 1) that a hidden unit is dropped in training; the paper's recipes use 0.
        width: Factor on ``channels``.

    Raises:
        RecipeError: A number is out of range.
        ShapeError: The images are smaller than 8x8.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    problems = []
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        problems.append(f"channels must be a whole number from 1 up, got {channels!r}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"dropout must be a number from 0 up to, but not including, 1, got {dropout!r}")
    if problems:
        raise RecipeError(problems)
    if image_size < 8:
        raise ShapeError(
            f"cnn halves its input three times and needs images of 8x8 or more, got {image_size}x{image_size}"
        )
    return CNN(num_classes, in_channels, image_size, scaled(channels, width), dropout)
