"""LeNet for digits: two convolutions and a hidden layer, without BatchNorm (LeCun et al., 1998)."""

from __future__ import annotations

from torch import Tensor, nn

from undistill.errors import RecipeError, ShapeError
from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["LeNet", "lenet"]

_HIDDEN = 100


class LeNet(nn.Module):
    """Twice 5x5 convolution, ReLU, 2x2 max-pooling; then a hidden layer and the classifier.

    Without BatchNorm there are no statistics of one domain in the net that images of another are measured by.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels, at least 4.
        channels: Channels of the first convolution; the second has twice as many.
        hidden: Units of the hidden layer.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, channels, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(2 * channels * (image_size // 4) ** 2, hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)``."""
        logits: Tensor = self.classifier(self.hidden(self.features(x).flatten(1)).relu())
        return logits


@register_model("lenet")
def lenet(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    channels: int = 16,
    width: float = 1.0,
) -> nn.Module:
    """Build LeNet with ReLU and max-pooling: 171,958 parameters for color images of 28x28.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels, at least 4.
        channels: Channels of the first convolution; the second has twice as many.
        width: Factor on the channels and on the 100 hidden units.

    Raises:
        RecipeError: A number is out of range.
        ShapeError: The images are smaller than 4x4.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise RecipeError(f"channels must be a whole number from 1 up, got {channels!r}")
    if image_size < 4:
        raise ShapeError(f"lenet halves its input twice and needs images of 4x4 or more, got {image_size}x{image_size}")
    return LeNet(num_classes, in_channels, image_size, scaled(channels, width), scaled(_HIDDEN, width))
