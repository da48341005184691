"""ResNeXt-29 (8x64d) for small images (Xie et al., 2017, arXiv:1611.05431)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["ResNeXt", "ResNeXtBlock", "resnext29"]

_GROUPS = 8


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3, 1x1 convolutions and a shortcut: ``(B, inputs, S, S)`` to ``(B, outputs, S/s, S/s)``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 2 * outputs  # 8 groups of outputs / 4
        self.conv_reduce = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=_GROUPS, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        return F.relu(self.bn_expand(self.conv_expand(out)) + self.shortcut(x))


def _stage(name: str, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(3):
        blocks[f"{name}_bottleneck_{i}"] = ResNeXtBlock(outputs if i else inputs, outputs, 1 if i else stride)
    return nn.Sequential(blocks)


class ResNeXt(nn.Module):
    """Stem, three stages of three blocks with strides 1, 2, 2, global average pooling and ``classifier``.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        width: Factor on the channels 64 (stem) and 256-512-1024 (stages).
    """

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        c0 = scaled(64, width)
        # A multiple of 4, so that the groups divide the inner channels.
        c1, c2, c3 = (scaled(channels, width, multiple=4) for channels in (256, 512, 1024))
        self.conv_1_3x3 = nn.Conv2d(in_channels, c0, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(c0)
        self.stage_1 = _stage("stage_1", c0, c1, stride=1)
        self.stage_2 = _stage("stage_2", c1, c2, stride=2)
        self.stage_3 = _stage("stage_3", c2, c3, stride=2)
        self.classifier = nn.Linear(c3, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)`` of any size."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@register_model("resnext29")
def resnext29(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build ResNeXt-29 (8x64d): 34,426,698 parameters at 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; the net takes any.
        width: Factor on all channels; stages keep a multiple of 4, so that 8 groups fit.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return ResNeXt(num_classes, in_channels, width)
