"""One training step of nets side by side: gradients, guard, update, count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from undistill.data.loader import Batch
from undistill.engine.config import Training, Tuning
from undistill.engine.guard import gradient_norm
from undistill.objective import Nets, Objective, StepOutput

__all__ = ["Learner", "take_step", "unmetered"]


def _ignore(output: StepOutput, batch: Batch) -> None:
    """Count nothing."""


@dataclass(eq=False)
class Learner:
    """One net in training, as its steps see it.

    Attributes:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at.
        optimizer: Over the parameters that are trained.
        guard: Told the loss and the gradient norm of every step, on CPU before its update; raises where one is not
            finite.
        count: Told what came of every step that was taken.
        turn: Opens a block in which torch's random generators are the net's own. Whoever trains several nets has it
            keep what is raised inside, which is of this net only.
        config: The protocol.
        steps: That training takes in all; where there are many, getting ready may take its time.
        tuning: How the last step was computed, where that was a choice.
    """

    objective: Objective
    nets: Nets
    optimizer: torch.optim.Optimizer
    guard: Callable[[Tensor, Tensor], None]
    count: Callable[[StepOutput, Batch], None] = _ignore
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    config: Training = field(default_factory=Training)
    steps: int = 0
    tuning: Tuning | None = None

    def norm(self) -> Tensor:
        """Return the norm of all gradients together, a scalar."""
        return gradient_norm(p for group in self.optimizer.param_groups for p in group["params"])

    def update(self, lr: float | Tensor) -> None:
        """Follow the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


def take_step(learners: Sequence[Learner], batch: Batch, lrs: Sequence[float | Tensor]) -> None:
    """Train every net on a batch, one after the other and each operation as it is written.

    Args:
        learners: The nets.
        batch: What to train on.
        lrs: The learning rate of each.
    """
    for learner, lr in zip(learners, lrs, strict=True):
        with learner.turn():
            learner.optimizer.zero_grad()
            if learner.nets.companion is not None:
                learner.nets.companion.pace(float(lr) / learner.config.lr)
            output = learner.objective.step(batch, learner.nets)
            output.loss.backward()  # type: ignore[no-untyped-call]
            learner.guard(output.loss, learner.norm())
            learner.update(lr)
            learner.count(output, batch)


def unmetered(learner: Learner) -> Learner:
    """Return a learner whose questions to its victim are not counted on its meter."""
    victim = learner.nets.victim
    return replace(learner, nets=replace(learner.nets, victim=victim.another() if victim is not None else None))
