"""Reversed ranks: the class as it is, and of what is beside it the opposite."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import OutputDefense, Paper, register_output_defense

__all__ = ["ReversedRanks"]


@register_output_defense("reversed_ranks")
class ReversedRanks(OutputDefense):
    """Give the k-th likeliest class the probability of the (K + 2 - k)-th, from the second one on to the last.

    The largest probability stays where it is, and with it the label where it has no equal; and no number changes, only
    its place. Entropy, confidence and the shape of every softened answer are what they were, so that what a thief loses
    is what he had from the order of the other classes. Done twice it is undone, by anyone who knows of it.

    Paper vs ours: it is no method of the paper, but a variant in its authors' code, on logits, for comparison. On
    probabilities it is the same at any temperature.
    """

    paper = Paper(
        "Sparse Logits Suffice to Fail Knowledge Distillation",
        "ICLR PAIR2Struct Workshop",
        2022,
        "https://openreview.net/forum?id=BxZgduuNDl5",
    )
    smoke: ClassVar[dict[str, Any]] = {}

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the same probabilities in other places (B, K); the images are not looked at."""
        sizes, order = probs.sort(dim=1, descending=True, stable=True)
        turned = torch.cat([sizes[:, :1], sizes[:, 1:].flip(1)], dim=1)
        return torch.empty_like(probs).scatter_(1, order, turned)
