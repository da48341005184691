"""How far a defense may go: its weight is steered by what it costs on images that nobody learns from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from undistill.data.dataset import Frame, Images
from undistill.data.loader import normalize
from undistill.objective import Companion, Frozen

__all__ = ["AccuracyBudget"]

_ASKED = 128  # held-out images a step
_BATCH = 1000  # at a time, where all are asked about
_MEMORY = 5000  # images over which the price is averaged, about as many as CIFAR's held-out tenth has
_FIRST = 0.01  # the weight at first
_STEP = 0.02  # how much the logarithm of the weight may grow in a step; it falls three times as fast


class AccuracyBudget(Companion):
    """The weight of a penalty: as large as a budget of accuracy allows, steered anew at each step.

    The problem is max D subject to price ≤ budget, with the price in points of accuracy against the frozen twin, on
    held-out images in eval mode. Its dual variable 1/ω moves along the violation: log ω grows by at most 2 % a step
    while the price is below the budget, and falls by up to 6 % while it is above; and as long as it is above, the
    weight in use is smaller still. So a cliff, behind which the net loses most of its accuracy within a few steps, is
    approached slowly and left at once.

    A high learning rate has a price of its own, which goes as the rate falls. It is measured while the weight is still
    zero, and allowed for in proportion to the rate.

    Args:
        budget: Points of accuracy, above 0.
        twin: What the price is measured against.
        held_out: Images that neither net learns from; one or more.
        frame: Of the images.
        device: Where to compute.
        begin: Share of the highest learning rate below which the weight is above zero.
    """

    def __init__(
        self, budget: float, twin: Frozen, held_out: Images, frame: Frame, device: torch.device, *, begin: float
    ) -> None:
        self._budget, self._begin = budget, begin
        self._images, self._scale = held_out.to(device), (frame.mean, frame.std)
        self._right = torch.cat([self._is_right(twin, rows) for rows in self._every()])
        self._share = 1.0
        # Logarithm of the weight, price, the schedule's price, steps before and after the weight is above zero.
        self._state = torch.tensor([math.log(_FIRST), 0, 0, 0, 0], dtype=torch.float64)

    @property
    def price(self) -> float:
        """Points of accuracy below the twin that the net has cost lately, without what the schedule costs."""
        return float(self._state[1]) - float(self._state[2]) * self._share / self._begin

    def pace(self, share: float) -> None:
        """Learn the learning rate as a share of the highest."""
        self._share = share

    def steer(self, model: nn.Module) -> float:
        """Measure the net on some held-out images and return ω for this step."""
        rows = torch.randint(len(self._right), (min(_ASKED, len(self._right)),)).to(self._right.device)
        price = 100 * float((self._right[rows].float() - self._is_right(model, rows).float()).mean())
        log_weight, mean, schedule, before, after = self._state.tolist()
        steps = before + after + 1
        mean += (price - mean) / min(steps, _MEMORY / len(rows))
        if self._share > self._begin:
            self._state = self._state.new_tensor([log_weight, mean, mean, before + 1, after])
            return 0.0
        self._state = self._state.new_tensor([log_weight, mean, schedule, before, after + 1])
        left = (self._budget - self.price) / self._budget
        log_weight += _STEP * max(-3.0, min(1.0, left))
        self._state[0] = log_weight
        return math.exp(log_weight + min(0.0, left))

    def state_dict(self) -> dict[str, Tensor]:
        """Return weight and prices."""
        return {"steering": self._state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them over."""
        self._state = state["steering"]

    def _every(self) -> list[Tensor]:
        rows = torch.arange(len(self._images), device=self._images.y.device)
        return [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]

    @torch.no_grad()
    def _is_right(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Return on which of some images the net is right, (B,); its mode is kept."""
        training = model.training
        x = normalize(self._images.x[rows], *self._scale)
        answers = model.eval()(x).argmax(1)
        model.train(training)
        return torch.eq(answers, self._images.y[rows])
