"""The training loop: one for every objective."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from undistill.data.dataset import Dataset, Images
from undistill.data.loader import Batch, Loader
from undistill.engine.config import Training
from undistill.engine.device import exact_arithmetic
from undistill.engine.evaluate import Evaluation, evaluate, predict
from undistill.engine.guard import DivergenceGuard
from undistill.engine.interrupt import StopRequest, stop_on_interrupt
from undistill.engine.objective import Nets, Objective, StepOutput
from undistill.engine.optim import learning_rate, make_optimizer
from undistill.engine.state import TrainState
from undistill.errors import InterruptedRunError

__all__ = ["Fitted", "Watcher", "fit"]

# A state is saved when the time since the last save is this many times what a save takes.
_SAVE_RATIO = 50


class Watcher(Protocol):
    """Whoever wants to see training progress."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """One step is done; all three count from 1."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done; ``record`` is its line in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Fitted:
    """Outcome of a training job.

    Attributes:
        last: Test metrics of the last epoch's weights.
        selected: Test metrics of the weights that the recipe keeps; the net has those weights.
        selected_epoch: Their epoch, from 1.
        images_per_s: Training images a second, evaluation included.
        seconds: Time spent, over all sessions of the run.
    """

    last: Evaluation
    selected: Evaluation
    selected_epoch: int
    images_per_s: float
    seconds: float


def fit(
    objective: Objective,
    nets: Nets,
    data: Dataset,
    config: Training,
    *,
    device: torch.device,
    state_path: Path | None = None,
    watcher: Watcher | None = None,
    origin: str = "",
) -> Fitted:
    """Train ``nets.model`` on ``data`` and leave it with the weights that ``config.selection`` chooses.

    Args:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at, all on ``device``.
        data: Training and test images.
        config: The protocol.
        device: Where to compute.
        state_path: File to save the state of training in and to resume from; None to keep nothing.
        watcher: Told about every step and epoch.
        origin: Digest of what a saved state must have been trained with: images, adversary, victim.

    Raises:
        DivergenceError: The loss or a gradient stopped being finite; the last good state is kept.
        InterruptedRunError: Ctrl-C; the state is saved and the same call goes on from there.
        CheckpointError: The saved state is damaged.
    """
    train_images, held_out = data.holdout(config.holdout, config.seed)
    monitored, split = (held_out, "heldout") if len(held_out) else (data.test, "test")
    if config.selection == "paper":
        monitored, split = data.test, "test"
    loader = Loader(
        train_images,
        batch_size=config.batch_size,
        augment=data.augment if config.augment == "auto" else config.augment,
        mean=data.mean,
        std=data.std,
        seed=config.seed,
        device=device,
    )
    state = TrainState(nets.model, make_optimizer(config, nets.model), device, origin)
    job = _Job(objective, nets, data, config, loader, state, device, state_path, watcher)
    devices = [device] if device.type == "cuda" else []
    with (
        exact_arithmetic(device),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        torch.manual_seed(config.seed)  # dropout and the like; order and augmentation have generators of their own
        job.resume()
        job.run(monitored.to(device), split)
        return job.finish()


@dataclass
class _Job:
    objective: Objective
    nets: Nets
    data: Dataset
    config: Training
    loader: Loader
    state: TrainState
    device: torch.device
    state_path: Path | None
    watcher: Watcher | None

    def resume(self) -> None:
        if self.state_path is not None and self.state_path.exists():
            self.state.load(self.state_path)
            if self.nets.victim is not None:
                self.nets.victim.queries = self.state.position.queries
        self.guard = DivergenceGuard(self.device, self.state.position.last_finite_loss)
        self._clock = self._saved_at = time.perf_counter()
        self._save_seconds = 0.0
        self.save()

    def run(self, monitored: Images, split: str) -> None:
        with stop_on_interrupt() as request:
            while self.state.position.epoch < self.config.epochs:
                self.run_epoch(request)
                self.close_epoch(monitored, split)
                self.save(only_if_due=True)
            if request.asked:
                self.interrupt()
        self.save()

    def run_epoch(self, request: StopRequest) -> None:
        position = self.state.position
        self.nets.model.train()
        parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        for batch in self.loader.epoch(position.epoch, start=position.step):
            if request.asked:
                self.interrupt()
            lr = learning_rate(self.config, position.epoch, position.step, len(self.loader))
            self.add(self.update(batch, lr, parameters), len(batch.y), batch.y)
            position.step += 1
            position.images += len(batch.y)
            if self.watcher is not None:
                self.watcher.step(position.epoch + 1, position.step, len(self.loader))
            if self.device.type == "cpu":
                self.save(only_if_due=True)
        self.guard.check()

    def update(self, batch: Batch, lr: float, parameters: list[Tensor]) -> StepOutput:
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr
        self.state.optimizer.zero_grad()
        output = self.objective.step(batch, self.nets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        self.guard.watch(self.state.position.epoch, self.state.position.step, output.loss, parameters)
        self.state.optimizer.step()
        return output

    def add(self, output: StepOutput, size: int, labels: Tensor) -> None:
        """Add one step to the sums of the epoch, on the device: nothing here waits for a result."""
        correct = (output.logits.detach().argmax(dim=1) == labels).sum()
        terms = {"loss": output.loss, **output.logs}
        found = {"correct": correct, **{name: value.detach().double() * size for name, value in terms.items()}}
        for name, value in found.items():
            self.state.sums[name] = self.state.sums[name] + value if name in self.state.sums else value

    def close_epoch(self, monitored: Images, split: str) -> None:
        position, sums = self.state.position, {key: float(value) for key, value in self.state.sums.items()}
        images, correct = len(self.loader.y), sums.pop("correct")
        rate = learning_rate(self.config, position.epoch, position.step - 1, len(self.loader))
        position.epoch, position.step, self.state.sums = position.epoch + 1, 0, {}
        position.last_finite_loss = self.guard.last_finite_loss
        found = self.measure(monitored)
        score = found.batch_mean_accuracy if self.config.selection == "paper" else found.accuracy
        # Ties go to the later epoch, as in the paper's code.
        if self.config.selection != "last" and (position.best_score is None or score >= position.best_score):
            self.state.keep_best(score)
        record = {
            "epoch": position.epoch,
            "lr": rate,
            "train_accuracy": 100 * correct / images,
            **{f"train_{name}": value / images for name, value in sums.items()},
            f"{split}_accuracy": found.accuracy,
            f"{split}_nll": found.nll,
            f"{split}_top_class_share": found.top_class_share,
        }
        if self.watcher is not None:
            self.watcher.epoch(record)

    def measure(self, images: Images) -> Evaluation:
        logits = predict(self.nets.model, images, mean=self.data.mean, std=self.data.std, device=self.device)
        found = evaluate(logits, images.y)
        if not math.isfinite(found.nll):  # the last update broke the net, and no step came after it
            raise self.guard.error("loss on unseen images", self.state.position.epoch, len(self.loader))
        return found

    def finish(self) -> Fitted:
        position = self.state.position
        selected = last = self.measure(self.data.test)
        if self.state.best and position.best_epoch != position.epoch:
            self.nets.model.load_state_dict(self.state.best)
            selected = self.measure(self.data.test)
        return Fitted(
            last=last,
            selected=selected,
            selected_epoch=position.best_epoch or position.epoch,
            images_per_s=position.images / max(position.seconds, 1e-9),
            seconds=position.seconds,
        )

    def interrupt(self) -> None:
        self.save()
        position = self.state.position
        where = f"epoch {position.epoch + 1} of {self.config.epochs}, step {position.step} of {len(self.loader)}"
        if position.epoch == self.config.epochs:
            where = "the end of the last epoch"
        kept = "run the same command again to go on" if self.state_path else "nothing was kept"
        raise InterruptedRunError(f"interrupted at {where}; {kept}")

    def save(self, *, only_if_due: bool = False) -> None:
        now = time.perf_counter()
        if only_if_due and now - self._saved_at < _SAVE_RATIO * self._save_seconds:
            return
        self.guard.check()
        if only_if_due and not self.state.finite:
            return  # the next step or evaluation stops the run: keep the last good state
        position = self.state.position
        position.last_finite_loss = self.guard.last_finite_loss
        position.seconds += now - self._clock
        position.queries = self.nets.victim.queries if self.nets.victim is not None else 0
        self._clock = now
        if self.state_path is not None:
            self.state.save(self.state_path)
        self._saved_at = time.perf_counter()
        self._save_seconds = self._saved_at - now
