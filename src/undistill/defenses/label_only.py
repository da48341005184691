"""The named class alone: all else stays with its owner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import OutputDefense, Paper, register_output_defense

__all__ = ["LabelOnly"]


@register_output_defense("label_only")
class LabelOnly(OutputDefense):
    """Name the most probable class, the first of equals, and give it the probability 1.

    Nothing leaks beyond top-1, and nothing but top-1 is left to who asks honestly: what any other defense is worth
    shows beside it. The label stays as it is.
    """

    paper = Paper(
        "Knockoff Nets: Stealing Functionality of Black-Box Models", "CVPR", 2019, "https://arxiv.org/abs/1812.02766"
    )
    smoke: ClassVar[dict[str, Any]] = {}

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return one row of zeros and a one for each image (B, K); the images are not looked at."""
        return torch.zeros_like(probs).scatter_(1, probs.argmax(dim=1, keepdim=True), 1.0)
