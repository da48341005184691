"""Training by the engine, a turn at a time, for the speed benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from undistill.bench.work import APART, METHODS, Side, Work
from undistill.data.loader import Batch, Loader
from undistill.engine.flops import count_flops
from undistill.engine.job import Job
from undistill.engine.train import fit_together
from undistill.errors import InterruptedRunError
from undistill.methods import build_method
from undistill.objective import Frozen, Nets
from undistill.victim import Victim

__all__ = ["EngineLoop", "step_flops"]


class EngineLoop:
    """Trains the nets of a work side by side, on one stream of batches, and counts the steps of the engine's loop.

    Args:
        work: What to train.
        side: How to compute.

    Attributes:
        jobs: One for each net.
    """

    def __init__(self, work: Work, side: Side) -> None:
        self._work, config = work, work.training(side)
        self._notes = _Notes()
        self.jobs = [
            Job(build_method(METHODS[work.objective]), nets, config, callback=self)
            for nets in _nets(work, shared=side != APART)
        ]

    def train(self, turn: Callable[[], int]) -> None:
        """Train turn by turn.

        Args:
            turn: Called before the first step and whenever all nets have taken so many steps as it said last; raises
                InterruptedRunError to end.

        Raises:
            Exception: Whatever stopped one of the nets.
        """
        self._turn, self._now, self._taken = turn, (0, 0), len(self.jobs)
        try:
            self._left = turn()
            outcomes = fit_together(self.jobs, self._work.data(), device=torch.device(self._work.device))
        except InterruptedRunError:
            return
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, _LeftBehindError):
                raise outcome

    def run(self, steps: int) -> None:
        """Take so many steps with every net, and no more afterwards."""
        turns = iter([steps])

        def turn() -> int:
            for left in turns:
                return left
            raise InterruptedRunError("that was all")

        self.train(turn)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """One net has taken a step."""
        if (epoch, step) != self._now:
            if self._taken < len(self.jobs):
                raise _LeftBehindError("another net has failed")
            self._now, self._taken = (epoch, step), 0
        self._taken += 1
        if self._taken == len(self.jobs):
            self._left -= 1
            if self._left == 0:
                self._left = self._turn()

    def epoch(self, record: dict[str, Any]) -> None:
        """Look at steps only."""

    def models(self) -> list[nn.Module]:
        """Return the nets."""
        return [job.nets.model for job in self.jobs]

    @property
    def how(self) -> str:
        """How it computes."""
        return "; ".join(dict.fromkeys(self._notes.found)) or "eager float32, NCHW"

    def weights(self) -> torch.Tensor:
        """Return the weights of all nets in one vector, on the CPU."""
        return torch.cat([p.detach().flatten().cpu() for net in self.models() for p in net.parameters()])

    def kl(self) -> float | None:
        """Return the KL term of the nasty loss on the first images, where there is one."""
        job, data = self.jobs[0], self._work.data()
        if job.nets.adversary is None:
            return None
        size, device = self._work.batch_size, torch.device(self._work.device)
        loader = Loader(
            data.train, batch_size=size, augment=data.augment, mean=data.mean, std=data.std, seed=0, device=device
        )
        with torch.no_grad():
            return float(job.objective.step(next(loader.epoch(0)), job.nets).logs["adversary_kl"])


class _LeftBehindError(Exception):
    """A net goes on that was to keep in step with others."""


def step_flops(work: Work) -> int:
    """Return the operations of one step of every net: one batch each, frozen passes counted as often as done alone."""
    x = torch.empty(work.batch_size, 3, work.image_size, work.image_size, device=work.device)
    labels = torch.zeros(work.batch_size, dtype=torch.int64, device=work.device)
    objective = build_method(METHODS[work.objective])
    return sum(count_flops(objective, nets, Batch(x, labels, labels)).total for nets in _nets(work))


def _nets(work: Work, *, shared: bool = True) -> Iterator[Nets]:
    """Yield the nets of each job; the students of a work ask one victim, or each an equal one of its own."""
    victim = Victim(work.net(work.victim, seed=2)) if work.objective == "kd" else None
    for spec in work.models:
        if victim is not None and not shared:
            victim = Victim(work.net(work.victim, seed=2))
        adversary = Frozen(work.net(spec, seed=2)) if work.objective == "nasty" else None
        yield Nets(work.net(spec, seed=1), adversary, victim.another() if victim is not None else None)


class _Notes(logging.Handler):
    """Takes down how the engine says that it computes."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []
        logger = logging.getLogger("undistill.engine.fast.steps")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())
