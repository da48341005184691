"""Distillation from a stronger teacher (Huang et al., 2022): match how answers vary, not what they are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional
from torch import Tensor

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["DIST"]


@register_attack("dist")
class DIST(Attack):
    """Learn answers that go with the victim's, by image and by class, and true labels.

    loss = a CE(s(x), y) + τ² (β (1 - mean_b ρ(p_b, q_b)) + γ (1 - mean_k ρ(p^k, q^k))), where p = softmax(t(x)/τ) are
    the victim's answers to a batch, q the student's, ρ is Pearson's correlation over the classes of one image, or over
    the images of a batch for one class. Correlation does not change where answers are stretched or shifted, so
    a student need not be as sure as its victim. Of two classes it is always 1 or -1 over classes, and teaches nothing.

    Where an image has no label the victim's answer alone counts; the first term is the mean over those that have one.
    Equal values beside unequal ones count as no correlation, 0.
    """

    access = Access.PROBS
    uses_labels = True
    partial_labels = True
    paper = Paper("Knowledge Distillation from A Stronger Teacher", "NeurIPS", 2022, "https://arxiv.org/abs/2205.10536")
    search: ClassVar[Search] = {
        "temperature": Range(1, 8, log=True),
        "by_image": Range(0.3, 4, log=True),
        "by_class": Range(0.3, 4, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(1.0, gt=0, description="τ of both sides' answers")
    by_image: float = Field(1.0, ge=0, description="β, of the correlation over classes, image by image")
    by_class: float = Field(1.0, ge=0, description="γ, of the correlation over images, class by class")
    label_weight: float = Field(1.0, ge=0, description="a, of the labels' part")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        p, q = ((each.float() / self.temperature).softmax(1) for each in (answers, logits))
        apart = self.by_image * (1 - _correlation(p, q)) + self.by_class * (1 - _correlation(p.T, q.T))
        known = batch.y >= 0 if batch.partial else None
        ce = F.cross_entropy(logits, batch.y, known=known)
        return StepOutput(self.label_weight * ce + self.temperature**2 * apart, logits)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of one matrix with the same row of another, on average."""
    a, b = (each - each.mean(1, keepdim=True) for each in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=1).mean()
