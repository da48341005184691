"""One job under way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.data.dataset import Dataset, Frame, Images
from undistill.data.loader import Batch, Loader, Stream
from undistill.engine.evaluate import Evaluation, ask_all, evaluate, predict
from undistill.engine.guard import DivergenceGuard
from undistill.engine.job import Job, TrainResult
from undistill.engine.optim import learning_rate, make_optimizer
from undistill.engine.state import Position, TrainState
from undistill.engine.stepping import Learner
from undistill.engine.synthetic import write_images
from undistill.errors import InterruptedRunError
from undistill.models import PREPARED_FROM, PreparedFromImages
from undistill.objective import StepOutput
from undistill.victim.asked import Asked

__all__ = ["Split", "Trainer"]

# A state is saved when the time since the last save is this many times what a save takes.
_SAVE_RATIO = 50


@dataclass(frozen=True)
class Split:
    """Images to measure on, and which rows of a thief's images they are, where they are among these."""

    images: Images
    rows: Tensor | None = None

    def to(self, device: torch.device) -> Split:
        """Return the same on a device."""
        return Split(self.images.to(device), None if self.rows is None else self.rows.to(device))


class Trainer:
    """A net in training: counts its steps, closes epochs, saves its state and finishes.

    Args:
        job: What to train, and how.
        data: Training and test images.
        loader: Of the batches that it will be given.
        held_out: The held-out part of the training set, on the device; may be empty, or without labels.
        test: The test set, on the device.
        device: Where to compute.
        alone: No other job draws from torch's random generators in between.

    Attributes:
        outcome: Set once there is one; until then the job is under way.
        learner: What its steps are taken with; there from ``resume`` on.
    """

    def __init__(
        self,
        job: Job,
        data: Dataset,
        loader: Stream,
        held_out: Split,
        test: Split,
        device: torch.device,
        *,
        alone: bool,
    ) -> None:
        self.job = job
        self.outcome: TrainResult | Exception | None = None
        self._data, self._loader, self._test, self._device, self._alone = data, loader, test, device, alone
        self._held_out = held_out
        self._random = self._random_state()

    @property
    def position(self) -> Position:
        """Where training stands."""
        return self._state.position

    @property
    def place(self) -> str:
        """Where training stands, in words."""
        position, epochs = self.position, self.job.config.epochs
        if position.epoch == epochs:
            return "the end of the last epoch"
        return f"epoch {position.epoch + 1} of {epochs}, step {position.step} of {len(self._loader)}"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Give torch's random generators the state that this job left them in; what is raised becomes the outcome."""
        if not self._alone:
            self._set_random_state()
        try:
            yield
        except InterruptedRunError:
            raise
        except Exception as error:  # a bug or a lack of memory too: the other jobs have nothing to do with it
            self.outcome = error
        if not self._alone:
            self._random = self._random_state()

    def resume(self) -> None:
        """Take over a saved state, where there is one."""
        path, model, victim = self.job.state_path, self.job.nets.model, self.job.nets.victim
        frame = Frame.of(self._data)
        if isinstance(model, PreparedFromImages) and isinstance(self._loader, Loader):
            model.prepare_from_images(self._loader.sample(PREPARED_FROM))
        self.job.objective.begin(self.job.nets, frame)
        given = replace(self.job.nets, held_out=self._held_out.images)
        companion = self.job.objective.companion(given, frame, self._device)
        self._companion = companion
        modules = (self.job.objective.modules(given, frame) or nn.ModuleDict()).to(self._device)
        optimizer = make_optimizer(self.job.config, model, modules)
        self._named = self._ask_held_out()
        self._monitored, self._split, self._score = self._watched()
        self._state = TrainState(model, optimizer, self._device, self.job.inputs_digest, companion, modules)
        if path is not None and path.exists():
            self._state.load(path)
            if victim is not None:
                victim.queries = self.position.queries
        elif victim is not None and self._score == "agreement" and not isinstance(victim, Asked):
            victim.queries += len(self._held_out.images)  # who chooses by these answers has to ask for them
        self._guard = DivergenceGuard(self._device, self.position.last_finite_loss)
        nets = replace(given, companion=companion, modules=modules)
        self.learner = Learner(
            self.job.objective,
            nets,
            self._state.optimizer,
            self._watch,
            self._count,
            self.turn,
            self.job.config,
            steps=self.job.config.epochs * len(self._loader),
        )
        self._clock = self._saved_at = time.perf_counter()
        self._share, self._save_seconds = 1.0, 0.0
        self.save()
        self.finish_if_done()

    def begin_epoch(self, share: float) -> None:
        """Get ready for the batches of an epoch, or of the rest of one; this share of the time will be this job's."""
        self._clock, self._share = time.perf_counter(), share
        self.job.nets.model.train()

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.job.config, self.position.epoch, self.position.step, len(self._loader))

    def close_epoch(self) -> None:
        """Measure the net, keep its weights if they are the best, and tell the callback."""
        self._guard.check()
        config, position = self.job.config, self.position
        sums = {key: float(value) for key, value in self._state.sums.items()}
        images, correct = self._loader.images, sums.pop("correct")
        labels = sums.pop("labels", images)
        rate = learning_rate(config, position.epoch, position.step - 1, len(self._loader))
        position.epoch, position.step, self._state.sums = position.epoch + 1, 0, {}
        position.last_finite_loss = self._guard.last_finite_loss
        found = self._measure(self._monitored)
        score = found.batch_mean_accuracy if config.selection == "paper" else found.accuracy
        # Ties go to the later epoch, as in the paper's code.
        if config.selection != "last" and (position.best_score is None or score >= position.best_score):
            self._state.keep_best(score)
        record = {
            "epoch": position.epoch,
            "lr": rate,
            **({"train_accuracy": 100 * correct / labels} if labels else {}),
            **{f"train_{name}": value / images for name, value in sums.items()},
            f"{self._split}_{self._score}": found.accuracy,
            f"{self._split}_nll": found.nll,
            f"{self._split}_top_class_share": found.top_class_share,
        }
        if self.job.callback is not None:
            self.job.callback.epoch(record)
        self._count_time()
        self.save(only_if_due=True)

    def finish_if_done(self) -> None:
        """After the last epoch, save, choose the weights that the protocol keeps, and measure them."""
        position = self.position
        if position.epoch < self.job.config.epochs:
            return
        self.save()
        self._show()
        logits = self._predict(self._test)
        selected = last = self._measure(self._test, logits)
        if self._state.best and position.best_epoch != position.epoch:
            self.job.nets.model.load_state_dict(self._state.best)
            logits = self._predict(self._test)
            selected = self._measure(self._test, logits)
        heldout, agreement = self._choice()
        self.outcome = TrainResult(
            last=last,
            selected=selected,
            selected_epoch=position.best_epoch or position.epoch,
            images_per_s=position.images / max(position.seconds, 1e-9),
            seconds=position.seconds,
            tuning=None if self.learner.tuning is None else self.learner.tuning.model_dump(),
            heldout=heldout,
            agreement=agreement,
            trained_images=position.images,
            logits=logits.cpu(),
        )

    def save(self, *, only_if_due: bool = False) -> None:
        """Write the state, unless something in it is not finite.

        Raises:
            DivergenceError: A loss or a gradient was not finite; the last good state is kept.
        """
        now = time.perf_counter()
        if only_if_due and now - self._saved_at < _SAVE_RATIO * self._save_seconds:
            return
        self._guard.check()
        if only_if_due and not self._state.finite:
            return  # the next step or evaluation stops the run: keep the last good state
        position, victim = self.position, self.job.nets.victim
        position.last_finite_loss = self._guard.last_finite_loss
        position.queries = victim.queries if victim is not None else 0
        self._count_time()
        if self.job.state_path is not None:
            self._state.save(self.job.state_path)
        self._saved_at = time.perf_counter()
        self._save_seconds = self._saved_at - now

    def _show(self) -> None:
        """Keep some of the images that a thief made of nothing, to be looked at."""
        gallery = self._companion.gallery() if self._companion is not None else None
        if gallery is not None and self.job.state_path is not None:
            write_images(self.job.state_path.parent, gallery)

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.position.seconds += (now - self._clock) * self._share
        self._clock = now

    def _watch(self, loss: Tensor, norm: Tensor) -> None:
        self._guard.watch(self.position.epoch, self.position.step, loss, norm)

    def _count(self, output: StepOutput, batch: Batch) -> None:
        """Take note of a step, tell the callback, and save if that is due."""
        position = self.position
        self._add(output, batch)
        position.step += 1
        position.images += len(batch.y)
        if self.job.callback is not None:
            self.job.callback.step(position.epoch + 1, position.step, len(self._loader))
        if self._device.type == "cpu":
            self.save(only_if_due=True)

    def _add(self, output: StepOutput, batch: Batch) -> None:
        """Add one step to the sums of the epoch, on the device: nothing here waits for a result."""
        size, labels = len(batch.y), batch.y if output.labels is None else output.labels
        correct = (output.logits.detach().argmax(dim=1) == labels).sum()
        terms = {"loss": output.loss, **output.logs}
        found = {"correct": correct, **{name: value.detach().double() * size for name, value in terms.items()}}
        if batch.partial:
            found["labels"] = (labels >= 0).sum()
        sums = self._state.sums
        for name, value in found.items():
            sums[name] = sums[name] + value if name in sums else value

    def _ask_held_out(self) -> Tensor | None:
        """Return the classes (N,) that the victim names for the held-out images; None without either."""
        images, rows, victim, data = self._held_out.images, self._held_out.rows, self.job.nets.victim, self._data
        if victim is None or not len(images):
            return None
        ask = victim.another().labels  # a meter of its own: measuring is no attack
        return ask_all(ask, images, mean=data.mean, std=data.std, device=self._device, rows=rows)

    def _watched(self) -> tuple[Split, str, str]:
        """Return the images that an epoch is measured on, what they are called, and what is measured.

        Where something is held out, those with a label; a thief without any measures whether it agrees with the victim.
        """
        images = self._held_out.images
        if self.job.config.selection == "paper" or not len(images):
            return self._test, "test", "accuracy"
        known = images.y >= 0
        if bool(known.any()) or self._named is None:
            return Split(images if bool(known.all()) else images.subset(known)), "heldout", "accuracy"
        return Split(Images(images.x, self._named)), "heldout", "agreement"

    def _choice(self) -> tuple[float | None, float | None]:
        """Return accuracy and agreement with the victim on the held-out images, which a thief can choose by."""
        images = self._held_out.images
        if not len(images):
            return None, None
        logits, known = self._predict(self._held_out), images.y >= 0
        accuracy = evaluate(logits[known], images.y[known]).accuracy if bool(known.any()) else None
        return accuracy, None if self._named is None else F.agreement(logits, self._named)

    def _predict(self, split: Split) -> Tensor:
        data = self._data
        return predict(self.job.nets.model, split.images, mean=data.mean, std=data.std, device=self._device)

    def _measure(self, split: Split, logits: Tensor | None = None) -> Evaluation:
        found = evaluate(self._predict(split) if logits is None else logits, split.images.y)
        if not math.isfinite(found.nll):  # the last update broke the net, and no step came after it
            raise self._guard.error("loss on unseen images", self.position.epoch, len(self._loader))
        return found

    def _random_state(self) -> tuple[Tensor, ...]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return tuple(states)

    def _set_random_state(self) -> None:
        torch.set_rng_state(self._random[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random[1], self._device)
