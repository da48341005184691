"""Nasty teacher: self-undermining knowledge distillation (Ma et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any, ClassVar

from undistill import functional as F
from undistill.defenses import Batch, Defense, Field, Nets, Paper, StepOutput, register_defense
from undistill.errors import RecipeError

__all__ = ["Nasty"]


@register_defense("nasty")
class Nasty(Defense):
    """Keep the accuracy, but push the softened answers away from those of a normally trained twin.

    loss = CE(f(x), y) - ω τ² KL(softmax(f(x)/τ) ‖ softmax(g(x)/τ)), where g is the twin, frozen and in eval mode
    (eq. 3 of the paper). The net starts from random weights.

    Threat model:
        The attacker sees logits or soft labels of the released teacher on in-distribution images. One who uses only
        its hard labels, or soft labels at a low temperature, may learn as well as from a normal teacher: measure it.

    Paper vs code:
        The authors' code adds a constant 100 to the loss; it has no gradient and is left out. The target of its
        ``KLDivLoss`` is the trained net, as here, although a comment there says the opposite. ω is 0.04 for CIFAR-10
        in the code.
    """

    needs_adversary = True
    paper = Paper(
        "Undistillable: Making A Nasty Teacher That CANNOT Teach Students",
        "ICLR",
        2021,
        "https://openreview.net/forum?id=0zvfm-nZqQs",
    )
    smoke: ClassVar[dict[str, Any]] = {"weight": 0.01}

    temperature: float = Field(4.0, gt=0, description="τ_A: 4 for CIFAR-10, 20 for CIFAR-100 and Tiny-ImageNet")
    weight: float = Field(0.04, ge=0, description="ω: 0.04 for CIFAR-10, 0.005 for CIFAR-100, 0.01 for Tiny-ImageNet")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the self-undermining loss of one batch; logs ``ce`` and ``adversary_kl`` (τ² KL, without ω)."""
        if nets.adversary is None:
            raise RecipeError("defense 'nasty' needs an adversary; got none")
        logits = nets.model(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        kl = self.temperature**2 * F.kl_divergence(logits, nets.adversary(batch.x), self.temperature)
        return StepOutput(ce - self.weight * kl, logits, {"ce": ce, "adversary_kl": kl})
