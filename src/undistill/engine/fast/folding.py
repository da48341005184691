"""Fold the BatchNorm layers of a net that is only asked into the layers before them: fewer passes, equal answers."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["fold_batchnorm"]

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batchnorm(net: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of a net in eval mode, with BatchNorm folded into the convolution or linear layer before it.

    In eval mode BatchNorm is an affine map of each channel, which such a layer can do with other weights. A pair is
    folded where the BatchNorm is the only reader of the layer's output, and both run once: in pre-activation nets the
    shortcut reads it too, so most of theirs stay. Where nothing fits, or the net cannot be looked at, the copy is as
    the net is.

    Args:
        net: Any net; it stays as it is.
        x: Images (B, C, H, W) to find out with who reads what.

    Returns:
        The copy, frozen; its outputs are equal up to float32 rounding.
    """
    copy = deepcopy(net).eval().requires_grad_(False)
    for layer, norm in _pairs(deepcopy(net).eval(), x):
        _fold(copy, layer, norm)
    return copy


def _pairs(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Return the names of layers and the BatchNorms that alone read them; the net is spoiled.

    Who reads what is in the graph that autograd keeps, whatever Python code the net consists of.
    """
    names = {module: name for name, module in net.named_modules()}
    calls: Counter[nn.Module] = Counter()
    made: dict[Node, nn.Module] = {}  # by which layer
    read: dict[Node, nn.Module] = {}  # by which BatchNorm

    def note_output(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        if output.grad_fn is not None:
            made[output.grad_fn] = layer

    def note_input(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if inputs[0].grad_fn is not None:
            read[inputs[0].grad_fn] = norm

    for module in names:
        if type(module) in (nn.Conv2d, nn.Linear):
            module.register_forward_hook(note_output)
        elif isinstance(module, _BATCHNORMS) and module.running_mean is not None:
            module.register_forward_pre_hook(note_input)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = net.requires_grad_(True)(x[:2].clone())
    except Exception:  # some net of somebody's that cannot take this: leave it alone
        return []
    readers = _readers(output.grad_fn)
    return [
        (names[layer], names[read[node]])
        for node, layer in made.items()
        if node in read and readers[node] == calls[layer] == calls[read[node]] == 1
    ]


def _readers(end: Node | None) -> Counter[Node]:
    """Count for each operation behind ``end`` how many others read its result."""
    readers: Counter[Node] = Counter()
    todo = [end] if end is not None else []
    seen = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
    return readers


def _fold(net: nn.Module, layer_name: str, norm_name: str) -> None:
    layer, norm = net.get_submodule(layer_name), net.get_submodule(norm_name)
    fused: nn.Module
    if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        fused = fuse_conv_bn_eval(layer, norm)
    elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        return
    net.set_submodule(layer_name, fused.requires_grad_(False))
    net.set_submodule(norm_name, nn.Identity())
