"""Learning from hard labels only: the thief whom no softened answer can mislead."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Nets, Paper, StepOutput, register_attack

__all__ = ["HardLabel"]


@register_attack("hard_label")
class HardLabel(Attack):
    """Train on the class that the victim names: loss = CE(s(x), argmax t(x)).

    Needs no true labels, and nothing but the top-1 answer of the victim (Knockoff Nets with ``argmaxed`` answers).
    """

    access = Access.LABELS
    uses_labels = False
    paper = Paper(
        "Knockoff Nets: Stealing Functionality of Black-Box Models", "CVPR", 2019, "https://arxiv.org/abs/1812.02766"
    )
    smoke: ClassVar[dict[str, Any]] = {}

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the cross-entropy of one batch against the victim's classes."""
        answers = self.victim(nets).labels(batch.x)
        logits = nets.model(batch.x)
        return StepOutput(F.cross_entropy(logits, answers), logits)
