"""What any network computes just before its last layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from undistill.errors import ShapeError

__all__ = ["logits_and_features", "penultimate"]


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """Return the input of the model's last layer, ``(B, D)``; arguments and errors as ``logits_and_features``."""
    return logits_and_features(model, x)[1]


def logits_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run ``model`` once and return its output and the input of its last layer.

    The last layer is the linear layer or 1x1 convolution that runs last, whatever its name. The model's mode and the
    gradient setting are the caller's.

    Args:
        model: Any module that maps ``x`` to logits.
        x: Images ``(B, C, H, W)``.

    Returns:
        Logits as the model returns them, and features ``(B, D)``.

    Raises:
        ShapeError: No linear layer or 1x1 convolution runs in the model.
    """
    last: list[Tensor] = []

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        last[:] = inputs[:1]

    hooks = [module.register_forward_pre_hook(remember) for module in model.modules() if _may_classify(module)]
    try:
        logits: Tensor = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise ShapeError(
            f"{type(model).__name__} runs no linear layer and no 1x1 convolution, so it has no features before the "
            "last layer; use a model that ends in one"
        )
    return logits, last[0].flatten(1)


def _may_classify(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1})
