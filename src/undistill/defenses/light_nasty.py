"""Light-nasty teacher (Kelleher, 2021): a normal net whose last layer alone is trained to be nasty."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from undistill import functional as F
from undistill.defenses import Batch, Defense, Field, Frame, Nets, Paper, StepOutput, register_defense
from undistill.defenses.nasty import nastiness, start_as
from undistill.models.features import last_layer

__all__ = ["LightNasty"]


@register_defense("light_nasty")
class LightNasty(Defense):
    """Start from the weights of a normally trained twin, freeze all but the last layer, and train that to be nasty.

    The loss is that of ``nasty``, CE(f(x), y) - ω τ² KL(softmax(f(x)/τ) ‖ softmax(g(x)/τ)). Everything below the last
    layer is in eval mode, so that its statistics stay those of the twin as well: a net that is trained already becomes
    nasty at the price of its forward passes. What it has to work with are the twin's features, which tell the classes
    apart and were not made to hide anything.

    Threat model:
        As of ``nasty``. Whoever gets the features has those of a normal net.

    Paper vs ours: there is the authors' code alone. In it BatchNorm goes on following the batches, and what is trained
    is called ``linear``; here it is the layer that runs last.
    """

    needs_adversary = True
    paper = Paper(
        "Fast and Effective Nasty Teacher",
        "code of M. Kelleher",
        2021,
        "https://github.com/mattkelleher/Nasty-Teacher",
    )
    smoke: ClassVar[dict[str, Any]] = {"weight": 0.01}

    temperature: float = Field(4.0, gt=0, description="τ: 4 for CIFAR-10, 20 for CIFAR-100")
    weight: float = Field(0.04, ge=0, description="ω: 0.04 for CIFAR-10, 0.005 for CIFAR-100")

    def begin(self, nets: Nets, frame: Frame) -> None:
        """Copy the twin's weights and freeze all but the last layer.

        Raises:
            RecipeError: There is no twin, or it is of another architecture.
            ShapeError: The net has no last linear layer.
        """
        model = nets.model
        start_as(model, self.twin(nets))
        blank = torch.zeros(1, frame.in_channels, frame.image_size, frame.image_size)
        with torch.no_grad():
            head, _ = last_layer(model.eval(), blank.to(next(model.parameters()).device))
        model.requires_grad_(False)
        head.requires_grad_(True)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce``, and of its second term what ``nasty`` does."""
        logits = nets.model.eval()(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        kl, logs = nastiness(logits, self.twin(nets)(batch.x), self.temperature)
        return StepOutput(ce - self.weight * kl, logits, {"ce": ce, **logs})
