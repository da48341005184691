"""Transformed teacher matching (Zheng and Yang, 2024): learn from powers of the victim's probabilities.

With the power 1/τ it is the softening of distillation on the victim's side alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["TTM"]


@register_attack("ttm")
class TTM(Attack):
    """Learn from powers of the victim's probabilities, and from true labels.

    loss = r CE(s(x), y) + b mean_x U(x) KL(q ‖ softmax(s(x))), with q_k = p_k^γ / Σ_j p_j^γ of the victim's
    probabilities p. Plain TTM has U = 1; WTTM, ``weighted``, has U = Σ_j p_j^γ, so that answers which are level count
    more. What a nasty teacher writes into its answers is level at a low γ, and the order of the classes is left.

    Where an image has no label the victim's answer alone counts; the first term is the mean over those that have one.
    A probability of exactly zero stays zero.
    """

    access = Access.PROBS
    uses_labels = True
    partial_labels = True
    paper = Paper(
        "Knowledge Distillation Based on Transformed Teacher Matching",
        "ICLR",
        2024,
        "https://arxiv.org/abs/2402.11148",
    )
    search: ClassVar[Search] = {
        "power": Range(0.05, 1, log=True),
        "multiplier": Range(1, 60, log=True),
        "weighted": (False, True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    power: float = Field(0.1, gt=0, le=1, description="γ, 1/τ; 0.1 in the paper's code, 0.2 beside other losses")
    multiplier: float = Field(45.0, gt=0, description="b, of the victim's part; 45 in the paper's code for CIFAR-100")
    label_weight: float = Field(1.0, ge=0, description="r, of the labels' part")
    weighted: bool = Field(False, description="WTTM: count each image by the sum of its powers")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        powers = self.power * torch.nn.functional.log_softmax(self.victim(nets).scores(batch.x).float(), dim=1)
        logits = nets.model(batch.x)
        target = powers.softmax(1)
        each = torch.special.xlogy(target, target).sum(1) - (target * logits.float().log_softmax(1)).sum(1)
        if self.weighted:
            each = each * powers.logsumexp(1).exp()
        known = batch.y >= 0 if batch.partial else None
        ce = F.cross_entropy(logits, batch.y, known=known)
        return StepOutput(self.label_weight * ce + self.multiplier * each.mean(), logits)
