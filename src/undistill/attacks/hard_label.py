"""Learning from hard labels only: the thief whom no softened answer can mislead."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["HardLabel"]


@register_attack("hard_label")
class HardLabel(Attack):
    """Train on the class that the victim names: loss = CE(s(x), argmax t(x)), its label smoothed by ε if one likes.

    Needs no true labels, and nothing but the top-1 answer of the victim (Knockoff Nets with ``argmaxed`` answers). On
    images that the victim gets right, such as those that it was trained on, its answers are the labels: there this is
    the student alone, and shows nothing of what the victim gives away.
    """

    access = Access.LABELS
    uses_labels = False
    partial_labels = True
    paper = Paper(
        "Knockoff Nets: Stealing Functionality of Black-Box Models", "CVPR", 2019, "https://arxiv.org/abs/1812.02766"
    )
    search: ClassVar[Search] = {"smoothing": Range(0, 0.4)}
    smoke: ClassVar[dict[str, Any]] = {}
    added: ClassVar[dict[str, Any]] = {"smoothing": 0.0}

    smoothing: float = Field(0.0, ge=0, lt=1, description="ε, the mass taken from the named class")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the cross-entropy of one batch against the victim's classes."""
        answers = self.victim(nets).labels(batch.x)
        logits = nets.model(batch.x)
        return StepOutput(F.label_smoothing_loss(logits, answers, self.smoothing), logits)
