"""Perturbed where they are unsure (Khaled et al., 2023): the reversed sigmoid, for answers below a threshold alone."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense
from undistill.defenses.reverse_sigmoid import deceived

__all__ = ["DCP"]


@register_output_defense("dcp")
class DCP(OutputDefense):
    """Give away y' ∝ max(0, y - h β (σ(γ logit(y)) - 1/2)), with h = σ(ν (β - max_j y_j)).

    h is nearly 0 where the answer is surer than β and nearly 1 below, so that sure answers stay as they are, and β is
    both the threshold and how much. The label may change where it is unsure.

    Paper vs ours: the authors' code cuts the odds y / (1 - y) off at 1 and at 1e-12, so that it takes nothing from a
    class above one half; ours takes the formula as it stands, for probabilities from 1e-7 to 1 - 1e-7, and what would
    be negative is 0.
    """

    paper = Paper(
        "Efficient Defense Against Model Stealing Attacks on Convolutional Neural Networks",
        "arXiv",
        2023,
        "https://arxiv.org/abs/2309.01838",
    )
    smoke: ClassVar[dict[str, Any]] = {"beta": 0.8}

    beta: float = Field(0.7, ge=0, description="β, threshold and size; from 0 to 1.5 in the authors' code")
    gamma: float = Field(0.1, gt=0, description="γ, how steep")
    switch: float = Field(1000.0, gt=0, description="ν, how sharply it switches at the threshold")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the perturbed probabilities (B, K); the images are not looked at."""
        unsure = (self.switch * (self.beta - probs.amax(dim=1, keepdim=True))).sigmoid()
        return deceived(probs, self.beta * unsure, self.gamma)
