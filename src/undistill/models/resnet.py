"""ResNet for small images (He et al., 2016, arXiv:1512.03385): 3x3 stem, no max-pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet34", "resnet50"]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(B, inputs, S, S)`` to ``(B, channels, S/stride, S/stride)``."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ``(B, inputs, S, S)`` to ``(B, 4 channels, S/stride, S/stride)``."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(block.expansion * channels, channels, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    """Stem, four stages with strides 1, 2, 2, 2, global average pooling and the classifier ``linear``.

    Args:
        block: Kind of block.
        blocks: Blocks of each stage.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        width: Factor on the channels 64-128-256-512.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
        width: float,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4 = (scaled(channels, width) for channels in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(in_channels, c1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = _stage(block, c1, c1, blocks[0], stride=1)
        self.layer2 = _stage(block, block.expansion * c1, c2, blocks[1], stride=2)
        self.layer3 = _stage(block, block.expansion * c2, c3, blocks[2], stride=2)
        self.layer4 = _stage(block, block.expansion * c3, c4, blocks[3], stride=2)
        self.linear = nn.Linear(block.expansion * c4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)`` of any size."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@register_model("resnet18")
def resnet18(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build ResNet-18: 11,173,962 parameters at 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; the net takes any.
        width: Factor on the channels of every stage.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width)


@register_model("resnet34")
def resnet34(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build ResNet-34: 21,282,122 parameters at 10 classes; arguments and errors as ``resnet18``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, width)


@register_model("resnet50")
def resnet50(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build ResNet-50: 23,520,842 parameters at 10 classes; arguments and errors as ``resnet18``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width)
