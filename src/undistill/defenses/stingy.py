"""Stingy teacher (Ma et al., 2022): sparse answers, of a share of the classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense
from undistill.defenses.top_k import truncated

__all__ = ["Stingy"]


@register_output_defense("stingy")
class Stingy(OutputDefense):
    """Keep the ⌊rK⌋ most probable classes, one at least, and leave nothing to the others.

    Of equal probabilities at the border those of the first classes are kept. The label stays as it is. It is ``top_k``
    with a share of the classes for a number of them. What hurts is the softening: at a high temperature the kept
    classes become nearly even, and what an image looks like beside its class is gone.

    Paper vs ours: the authors' server gives logits with -∞ for what is not kept, of which a softmax at any temperature
    makes 0. Ours gives probabilities; who takes their logarithm reads 0 as float32's smallest number, of which a high
    temperature makes more than nothing: at τ = 20 about 1 % of what a sure class has.
    """

    paper = Paper(
        "Sparse Logits Suffice to Fail Knowledge Distillation",
        "ICLR PAIR2Struct Workshop",
        2022,
        "https://openreview.net/forum?id=BxZgduuNDl5",
    )
    keeps_label = True
    smoke: ClassVar[dict[str, Any]] = {"share": 0.3}

    share: float = Field(0.2, gt=0, le=1, description="r, of the classes: 0.2 for CIFAR-10, 0.1 where there are 100")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the sparse probabilities (B, K); the images are not looked at."""
        return truncated(probs, max(1, math.floor(self.share * probs.shape[1] + 1e-9)))  # 0.29 · 100 is not 28
