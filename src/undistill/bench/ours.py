"""Training by the engine, a turn at a time, for the speed benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import nn

from undistill.bench.work import METHODS, Side, Work
from undistill.data.loader import Batch, Loader
from undistill.engine.device import arithmetic
from undistill.engine.flops import count_flops
from undistill.engine.job import Job
from undistill.engine.train import stepper
from undistill.engine.trainer import Trainer
from undistill.methods import build_method
from undistill.objective import Frozen, Nets
from undistill.victim import Victim, asked_once

__all__ = ["EngineLoop", "step_flops"]


class EngineLoop:
    """Trains the nets of a work side by side, on one stream of batches.

    Args:
        work: What to train.
        side: How to compute.
    """

    def __init__(self, work: Work, side: Side) -> None:
        data, config, device = work.data(), work.training(side), torch.device(work.device)
        self._notes = _Notes()
        self._settings = ExitStack()
        self._settings.enter_context(arithmetic(config, device))
        self._loader = Loader(
            data.train,
            batch_size=work.batch_size,
            augment=data.augment,
            mean=data.mean,
            std=data.std,
            seed=0,
            device=device,
        )
        nothing, test = data.test.subset(torch.arange(0)), data.test.to(device)
        jobs = [Job(build_method(METHODS[work.objective]), nets, config) for nets in _nets(work)]
        alone = len(jobs) == 1
        self._trainers = [Trainer(job, data, self._loader, nothing, test, device, alone=alone) for job in jobs]
        for trainer in self._trainers:
            with trainer.turn():
                trainer.resume()
                trainer.begin_epoch(share=1 / len(jobs))
        self._step, self._batches = self._settings.enter_context(stepper(config.profile)), self._stream()

    def run(self, steps: int) -> None:
        """Take so many steps with every net.

        Raises:
            Exception: Whatever stopped one of them.
        """
        for _ in range(steps):
            batch = next(self._batches)
            with asked_once(batch.x):
                self._step([one.learner for one in self._trainers], batch, [one.lr for one in self._trainers])
            for trainer in self._trainers:
                if isinstance(trainer.outcome, Exception):
                    raise trainer.outcome

    def models(self) -> list[nn.Module]:
        """Return the nets."""
        return [trainer.job.nets.model for trainer in self._trainers]

    @property
    def how(self) -> str:
        """How it computes."""
        return "; ".join(dict.fromkeys(self._notes.found)) or "eager float32, NCHW"

    def weights(self) -> torch.Tensor:
        """Return the weights of all nets in one vector, on the CPU."""
        return torch.cat([p.detach().flatten().cpu() for net in self.models() for p in net.parameters()])

    def kl(self) -> float | None:
        """Return the KL term of the nasty loss on the first images, where there is one."""
        job = self._trainers[0].job
        if job.nets.adversary is None:
            return None
        with torch.no_grad():
            return float(job.objective.step(next(self._loader.epoch(0)), job.nets).logs["adversary_kl"])

    def _stream(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self._loader.epoch(epoch)
            epoch += 1


def step_flops(work: Work) -> int:
    """Return the operations of one step of every net: one batch each, frozen passes counted as often as done alone."""
    x = torch.empty(work.batch_size, 3, work.image_size, work.image_size, device=work.device)
    labels = torch.zeros(work.batch_size, dtype=torch.int64, device=work.device)
    objective = build_method(METHODS[work.objective])
    return sum(count_flops(objective, nets, Batch(x, labels, labels)).total for nets in _nets(work))


def _nets(work: Work) -> Iterator[Nets]:
    victim = Victim(work.net(work.victim, seed=2)) if work.objective == "kd" else None
    for spec in work.models:
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
