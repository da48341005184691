"""Maximizing angular deviation (Orekondy et al., 2020): answers that turn a thief's gradient, with the label kept."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["MAD"]

_LEAD = 1e-5  # of the label over its equals, before division by the sum


@register_output_defense("mad")
class MAD(OutputDefense):
    """Give away y' = y + α (y* - y), where y* turns the gradient of a thief's last layer the most.

    Gᵀy is what a thief with the features f and the answer q learns from y in his last layer: the gradient of
    -Σ_k y_k log q_k, which is (q - y) fᵀ. Among the distributions that are level on some classes, the label among
    them, y* maximizes ‖Gᵀy*/‖Gᵀy*‖ - Gᵀy/‖Gᵀy‖‖². Then α = min(1, ε/‖y* - y‖₁), so that y' is at most ε from y. The
    label, the first of equals, is kept; of two classes it cannot be while a gradient turns, and y moves to certainty.

    Of the thief's net only q is left, since the length of f drops out, and here he is at the beginning: q is 1/K. Then
    y* is of the label and the least likely classes, which is the optimum over all subsets, for every K.

    Paper vs ours: the paper takes q from a surrogate with random weights, or from a trained one, image by image. Its
    code tries all subsets up to 10 classes and lets a subset grow greedily beyond; it takes the variant that keeps the
    label by ``oracle=argmax``.
    """

    paper = Paper(
        "Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks",
        "ICLR",
        2020,
        "https://arxiv.org/abs/1906.10908",
    )
    keeps_label = True
    smoke: ClassVar[dict[str, Any]] = {}

    budget: float = Field(
        1.0, ge=0, le=2, description="ε, of the sum of absolute changes: 1 in ModelGuard's runs, 0.5 in the authors'"
    )

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the changed probabilities (B, K); the images are not looked at."""
        y, order = probs.double().sort(dim=1, descending=True, stable=True)
        classes = y.shape[1]
        sizes = torch.arange(1, classes, device=y.device)  # all classes would leave no gradient, which has no angle
        least = torch.cat([torch.zeros_like(y[:, :1]), y[:, 2:].flip(1).cumsum(1)], dim=1)
        # Of a size, the least mean is nearest to the opposite direction: (y* - 1/K)ᵀ(y - 1/K) = mean of y - 1/K.
        cosines = ((y[:, :1] + least) / sizes - 1 / classes) / (1 / sizes - 1 / classes).sqrt()
        size = sizes[cosines.argmin(dim=1, keepdim=True)]
        ranks = torch.arange(classes, device=y.device)
        vertex = ((ranks == 0) | (ranks > classes - size)).double() / size
        vertex = (vertex + _LEAD * (ranks == 0)) / (1 + _LEAD)
        share = (self.budget / (vertex - y).abs().sum(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        return torch.empty_like(y).scatter_(1, order, y + share * (vertex - y)).float()
