"""Stop a run whose loss or gradient is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from undistill.errors import DivergenceError

__all__ = ["DivergenceGuard", "gradient_norm"]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, a scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class DivergenceGuard:
    """Watches the loss and the gradient norm of every step.

    On CPU a step is checked at once, before its update. On an accelerator reading a value stalls the queue, so the
    steps are checked together at the end of the epoch and before anything is saved.

    Args:
        device: Where the losses are computed.
        last_finite_loss: Loss of the step before the first one watched, where there is one.
    """

    def __init__(self, device: torch.device, last_finite_loss: float | None = None) -> None:
        self.last_finite_loss = last_finite_loss
        self._at_once = device.type == "cpu"
        self._pending: list[tuple[int, int, Tensor]] = []

    def watch(self, epoch: int, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take note of one step, counted from 0, after its backward pass: its loss and the norm of its gradient.

        Raises:
            DivergenceError: On CPU, if the loss or a gradient of this step is not finite.
        """
        self._pending.append((epoch, step, torch.stack((loss.detach(), norm))))
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Check every step that was not checked yet.

        Raises:
            DivergenceError: The loss or a gradient of one of them is not finite.
        """
        if not self._pending:
            return
        values = torch.stack([value for *_, value in self._pending]).tolist()
        for (epoch, step, _), (loss, norm) in zip(self._pending, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self.error("loss" if not math.isfinite(loss) else "gradient", epoch + 1, step + 1)
            self.last_finite_loss = loss
        self._pending.clear()

    def error(self, what: str, epoch: int, step: int) -> DivergenceError:
        """Return the error that says what stopped being finite, and when; ``epoch`` and ``step`` count from 1."""
        last = "none" if self.last_finite_loss is None else f"{self.last_finite_loss:.4g}"
        return DivergenceError(
            f"training diverged: {what} is not finite at epoch {epoch}, step {step} "
            f"(last finite loss: {last}); lower lr or the weight of the method",
            epoch=epoch,
            step=step,
            last_finite_loss=self.last_finite_loss,
        )
