"""Who takes a step with whom: jobs side by side on one stream of batches, equal nets of theirs as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from undistill.data.loader import Batch
from undistill.engine.config import Tuning
from undistill.engine.fast.steps import FastStepper, FastSteps
from undistill.engine.trainer import Trainer
from undistill.objective import StepOutput

__all__ = ["Together"]

_log = logging.getLogger(__name__)


class Together:
    """Has jobs train on a batch: stacked, where they are alike and their tuning says so, else one after the other.

    A stack is of those that take the same step. Whenever they are others, because a job ended, failed or has caught up,
    it is made anew.
    """

    def __init__(self) -> None:
        self._stacks: dict[object, tuple[Sequence[FastStepper], FastSteps]] = {}

    def advance(self, trainers: Sequence[Trainer], batch: Batch) -> None:
        """Train on one batch; what goes wrong with a job becomes its outcome."""
        groups: dict[object, list[Trainer]] = {}
        for trainer in trainers:
            stepper = trainer.stepper
            alike = stepper.alike if isinstance(stepper, FastStepper) else None
            groups.setdefault(alike or trainer, []).append(trainer)
        for alike in [alike for alike in self._stacks if len(groups.get(alike, ())) < 2]:
            self._drop(alike)
        for alike, group in groups.items():
            for trainer, taken in zip(group, self._take(alike, group, batch), strict=True):
                with trainer.turn():
                    trainer.advance(batch, taken)

    def _take(self, alike: object, group: Sequence[Trainer], batch: Batch) -> Sequence[StepOutput | Exception | None]:
        """Take a step of jobs that are alike at once and return what came of it; None where each takes its own."""
        steppers = [trainer.stepper for trainer in group if isinstance(trainer.stepper, FastStepper)]
        for stepper in steppers:
            stepper.meet(steppers)
        tunings = [tuning for stepper in steppers if (tuning := stepper.tuning) is not None and tuning.stack]
        if len(tunings) < max(2, len(group)):
            return [None] * len(group)
        try:
            stack = self._stack(alike, steppers, tunings[0], batch)
        except Exception as error:  # vmap cannot take every net
            reason = str(error).partition("\n")[0]
            _log.warning("%d nets cannot be stacked (%s); they train one after the other", len(group), reason)
            for stepper in steppers:
                stepper.alike = None
            return [None] * len(group)
        try:
            return stack(batch, [trainer.lr for trainer in group])
        except Exception as error:  # of all of them, such as a lack of memory
            return [error] * len(group)

    def _stack(self, alike: object, steppers: Sequence[FastStepper], tuning: Tuning, batch: Batch) -> FastSteps:
        if alike in self._stacks and self._stacks[alike][0] != steppers:
            self._drop(alike)
        if alike not in self._stacks:
            stack = FastSteps([stepper.learner for stepper in steppers], tuning, batch)
            for stepper in steppers:
                stepper.tuning = stack.tuning
            self._stacks[alike] = steppers, stack
        return self._stacks[alike][1]

    def close(self) -> None:
        """Give all nets memory of their own again."""
        for alike in list(self._stacks):
            self._drop(alike)

    def _drop(self, alike: object) -> None:
        _, stack = self._stacks.pop(alike)
        stack.dissolve()
