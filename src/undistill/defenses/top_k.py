"""Truncated probabilities: what is unlikely stays with its owner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense
from undistill.errors import RecipeError

__all__ = ["TopK", "largest", "truncated"]


@register_output_defense("top_k")
class TopK(OutputDefense):
    """Keep the k largest probabilities, make the others zero, and give each row the sum 1 again.

    Of equal probabilities at the border those of the first classes are kept, so that it is exactly k. The label stays
    as it is.

    Paper vs ours: the authors' code gives the kept ones away as they are; ours are divided by their sum, so that they
    are probabilities.
    """

    paper = Paper(
        "Knockoff Nets: Stealing Functionality of Black-Box Models", "CVPR", 2019, "https://arxiv.org/abs/1812.02766"
    )
    keeps_label = True
    smoke: ClassVar[dict[str, Any]] = {"k": 2}

    k: int = Field(5, ge=1, strict=True, description="classes that are kept; at most as many as there are")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the truncated probabilities (B, K); the images are not looked at.

        Raises:
            RecipeError: There are fewer than k classes.
        """
        classes = probs.shape[1]
        if self.k > classes:
            raise RecipeError(
                f"top_k: keeps k={self.k} classes, but there are only {classes}; set k to {classes} or less"
            )
        return truncated(probs, self.k)


def truncated(probs: Tensor, k: int) -> Tensor:
    """Return the k largest probabilities of each row, 1..K, divided by their sum; (B, K), the others zero."""
    kept = probs.where(largest(probs, k), 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def largest(scores: Tensor, k: int) -> Tensor:
    """Return which are the k largest of each row, 1..K, boolean (B, K); of equals at the border the first ones are."""
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :k]  # topk leaves open which of equals
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
