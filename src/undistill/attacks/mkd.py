"""Markov distillation (Yang and Ye, 2024): a victim's answers, moved between classes to what the student can follow."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import (
    Access,
    Attack,
    Batch,
    Companion,
    Field,
    Frame,
    Nets,
    Paper,
    Range,
    Search,
    StepOutput,
    register_attack,
)
from undistill.errors import RecipeError
from undistill.objective import optimizer_tensors, restore_optimizer, under

__all__ = ["MKD"]

_SMALLEST = torch.finfo(torch.float32).tiny  # what underflows keeps a finite logarithm


@register_attack("mkd")
class MKD(Attack):
    """Learn from softened answers that a matrix of each true class has moved between classes, and from true labels.

    loss = α τ² KL(M_y softmax(t(x)/τ) ‖ softmax(s(x)/τ)) + (1 - α) CE(s(x), y), where the columns of M_y sum to one:
    M_c is softmax, down the columns, of s_c I + U_c V_cᵀ, and U_c and V_c have ``rank`` columns. At each step the
    matrices go down the gradient of the same KL by an Adam of their own, so that what no student can follow, such as
    the peaks of a nasty teacher, is moved to where it can.

    A research attack: an application for a patent, US 2025/0348752 A1, describes Markov distillation.

    Paper vs ours: the authors' code is not public. The form is that of ``train_MKD_RSD.py`` in the repository of CMIM,
    a re-implementation by others, without its second softmax over what is a distribution already. The rate of the
    matrices is a hundredth of 0.05, the student's there; it follows the schedule of the recipe.
    """

    access = Access.PROBS
    uses_labels = True
    paper = Paper(
        "Markov Knowledge Distillation: Make Nasty Teachers Trained by Self-undermining Knowledge Distillation Fully "
        "Distillable",
        "ECCV",
        2024,
        "https://ecva.net/papers/eccv_2024/papers_ECCV/html/12478_ECCV_2024_paper.php",
    )
    search: ClassVar[Search] = {
        "temperature": Range(1, 16, log=True),
        "alpha": Range(0.3, 1),
        "matrix_lr": Range(1e-4, 5e-2, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ of both sides' answers")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the moved answers in the loss")
    rank: int = Field(3, ge=1, strict=True, description="columns of U and V; 5 for Tiny-ImageNet")
    matrix_lr: float = Field(5e-4, gt=0, description="highest learning rate of the matrices' Adam")

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Companion:
        """Return the matrices, new."""
        return _Matrices(frame.num_classes, self.rank, self.matrix_lr, device)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Let the student learn from the moved answers, and the matrices from the student."""
        matrices = nets.companion
        if not isinstance(matrices, _Matrices):
            raise RecipeError("attack 'mkd' needs the matrices that its companion() makes; got none")
        answers = (self.victim(nets).scores(batch.x).float() / self.temperature).softmax(1)
        logits = nets.model(batch.x)
        moved = matrices.move(answers, batch.y).clamp(min=_SMALLEST).log()
        kl = self.temperature**2 * F.kl_divergence(moved.detach(), logits / self.temperature)
        ce = F.cross_entropy(logits, batch.y)
        matrices.update(self.temperature**2 * F.kl_divergence(moved, logits.detach() / self.temperature))
        return StepOutput(self.alpha * kl + (1 - self.alpha) * ce, logits)


class _Matrices(Companion):
    """A matrix for each class, whose columns sum to one, and the optimizer that trains all of them."""

    def __init__(self, classes: int, rank: int, lr: float, device: torch.device) -> None:
        self._lr = lr
        self._weights = nn.ParameterDict(
            {
                "scale": torch.ones(classes),
                "left": torch.stack([nn.init.kaiming_uniform_(torch.empty(classes, rank)) for _ in range(classes)]),
                "right": torch.stack([nn.init.kaiming_uniform_(torch.empty(classes, rank)) for _ in range(classes)]),
            }
        ).to(device)
        self._optimizer = torch.optim.Adam(self._weights.parameters(), lr=lr)

    def move(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return probabilities (B, K), each row multiplied by the matrix of its label, with a graph to the matrices."""
        scale, left, right = (self._weights[name][labels] for name in ("scale", "left", "right"))
        scores = left @ right.transpose(1, 2) + torch.diag_embed(scale.unsqueeze(1).expand(-1, left.shape[1]))
        moved: Tensor = (scores.softmax(1) @ answers.unsqueeze(2)).squeeze(2)
        return moved

    def update(self, loss: Tensor) -> None:
        """Take one step of the matrices down the gradient of ``loss``."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def pace(self, share: float) -> None:
        """Follow the schedule of the student's rate."""
        self._optimizer.param_groups[0]["lr"] = self._lr * share

    def state_dict(self) -> dict[str, Tensor]:
        """Return matrices and optimizer."""
        return {
            **{f"weights/{key}": value for key, value in self._weights.state_dict().items()},
            **{f"optimizer/{key}": value for key, value in optimizer_tensors(self._optimizer).items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them over."""
        self._weights.load_state_dict(under("weights/", state))
        restore_optimizer(self._optimizer, under("optimizer/", state))
