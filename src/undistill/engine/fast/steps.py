"""The profiles ``fast`` and ``turbo``: the steps of ``exact`` in less time, equal up to rounding."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from undistill.data.loader import Batch
from undistill.engine.config import Training, Tuning
from undistill.engine.device import cuda_precision
from undistill.engine.fast.folding import fold_batchnorm
from undistill.engine.fast.graphs import GraphStepper, one_by_one
from undistill.engine.fast.mixed import MixedPrecision
from undistill.engine.fast.stack import StackStepper
from undistill.engine.fast.tuning import choose_tuning, describe, settled
from undistill.engine.optim import make_optimizer
from undistill.engine.stepping import EagerStepper, Learner
from undistill.errors import RunError
from undistill.kernels.winograd import Winograd
from undistill.objective import Frozen, Nets, StepOutput
from undistill.victim import Access, Victim

__all__ = ["FastStepper", "FastSteps", "rebuild", "use_layout"]

_log = logging.getLogger(__name__)

Steps = Callable[[Batch, Sequence[float]], Sequence[StepOutput | Exception]]


class FastStepper:
    """Finds out with its first batch how to compute, and computes like that from then on.

    Args:
        learner: The net, on ``device``.
        config: The protocol.
        device: Where to compute.
        steps: That the job takes; decides how much probing is worth.

    Attributes:
        learner: As given.
        tuning: How it computes; None before the first batch.
        alike: Equal for steppers whose nets may be stacked; None for one that cannot be.
    """

    def __init__(self, learner: Learner, config: Training, device: torch.device, steps: int) -> None:
        self.learner = learner
        self.tuning: Tuning | None = None
        self.alike: object = None
        if learner.nets.companion is None and not learner.nets.modules:  # a stack is of the nets only
            self.alike = type(learner.objective), _outline(learner.nets), config.optimizer, config.tuning
        self._peers: Sequence[FastStepper] = (self,)
        self._config, self._device, self._length = config, device, steps

    def meet(self, peers: Sequence[FastStepper]) -> None:
        """Take note of those that are alike and take the same step, itself among them; they choose once for all."""
        was_alone, self._peers = len(self._peers) == 1, peers
        if self.tuning is not None and (self.tuning.stack if len(peers) == 1 else was_alone):
            self.tuning = None  # it was chosen for other company

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch."""
        if self.tuning is None:
            chosen = next((peer.tuning for peer in self._peers if peer.tuning is not None), None)
            tuning = _possible(chosen or self._choose(batch))
            _log.info("%s computes with %s", self._config.profile, describe(tuning))
            self._steps = FastSteps([self.learner], tuning, batch)
            self.tuning = self._steps.tuning
        (output,) = self._steps(batch, [lr])
        if isinstance(output, Exception):
            raise output
        return output

    def _choose(self, batch: Batch) -> Tuning:
        pinned, nets = self._config.tuning or Tuning(), self.learner.nets
        stack = pinned.stack if len(self._peers) > 1 else False
        if self._device.type == "cuda":
            # A graph replays what it has seen: what is trained beside the net, and batches of targets, are outside.
            alone = nets.companion is None and not nets.modules
            graphs = pinned.graphs is not False and alone and not batch.targets
            precision = "float32" if batch.x.is_meta else cuda_precision(pinned)
            return settled(pinned).model_copy(update={"graphs": graphs, "precision": precision, "stack": bool(stack)})
        if nets.companion is not None:
            return settled(pinned).model_copy(update={"stack": False})  # a trial would train it
        shape = tuple(batch.x.shape)
        what = self.learner.objective.spec, _outline(nets), shape, self._config.optimizer, len(self._peers)
        if stack is not None:
            pinned = pinned.model_copy(update={"stack": False, "compile": False if stack else pinned.compile})
        tuning = choose_tuning(pinned, lambda tuning: self._try(tuning, batch), what, self._length)
        return tuning.model_copy(update={"stack": True}) if stack else tuning

    def _try(self, tuning: Tuning, batch: Batch) -> Callable[[], float]:
        """Return a function that takes a step with copies of the nets and returns its seconds for each."""
        nets = deepcopy(self.learner.nets)
        victims = [nets.victim.another() if nets.victim is not None else None for _ in self._peers]
        copies = [replace(nets, model=deepcopy(nets.model), victim=victim) for victim in victims]
        learners = [
            Learner(self.learner.objective, copy, make_optimizer(self._config, copy.model), _ignore) for copy in copies
        ]
        groups = [learners] if tuning.stack else [[learner] for learner in learners]
        all_steps = [FastSteps(group, tuning, batch) for group in groups]

        def step() -> float:
            with torch.random.fork_rng(devices=[]):
                fresh = replace(batch, x=batch.x.clone())  # or the victim would answer from memory
                begin = time.perf_counter()
                for steps, group in zip(all_steps, groups, strict=True):
                    steps(fresh, [0.0] * len(group))
                return (time.perf_counter() - begin) / len(learners)

        return step


class FastSteps:
    """Steps of one net, or of several that are stacked, computed as a tuning says.

    The trained nets are laid out anew in place. Frozen nets are copied, with BatchNorm folded into their convolutions.
    Batches of another size than the first, such as the last one of an epoch, are computed without a compiled net or a
    graph, which are made for one size. A stack is not compiled.

    Args:
        learners: One, or several with nets of one architecture.
        tuning: With every field set. One net alone that is to be stacked later is neither compiled nor captured.
        batch: Of the usual size.

    Attributes:
        tuning: As given, but for what could not be done.

    Raises:
        RuntimeError: The nets cannot be stacked. What else ``vmap`` raises means the same.
    """

    def __init__(self, learners: Sequence[Learner], tuning: Tuning, batch: Batch) -> None:
        self.tuning, self._given, self._size = tuning, learners, len(batch.y)
        for learner in learners:
            use_layout(learner.nets.model, learner.optimizer, channels_last=bool(tuning.channels_last))
        self._learners = [replace(learner, nets=rebuild(learner.nets, batch.x, tuning)) for learner in learners]
        self._convolutions = Winograd() if tuning.winograd else nullcontext()
        self._stack: StackStepper | None = None
        usual, gradients = self._learners, one_by_one
        self._rest: Steps = _alone(usual[0])
        if len(learners) > 1:
            self._rest = self._stack = StackStepper(usual, batch)
            usual, gradients = self._stack.learners, self._stack.gradients
        self._whole = self._rest
        if tuning.stack and len(learners) == 1:
            return
        if tuning.compile and len(learners) == 1:
            usual = [_compiled(usual[0])]
            self._whole = _alone(usual[0])
        if tuning.graphs and batch.x.is_cuda:
            try:
                self._whole = GraphStepper(usual, batch, gradients)
            except RuntimeError as error:
                spec, reason = usual[0].objective.spec, str(error).partition("\n")[0]
                _log.warning("steps of %s cannot be captured (%s); they run eagerly", spec, reason)
        done = {"graphs": isinstance(self._whole, GraphStepper), "compile": tuning.compile and len(learners) == 1}
        self.tuning = tuning.model_copy(update=done)

    def __call__(self, batch: Batch, lrs: Sequence[float]) -> Sequence[StepOutput | Exception]:
        """Train on a batch, each net at its learning rate; in a stack, what stops one is returned in its place."""
        _use_threads(self.tuning)
        steps = self._whole if len(batch.y) == self._size else self._rest
        with self._convolutions:
            outputs = steps(batch, lrs)
        for given, rebuilt in zip(self._given, self._learners, strict=True):
            _count_queries(given.nets.victim, rebuilt.nets.victim)
        return outputs

    def dissolve(self) -> None:
        """Give nets that are stacked memory of their own again."""
        if self._stack is not None:
            self._stack.dissolve()


def _possible(tuning: Tuning) -> Tuning:
    """Return the tuning but for what cannot be done here: a remembered one may be from before the compiler went."""
    try:
        if tuning.winograd:
            Winograd()
    except RunError as error:
        _log.warning("convolutions are computed directly: %s", error)
        return tuning.model_copy(update={"winograd": False})
    return tuning


def _alone(learner: Learner) -> Steps:
    step = EagerStepper(learner)
    return lambda batch, lrs: [step(batch, *lrs)]


def _compiled(learner: Learner) -> Learner:
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one a net, not a class
    model: Any = torch.compile(learner.nets.model, dynamic=False, options={"fallback_random": True})
    return replace(learner, nets=replace(learner.nets, model=model))


def _count_queries(given: Victim | None, rebuilt: Victim | None) -> None:
    """Put what the rebuilt victim was asked on the meter of the one that we were given."""
    if given is not None and rebuilt is not None:
        given.queries += rebuilt.queries
        rebuilt.queries = 0


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


def _outline(nets: Nets) -> str:
    """Return what tells nets of different cost apart."""
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in nets.model.named_parameters()]
    return repr((str(nets.model), parameters, nets.adversary is not None, nets.victim is not None))


def _use_threads(tuning: Tuning) -> None:
    """Compute with so many threads from here on; the loop puts the number back when it ends."""
    if tuning.threads is not None and tuning.threads != torch.get_num_threads():
        torch.set_num_threads(tuning.threads)


def _ignore(loss: Tensor, norm: Tensor) -> None:
    """Watch nothing: a trial at a learning rate of zero cannot diverge."""
