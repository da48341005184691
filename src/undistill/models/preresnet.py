"""Pre-activation ResNet for small images (He et al., 2016, arXiv:1603.05027): BatchNorm, ReLU, then a convolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = [
    "PreBasicBlock",
    "PreBottleneck",
    "PreResNet",
    "preresnet20",
    "preresnet32",
    "preresnet44",
    "preresnet56",
    "preresnet110",
]


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Project the shortcut where its shape changes; without BatchNorm, unlike ResNet's."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))


class PreBasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(B, inputs, S, S)`` to ``(B, channels, S/stride, S/stride)``."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.downsample = _downsample(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        total: Tensor = out + self.downsample(x)
        return total


class PreBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ``(B, inputs, S, S)`` to ``(B, 4 channels, S/stride, S/stride)``."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        total: Tensor = out + self.downsample(x)
        return total


def _stage(
    block: type[PreBasicBlock] | type[PreBottleneck], inputs: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(block.expansion * channels, channels, 1) for _ in range(count - 1)))


class PreResNet(nn.Module):
    """Stem, three stages with strides 1, 2, 2, BatchNorm, ReLU, global average pooling and the classifier ``fc``.

    Paper vs code: the public code takes basic blocks below depth 44 and bottlenecks from there on, (depth - 2) / 6
    a stage in both cases, so its "44", "56" and "110" have 65, 83 and 164 weighted layers. It pools 8x8 windows,
    which is the same as global pooling at 32x32 and fails at 64x64.

    Args:
        depth: 6n + 2.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        width: Factor on the channels 16-32-64.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        block: type[PreBasicBlock] | type[PreBottleneck] = PreBottleneck if depth >= 44 else PreBasicBlock
        count = (depth - 2) // 6
        c1, c2, c3 = (scaled(channels, width) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, c1, 3, padding=1, bias=False)
        self.layer1 = _stage(block, c1, c1, count, stride=1)
        self.layer2 = _stage(block, block.expansion * c1, c2, count, stride=2)
        self.layer3 = _stage(block, block.expansion * c2, c3, count, stride=2)
        self.bn = nn.BatchNorm2d(block.expansion * c3)
        self.fc = nn.Linear(block.expansion * c3, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # N(0, 2 / (k² · channels out))
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)`` of any size."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


@register_model("preresnet20")
def preresnet20(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build PreResNet-20: 272,282 parameters at 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; the net takes any.
        width: Factor on the channels of every stage.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return PreResNet(20, num_classes, in_channels, width)


@register_model("preresnet32")
def preresnet32(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build PreResNet-32: 466,714 parameters at 10 classes; arguments and errors as ``preresnet20``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return PreResNet(32, num_classes, in_channels, width)


@register_model("preresnet44")
def preresnet44(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build PreResNet-44 of bottlenecks: 683,162 parameters at 10 classes; arguments and errors as ``preresnet20``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return PreResNet(44, num_classes, in_channels, width)


@register_model("preresnet56")
def preresnet56(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build PreResNet-56 of bottlenecks: 868,634 parameters at 10 classes; arguments and errors as ``preresnet20``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return PreResNet(56, num_classes, in_channels, width)


@register_model("preresnet110")
def preresnet110(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build PreResNet-110 of bottlenecks: 1,703,258 parameters at 10 classes; arguments as ``preresnet20``."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return PreResNet(110, num_classes, in_channels, width)
