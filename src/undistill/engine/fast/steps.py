"""The profiles ``fast`` and ``turbo``: the steps of ``exact`` in less time, equal up to rounding."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from undistill.data.loader import Batch
from undistill.engine.config import Tuning
from undistill.engine.fast.folding import fold_batchnorm
from undistill.engine.fast.graphs import GraphStepper
from undistill.engine.fast.mixed import MixedPrecision
from undistill.engine.fast.stack import StackStepper
from undistill.engine.fast.tuning import choose_for, describe, outline
from undistill.engine.optim import make_optimizer
from undistill.engine.stepping import Learner, take_step
from undistill.errors import InterruptedRunError
from undistill.kernels.mode import Kernels
from undistill.objective import Frozen, Nets
from undistill.victim import Access, asked_once

__all__ = ["FastSteps", "TunedSteps", "measured", "rebuild", "use_layout"]

_log = logging.getLogger(__name__)


class FastSteps:
    """Has nets take steps side by side: equal nets as one where that pays, else one after the other.

    How to compute is found out with the first batch. A stack is of those that take the same step. Whenever they are
    others, because one has ended, failed or caught up, it is made anew.
    """

    def __init__(self) -> None:
        self._kinds: dict[Learner, object] = {}  # equal for nets that may be stacked
        self._chosen: dict[tuple[object, bool], Tuning] = {}  # for each kind, alone and in company
        self._made: dict[tuple[tuple[Learner, ...], Tuning], TunedSteps] = {}

    def __call__(self, learners: Sequence[Learner], batch: Batch, lrs: Sequence[float]) -> None:
        """Train every net on a batch, each at its learning rate."""
        rates = dict(zip(learners, lrs, strict=True))
        groups = self._groups(learners, batch)
        for other in [made for made in self._made if made not in groups]:
            if len(other[0]) > 1 or other[0][0] in rates:
                self._made.pop(other).dissolve()
        for group, tuning in groups:
            self._step(group, tuning, batch, [rates[learner] for learner in group])

    def close(self) -> None:
        """Give all nets memory of their own again."""
        while self._made:
            self._made.popitem()[1].dissolve()

    def _groups(self, learners: Sequence[Learner], batch: Batch) -> list[tuple[tuple[Learner, ...], Tuning]]:
        """Return who is computed together, and how."""
        kinds: dict[object, list[Learner]] = {}
        for learner in learners:
            if learner not in self._kinds:
                self._kinds[learner] = _kind(learner)
            kinds.setdefault(self._kinds[learner], []).append(learner)
        groups: list[tuple[tuple[Learner, ...], Tuning]] = []
        for kind, equal in kinds.items():
            key = kind, len(equal) > 1
            if key not in self._chosen:
                self._chosen[key] = choose_for(equal, batch, partial(measured, equal, batch))
            tuning = self._chosen[key]
            if not tuning.stack:  # what is computed alone in company is so without
                self._chosen.setdefault((kind, False), tuning)
            groups += [(tuple(equal), tuning)] if tuning.stack else [((learner,), tuning) for learner in equal]
        return groups

    def _step(self, group: tuple[Learner, ...], tuning: Tuning, batch: Batch, lrs: Sequence[float]) -> None:
        try:
            steps = self._made.get((group, tuning)) or self._make(group, tuning, batch)
        except Exception as error:  # vmap cannot take every net
            if len(group) == 1:
                return _fail(group, error)
            reason = str(error).partition("\n")[0]
            _log.warning("%d nets cannot be stacked (%s); they train one after the other", len(group), reason)
            self._kinds.update((learner, learner) for learner in group)
            for (alone, other), lr in zip(self._groups(group, batch), lrs, strict=True):
                self._step(alone, other, batch, [lr])
            return None
        for learner in group:
            learner.tuning = steps.tuning
        try:
            steps(batch, lrs)
        except InterruptedRunError:
            raise
        except Exception as error:  # of all of them, such as a lack of memory
            _fail(group, error)

    def _make(self, group: tuple[Learner, ...], tuning: Tuning, batch: Batch) -> TunedSteps:
        steps = self._made[group, tuning] = TunedSteps(group, tuning, batch)
        _log.info("%s computes with %s", group[0].config.profile, describe(steps.tuning))
        return steps


class TunedSteps:
    """Steps of one net, or of several that are stacked, computed as a tuning says.

    The trained nets are laid out anew in place. Frozen nets are copied, with BatchNorm folded into their convolutions.
    Batches of another size than the first, such as the last one of an epoch, are computed without a compiled net or a
    graph, which are made for one size. A stack is not compiled.

    Args:
        learners: One, or several with nets of one architecture.
        tuning: With every field set.
        batch: Of the usual size.

    Attributes:
        tuning: As given, but for what could not be done.

    Raises:
        RuntimeError: The nets cannot be stacked. What else ``vmap`` raises means the same.
    """

    def __init__(self, learners: Sequence[Learner], tuning: Tuning, batch: Batch) -> None:
        self._threads, self._size = tuning.threads, len(batch.y)
        for learner in learners:
            use_layout(learner.nets.model, learner.optimizer, channels_last=bool(tuning.channels_last))
        self._kernels = Kernels() if tuning.winograd else nullcontext()
        self._learners = [replace(learner, nets=rebuild(learner.nets, batch.x, tuning)) for learner in learners]
        self._stack = StackStepper(self._learners, batch) if len(learners) > 1 else None
        if self._stack is not None:
            self._learners = self._stack.learners
        compiled = bool(tuning.compile) and self._stack is None
        self._usual = [_compiled(learner) for learner in self._learners] if compiled else self._learners
        self._graph = self._captured(batch) if tuning.graphs and batch.x.is_cuda else None
        self.tuning = tuning.model_copy(update={"graphs": self._graph is not None, "compile": compiled})

    def __call__(self, batch: Batch, lrs: Sequence[float]) -> None:
        """Train on a batch, each net at its learning rate."""
        if self._threads is not None and self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)  # from here on; the loop puts the number back when it ends
        usual, step = len(batch.y) == self._size, self._stack or take_step
        with self._kernels:
            if usual and self._graph is not None:
                self._graph(batch, lrs)
            else:
                step(self._usual if usual else self._learners, batch, lrs)

    def dissolve(self) -> None:
        """Give nets that are stacked memory of their own again."""
        if self._stack is not None:
            self._stack.dissolve()

    def _captured(self, batch: Batch) -> GraphStepper | None:
        try:
            return GraphStepper(self._usual, batch, self._stack or take_step)
        except RuntimeError as error:
            spec, reason = self._usual[0].objective.spec, str(error).partition("\n")[0]
            _log.warning("steps of %s cannot be captured (%s); they run eagerly", spec, reason)
            return None


def measured(learners: Sequence[Learner], batch: Batch, tuning: Tuning) -> Callable[[], float]:
    """Return a function that has copies of equal nets take a step and returns its seconds for each."""
    first = learners[0]
    nets = deepcopy(first.nets)
    copies = []
    for _ in learners:
        victim = nets.victim.another() if nets.victim is not None else None
        one = replace(nets, model=deepcopy(nets.model), modules=deepcopy(nets.modules), victim=victim)
        copies.append(Learner(first.objective, one, make_optimizer(first.config, one.model, one.modules), _unguarded))
    parts = [TunedSteps(part, tuning, batch) for part in ([copies] if tuning.stack else [[one] for one in copies])]

    def step() -> float:
        with torch.random.fork_rng(devices=[]), asked_once(batch.x, rows=batch.index):
            begin = time.perf_counter()
            for steps in parts:
                steps(batch, [0.0] * (len(copies) // len(parts)))
            return (time.perf_counter() - begin) / len(copies)

    return step


def _fail(group: Sequence[Learner], error: Exception) -> None:
    """Tell each of a group what stopped all of them."""
    for learner in group:
        with learner.turn():
            raise error


def _kind(learner: Learner) -> object:
    """Return what is equal for learners whose nets may be stacked: with nothing that is trained beside them."""
    nets, config = learner.nets, learner.config
    if nets.companion is not None or nets.modules:
        return learner
    return type(learner.objective), outline(nets), config.optimizer, config.tuning


def _compiled(learner: Learner) -> Learner:
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one a net, not a class
    model: Any = torch.compile(learner.nets.model, dynamic=False, options={"fallback_random": True})
    return replace(learner, nets=replace(learner.nets, model=model))


def rebuild(nets: Nets, x: Tensor, tuning: Tuning) -> Nets:
    """Return nets that answer like these, up to rounding, in less time.

    The trained net shares its parameters with the given one; frozen nets are copies. A victim that shows its gradients
    or its features keeps its BatchNorm layers: whoever has them may look at what goes in and comes out.

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
        fold = victim.access < Access.FEATURES
        victim = victim.computed_by(lambda net: frozen(net, fold=fold), how=tuning.precision)
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


def _unguarded(loss: Tensor, norm: Tensor) -> None:
    """Guard nothing: a trial at a learning rate of zero cannot diverge."""
