"""Rounded probabilities: the last digits of an answer stay with its owner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["Rounding"]


@register_output_defense("rounding")
class Rounding(OutputDefense):
    """Round every probability to a number of decimal digits, and give each row the sum 1 again.

    Where all of a row rounds to zero, as it can among many classes, the most probable class is named alone, the first
    one of equals.

    Paper vs ours: the paper gives the rounded numbers away as they are; ours are divided by their sum, so that they are
    probabilities. Where two classes round to the same, the first one is the label.
    """

    paper = Paper(
        "Stealing Machine Learning Models via Prediction APIs",
        "USENIX Security",
        2016,
        "https://arxiv.org/abs/1609.02943",
    )
    smoke: ClassVar[dict[str, Any]] = {"digits": 1}

    digits: int = Field(2, ge=0, le=6, strict=True, description="decimal digits that are kept; float32 has about 7")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the rounded probabilities (B, K); the images are not looked at."""
        rounded = probs.round(decimals=self.digits)
        total = rounded.sum(dim=1, keepdim=True)
        alone = torch.zeros_like(probs).scatter_(1, probs.argmax(dim=1, keepdim=True), 1.0)
        return torch.where(total > 0, rounded / total, alone)
