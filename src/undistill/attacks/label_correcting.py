"""Label-correcting distillation (Limantoro et al., 2025): a victim that is wrong is put right before it teaches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["LabelCorrecting"]


@register_attack("label_correcting")
class LabelCorrecting(Attack):
    """Learn from softened answers in which the label has the highest score, and from true labels.

    loss = α τ² KL(softmax(c(t(x), y)/τ) ‖ softmax(s(x)/τ)) + (1 - α) CE(s(x), y), where c exchanges the highest of an
    image's scores with that of its label; of several that are highest, the first, unless the label is among them. So an
    answer keeps its values, and with them how sure the victim is; a defense that gets its harm from wrong answers loses
    it. Where the victim is right, as on most images that it was trained on, nothing is exchanged, and the loss is that
    of ``kd``; so it would be without a label, which is why every image needs one. Probabilities do as well as logits.

    Paper vs ours: this is the first of the paper's two teachers, the victim put right, in the loss of ``kd`` and with
    its defaults. The authors' code adds up temperatures of 1 to 6 and two views of every image, and after 150 of 240
    epochs brings in the second teacher, the student's own answers put right, which says nothing of the victim.
    """

    access = Access.PROBS
    uses_labels = True
    paper = Paper(
        "Swapped Logit Distillation via Bi-level Teacher Alignment", "arXiv", 2025, "https://arxiv.org/abs/2504.20108"
    )
    search: ClassVar[Search] = {
        "temperature": Range(1, 32, log=True),
        "alpha": Range(0.3, 1),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ of both sides' answers")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the victim's answers in the loss")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        corrected = _corrected(answers, batch.y)
        loss = F.kd_loss(logits, corrected, batch.y, temperature=self.temperature, alpha=self.alpha)
        return StepOutput(loss, logits)


def _corrected(scores: Tensor, labels: Tensor) -> Tensor:
    """Return scores (B, K) in which the highest of each row and that of its label have changed places."""
    classes = torch.arange(scores.shape[1], device=scores.device)
    true = labels.unsqueeze(1)
    highest, top = scores.max(1, keepdim=True)
    return scores.where(classes != top, scores.gather(1, true)).where(classes != true, highest)
