"""ModelGuard-W (Tang et al., 2024): answers as far from what a thief would restore as a budget allows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["ModelGuardW"]

_FLOOR = 1e-6  # added to a probability before its logarithm, as in the authors' code
_SECTIONS = 50  # of the golden section: what is left of the interval is below float32's precision
_GOLDEN = 0.6180339887498949
# For each unit by which a budget is broken: above any gain of the objective, whose weights are at most 14.
_PENALTY = 1e4


@register_output_defense("modelguard_w")
class ModelGuardW(OutputDefense):
    """Give away the y' that solves min Σ_j y'_j log(y_j + 10⁻⁶) within ‖y' - y‖₁ ≤ ε, with the label kept.

    Mass goes from the likely classes to the least likely ones. y' is a distribution in which the label of y, the first
    of equals, leads every other class by ``margin``. Where nothing within ε does, y is given away as it is.

    Paper vs ours: the authors' code hands each batch to a solver of linear programs. With the largest probability held
    fixed the rest of the program is solved by moving mass from the top of the order to its end; what that costs is
    convex in the probability held, which is found by a golden section, for all rows at once.
    """

    paper = Paper(
        "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks",
        "USENIX Security",
        2024,
        "https://www.usenix.org/conference/usenixsecurity24/presentation/tang",
    )
    keeps_label = True
    smoke: ClassVar[dict[str, Any]] = {}

    budget: float = Field(1.0, ge=0, le=2, description="ε, of the sum of absolute changes; 1 in the authors' runs")
    margin: float = Field(1e-4, gt=0, lt=1, description="by which the label leads; 10⁻⁴ in the authors' code")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the changed probabilities (B, K); the images are not looked at."""
        y, order = probs.double().sort(dim=1, descending=True, stable=True)
        lowest = torch.full_like(y[:, :1], (1 + (y.shape[1] - 1) * self.margin) / y.shape[1])
        highest = (y[:, :1] + self.budget / 2).clamp(max=1).maximum(lowest)
        inside = [highest - _GOLDEN * (highest - lowest), lowest + _GOLDEN * (highest - lowest)]
        values = [self._value(y, top) for top in inside]
        for _ in range(_SECTIONS):
            left = values[0] <= values[1]  # the minimum lies left of the right point
            highest, lowest = torch.where(left, inside[1], highest), torch.where(left, lowest, inside[0])
            new = torch.where(left, highest - _GOLDEN * (highest - lowest), lowest + _GOLDEN * (highest - lowest))
            value = self._value(y, new)
            inside = [torch.where(left, new, inside[1]), torch.where(left, inside[0], new)]
            values = [torch.where(left, value, values[1]), torch.where(left, values[0], value)]
        top = torch.where(values[0] <= values[1], inside[0], inside[1])
        changed, missed = self._solve(y, top)
        found = torch.where(missed > self.margin / 100, y, changed)
        return torch.empty_like(found).scatter_(1, order, found).float()

    def _value(self, y: Tensor, top: Tensor) -> Tensor:
        """Return what a largest probability comes to (B, 1)."""
        changed, missed = self._solve(y, top)
        return (changed * (y + _FLOOR).log()).sum(1, keepdim=True) + _PENALTY * missed

    def _solve(self, y: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best answers with a given largest probability, and by how much they break the budget.

        Args:
            y: Probabilities (B, K), largest first.
            top: The largest one of the answers (B, 1).
        """
        rest, most = y[:, 1:], top - self.margin
        given = y[:, :1] - top  # what the largest class gives to the others; below 0 what it takes
        kept = rest.minimum(most)
        forced = (rest - kept).sum(1, keepdim=True)
        least = forced.maximum(-given)
        allowed = (self.budget / 2 - given.clamp(min=0)).minimum(rest.sum(1, keepdim=True))
        moved = allowed.maximum(least)  # more never costs more: whoever gives is likelier than whoever takes
        kept = kept - _poured(kept, moved - forced)
        room = (most - kept).flip(1)
        rest = kept + _poured(room, moved + given).flip(1)
        return torch.cat([top, rest], 1), (least - allowed).clamp(min=0)


def _poured(rooms: Tensor, amount: Tensor) -> Tensor:
    """Return how an amount (B, 1) fills rooms (B, n), one after the other."""
    before = rooms.cumsum(1) - rooms
    return (amount - before).clamp(min=0).minimum(rooms)
