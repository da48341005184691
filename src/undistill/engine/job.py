"""What is trained, who watches, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from undistill.engine.config import Training
from undistill.engine.evaluate import Evaluation
from undistill.objective import Nets, Objective

__all__ = ["Callback", "Job", "TrainResult"]


class Callback(Protocol):
    """Whoever wants to see training progress."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """One step is done; all three count from 1."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done; ``record`` is its line in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Job:
    """One net to train.

    Attributes:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at, all on the device.
        config: The protocol.
        state_path: File to save the state of training in and to resume from; None to keep nothing.
        callback: Told about every step and epoch.
        inputs_digest: Digest of what a saved state must have been trained with: images, adversary, victim.
    """

    objective: Objective
    nets: Nets
    config: Training
    state_path: Path | None = None
    callback: Callback | None = None
    inputs_digest: str = ""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training job.

    Attributes:
        last: Test metrics of the last epoch's weights.
        selected: Test metrics of the weights that the recipe keeps; the net has those weights.
        selected_epoch: Their epoch, from 1.
        images_per_s: Training images a second, evaluation included.
        seconds: Time spent, over all sessions of the run; of jobs that run together, each one's share.
        tuning: How the last session computed, where that was a choice.
        heldout: Accuracy of the selected weights on the held-out images with a label, in percent; None without any.
        agreement: Share of the held-out images, in 0..1, on which the selected weights name the class that the victim
            names; None where none are held out, or there is no victim. A thief can choose by both without the test
            set. The victim is asked as it would be, through its policy. Measuring is no attack, so the meter does not
            count it; a thief who measures it spends one query an image.
        trained_images: Images that the net was trained on, counted as often as they came.
        logits: Of the selected weights on the test images, (N, K), on the CPU.
    """

    last: Evaluation
    selected: Evaluation
    selected_epoch: int
    images_per_s: float
    seconds: float
    tuning: dict[str, Any] | None = None
    heldout: float | None = None
    agreement: float | None = None
    trained_images: int = 0
    logits: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
