"""Decoupled distillation (Zhao et al., 2022): how sure the victim is, and what it thinks of all other classes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["DKD"]


@register_attack("dkd")
class DKD(Attack):
    """Learn from the two parts of softened answers apart, and from true labels.

    loss = a CE(s(x), y) + τ² (α KL(b_t ‖ b_s) + β KL(o_t ‖ o_s)), softened by τ: b is the true class against all
    others, o the others among themselves, renormalized. KL of the whole answers is the first plus the second times what
    the victim leaves to the others, which for a sure victim is nothing: β sets that free.

    Paper vs ours: the authors' code hides the true class behind a large number, and sums probabilities before the
    logarithm; here both are exact in the logarithm, so that saturated answers stay finite, and with two classes, where
    there is one other, the second part is 0. Their weights grow over the first 20 of 240 epochs; ours are constant.
    """

    access = Access.PROBS
    uses_labels = True
    paper = Paper("Decoupled Knowledge Distillation", "CVPR", 2022, "https://arxiv.org/abs/2203.08679")
    search: ClassVar[Search] = {
        "temperature": Range(1, 16, log=True),
        "alpha": Range(0.3, 3, log=True),
        "beta": Range(0.5, 10, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ of both sides' answers")
    alpha: float = Field(1.0, ge=0, description="α, of the true class against all others")
    beta: float = Field(
        8.0,
        ge=0,
        description="β, of the others among themselves; 8 is one of the authors' values, which go with the teacher",
    )
    label_weight: float = Field(1.0, ge=0, description="a, of the labels' part")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        parts = [_parts(each.float() / self.temperature, batch.y) for each in (answers, logits)]
        (t, t_others), (s, s_others) = parts
        apart = self.alpha * _divergence(t, s) + self.beta * _divergence(t_others, s_others)
        ce = F.cross_entropy(logits, batch.y)
        return StepOutput(self.label_weight * ce + self.temperature**2 * apart, logits)


def _parts(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the true class and of the rest, (B, 2), and of the others alone, (B, K-1)."""
    true = labels.long().unsqueeze(1)
    rest = torch.arange(scores.shape[1] - 1, device=scores.device)
    others = scores.gather(1, rest + (rest >= true))  # all columns but the true class's
    binary = torch.cat([scores.gather(1, true), others.logsumexp(1, keepdim=True)], dim=1)
    return binary.log_softmax(1), others.log_softmax(1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()
