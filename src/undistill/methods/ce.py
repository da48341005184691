"""Plain training with cross-entropy."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.methods import Batch, Nets, Reference, StepOutput, register_reference

__all__ = ["CE"]


@register_reference("ce")
class CE(Reference):
    """Train on the labels: loss = CE(f(x), y).

    A normal teacher, and the student that needs no victim, are trained this way.
    """

    smoke: ClassVar[dict[str, Any]] = {}

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the cross-entropy of one batch."""
        logits = nets.model(batch.x)
        return StepOutput(F.cross_entropy(logits, batch.y), logits)
