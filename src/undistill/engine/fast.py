"""The profiles ``fast`` and ``turbo``: the steps of ``exact`` in less time, equal up to rounding."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from undistill.data.loader import Batch
from undistill.engine.config import Training, Tuning
from undistill.engine.device import cuda_precision
from undistill.engine.graphs import GraphStepper
from undistill.engine.mixed import MixedPrecision
from undistill.engine.objective import Frozen, Nets, Objective, StepOutput
from undistill.engine.optim import make_optimizer
from undistill.engine.probe import choose_tuning, describe, settled
from undistill.engine.stepping import EagerStepper, Stepper, Watch
from undistill.engine.winograd import Winograd
from undistill.models.folding import fold_batchnorm
from undistill.victim import Access

__all__ = ["FastStepper", "rebuild", "use_layout"]

_log = logging.getLogger(__name__)


class FastStepper:
    """Finds out with its first batch how to compute, and computes like that from then on.

    The trained net is laid out anew in place. Frozen nets are copied, with BatchNorm folded into their convolutions.
    Batches of another size than the first, such as the last one of an epoch, are computed without a compiled net or a
    graph, which are made for one size.

    Args:
        objective: What each step minimises.
        nets: The net to train and those that the objective looks at, on ``device``.
        optimizer: Over the parameters that are trained.
        watch: Told the loss and the gradient norm of every step.
        config: The protocol.
        device: Where to compute.
        steps: That the job takes; decides how much probing is worth.

    Attributes:
        tuning: How it computes; None before the first batch.
    """

    def __init__(
        self,
        objective: Objective,
        nets: Nets,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        config: Training,
        device: torch.device,
        steps: int,
    ) -> None:
        self.tuning: Tuning | None = None
        self._objective, self._nets, self._optimizer, self._watch = objective, nets, optimizer, watch
        self._config, self._device, self._steps = config, device, steps

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch."""
        if self.tuning is None:
            self.tuning = self._choose(batch)
            self._size = len(batch.y)
            _log.info("%s computes with %s", self._config.profile, describe(self.tuning))
            self._how = _build(
                self._objective, self._nets, self._optimizer, self._watch, self.tuning, batch, self._device
            )
            if self.tuning.graphs and not isinstance(self._how.whole, GraphStepper):
                self.tuning = self.tuning.model_copy(update={"graphs": False})  # what was done counts
        _use_threads(self.tuning)
        step = self._how.whole if len(batch.y) == self._size else self._how.rest
        with self._how.convolutions:
            output = step(batch, lr)
        self._count_queries()
        return output

    def _choose(self, batch: Batch) -> Tuning:
        pinned = self._config.tuning or Tuning()
        if self._device.type == "cuda":
            # A graph replays what it has seen: a companion that is trained beside the net, and batches of targets, are
            # outside of it.
            graphs = pinned.graphs is not False and self._nets.companion is None and not batch.targets
            precision = "float32" if batch.x.is_meta else cuda_precision(pinned)
            return settled(pinned).model_copy(update={"graphs": graphs, "precision": precision})
        if self._nets.companion is not None:
            return settled(pinned)  # a trial would train it
        what = (self._objective.spec, _outline(self._nets), tuple(batch.x.shape), self._config.optimizer)
        return choose_tuning(pinned, lambda tuning: self._try(tuning, batch), what, self._steps)

    def _try(self, tuning: Tuning, batch: Batch) -> Callable[[], float]:
        """Return a function that takes a step with copies of the nets and returns its seconds."""
        nets = deepcopy(self._nets)
        optimizer = make_optimizer(self._config, nets.model)
        how = _build(self._objective, nets, optimizer, _ignore, tuning, batch, self._device)

        def step() -> float:
            _use_threads(tuning)
            with torch.random.fork_rng(devices=[]):
                fresh = replace(batch, x=batch.x.clone())  # or the victim would answer from memory
                begin = time.perf_counter()
                with how.convolutions:
                    how.whole(fresh, 0.0)
                return time.perf_counter() - begin

        return step

    def _count_queries(self) -> None:
        """Put what the rebuilt victim was asked on the meter of the one that we were given."""
        if self._nets.victim is not None and self._how.nets.victim is not None:
            self._nets.victim.queries += self._how.nets.victim.queries
            self._how.nets.victim.queries = 0


@dataclass(frozen=True)
class _How:
    """Steps on batches of the usual size, on the rest, and the nets that both use."""

    whole: Stepper
    rest: Stepper
    nets: Nets
    convolutions: AbstractContextManager[Any]


def _build(
    objective: Objective,
    nets: Nets,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
    tuning: Tuning,
    batch: Batch,
    device: torch.device,
) -> _How:
    use_layout(nets.model, optimizer, channels_last=bool(tuning.channels_last))
    nets = rebuild(nets, batch.x, tuning)
    rest = EagerStepper(objective, nets, optimizer, watch)
    usual = nets
    if tuning.compile:
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one a net, not a class
        compiled: Any = torch.compile(nets.model, dynamic=False, options={"fallback_random": True})
        usual = replace(nets, model=compiled)
    whole: Stepper = EagerStepper(objective, usual, optimizer, watch)
    if tuning.graphs and device.type == "cuda":
        try:
            whole = GraphStepper(objective, usual, optimizer, watch, batch)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            _log.warning("steps of %s cannot be captured (%s); they run eagerly", objective.spec, reason)
    return _How(whole, rest, nets, Winograd() if tuning.winograd else nullcontext())


def rebuild(nets: Nets, x: Tensor, tuning: Tuning) -> Nets:
    """Return nets that answer like these, up to rounding, in less time.

    The trained net shares its parameters with the given one; frozen nets are copies. A victim that shows its gradients
    keeps its BatchNorm layers: whoever has them may look at them.

    Args:
        nets: The nets of a step; they stay as they are.
        x: Images (B, C, H, W).
        tuning: With every field set.
    """

    def trunk(net: nn.Module) -> nn.Module:
        return MixedPrecision(net, x) if tuning.precision == "bf16" and not x.is_meta else net

    def frozen(net: nn.Module, *, fold: bool = True) -> nn.Module:
        net = fold_batchnorm(net, x) if fold else deepcopy(net)
        return trunk(net.to(memory_format=_layout(bool(tuning.channels_last))))  # type: ignore[call-overload]

    adversary, victim = nets.adversary, nets.victim
    if adversary is not None:
        adversary = Frozen(frozen(adversary.net))
    if victim is not None:
        fold = victim.access < Access.GRADIENTS
        victim = victim.computed_by(lambda net: frozen(net, fold=fold))
    return replace(nets, model=trunk(nets.model), adversary=adversary, victim=victim)


def use_layout(model: nn.Module, optimizer: torch.optim.Optimizer, *, channels_last: bool) -> None:
    """Lay out a net's weights anew, and what the optimizer keeps for each likewise: fused kernels assume it."""
    model.to(memory_format=_layout(channels_last))  # type: ignore[call-overload]
    for parameter, slot in optimizer.state.items():
        for name, value in slot.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                slot[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _outline(nets: Nets) -> str:
    """Return what tells nets of different cost apart."""
    shapes = [(name, tuple(p.shape)) for name, p in nets.model.named_parameters()]
    return repr((type(nets.model).__qualname__, shapes, nets.adversary is not None, nets.victim is not None))


def _use_threads(tuning: Tuning) -> None:
    """Compute with so many threads from here on; the loop puts the number back when it ends."""
    if tuning.threads is not None and tuning.threads != torch.get_num_threads():
        torch.set_num_threads(tuning.threads)


def _ignore(loss: Tensor, norm: Tensor) -> None:
    """Watch nothing: a trial at a learning rate of zero cannot diverge."""
