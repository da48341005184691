"""Non-transferable learning: a teacher that works only where its owner allows (Wang et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.defenses import Batch, Defense, Field, Frame, Nets, Paper, StepOutput, register_defense
from undistill.defenses.ntl_augment import Outwards
from undistill.errors import RecipeError
from undistill.functional.losses import cross_entropy
from undistill.functional.mmd import mmd
from undistill.models.features import logits_and_output

__all__ = ["NTL", "closing_loss"]


def closing_loss(
    target_losses: Tensor,
    distance: Tensor,
    *,
    alpha: float,
    beta: float,
    loss_clamp: float = 1.0,
    distance_clamp: float = 1.0,
) -> Tensor:
    """Return -mean min(c, α L_T) · min(c', β D): what a net gains by being wrong on a target domain, and far from it.

    Beyond a clamp there is nothing more to gain: the gradient there is zero.

    Args:
        target_losses: L_T, the cross-entropy of each image of the target, nats, shape (B,).
        distance: D, the squared MMD of source and target features; a scalar.
        alpha: α >= 0.
        beta: β >= 0.
        loss_clamp: c > 0.
        distance_clamp: c' > 0.
    """
    return -(alpha * target_losses).clamp_max(loss_clamp).mean() * (beta * distance).clamp_max(distance_clamp)


@register_defense("ntl")
class NTL(Defense):
    """Learn the source domain, and be wrong everywhere else.

    loss = CE(source) - mean min(c, α CE(target)) · min(c', β MMD²(features of source and target)), where the mean is
    over the images of the target and the MMD has five Gaussian kernels. With several targets it is the mean of the
    products. Source and target go through the net as one batch.

    Target-specified, where the recipe names ``targets``: those are the domains that the net is closed to. Source-only,
    where it names none, what is pushed outwards from the source: styles, in ``directions`` directions and to each of
    ``distances``, that learn for the first ``warmup`` batches and then stand still (``ntl_augment.Outwards``).

    Threat model:
        Somebody uses the released net on data of a domain that the owner did not sell. One who has labeled data there,
        or the source's data, can fine-tune it: measure it with ``finetune``.

    Paper vs code:
        Paper and code clamp the mean over the batch. A few images with a loss of hundreds then fill it, and the rest
        stay right: on MNIST-M a small net came down to 28 % that way, and to 12 % with each image clamped, as here.
        The code divides both cross-entropies by the number of classes K (``KLDivLoss`` with its default reduction): the
        slopes stand to each other as here, but its clamp on α CE acts at K times the loss. Its features are those of
        the first convolutions. It starts from weights trained on ImageNet and takes Adam at 1e-4 for 30 epochs.
        In the paper the target of source-only is made by a conditional GAN from noise and labels, trained beforehand,
        whose directions come from freezing the first channels of each layer, with distances 0.1 to 0.5 in the
        discriminator's features. Here styles change the source's own images, which takes seconds to learn, and the net
        is trained along with them.
    """

    uses_targets = True
    paper = Paper(
        "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability Authorization",
        "ICLR",
        2022,
        "https://arxiv.org/abs/2106.06916",
    )
    smoke: ClassVar[dict[str, Any]] = {"warmup": 4, "directions": 1}

    alpha: float = Field(0.1, ge=0, description="α, on the target's cross-entropy")
    beta: float = Field(0.1, ge=0, description="β, on the squared MMD of source and target features, which is 0..10")
    loss_clamp: float = Field(1.0, gt=0, description="c, the most that α CE of an image counts")
    distance_clamp: float = Field(1.0, gt=0, description="c', the most that β MMD² counts")
    layer: str = Field("", description="module whose output is the features; default: the input of the last layer")
    warmup: int = Field(200, ge=1, strict=True, description="source-only: batches from which the styles learn")
    directions: int = Field(4, ge=1, strict=True, description="source-only: styles of each distance")
    distances: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="source-only: squared MMD, 0..10, up to which images are pushed"
    )
    class_weight: float = Field(0.5, ge=0, description="source-only: on a style's cross-entropy")
    style_lr: float = Field(0.01, gt=0, description="source-only: learning rate of the styles (Adam)")

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Outwards:
        """Return the styles of source-only; target-specified does not ask them."""
        return Outwards(frame, device, directions=self.directions, distances=self.distances, lr=self.style_lr)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce``, ``target_ce`` and ``mmd``."""
        targets = [(target.x, target.y) for target in batch.targets] or self._pushed(batch, nets)
        return self._closed(batch, targets, nets.model)

    def _pushed(self, batch: Batch, nets: Nets) -> list[tuple[Tensor, Tensor]]:
        outwards = nets.companion
        if not isinstance(outwards, Outwards):
            raise RecipeError("defense 'ntl' needs target domains, or its styles in nets.companion; got neither")
        if outwards.steps < self.warmup:
            outwards.learn(batch.x, batch.y, weight=self.class_weight)
        images = outwards.push(batch.x)
        return list(zip(images, torch.split(batch.y, [len(x) for x in images]), strict=True))

    def _closed(self, batch: Batch, targets: Sequence[tuple[Tensor, Tensor]], model: nn.Module) -> StepOutput:
        x = torch.cat([batch.x, *(x for x, _ in targets)])
        logits, features = logits_and_output(model, x, self.layer)
        sizes = [len(batch.x), *(len(x) for x, _ in targets)]
        (logits_source, *logits_target), (source, *others) = (torch.split(each, sizes) for each in (logits, features))
        ce = cross_entropy(logits_source, batch.y)
        losses = [
            F.cross_entropy(z.float(), y, reduction="none") for z, (_, y) in zip(logits_target, targets, strict=True)
        ]
        distances = [mmd(source, other) for other in others]
        closing = [
            closing_loss(
                loss,
                distance,
                alpha=self.alpha,
                beta=self.beta,
                loss_clamp=self.loss_clamp,
                distance_clamp=self.distance_clamp,
            )
            for loss, distance in zip(losses, distances, strict=True)
        ]
        logs = {"ce": ce, "target_ce": torch.cat(losses).mean(), "mmd": torch.stack(distances).mean()}
        return StepOutput(ce + torch.stack(closing).mean(), logits_source, logs)
