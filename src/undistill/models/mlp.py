"""The paper's multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from undistill.errors import RecipeError, ShapeError
from undistill.models import register_model
from undistill.models.sizing import check_arguments, scaled

__all__ = ["MLP", "mlp"]


class MLP(nn.Sequential):
    """Linear layers ``fc1``, ``fc2``, ... with ReLU between them; the last one is the classifier.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image.
        hidden: Units of each hidden layer.
        relu_logits: Whether a ReLU follows the classifier too.
    """

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, hidden: Sequence[int], relu_logits: bool
    ) -> None:
        sizes = [in_channels * image_size**2, *hidden, num_classes]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(1))
        for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{i}"] = nn.Linear(inputs, outputs)
            if relu_logits or i <= len(hidden):
                layers[f"relu{i}"] = nn.ReLU()
        super().__init__(layers)
        self.input_shape = (in_channels, image_size, image_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, C, S, S)``.

        Raises:
            ShapeError: The images are not of the shape that the net was built for.
        """
        if x.shape[1:] != self.input_shape:
            raise ShapeError(f"mlp was built for images of shape {self.input_shape}, got {tuple(x.shape[1:])}")
        for layer in self:
            x = layer(x)
        return x


@register_model("mlp")
def mlp(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    hidden: Sequence[int] = (512, 512),
    relu_logits: bool = True,
    width: float = 1.0,
) -> nn.Module:
    """Build the paper's MLP: 1,841,162 parameters at 10 classes and 32x32.

    Paper vs code: the paper says nothing of it, but the public code has a ReLU on the logits, which the default
    reproduces: no logit is below 0, and a class whose logit is 0 gets no gradient. The public code works at 32x32
    only.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels.
        hidden: Units of each hidden layer; none of them makes a linear classifier.
        relu_logits: Whether a ReLU follows the last layer.
        width: Factor on ``hidden``.

    Raises:
        RecipeError: A number is out of range.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    problems = []
    if not isinstance(hidden, list | tuple) or not all(type(units) is int and units > 0 for units in hidden):
        problems.append(f"hidden must be a list of whole numbers from 1 up, such as (512, 512), got {hidden!r}")
    if not isinstance(relu_logits, bool):
        problems.append(f"relu_logits must be true or false, got {relu_logits!r}")
    if problems:
        raise RecipeError(problems)
    return MLP(num_classes, in_channels, image_size, [scaled(units, width) for units in hidden], relu_logits)
