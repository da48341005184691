"""Nasty teacher: self-undermining knowledge distillation (Ma et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from undistill import functional as F
from undistill.defenses import (
    Batch,
    Companion,
    Defense,
    Field,
    Frame,
    Nets,
    Paper,
    StepOutput,
    register_defense,
)
from undistill.defenses.budget import AccuracyBudget
from undistill.errors import RecipeError
from undistill.objective import Frozen

__all__ = ["Nasty", "nastiness", "start_as"]


# Share of the highest learning rate from which on a weight is steered: at once, or when the net has nearly learned.
_FROM_TWIN, _FROM_RANDOM = 0.9, 0.3


@register_defense("nasty")
class Nasty(Defense):
    """Keep the accuracy, but push the softened answers away from those of a normally trained twin.

    loss = CE(f(x), y) - ω τ² KL(softmax(f(x)/τ) ‖ softmax(g(x)/τ)), where g is the twin, frozen and in eval mode
    (eq. 3 of the paper). The net starts from random weights, or from the twin's, which takes a fraction of the time.

    With an ``accuracy_budget`` ω is not fixed: it is steered at each step, so that the net goes as far from its twin as
    it can at that price, in points of accuracy on held-out images. What nastiness costs hangs on how well the net fits
    its training images: fit first, then be nasty.

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
    added: ClassVar[dict[str, Any]] = {"accuracy_budget": None, "start": "random"}

    temperature: float = Field(4.0, gt=0, description="τ_A: 4 for CIFAR-10, 20 for CIFAR-100 and Tiny-ImageNet")
    weight: float | None = Field(
        0.04, ge=0, description="ω: 0.04 for CIFAR-10, 0.005 for CIFAR-100, 0.01 for Tiny-ImageNet"
    )

    accuracy_budget: float | None = Field(
        None, gt=0, description="points of held-out accuracy below the twin that ω may cost; by default ω is fixed"
    )
    start: Literal["random", "twin"] = Field("random", description="weights that training starts from")

    @model_validator(mode="before")
    @classmethod
    def _steered(cls, values: Any) -> Any:
        """Leave the weight open where a budget decides it."""
        steered = isinstance(values, dict) and values.get("accuracy_budget") is not None
        return {"weight": None, **values} if steered else values

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.weight is None) == (self.accuracy_budget is None):
            raise ValueError("give a weight, or an accuracy_budget, which steers it; not both, and not neither")
        return self

    def begin(self, nets: Nets, frame: Frame) -> None:
        """Copy the twin's weights where training starts from them.

        Raises:
            RecipeError: The twin is of another architecture.
        """
        if self.start == "twin":
            start_as(nets.model, self.twin(nets))

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Companion | None:
        """Return what steers the weight, where there is a budget.

        Raises:
            RecipeError: No image is held out, so that a price cannot be measured.
        """
        if self.accuracy_budget is None:
            return None
        held_out = nets.held_out
        if held_out is None or not len(held_out):
            raise RecipeError("accuracy_budget is measured on held-out images and there are none; set holdout=0.1")
        begin = _FROM_TWIN if self.start == "twin" else _FROM_RANDOM
        return AccuracyBudget(self.accuracy_budget, self.twin(nets), held_out, frame, device, begin=begin)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the self-undermining loss of one batch.

        Logs ``ce``, ``adversary_kl`` (τ² KL, without ω), and ``confidence`` and ``adversary_confidence``, the mean of
        the highest softened probability of the net and of its twin.
        """
        weight, budget = self.weight, nets.companion
        logs = {}
        if isinstance(budget, AccuracyBudget):
            weight = budget.steer(nets.model)
            logs = {"weight": batch.x.new_tensor(weight), "price": batch.x.new_tensor(budget.price)}
        logits = nets.model(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        kl, found = nastiness(logits, self.twin(nets)(batch.x), self.temperature)
        return StepOutput(ce - (weight or 0.0) * kl, logits, {**logs, "ce": ce, **found})


def nastiness(logits: Tensor, twin: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return how far softened answers are from those of a twin, τ² KL(softmax(z/τ) ‖ softmax(z_twin/τ)), and its logs.

    Args:
        logits: Of the trained net, (B, K).
        twin: Of its twin, (B, K), without gradients.
        temperature: τ > 0.

    Returns:
        The scalar, with a graph; and ``adversary_kl``, which is it, ``confidence`` and ``adversary_confidence``, the
        mean of the highest softened probability of the net and of its twin.
    """
    kl = temperature**2 * F.kl_divergence(logits, twin, temperature)
    logs = {"adversary_kl": kl}
    for whose, answers in (("", logits), ("adversary_", twin)):
        logs[f"{whose}confidence"] = (answers.detach().float() / temperature).softmax(1).amax(1).mean()
    return kl, logs


def start_as(model: nn.Module, twin: Frozen) -> None:
    """Give a net the weights of its twin.

    Raises:
        RecipeError: The twin is of another architecture.
    """
    try:
        model.load_state_dict(twin.net.state_dict())
    except RuntimeError:
        raise RecipeError(
            "to start from its weights a net needs a twin of the same architecture; set adversary.model to model"
        ) from None
