"""What the runs of a plan will cost: operations counted, seconds from a short probe of this machine.

Every net is probed once, alone: a few steps of ordinary training on random images, which give its speed in FLOP/s. The
time of a run is the operations of each net in it, whether that is trained or frozen, at that net's speed. A net that
the time for probes does not suffice for gets the speed of the nearest one that was probed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from undistill.data import Dataset, Images, Shape, dataset_shape
from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.engine.config import Training
from undistill.engine.flops import clock, count_flops, forward_flops, matmul_rate, shapes_only
from undistill.engine.job import Job
from undistill.engine.train import fit
from undistill.errors import InterruptedRunError
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Frozen, Nets
from undistill.orchestrate.plan import Step
from undistill.recipe import Recipe
from undistill.victim import Access, Victim

__all__ = ["Estimate", "StepEstimate", "estimate", "format_flops", "format_seconds", "rows", "totals"]

_FIRST_GUESS = 0.3  # of the speed of matrix products, for a net; decides how large the first probe is
_STEPS, _ENOUGH_S = 5, 0.5  # a probe ends when it has so many steps after the first, which warms up, and so much time
_MOST_STEPS = 40
_ERROR = 1.3  # factor by which a probe is easily wrong, either way
_UNITS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP")

How = Literal["probed", "scaled", "unknown"]


@dataclass(frozen=True)
class StepEstimate:
    """What one run will cost.

    Attributes:
        step: The run.
        flops: Operations of its training and of the evaluation after every epoch; None if unknown.
        seconds: Time alone on the machine; None if unknown.
        how: ``probed``: each of its nets was; ``scaled``: one has the speed of another net; ``unknown``.
        note: Why it is unknown.
    """

    step: Step
    flops: float | None
    seconds: float | None
    how: How
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """What some runs will cost, those that are known.

    Attributes:
        steps: In the order of the plan.
        device: Type of the device, ``cpu`` or ``cuda``.
        threads: CPU threads that a run was assumed to have.
    """

    steps: tuple[StepEstimate, ...]
    device: str
    threads: int

    @property
    def flops(self) -> float:
        """Operations of all runs."""
        return sum(step.flops or 0.0 for step in self.steps)

    @property
    def seconds(self) -> float:
        """Time of all runs, one after the other."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def unknown(self) -> int:
        """Number of runs that are not in the sums."""
        return sum(step.seconds is None for step in self.steps)

    @property
    def critical_path(self) -> float:
        """Time of the longest chain of runs that wait for each other: no number of jobs makes it shorter."""
        until: dict[str, float] = {}
        for found in self.steps:
            start = max((until[need] for need in found.step.needs if need in until), default=0.0)
            until[found.step.hash] = start + (found.seconds or 0.0)
        return max(until.values(), default=0.0)

    def duration(self, jobs: int = 1) -> tuple[float, float]:
        """Return between which numbers of seconds the whole takes, with so many runs at a time.

        On CPU jobs are taken to have a core (or ``threads`` of them) each; no order of runs takes longer than Graham's
        bound for list scheduling. Jobs on one GPU share it: at worst they gain nothing from each other. Both ends are
        widened by what a probe is easily wrong by.

        Args:
            jobs: 1 or more.
        """
        share, chain = self.seconds / jobs, self.critical_path
        longest = self.seconds if self.device == "cuda" else share + chain * (1 - 1 / jobs)
        return max(share, chain) / _ERROR, longest * _ERROR


def estimate(
    steps: Sequence[Step], *, device: torch.device, threads: int | None = None, budget_s: float = 20.0
) -> Estimate:
    """Estimate what runs will cost on this machine, from a short probe; nothing is downloaded or kept.

    Every run is taken to ask its victim itself, although runs that attack the same victim together share its answers.
    Augmentation, losses and the reading of data are part of the probe or negligible; for runs of a few seconds the
    start of a run is not, and is left out.

    Args:
        steps: In topological order.
        device: Where they will run.
        threads: CPU threads of each run; None for as many as torch takes now.
        budget_s: Time for all probes, in seconds. Operations are counted before: some tenths of a second for every
            method with other nets.

    Raises:
        InterruptedRunError: Ctrl-C.
    """
    shape_of = cache(dataset_shape)  # it may count files, and many runs are of one data set
    works = [_work(step.recipe, shape_of) for step in steps]
    nets = {net for work in works if not isinstance(work, str) for net in work}
    with _cpu_threads(threads):
        speeds, guess = _probe_all(nets, device, budget_s)
        found = [_price(step, work, speeds, guess) for step, work in zip(steps, works, strict=True)]
        return Estimate(tuple(found), device.type, torch.get_num_threads())


def rows(found: Estimate) -> list[dict[str, Any]]:
    """Return one dictionary of plain values for each run: ``hash``, ``flops``, ``seconds``, ``how``, ``note``."""
    return [
        {"hash": step.step.hash, "flops": step.flops, "seconds": step.seconds, "how": step.how, "note": step.note}
        for step in found.steps
    ]


def totals(found: Estimate, jobs: int = 1) -> dict[str, Any]:
    """Return the sums as plain values; ``duration_s`` is a range, see ``Estimate.duration``."""
    return {
        "flops": found.flops,
        "seconds": found.seconds,
        "critical_path_s": found.critical_path,
        "duration_s": list(found.duration(jobs)),
        "unknown": found.unknown,
        "jobs": jobs,
        "device": found.device,
        "threads": found.threads,
    }


def format_flops(flops: float | None) -> str:
    """Return ``26.7 PFLOP``: three digits; ``?`` for None."""
    if flops is None:
        return "?"
    for unit in _UNITS[:-1]:
        if flops < 999.5:
            return f"{flops:.3g} {unit}"
        flops /= 1000
    return f"{flops:.3g} {_UNITS[-1]}"


def format_seconds(seconds: float | None) -> str:
    """Return ``3 h 20 min``: two units while the larger one is below 10, else one; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 1:
        return "under 1 s"
    for ratio, large, small in ((60, "min", "s"), (60, "h", "min"), (24, "d", "h")):
        # Rounded to the small unit as long as that is printed, else to the large one.
        if seconds < ratio - 0.5:
            return f"{seconds:.0f} {small}"
        if seconds < 10 * ratio - 0.5:
            whole, rest = divmod(round(seconds), ratio)
            return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
        seconds /= ratio
    return f"{seconds:,.0f} d"


@dataclass(frozen=True)
class _Net:
    """A net as it is trained: what a speed belongs to.

    Attributes:
        model: Its spec.
        in_channels: Of its images.
        image_size: Of its images, in pixels.
        batch_size: Images a step.
        profile: Of the training.
        num_classes: Of its logits; no matter for its speed.
        flops: Of one step of ordinary training, for each image.
    """

    model: str
    in_channels: int
    image_size: int
    batch_size: int
    profile: str
    num_classes: int = field(compare=False)
    flops: float = field(compare=False)


def _work(recipe: Recipe, shape_of: Callable[[str], Shape]) -> dict[_Net, float] | str:
    """Return the operations of a run by net, or why they are unknown."""
    try:
        if recipe.objective.images != "train":
            return f"{recipe.objective.name} makes images of its own, at a cost that is not counted"
        transfer = recipe.data if recipe.transfer is None else recipe.transfer
        return _parts(recipe, shape_of(recipe.data), shape_of(transfer).train)
    except Exception as error:  # data that are not there, somebody else's net: the plan is worth printing all the same
        return " ".join(str(error).split()) or type(error).__name__


def _parts(recipe: Recipe, shape: Shape, images: int) -> dict[_Net, float]:
    """Return the operations of a run by net, from the size of its data set and the number of images it trains on."""
    look = (shape.num_classes, shape.in_channels, shape.image_size)
    adversary, victim = (None if source is None else source.model for source in (recipe.adversary, recipe.victim))
    frozen = {model: _forward(model, look) for model in (adversary, victim) if model is not None}
    forward = _forward(recipe.model, look)
    step = _step(recipe.method, recipe.model, adversary, victim, recipe.victim_access, recipe.batch_size, look)

    held_out = round(recipe.holdout * images)
    monitored = shape.test if recipe.selection == "paper" or not held_out else held_out
    trained = recipe.epochs * (images - held_out)
    # The test set comes once more after the last epoch, and again for the weights of another one, which are measured on
    # the held-out images too.
    evaluated = recipe.epochs * monitored + shape.test * (1 if recipe.selection == "last" else 2) + held_out

    parts = {_net(recipe, recipe.model, look): trained * (step - sum(frozen.values())) + evaluated * forward}
    for model, flops in frozen.items():
        net = _net(recipe, model, look)
        asked = trained
        if model == victim:  # on the test images it is the measure
            asked = min(images, recipe.queries) if recipe.queries is not None else trained + held_out
            asked += shape.test
        parts[net] = parts.get(net, 0.0) + asked * flops
    return parts


def _net(recipe: Recipe, model: str, look: _Look) -> _Net:
    flops = _step("ce", model, None, None, Access.LOGITS, recipe.batch_size, look)
    classes, channels, size = look
    return _Net(model, channels, size, recipe.batch_size, recipe.profile, classes, flops)


_Look = tuple[int, int, int]  # of a data set to a net: classes, channels, pixels of a side


@cache
def _forward(model: str, look: _Look) -> int:
    """Return the operations of one forward pass, for each image."""
    if ":" in model:
        _build(model, look)  # its module is imported here, where tensors have values: it may keep some
    with shapes_only():
        return forward_flops(_build(model, look), (1, *look[1:], look[2]))


@cache
def _step(
    method: str, model: str, adversary: str | None, victim: str | None, access: Access, batch_size: int, look: _Look
) -> float:
    """Return the operations of one step, for each image."""
    with shapes_only():
        nets = Nets(
            _build(model, look),
            None if adversary is None else Frozen(_build(adversary, look)),
            None if victim is None else Victim(_build(victim, look), access=access),
        )
        objective, frame = build_method(method), Frame(*look, mean=(0.0,) * look[1], std=(1.0,) * look[1])
        nets = replace(nets, modules=objective.modules(nets, frame) or nn.ModuleDict())
        labels = torch.zeros(batch_size, dtype=torch.int64)
        images = torch.zeros(batch_size, *look[1:], look[2])
        return count_flops(objective, nets, Batch(images, labels, labels)).per_image


def _build(model: str, look: _Look) -> nn.Module:
    classes, channels, size = look
    return build_model(model, num_classes=classes, in_channels=channels, image_size=size, seed=0)


def _price(step: Step, work: Mapping[_Net, float] | str, speeds: Mapping[_Net, float], guess: float) -> StepEstimate:
    if isinstance(work, str):
        return StepEstimate(step, None, None, "unknown", work)
    seconds = sum(flops / _speed(net, speeds, guess) for net, flops in work.items())
    how: How = "probed" if work.keys() <= speeds.keys() else "scaled"
    return StepEstimate(step, sum(work.values()), seconds, how)


def _speed(net: _Net, speeds: Mapping[_Net, float], guess: float) -> float:
    """Return the speed of a net or of the nearest one: of its profile, of its kind, of its size."""
    if net in speeds or not speeds:
        return speeds.get(net, guess)
    return speeds[
        min(
            speeds,
            key=lambda it: (it.profile != net.profile, it.model != net.model, abs(math.log(it.flops / net.flops))),
        )
    ]


def _probe_all(nets: Iterable[_Net], device: torch.device, budget_s: float) -> tuple[dict[_Net, float], float]:
    """Return the speeds of the nets that there is time for, and a guess for the others if there is none.

    The cheapest come first: what they leave of their share goes to the dear ones, and a small net tells less of a
    large one than the other way round.
    """
    deadline = time.perf_counter() + budget_s
    waiting = sorted(nets, key=lambda net: net.flops)
    guess = first = _FIRST_GUESS * matmul_rate(device, seconds=0.1) if waiting else 1.0
    speeds: dict[_Net, float] = {}
    for position, net in enumerate(waiting):
        share = (deadline - time.perf_counter()) / (len(waiting) - position)
        speed = _probe(net, device, share, guess)
        if speed is not None:
            speeds[net] = guess = speed
    return speeds, first


def _probe(net: _Net, device: torch.device, seconds: float, guess: float) -> float | None:
    """Return the speed of a net in FLOP/s; None if two images take too long, or it cannot be trained here."""
    fits = int(seconds * guess / (3 * net.flops))  # images a step, if there are to be three steps
    if 3 * fits < 2:
        return None
    batch_size = max(2, min(net.batch_size, fits))
    watch = _StopWatch(device, seconds)
    try:
        config = Training(
            epochs=1,
            batch_size=batch_size,
            lr=1e-6,
            schedule="constant",
            augment="none",
            holdout=0,
            selection="last",
            profile=net.profile,
        )
        model = _build(net.model, (net.num_classes, net.in_channels, net.image_size)).to(device)
        fit(
            Job(build_method("ce"), Nets(model), config, callback=watch),
            _noise(net, _MOST_STEPS * batch_size),
            device=device,
        )
    except _Enough:
        pass
    except InterruptedRunError:
        raise
    except Exception:  # no memory, say: a net that cannot be probed is estimated like another
        return None
    return batch_size * net.flops / watch.step_seconds


def _noise(net: _Net, size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(
        256, (size, net.in_channels, net.image_size, net.image_size), dtype=torch.uint8, generator=generator
    )
    images = Images(x, torch.arange(size) % net.num_classes)
    classes = tuple(map(str, range(net.num_classes)))
    few = images.subset(torch.arange(2))
    return Dataset("noise", images, few, classes, (0.5,) * net.in_channels, (0.25,) * net.in_channels)


class _Enough(Exception):  # noqa: N818 - it is no error
    """The time of a probe is over."""


class _StopWatch:
    """Takes the time of every step, and ends training when its own is over."""

    def __init__(self, device: torch.device, limit_s: float) -> None:
        self._device, self._limit_s = device, limit_s
        self._marks = [clock(device)]

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._marks.append(clock(self._device))
        elapsed = self._marks[-1] - self._marks[0]
        if elapsed > self._limit_s or (step > _STEPS and elapsed > _ENOUGH_S):
            raise _Enough

    def epoch(self, record: dict[str, Any]) -> None:
        """Look at steps only."""

    @property
    def step_seconds(self) -> float:
        """Median time of a step; the first is a warm-up, and counts only if there is no other."""
        times = [end - start for start, end in zip(self._marks, self._marks[1:], strict=False)]
        return median(times[1:] or times)


@contextmanager
def _cpu_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
