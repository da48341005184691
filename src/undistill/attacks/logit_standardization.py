"""Distillation of standardized logits (Sun et al., 2024): every answer gets a temperature of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["LogitStandardization"]

_SMALLEST = 1e-7  # added to the standard deviation, as in the authors' code


@register_attack("logit_standardization")
class LogitStandardization(Attack):
    """Learn from answers that are brought to one mean and spread, the student's too, and from true labels.

    loss = a CE(s(x), y) + m τ² KL(softmax(Z(t(x))/τ) ‖ softmax(Z(s(x))/τ)), where Z takes an image's logits to mean 0
    and standard deviation 1 (with K - 1 below). So a student need not reach the size of its victim's logits, only their
    shape; a nasty teacher that answers levelly is stretched to the spread of any other. Two classes have one shape, so
    that labels alone teach there.

    Probabilities do as well as logits: their logarithms differ from these by a shift. Where an image has no label the
    victim's answer alone counts; the first term is the mean over those that have one.
    """

    access = Access.PROBS
    uses_labels = True
    partial_labels = True
    paper = Paper("Logit Standardization in Knowledge Distillation", "CVPR", 2024, "https://arxiv.org/abs/2403.01427")
    search: ClassVar[Search] = {
        "temperature": Range(1, 8, log=True),
        "multiplier": Range(1, 20, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(2.0, gt=0, description="τ, after standardization")
    multiplier: float = Field(9.0, gt=0, description="m, of the victim's part")
    label_weight: float = Field(0.1, ge=0, description="a, of the labels' part")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        kl = F.kl_divergence(_standardized(answers), _standardized(logits), self.temperature)
        known = batch.y >= 0 if batch.partial else None
        ce = F.cross_entropy(logits, batch.y, known=known)
        return StepOutput(self.label_weight * ce + self.multiplier * self.temperature**2 * kl, logits)


def _standardized(scores: Tensor) -> Tensor:
    scores = scores.float()
    return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + _SMALLEST)
