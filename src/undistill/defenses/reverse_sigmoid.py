"""Deceptive perturbations (Lee et al., 2019): a reversed sigmoid taken off the answers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["ReverseSigmoid", "deceived"]

_NEAREST = 1e-7  # to 0 and 1 that a probability comes before its log-odds are taken


@register_output_defense("reverse_sigmoid")
class ReverseSigmoid(OutputDefense):
    """Give away y' ∝ max(0, y - β (σ(γ logit(y)) - 1/2)), with logit(y) = log(y / (1 - y)), class by class.

    What is likely loses, what is unlikely gains, and near 0 and 1 different probabilities come out alike. The label may
    change, the more easily the more classes there are; the defense does not look after it.

    Paper vs ours: the paper divides by the sum alone, where negative numbers can be left over; ours are cut off at 0
    before, so that they are probabilities. Log-odds are those of probabilities from 1e-7 to 1 - 1e-7.
    """

    paper = Paper(
        "Defending Against Neural Network Model Stealing Attacks Using Deceptive Perturbations",
        "IEEE SPW",
        2019,
        "https://arxiv.org/abs/1806.00054",
    )
    smoke: ClassVar[dict[str, Any]] = {"beta": 0.8}

    beta: float = Field(0.21, ge=0, description="β, how much: 0.21 is one of ModelGuard's settings for CIFAR-10")
    gamma: float = Field(0.2, gt=0, description="γ, how steep: 0.2 there")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the perturbed probabilities (B, K); the images are not looked at."""
        return deceived(probs, self.beta, self.gamma)


def deceived(probs: Tensor, beta: float | Tensor, gamma: float) -> Tensor:
    """Return max(0, y - β (σ(γ logit(y)) - 1/2)), divided by its sum; a tensor β has a row's own."""
    turned = (gamma * probs.logit(_NEAREST)).sigmoid() - 0.5
    cut = (probs - beta * turned).clamp(min=0)
    return cut / cut.sum(dim=1, keepdim=True)
