"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from undistill.engine.config import Training
from undistill.engine.muon import Muon
from undistill.errors import RecipeError

__all__ = ["learning_rate", "make_optimizer"]

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
_WARM_UP, _START, _END = 0.3, 1 / 25, 1 / 25e4


def make_optimizer(config: Training, model: nn.Module, *others: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of ``config`` over the parameters of ``model`` and ``others`` that are trained, in order.

    Raises:
        RecipeError: The model has none.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise RecipeError("model: it has no parameters that require gradients, so there is nothing to train")
    if config.optimizer == "muon":
        return Muon(model, others, lr=config.lr, momentum=config.momentum)
    parameters += [p for other in others for p in other.parameters() if p.requires_grad]
    # Fused: one pass over each tensor instead of four, rounded otherwise.
    fused = config.profile != "exact" and all(p.dtype == torch.float32 for p in parameters)
    if config.optimizer == "adam":
        capturable = fused and parameters[0].is_cuda  # by a CUDA graph
        return torch.optim.Adam(
            parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None, capturable=capturable
        )
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused or None
    )


def learning_rate(config: Training, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step, a pure function of where training stands, so that a resume needs no state.

    ``step`` follows ``MultiStepLR``; ``one_cycle`` follows ``OneCycleLR(cycle_momentum=False)`` over the whole run,
    ``linear`` falls from ``lr`` at the first step to zero after the last.

    Args:
        config: The protocol.
        epoch: Epoch, from 0.
        step: Step within the epoch, from 0.
        steps_per_epoch: Steps in every epoch.
    """
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "linear":
        return config.lr * (1 - (epoch + step / steps_per_epoch) / config.epochs)
    if config.schedule == "one_cycle":
        last = config.epochs * steps_per_epoch - 1
        return config.lr * _one_cycle(epoch * steps_per_epoch + step, last)
    return config.lr


def _one_cycle(step: int, last: int) -> float:
    peak = _WARM_UP * (last + 1) - 1
    if step <= peak:
        return _cosine(_START, 1.0, step / peak)
    return _cosine(1.0, _END, (step - peak) / (last - peak) if last > peak else 1.0)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
