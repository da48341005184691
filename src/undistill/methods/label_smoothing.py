"""Training with smoothed labels."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.methods import Batch, Field, Nets, Paper, Range, Reference, Search, StepOutput, register_reference

__all__ = ["LabelSmoothing"]


@register_reference("label_smoothing")
class LabelSmoothing(Reference):
    """Train on labels that keep 1 - ε of their mass and spread ε evenly over all K classes.

    The second reference student: a student that gains no more than this from a victim learned a regularizer, not
    the victim's knowledge.
    """

    paper = Paper(
        "Rethinking the Inception Architecture for Computer Vision", "CVPR", 2016, "https://arxiv.org/abs/1512.00567"
    )
    search: ClassVar[Search] = {"smoothing": Range(0.02, 0.6, log=True)}
    smoke: ClassVar[dict[str, Any]] = {}

    smoothing: float = Field(0.1, ge=0, lt=1, description="ε, the mass taken from the label")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the cross-entropy of one batch against smoothed labels."""
        logits = nets.model(batch.x)
        return StepOutput(F.label_smoothing_loss(logits, batch.y, self.smoothing), logits)
