"""Probabilities at another temperature: surer than they are, or less so."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["Temperature"]


@register_output_defense("temperature")
class Temperature(OutputDefense):
    """Give away p_k^(1/τ) / Σ_j p_j^(1/τ), which is softmax(z/τ): below 1 surer answers, above 1 more even ones.

    It keeps the order of the classes, and with it the label, as far as float32 tells it, and a thief who knows τ takes
    it back. It is there as a yardstick: what a defense does beyond it is its own.
    """

    paper = Paper("On Calibration of Modern Neural Networks", "ICML", 2017, "https://arxiv.org/abs/1706.04599")
    smoke: ClassVar[dict[str, Any]] = {"temperature": 0.5}

    temperature: float = Field(2.0, gt=0, description="τ, of the answers that are given away")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the tempered probabilities (B, K); what is zero stays so. The images are not looked at."""
        logits = probs.log()
        return ((logits - logits.amax(dim=1, keepdim=True)) / self.temperature).softmax(dim=1)
