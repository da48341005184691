"""A whole training step as one CUDA graph: captured once, replayed without Python and without launches one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from undistill.data.loader import Batch
from undistill.engine.stepping import Learner, take_step, unmetered
from undistill.objective import StepOutput
from undistill.victim import Access, Victim, asked_once
from undistill.victim.asked import Asked

__all__ = ["Capture", "GraphStepper", "capture_cuda"]

_log = logging.getLogger(__name__)

_WARM_UP = 3  # runs before the capture, in which libraries choose their kernels and the optimizer makes its buffers

T = TypeVar("T")


class Capture(Protocol):
    """Makes a replay of a function without arguments."""

    def __call__(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Return the result of ``run``, and what computes it anew in the same place."""


def capture_cuda(run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """Capture what ``run`` launches, which does not run, and return where its result will be, and its replay.

    Raises:
        RuntimeError: It does what cannot be captured, such as waiting for the device.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            result = run()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
    return result, graph.replay


class GraphStepper:
    """Replays one captured step: forward passes, losses, backward pass, gradient norms and updates.

    The batch and the learning rates are written to where the graph reads them. So are the answers of a victim: the
    thieves who ask it about the same tensor share its pass, which is a graph of its own. Only a victim that shows its
    gradients is part of the step. The nets, the optimizers and torch's generators are as before when the capture is
    done: the steps that it takes to get there are undone.

    Args:
        learners: One net, or several that draw no random numbers. Their objectives' steps must not wait for the device,
            their optimizers must take a learning rate from a tensor, and they are told what to guard after the update.
        batch: Any batch of the size that all will have.
        step: Has the learners take a step; what is raised in it ends the capture.
        capture: Makes a replay of a function without arguments.

    Raises:
        RuntimeError: The step cannot be captured; everything is as before.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        batch: Batch,
        step: Callable[[Sequence[Learner], Batch, Sequence[Tensor]], None] = take_step,
        capture: Capture = capture_cuda,
    ) -> None:
        device = batch.x.device
        self._batch = Batch(batch.x.clone(), batch.y.clone(), batch.index.clone(), partial=batch.partial)
        self._lrs = [torch.zeros((), device=device) for _ in learners]
        self._given, self._step = learners, step
        self._learners = [unmetered(learner) for learner in learners]  # a replay asks nothing
        self._victims = [_outside(learner, capture) for learner in learners]
        self._answers: dict[object, Tensor] = {}
        kept = [_Kept(learner) for learner in learners]
        try:
            self._load(batch)
            with _on(device):
                _warm_up(self._run, device)
                asked = self._queries()
                (self._outputs, self._norms), self._replay = capture(self._run)
            self._queries_a_step = [now - before for now, before in zip(self._queries(), asked, strict=True)]
        finally:
            for one in kept:
                one.put_back()

    def __call__(self, batch: Batch, lrs: Sequence[float]) -> None:
        """Train on a batch, each net at its learning rate."""
        alone = len(self._given) == 1
        if not alone:
            self._take(batch, lrs)
        for learner, output, norm in zip(self._given, self._outputs, self._norms, strict=True):
            with learner.turn():
                if alone:  # what it draws is drawn from its own generators
                    self._take(batch, lrs)
                learner.guard(output.loss, norm)
                learner.count(output, batch)

    def _take(self, batch: Batch, lrs: Sequence[float]) -> None:
        self._load(batch)
        for mine, lr in zip(self._lrs, lrs, strict=True):
            mine.fill_(lr)
        self._replay()
        for learner, queries in zip(self._given, self._queries_a_step, strict=True):
            if learner.nets.victim is not None:
                learner.nets.victim.queries += queries

    def _load(self, batch: Batch) -> None:
        """Write a batch, and what the victims say about it, to where the graph reads them."""
        for mine, given in zip(self._tensors(self._batch), self._tensors(batch), strict=True):
            mine.copy_(given, non_blocking=True)
        for victim in self._victims:
            if victim is not None:
                victim.write_answer(batch.x, self._answers)

    @staticmethod
    def _tensors(batch: Batch) -> tuple[Tensor, ...]:
        return batch.x, batch.y, batch.index

    def _queries(self) -> list[int]:
        victims = (learner.nets.victim for learner in self._learners)
        return [victim.queries if victim is not None else 0 for victim in victims]

    def _run(self) -> tuple[list[StepOutput], list[Tensor]]:
        """Take a step and return what came of it and the norms of the gradients."""
        outputs: list[StepOutput] = []
        norms: list[Tensor] = []
        learners = [
            replace(
                learner,
                guard=lambda _, norm: norms.append(norm),
                count=lambda output, _: outputs.append(_detached(output)),
                turn=nullcontext,
            )
            for learner in self._learners
        ]
        with asked_once(self._batch.x, self._answers, rows=self._batch.index):
            self._step(learners, self._batch, self._lrs)
        return outputs, norms


class _ReplayedNet(nn.Module):
    """A frozen net whose pass is captured with the first batch that it is asked about; all are of one shape."""

    def __init__(self, net: nn.Module, capture: Capture) -> None:
        super().__init__()
        self.net = net
        self._capture = capture
        self._replay: Callable[[], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        if self._replay is None:
            self._x = x.clone()
            with _on(x.device):
                _warm_up(self._run, x.device)
                self._logits, self._replay = self._try()
        self._x.copy_(x)
        self._replay()
        return self._logits.clone()  # the next batch's will be in its place

    def _try(self) -> tuple[Tensor, Callable[[], None]]:
        """Return the logits and what computes them anew; a pass that cannot be captured is taken each time."""
        try:
            return self._capture(self._run)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            _log.warning("the victim's pass cannot be captured (%s); it runs eagerly", reason)
            logits = self._run()

            def run() -> None:
                logits.copy_(self._run())

            return logits, run

    def _run(self) -> Tensor:
        logits: Tensor = self.net(self._x)
        return logits


def _outside(learner: Learner, capture: Capture) -> Victim | None:
    """Return the victim whose answers are at hand inside; none where gradients are to flow through it."""
    victim = learner.nets.victim
    if victim is None or isinstance(victim, Asked) or victim.access >= Access.GRADIENTS:
        return None
    return victim.computed_by(lambda net: _ReplayedNet(net, capture))


def _warm_up(run: Callable[[], object], device: torch.device) -> None:
    if device.type != "cuda":
        for _ in range(_WARM_UP):
            run()
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), torch.random.fork_rng([device]):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one, on which streams are opened."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _detached(output: StepOutput) -> StepOutput:
    return replace(
        output,
        loss=output.loss.detach(),
        logits=output.logits.detach(),
        logs={name: value.detach() for name, value in output.logs.items()},
    )


class _Kept:
    """What the steps before a capture change."""

    def __init__(self, learner: Learner) -> None:
        self._model, self._optimizer = learner.nets.model, learner.optimizer
        self._weights = {key: value.clone() for key, value in self._model.state_dict().items()}
        self._slots = {
            parameter: {name: value.clone() for name, value in slot.items() if isinstance(value, Tensor)}
            for parameter, slot in self._optimizer.state.items()
        }

    @torch.no_grad()
    def put_back(self) -> None:
        """Write everything back where it was: a graph knows tensors by their place in memory."""
        for key, value in self._model.state_dict().items():
            value.copy_(self._weights[key])
        for parameter, slot in self._optimizer.state.items():
            for name, value in slot.items():
                if isinstance(value, Tensor):  # what was not there yet starts at zero, as the optimizers do
                    before = self._slots.get(parameter, {}).get(name)
                    value.copy_(before) if before is not None else value.zero_()
