"""High-temperature composition (Jandial et al., 2022): soften the teacher's answers and not the student's."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["HTC"]


@register_attack("htc")
class HTC(Attack):
    """Learn from answers that are softened on the victim's side only, and from true labels.

    loss = α m KL(softmax(t(x)/τ) ‖ softmax(s(x))) + (1 - α) CE(s(x), y), with victim t and student s. What a nasty
    teacher writes into its answers is level at a high τ, and the order of the classes is left. There is no factor τ²;
    the level answers of a high τ differ so little that a thief turns m up instead.

    Probabilities do as well as logits. Where an image has no label the victim's answer alone counts; the second term is
    the mean over those that have one.

    Paper vs ours: the authors' code is not public. The form is that of public re-implementations, whose temperatures
    are 50 for CIFAR-10 and 70 for CIFAR-100, with m = 1; what the paper composes besides is not known here.
    """

    access = Access.PROBS
    uses_labels = True
    partial_labels = True
    paper = Paper(
        "Distilling the Undistillable: Learning from a Nasty Teacher", "ECCV", 2022, "https://arxiv.org/abs/2210.11728"
    )
    search: ClassVar[Search] = {
        "temperature": Range(4, 80, log=True),
        "multiplier": Range(0.5, 8, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(50.0, gt=0, description="τ of the victim's answers: 50 for CIFAR-10, 70 for CIFAR-100")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the softened answers in the loss")

    multiplier: float = Field(1.0, gt=0, description="m, beside α, of the softened answers")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        known = batch.y >= 0 if batch.partial else None
        kl = F.kl_divergence(answers / self.temperature, logits)
        ce = F.cross_entropy(logits, batch.y, known=known)
        return StepOutput(self.alpha * self.multiplier * kl + (1 - self.alpha) * ce, logits)
