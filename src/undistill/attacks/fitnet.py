"""FitNets (Romero et al., 2015): a student that is to see in an image what the victim sees."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from undistill import functional as F
from undistill.attacks import (
    Access,
    Attack,
    Batch,
    Field,
    Frame,
    Nets,
    Paper,
    Range,
    Search,
    StepOutput,
    register_attack,
)
from undistill.models.features import logits_and_features

__all__ = ["FitNet"]


@register_attack("fitnet")
class FitNet(Attack):
    """Bring the student's features, through a trained projector, to the victim's.

    loss = CE(s(x), y) + weight · mean (P f_s(x) - f_t(x))² + kd · τ² KL(softmax(t(x)/τ) ‖ softmax(s(x)/τ)), where f_s
    and f_t are the inputs of the last layers and P is a linear layer, trained with the student and thrown away. With
    ``kd`` the victim is asked about every image twice, and its meter says so.

    Paper vs ours:
        The paper trains in two stages, the lower half of the student on the hint of a middle layer through a
        convolution, and then the whole student by distillation. Ours is one stage, as in ``mdistiller``, whose weight
        of 100 beside cross-entropy is the default; that has a middle layer and a convolution too. Ours are the features
        before the last layer: every net has them, and an interface that gives embeddings away shows them.
    """

    access = Access.FEATURES
    uses_labels = True
    paper = Paper("FitNets: Hints for Thin Deep Nets", "ICLR", 2015, "https://arxiv.org/abs/1412.6550")
    search: ClassVar[Search] = {
        "weight": Range(1, 300, log=True),
        "kd": Range(0.1, 10, log=True),
        "temperature": Range(1, 16, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {"weight": 1.0, "kd": 0.5}

    weight: float = Field(100.0, ge=0, description="of the mean squared distance of the features")
    kd: float = Field(0.0, ge=0, description="weight of the softened answers; with 0 they are not asked for")
    temperature: float = Field(4.0, gt=0, description="τ of the softened answers")

    def modules(self, nets: Nets, frame: Frame) -> nn.ModuleDict:
        """Return the projector, from the student's features (B, D_s) to the victim's (B, D_t).

        How many there are is found out with a blank image, which the victim's meter does not count: the width of an
        answer is in the documentation of an interface.
        """
        device = next(nets.model.parameters()).device
        blank = torch.zeros(1, frame.in_channels, frame.image_size, frame.image_size, device=device)
        theirs = self.victim(nets).another().features(blank)
        training = nets.model.training
        with torch.no_grad():
            _, ours = logits_and_features(nets.model.eval(), blank)
        nets.model.train(training)
        return nn.ModuleDict({"projector": nn.Linear(ours.shape[1], theirs.shape[1])})

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce`` and ``hint`` (the mean squared distance, without its weight)."""
        victim = self.victim(nets)
        logits, features = logits_and_features(nets.model, batch.x)
        ce = F.cross_entropy(logits, batch.y)
        hint = (nets.modules["projector"](features.float()) - victim.features(batch.x)).square().mean()
        loss = ce + self.weight * hint
        if self.kd:
            kl = F.kl_divergence(victim.logits(batch.x), logits, self.temperature)
            loss = loss + self.kd * self.temperature**2 * kl
        return StepOutput(loss, logits, {"ce": ce, "hint": hint})
