"""Truncated probabilities: what is unlikely stays with its owner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense
from undistill.errors import RecipeError

__all__ = ["TopK"]


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
        largest = probs.argsort(dim=1, descending=True, stable=True)[:, : self.k]  # topk leaves open which of equals
        kept = torch.zeros_like(probs).scatter_(1, largest, probs.gather(1, largest))
        return kept / kept.sum(dim=1, keepdim=True)
