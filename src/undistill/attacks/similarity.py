"""Similarity-preserving distillation (Tung and Mori, 2019): what the victim finds alike, its student does too."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack
from undistill.models.features import logits_and_output

__all__ = ["Similarity"]

_SMALLEST = 1e-12  # of the squares of an image's similarities: an image with less has no features to speak of

_TINY = torch.finfo(torch.float32).tiny


@register_attack("similarity")
class Similarity(Attack):
    """Bring the similarities of the images of a batch to those that the victim's features have, and learn from labels.

    loss = CE(s(x), y) + weight · ‖G(s) - G(t)‖²/B², where G is F Fᵀ of features F, one row an image, with every row
    brought to length 1, and ‖·‖² is the sum of squares. Nothing has to project one net's features on the other's.

    Features are the inputs of the last layers, or what layers return that are named: the paper takes the maps of the
    last convolutions, flattened. An image whose features are all 0 is like none, itself included.
    """

    access = Access.FEATURES
    uses_labels = True
    paper = Paper("Similarity-Preserving Knowledge Distillation", "ICCV", 2019, "https://arxiv.org/abs/1907.09682")
    search: ClassVar[Search] = {"weight": Range(1, 10000, log=True)}
    smoke: ClassVar[dict[str, Any]] = {}

    weight: float = Field(3000.0, ge=0, description="of the mean squared difference of similarities")
    layer: str = Field("", description="name of the student's layer; empty for the input of its last one")
    victim_layer: str = Field("", description="name of the victim's layer; empty for the input of its last one")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce`` and ``apart``, the mean squared difference without its weight.

        Raises:
            ShapeError: A layer that is named does not run.
            UnknownNameError: A net has no layer of that name.
        """
        theirs = self.victim(nets).features(batch.x, self.victim_layer)
        logits, ours = logits_and_output(nets.model, batch.x, self.layer)
        ce = F.cross_entropy(logits, batch.y)
        apart = (_similarities(ours.float()) - _similarities(theirs)).square().mean()
        return StepOutput(ce + self.weight * apart, logits, {"ce": ce, "apart": apart})


def _similarities(features: Tensor) -> Tensor:
    """Return the products (B, B) of features (B, D), every row of length 1, or 0 where there is nothing."""
    features = features / features.detach().abs().amax().clamp(min=_TINY)  # fourth powers of it are to be numbers
    products = features @ features.T
    squares = products.square().sum(1, keepdim=True)
    there = squares > _SMALLEST
    return (products / squares.where(there, 1).sqrt()).where(there, 0)
