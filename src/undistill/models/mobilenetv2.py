"""MobileNetV2 for small images (Sandler et al., 2018, arXiv:1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenetv2"]


def _conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, padding: int = 0, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """Widen, depthwise 3x3, narrow: ``(B, inputs, S, S)`` to ``(B, outputs, S/stride, S/stride)``."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = nn.Sequential(
            *_conv_bn_relu(inputs, inner, 1),
            *_conv_bn_relu(inner, inner, 3, stride, padding=1, groups=inner),
            nn.Conv2d(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.residual(x)
        return out + x if self.has_shortcut else out


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    first = InvertedResidual(inputs, outputs, stride, expansion=6)
    return nn.Sequential(first, *(InvertedResidual(outputs, outputs, 1, expansion=6) for _ in range(count - 1)))


class MobileNetV2(nn.Module):
    """Stem ``pre``, seven stages, a 1x1 convolution, global average pooling and ``conv2``, a 1x1 classifier.

    Paper vs code: the public code's convolutions keep their bias, and its stem is a 1x1 convolution with padding 1,
    which frames a 32x32 image to 34x34.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        width: Factor on all channels.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        c0, c1, c2, c3, c4, c5, c6, c7, c8 = (
            scaled(channels, width) for channels in (32, 16, 24, 32, 64, 96, 160, 320, 1280)
        )
        self.pre = nn.Sequential(*_conv_bn_relu(in_channels, c0, 1, padding=1))
        self.stage1 = InvertedResidual(c0, c1, stride=1, expansion=1)
        self.stage2 = _stage(c1, c2, count=2, stride=2)
        self.stage3 = _stage(c2, c3, count=3, stride=2)
        self.stage4 = _stage(c3, c4, count=4, stride=2)
        self.stage5 = _stage(c4, c5, count=3, stride=1)
        self.stage6 = _stage(c5, c6, count=3, stride=1)
        self.stage7 = InvertedResidual(c6, c7, stride=1, expansion=6)
        self.conv1 = nn.Sequential(*_conv_bn_relu(c7, c8, 1))
        self.conv2 = nn.Conv2d(c8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)`` of any size."""
        x = self.pre(x)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        x = self.conv1(self.stage7(self.stage6(self.stage5(x))))
        logits: Tensor = self.conv2(F.adaptive_avg_pool2d(x, 1))
        return logits.flatten(1)


@register_model("mobilenetv2")
def mobilenetv2(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build MobileNetV2: 2,254,090 parameters at 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; the net takes any.
        width: Factor on all channels.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return MobileNetV2(num_classes, in_channels, width)
