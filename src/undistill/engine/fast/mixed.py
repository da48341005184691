"""bfloat16 where it does no harm: everywhere but in the last layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from undistill.errors import ShapeError
from undistill.models.features import last_layer

__all__ = ["MixedPrecision"]


class MixedPrecision(nn.Module):
    """A net whose trunk computes in bfloat16 and whose last layer in float32.

    At a temperature of 20 the logits of a last layer in bfloat16 leave little of a gradient. The weights stay float32
    and are the net's own.

    Args:
        net: Any net.
        x: Images (B, C, H, W), to find its last layer with: the linear layer or 1x1 convolution that runs last.
    """

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net = net
        self._head = [_last_layer(net, x[:2])]  # in a list, so that it is not a second child of that name

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K), float32."""
        # Every weight is used once a step: a cache of rounded weights would only be in the way of a captured graph.
        with (
            torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False),
            _float32(self._head[0], x.device.type),
        ):
            logits: Tensor = self.net(x)
        return logits.float()


@contextmanager
def _float32(layer: nn.Module | None, device_type: str) -> Iterator[None]:
    """Take one layer out of autocast."""
    if layer is None:
        yield
        return

    def leave(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.set_autocast_enabled(device_type, False)
        return tuple(value.float() for value in inputs)

    def enter(*_: Any) -> None:
        torch.set_autocast_enabled(device_type, True)

    hooks = layer.register_forward_pre_hook(leave), layer.register_forward_hook(enter)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_layer(net: nn.Module, x: Tensor) -> nn.Module | None:
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad():
            return last_layer(net.eval(), x)[0]
    except ShapeError:  # there is none
        return None
    finally:
        for module, training in modes.items():
            module.training = training
