"""Training as the paper's public code does it: the baseline of the speed benchmarks.

PIL images one by one through a ``DataLoader``, eager float32 in NCHW, ``torch.optim`` as it comes, and the loss and the
accuracy read after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from undistill.bench.augment import PILImages, pil_crop_flip
from undistill.bench.work import ALPHA, TEMPERATURE, WEIGHT, Work
from undistill.errors import InterruptedRunError

__all__ = ["PlainLoop"]


class PlainLoop:
    """Trains the nets of a work one after the other, each on batches of its own.

    Args:
        work: What to train.
    """

    def __init__(self, work: Work) -> None:
        images = work.data().train
        dataset = PILImages(images.x.permute(0, 2, 3, 1).contiguous().numpy(), pil_crop_flip, images.y.tolist())
        self._loader = DataLoader(
            dataset,
            work.batch_size,
            shuffle=True,
            num_workers=work.workers,
            persistent_workers=work.workers > 0,
            pin_memory=work.device.startswith("cuda"),
        )
        self._jobs = [_PlainJob(work, spec, self._loader) for spec in work.models]

    def train(self, turn: Callable[[], int]) -> None:
        """Train turn by turn: each time so many steps as ``turn`` says, until it raises InterruptedRunError."""
        try:
            while True:
                self.run(turn())
        except InterruptedRunError:
            return

    def run(self, steps: int) -> None:
        """Take so many steps with every net."""
        for job in self._jobs:
            for _ in range(steps):
                job.step()

    def models(self) -> list[nn.Module]:
        """Return the nets."""
        return [job.model for job in self._jobs]

    @property
    def how(self) -> str:
        """How it computes."""
        return "eager float32, NCHW"


class _PlainJob:
    def __init__(self, work: Work, spec: str, loader: DataLoader[tuple[Tensor, int]]) -> None:
        self._objective, self._device, self._loader = work.objective, torch.device(work.device), loader
        self.model = work.net(spec, seed=1).train()
        self._teacher: nn.Module | None = None
        if work.objective != "normal":
            self._teacher = work.net(work.victim if work.objective == "kd" else spec, seed=2).eval()
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=work.training("exact").lr, momentum=0.9, weight_decay=5e-4
        )
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.loss = self.accuracy = 0.0

    def step(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        x, y = (value.to(self._device, non_blocking=True) for value in batch)
        logits = self.model(x)
        loss = self._loss(x, y, logits)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.loss = loss.item()
        self.accuracy = (logits.argmax(dim=1) == y).float().mean().item()

    def _loss(self, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        ce = F.cross_entropy(logits, y)
        if self._teacher is None:
            return ce
        with torch.no_grad():
            answers = self._teacher(x)
        if self._objective == "kd":
            target = F.softmax(answers / TEMPERATURE, dim=1)
            soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), target, reduction="batchmean")
            return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * ce
        target = F.softmax(logits / TEMPERATURE, dim=1)
        away = F.kl_div(F.log_softmax(answers / TEMPERATURE, dim=1), target, reduction="batchmean")
        return ce - WEIGHT * TEMPERATURE**2 * away
