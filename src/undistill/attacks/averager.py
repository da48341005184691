"""The averager student (Keser and Toreyin, 2023): what all images of a class have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import one_hot

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack

__all__ = ["Averager"]


@register_attack("averager")
class Averager(Attack):
    """Learn from the victim's answers averaged over the images of a class in the batch, and from true labels.

    loss = α τ² KL(softmax(z̄/τ) ‖ softmax(s(x)/τ)) + (1 - α) CE(s(x), y), where z̄ is the mean of the victim's logits
    over the images of the batch with the same true label. What differs from image to image, as the peaks of a nasty
    teacher do, is averaged away; what classes have to do with each other is left.

    Probabilities do as well as logits: their logarithms differ from these by a shift of all classes of an image.

    Paper vs ours: the authors' code multiplies the first term by α twice, here α counts once. Their students have
    several exits, of which this loss takes the first; ours are any net.
    """

    access = Access.PROBS
    uses_labels = True
    paper = Paper(
        "Averager Student: Distillation from Undistillable Teacher",
        "ICLR Tiny Papers",
        2023,
        "https://github.com/rkevser/AveragerStudent",
    )
    search: ClassVar[Search] = {
        "temperature": Range(1, 32, log=True),
        "alpha": Range(0.3, 1),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ: 20 in the authors' settings for CIFAR-100")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the averaged answers in the loss")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        answers = self.victim(nets).scores(batch.x)
        logits = nets.model(batch.x)
        means = _class_means(answers.float(), batch.y)
        loss = F.kd_loss(logits, means, batch.y, temperature=self.temperature, alpha=self.alpha)
        return StepOutput(loss, logits)


def _class_means(scores: Tensor, labels: Tensor) -> Tensor:
    """Return for each row the mean of all rows with the same label."""
    members = one_hot(labels, scores.shape[1]).to(scores)
    shares = members / members.sum(0).clamp(min=1)
    return members @ (shares.T @ scores)
