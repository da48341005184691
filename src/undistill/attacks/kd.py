"""Knowledge distillation (Hinton et al., 2015): the thief by the book."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["KD"]


@register_attack("kd")
class KD(Attack):
    """Learn from softened answers and true labels.

    loss = α τ² KL(softmax(t(x)/τ) ‖ softmax(s(x)/τ)) + (1 - α) CE(s(x), y), with victim t and student s (eq. 1 of the
    nasty-teacher paper, in which α = 0.9 and τ is the victim's τ_A).

    Answers are only softened, so probabilities do as well as logits: softmax(log p/τ) = softmax(z/τ). Where an image
    has no label the victim's answer alone counts; the second term is the mean over those that have one.

    At a high temperature the first term grows with τ² against a student that has not learned anything yet: a student
    can collapse to one class for every image. An adaptive thief lowers τ.
    """

    access = Access.PROBS
    uses_labels = True
    partial_labels = True
    textbook = True
    paper = Paper("Distilling the Knowledge in a Neural Network", "arXiv", 2015, "https://arxiv.org/abs/1503.02531")
    search: ClassVar[Search] = {
        "temperature": Range(1, 32, log=True),
        "alpha": Range(0.3, 1),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ_S: 4 for CIFAR-10, 20 for CIFAR-100 and Tiny-ImageNet")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the softened answers in the loss")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the distillation loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        known = batch.y >= 0 if batch.partial else None
        loss = F.kd_loss(logits, answers, batch.y, temperature=self.temperature, alpha=self.alpha, known=known)
        return StepOutput(loss, logits)
