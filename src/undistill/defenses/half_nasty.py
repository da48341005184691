"""Half-nasty teacher (Kelleher, 2021): nasty in the last layer alone, while the whole net learns the labels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.defenses import Batch, Defense, Field, Nets, Paper, StepOutput, register_defense
from undistill.defenses.nasty import nastiness
from undistill.models.features import logits_and_last_layer

__all__ = ["HalfNasty"]


@register_defense("half_nasty")
class HalfNasty(Defense):
    """Learn the labels with the whole net, and go away from a normally trained twin with the last layer alone.

    The loss is that of ``nasty``, CE(f(x), y) - ω τ² KL(softmax(f(x)/τ) ‖ softmax(g(x)/τ)), but the second term has
    gradients for the weights of the last layer only. What is below learns features from the labels, under a head that
    is nasty. It tells how much of nastiness is in the head, and a step takes hardly longer than one of ``nasty``.

    Threat model:
        As of ``nasty``. The features are those of a net that is not nasty: one who gets them needs no answers.

    Paper vs ours: there is the authors' code alone. It takes two backward passes and sets gradients between them to
    zero, in every module that is not called ``linear``; here the last layer is the one that runs last.
    """

    needs_adversary = True
    paper = Paper(
        "Fast and Effective Nasty Teacher",
        "code of M. Kelleher",
        2021,
        "https://github.com/mattkelleher/Nasty-Teacher",
    )
    smoke: ClassVar[dict[str, Any]] = {"weight": 0.01}

    temperature: float = Field(4.0, gt=0, description="τ: 4 for CIFAR-10, 20 for CIFAR-100 in the settings of nasty")
    weight: float = Field(0.04, ge=0, description="ω: 0.04 for CIFAR-10, 0.005 for CIFAR-100 in the settings of nasty")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce``, and of its second term what ``nasty`` does.

        Raises:
            ShapeError: The net has no last linear layer.
        """
        logits, head = logits_and_last_layer(nets.model, batch.x)
        ce = F.cross_entropy(logits, batch.y)
        kl, logs = nastiness(logits, self.twin(nets)(batch.x), self.temperature)
        return StepOutput(ce - self.weight * _for(head, kl), logits, {"ce": ce, **logs})


def _for(module: torch.nn.Module, loss: Tensor) -> Tensor:
    """Return a loss with its gradients for the parameters of one module, and with none for anything else."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    slope = torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
    return loss.detach() + (slope - slope.detach())
