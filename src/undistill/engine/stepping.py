"""One training step: forward, loss, backward, a look at both, update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from undistill.data.loader import Batch
from undistill.engine.config import Tuning
from undistill.engine.guard import gradient_norm
from undistill.objective import Nets, Objective, StepOutput

__all__ = ["EagerStepper", "Learner", "Stepper", "Watch"]

Watch = Callable[[Tensor, Tensor], None]  # takes the loss and the gradient norm; raises where one is not finite


@dataclass(frozen=True, eq=False)
class Learner:
    """One net in training, as its steps see it.

    Attributes:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at.
        optimizer: Over the parameters that are trained.
        watch: Told the loss and the gradient norm of every step; on CPU before its update.
    """

    objective: Objective
    nets: Nets
    optimizer: torch.optim.Optimizer
    watch: Watch

    def gradients(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch and its gradients."""
        self.optimizer.zero_grad()
        output = self.objective.step(batch, self.nets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        return output

    def norm(self) -> Tensor:
        """Return the norm of all gradients together, a scalar."""
        return gradient_norm(p for group in self.optimizer.param_groups for p in group["params"])

    def update(self, lr: float | Tensor) -> None:
        """Follow the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


class Stepper(Protocol):
    """Carries out steps of one training job.

    Attributes:
        tuning: How it computes, where that was a choice.
    """

    tuning: Tuning | None

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch at a learning rate."""


class EagerStepper:
    """Does everything as it is written, one operation after the other."""

    tuning: Tuning | None = None

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch."""
        output = self._learner.gradients(batch)
        self._learner.watch(output.loss, self._learner.norm())
        self._learner.update(lr)
        return output
