"""One training step: forward, loss, backward, a look at both, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from undistill.data.loader import Batch
from undistill.engine.config import Training, Tuning
from undistill.engine.guard import gradient_norm
from undistill.engine.objective import Nets, Objective, StepOutput

__all__ = ["EagerStepper", "Stepper", "Watch", "make_stepper"]

Watch = Callable[[Tensor, Tensor], None]  # takes the loss and the gradient norm; raises where one is not finite


class Stepper(Protocol):
    """Carries out steps of one training job.

    Attributes:
        tuning: How it computes, where that was a choice.
    """

    tuning: Tuning | None

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch at a learning rate."""


def make_stepper(
    objective: Objective,
    nets: Nets,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
    config: Training,
    device: torch.device,
    steps: int,
) -> Stepper:
    """Return what carries out the steps of a job as its profile says.

    Args:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at, on ``device``.
        optimizer: Over the parameters that are trained.
        watch: Told the loss and the gradient norm of every step; on CPU before its update.
        config: The protocol.
        device: Where to compute.
        steps: That the job takes; a longer one may spend more on getting ready.
    """
    if config.profile != "exact":
        from undistill.engine.fast import FastStepper  # it is made of what is here

        return FastStepper(objective, nets, optimizer, watch, config, device, steps)
    return EagerStepper(objective, nets, optimizer, watch)


class EagerStepper:
    """Does everything as it is written, one operation after the other."""

    tuning: Tuning | None = None

    def __init__(self, objective: Objective, nets: Nets, optimizer: torch.optim.Optimizer, watch: Watch) -> None:
        self._objective, self._nets, self._optimizer, self._watch = objective, nets, optimizer, watch
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        output = self._objective.step(batch, self._nets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        self._watch(output.loss, gradient_norm(self._parameters))
        self._optimizer.step()
        return output
