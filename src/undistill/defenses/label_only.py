"""The named class alone: all else stays with its owner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["LabelOnly"]


@register_output_defense("label_only")
class LabelOnly(OutputDefense):
    """Name the most probable class, the first of equals, and give it the probability 1 - ε + ε/K, all others ε/K.

    Nothing leaks beyond top-1, and nothing but top-1 is left to who asks honestly: what any other defense is worth
    shows beside it. The label stays as it is. With ε above 0 the answers look soft, and say as little.
    """

    paper = Paper(
        "Knockoff Nets: Stealing Functionality of Black-Box Models", "CVPR", 2019, "https://arxiv.org/abs/1812.02766"
    )
    keeps_label = True
    smoke: ClassVar[dict[str, Any]] = {}
    added: ClassVar[dict[str, Any]] = {"smoothing": 0.0}

    smoothing: float = Field(0.0, ge=0, lt=1, description="ε, the mass that all classes share")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return a row with one high value and all others alike for each image (B, K), which is not looked at."""
        shared = self.smoothing / probs.shape[1]
        return torch.full_like(probs, shared).scatter_(
            1, probs.argmax(dim=1, keepdim=True), 1 - self.smoothing + shared
        )
