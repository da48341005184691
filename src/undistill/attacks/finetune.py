"""Fine-tuning: whoever has the weights trains them on, to remove a defense or to bring the net to data of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Frame, Nets, Paper, StepOutput, register_attack
from undistill.errors import RecipeError
from undistill.models.features import last_layer

__all__ = ["FineTune"]


@register_attack("finetune")
class FineTune(Attack):
    """Start from the victim's weights and go on with labels: loss = CE(s(x), y).

    The student is the victim's net: the recipe names the same model. How much data the thief has is the data set's
    ``subset``, such as ``subset=0.05``. A white box that is never asked anything: it counts no queries.

    ``layers`` is ``all``; ``last``: the last layer only, the rest in eval mode; or ``reinit_last``: all layers, the
    last one from new random weights. These are the attacks on watermarks (FTAL, FTLL and RTAL) against which
    non-transferable learning was measured.
    """

    access = Access.GRADIENTS
    uses_labels = True
    paper = Paper(
        "Turning Your Weakness Into a Strength: Watermarking Deep Neural Networks by Backdooring",
        "USENIX Security",
        2018,
        "https://arxiv.org/abs/1802.04633",
    )
    smoke: ClassVar[dict[str, Any]] = {}

    layers: Literal["all", "last", "reinit_last"] = Field("all", description="what is trained")

    def begin(self, nets: Nets, frame: Frame) -> None:
        """Copy the victim's weights, and draw new ones for the last layer where that is asked for.

        Raises:
            RecipeError: The student is another net than the victim, or takes images on another scale.
        """
        victim, model = self.victim(nets), nets.model
        weights = victim.weights()
        if not victim.same_pixels:
            raise RecipeError(
                "fine-tuning goes on with the victim's weights, but its images were normalized differently; give both "
                "data sets the same image_size= and channels=, which bring pixels to -1..1"
            )
        if _shapes(model.state_dict()) != _shapes(weights):
            raise RecipeError("fine-tuning goes on with the victim's weights; set model to the victim's model")
        model.load_state_dict(weights)
        if self.layers == "reinit_last":
            blank = torch.zeros(1, frame.in_channels, frame.image_size, frame.image_size)
            last, _ = _last(model, blank.to(next(model.parameters()).device))
            last.reset_parameters()
            model.train()

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the cross-entropy of one batch."""
        self.victim(nets)
        if self.layers == "last":
            last, features = _last(nets.model, batch.x)
            logits: Tensor = last(features)
        else:
            logits = nets.model(batch.x)
        return StepOutput(F.cross_entropy(logits, batch.y), logits)


@torch.no_grad()
def _last(model: nn.Module, x: Tensor) -> tuple[nn.Linear, Tensor]:
    """Return the last layer and its input (B, D), in eval mode: the layers before it, their statistics too, stay."""
    last, features = last_layer(model.eval(), x)
    if not isinstance(last, nn.Linear):
        raise RecipeError(f"the last layer of {type(model).__name__} is no linear one; fine-tune with layers=all")
    return last, features.float()  # before the last layer, the net may have computed in bfloat16


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
