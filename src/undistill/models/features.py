"""What any network computes just before its last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from undistill.errors import ShapeError, UnknownNameError

__all__ = ["last_layer", "logits_and_features", "logits_and_last_layer", "logits_and_output", "logits_and_outputs"]

_WRAPPERS = ("", "net.", "_orig_mod.", "_orig_mod.net.")  # ours, and those of torch.compile


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
    logits, _, features = _run(model, x)
    return logits, features.flatten(1)


def last_layer(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return the last layer itself and its input, as it takes it; arguments and errors as ``logits_and_features``."""
    return _run(model, x)[1:]


def logits_and_last_layer(model: nn.Module, x: Tensor) -> tuple[Tensor, nn.Module]:
    """Run ``model`` once and return its output and its last layer; arguments and errors as ``logits_and_features``."""
    return _run(model, x)[:2]


def logits_and_output(model: nn.Module, x: Tensor, layer: str = "") -> tuple[Tensor, Tensor]:
    """Run ``model`` once and return its output and what one of its modules returns on the way.

    Args:
        model: As of ``logits_and_features``.
        x: Images ``(B, C, H, W)``.
        layer: Name of the module, as of ``model.named_modules()``; ``""`` for the input of the last layer.

    Returns:
        Logits as the model returns them, and features ``(B, D)``.

    Raises:
        ShapeError: No linear layer or 1x1 convolution runs in the model, or the module does not.
        UnknownNameError: The model has no module of that name.
    """
    if not layer:
        return logits_and_features(model, x)
    logits, (output,) = logits_and_outputs(model, x, [layer])
    return logits, output.flatten(1)


def logits_and_outputs(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Run ``model`` once and return its output and what some of its modules return, of any shape ``(B, ...)``.

    Of a module that runs more than once it is what it returns last.

    Args:
        model: As of ``logits_and_features``.
        x: Images ``(B, C, H, W)``.
        layers: Names of the modules, as of ``model.named_modules()``.

    Raises:
        ShapeError: A module did not run.
        UnknownNameError: The model has no module of a name.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            name = next((wrapper + layer for wrapper in _WRAPPERS if wrapper + layer in modules), None)
            if name is None:
                raise UnknownNameError("module", layer, [name for name in modules if name])
            hooks.callback(modules[name].register_forward_hook(_remember(outputs, layer)).remove)
        logits: Tensor = model(x)
    for layer in layers:
        if layer not in outputs:
            raise ShapeError(f"module {layer!r} of {type(model).__name__} did not run; choose another layer")
    return logits, [outputs[layer] for layer in layers]


def _remember(outputs: dict[str, Tensor], layer: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """Return a hook that keeps what a module returns."""

    def remember(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        outputs[layer] = output

    return remember


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, nn.Module, Tensor]:
    """Return the output of a model, its last layer, and the input of that."""
    last: list[tuple[nn.Module, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        last[:] = [(module, inputs[0])]

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
    return logits, *last[0]


def _may_classify(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1})
