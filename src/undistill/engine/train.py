"""The training loop: one for every objective, for one net or for several on one stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import torch

from undistill.data.augment import choose_augmentation
from undistill.data.dataset import Dataset, Frame, Images, hold_out
from undistill.data.holdings import Holdings
from undistill.data.loader import Batch, EmptyBatches, Loader, Stream
from undistill.engine.config import SHARED_FIELDS
from undistill.engine.device import arithmetic
from undistill.engine.interrupt import stop_on_interrupt
from undistill.engine.job import Job, TrainResult
from undistill.engine.stepping import Learner, take_step
from undistill.engine.synthetic import draw_images
from undistill.engine.trainer import Split, Trainer
from undistill.errors import DataError, InterruptedRunError, RecipeError
from undistill.victim import asked_once

__all__ = ["fit", "fit_together"]

Step = Callable[[Sequence[Learner], Batch, Sequence[float]], None]
"""Has nets take a step, each at its learning rate; what goes wrong with one is for its ``turn``."""


def fit(
    job: Job,
    data: Dataset,
    *,
    device: torch.device,
    targets: Sequence[Images] = (),
    holdings: Holdings | None = None,
) -> TrainResult:
    """Train the net of a job and leave it with the weights that its protocol's ``selection`` chooses.

    Args:
        job: What to train, and how.
        data: Training and test images.
        device: Where to compute.
        targets: Training images of other domains, for a defense that looks at them.
        holdings: What to train on instead of the training images of ``data``.

    Raises:
        DivergenceError: The loss or a gradient stopped being finite; the last good state is kept.
        InterruptedRunError: Ctrl-C; the state is saved and the same call goes on from there.
        CheckpointError: The saved state is damaged.
    """
    (outcome,) = fit_together([job], data, device=device, targets=targets, holdings=holdings)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def fit_together(
    jobs: Sequence[Job],
    data: Dataset,
    *,
    device: torch.device,
    targets: Sequence[Images] = (),
    holdings: Holdings | None = None,
) -> list[TrainResult | Exception]:
    """Train several nets side by side on one stream of batches, each as ``fit`` would have trained it alone.

    Every batch is made once, and victims that are ``Victim.another`` of each other answer it once. A job that fails
    leaves the others alone; one that was interrupted further ahead waits until they have caught up. Jobs that make
    their own images have nothing to share: where there is one, they are trained one after the other.

    Args:
        jobs: One or more, whose protocols agree in everything that ``SHARED_FIELDS`` names.
        data: Training and test images.
        device: Where to compute.
        targets: Training images of other domains, for defenses that look at them.
        holdings: What to train on instead of the training images of ``data``.

    Returns:
        For each job its outcome, or what stopped it.

    Raises:
        InterruptedRunError: Ctrl-C; all states are saved and the same call goes on from there.
        RecipeError: The jobs do not see the same batches.
    """
    if len(jobs) > 1 and any(job.objective.images != "train" for job in jobs):
        one = partial(fit_together, data=data, device=device, targets=targets, holdings=holdings)
        return [outcome for job in jobs for outcome in one([job])]
    config = jobs[0].config
    for name in SHARED_FIELDS:
        if len(values := {getattr(job.config, name) for job in jobs}) > 1:
            raise RecipeError(f"jobs that run together must see the same batches, but {name} is one of {values}")
    devices = [device] if device.type == "cuda" else []
    with (
        arithmetic(config, device),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            held = holdings or Holdings.of(data.train)
            loader, held_out = _stream(jobs[0], data, held, targets, device)
        except InterruptedRunError:
            raise
        except Exception as error:
            return [error for _ in jobs]
        held_out, test = held_out.to(device), Split(data.test).to(device)
        torch.manual_seed(config.seed)  # dropout and the like; order and augmentation have generators of their own
        alone = len(jobs) == 1
        trainers = [Trainer(job, data, loader, held_out, test, device, alone=alone) for job in jobs]
        with _stepper(config.profile) as step:
            _train(trainers, loader, step)
    return [trainer.outcome for trainer in trainers if trainer.outcome is not None]


def _stream(
    job: Job, data: Dataset, held: Holdings, targets: Sequence[Images], device: torch.device
) -> tuple[Stream, Split]:
    """Return the batches that a job trains on, and the images that are held out of them."""
    config, made = job.config, job.objective.images
    if made == "none":
        if config.selection == "heldout":
            raise RecipeError(
                f"{job.objective.name} sees no image of the training set, so none can be held out; set selection=last"
            )
        none = Split(data.test.subset(torch.arange(0)))
        return EmptyBatches(job.objective.steps_per_epoch(), config.batch_size, Frame.of(data)), none
    if made == "synthetic":
        images = draw_images(job, Frame.of(data), device)
        held = Holdings.of(images)
    try:
        rest, aside = hold_out(held.images.y, config.holdout, config.seed)
    except DataError as error:
        raise DataError(
            f"holdout={config.holdout:g}: {error}; set holdout=0 selection=last, or have more labels"
        ) from None
    loader = Loader(
        held.images.subset(rest) if len(aside) else held.images,
        batch_size=config.batch_size,
        augment=choose_augmentation(config.augment, data.augment),
        mean=data.mean,
        std=data.std,
        seed=config.seed,
        device=device,
        targets=targets,
        rows=rest if len(aside) else None,
        length=round(held.epoch * len(rest) / len(held.images)),
    )
    return loader, Split(held.images.subset(aside), aside)


@contextmanager
def _stepper(profile: str) -> Iterator[Step]:
    """Yield what has nets take a step as a profile says; afterwards each net has memory of its own."""
    if profile == "exact":
        yield take_step
        return
    from undistill.engine.fast.steps import FastSteps  # whoever computes exactly needs none of it

    with closing(FastSteps()) as steps:
        yield steps


def _train(trainers: Sequence[Trainer], loader: Stream, step: Step) -> None:
    with stop_on_interrupt() as request:
        _each(trainers, Trainer.resume)
        while running := [trainer for trainer in trainers if trainer.outcome is None]:
            epoch = min(trainer.position.epoch for trainer in running)
            present = [trainer for trainer in running if trainer.position.epoch == epoch]
            _each(present, partial(Trainer.begin_epoch, share=1 / len(present)))
            start = min(trainer.position.step for trainer in present)
            for position, batch in enumerate(loader.epoch(epoch, start=start), start):
                if request.asked:
                    _interrupt(present)
                if all(trainer.outcome is not None for trainer in present):
                    break
                group = [one for one in present if one.outcome is None and one.position.step == position]
                with asked_once(batch.x, rows=batch.index):
                    step([trainer.learner for trainer in group], batch, [trainer.lr for trainer in group])
            _each(present, Trainer.close_epoch)
            if request.asked:
                _interrupt(running)
            _each(present, Trainer.finish_if_done)


def _each(trainers: Sequence[Trainer], act: Callable[[Trainer], None]) -> None:
    """Let every job that is under way do something, with its own random numbers; its failure is its own."""
    for trainer in trainers:
        if trainer.outcome is None:
            with trainer.turn():
                act(trainer)


def _interrupt(trainers: Sequence[Trainer]) -> None:
    """Save every job that is under way, and stop; unless none is left to be saved."""
    _each(trainers, Trainer.save)
    running = [trainer for trainer in trainers if trainer.outcome is None]
    if running:
        kept = "run the same command again to go on" if running[0].job.state_path else "nothing was kept"
        raise InterruptedRunError(f"interrupted at {running[0].place}; {kept}")
