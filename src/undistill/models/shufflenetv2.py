"""ShuffleNetV2 for small images (Ma et al., 2018, arXiv:1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["ShuffleNetV2", "ShuffleUnit", "shufflenetv2"]


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels), nn.BatchNorm2d(channels)]


class ShuffleUnit(nn.Module):
    """Two branches whose channels are interleaved: ``(B, inputs, S, S)`` to ``(B, outputs, S/stride, S/stride)``.

    With stride 1 each branch gets half of the channels and one of them passes unchanged; with stride 2 both get all.

    Args:
        inputs: Channels in; with stride 1 even, and the same as ``outputs``.
        outputs: Channels out, even.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.splits = stride == 1
        branch = inputs // 2 if self.splits else inputs
        self.residual = nn.Sequential(
            *_pointwise(branch, branch), *_depthwise(branch, stride), *_pointwise(branch, outputs // 2)
        )
        self.shortcut = nn.Sequential()
        if not self.splits:
            self.shortcut.extend([*_depthwise(inputs, stride), *_pointwise(inputs, outputs // 2)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        left, right = x.chunk(2, dim=1) if self.splits else (x, x)
        # Stacked on a new axis and flattened, the branches' channels alternate: the channel shuffle of two groups.
        return torch.stack([self.shortcut(left), self.residual(right)], dim=2).flatten(1, 2)


def _stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    first = ShuffleUnit(inputs, outputs, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(outputs, outputs, stride=1) for _ in range(count - 1)))


class ShuffleNetV2(nn.Module):
    """Stem ``pre``, three stages, a 1x1 convolution, global average pooling and the classifier ``fc``.

    Paper vs code: in the public code the convolutions keep their bias, and the stem has neither ReLU nor
    max-pooling.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        width: Factor on the channels 24 (stem), 116-232-464 (stages) and 1024.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        c1, c5 = scaled(24, width), scaled(1024, width)
        c2, c3, c4 = (scaled(channels, width, multiple=2) for channels in (116, 232, 464))
        self.pre = nn.Sequential(nn.Conv2d(in_channels, c1, 3, padding=1), nn.BatchNorm2d(c1))
        self.stage2 = _stage(c1, c2, count=4)
        self.stage3 = _stage(c2, c3, count=8)
        self.stage4 = _stage(c3, c4, count=4)
        self.conv5 = nn.Sequential(*_pointwise(c4, c5))
        self.fc = nn.Linear(c5, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)`` of any size."""
        x = self.conv5(self.stage4(self.stage3(self.stage2(self.pre(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@register_model("shufflenetv2")
def shufflenetv2(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build ShuffleNetV2 (ratio 1): 1,268,646 parameters at 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; the net takes any.
        width: Factor on all channels; stages keep an even count. It is not the ratio of the ShuffleNetV2 paper,
            whose other sizes are not multiples of this one.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return ShuffleNetV2(num_classes, in_channels, width)
