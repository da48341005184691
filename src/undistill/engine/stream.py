"""Where the batches of training come from."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from undistill.data.loader import Batch, Loader
from undistill.engine.objective import Frame

__all__ = ["Blanks", "Stream"]


class Blanks:
    """Batches for a method that sees no image: they have a shape, and no memory behind it.

    Args:
        steps: Batches of an epoch.
        batch_size: Images that each stands for.
        frame: Their shape.
    """

    def __init__(self, steps: int, batch_size: int, frame: Frame) -> None:
        self._steps = steps
        # On the meta device tensors have no content, so nothing can be learned from these.
        shape = batch_size, frame.in_channels, frame.image_size, frame.image_size
        index = torch.empty(batch_size, dtype=torch.int64, device="meta")
        self._batch = Batch(torch.empty(shape, device="meta"), index, index)
        self.y = torch.empty(steps * batch_size, dtype=torch.int64, device="meta")

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch, from step ``start`` on."""
        return (self._batch for _ in range(start, self._steps))


Stream = Loader | Blanks
