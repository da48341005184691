"""Equal nets that train side by side on the same batches, computed as one by ``torch.func``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from undistill.data.loader import Batch
from undistill.engine.stepping import Learner, unmetered
from undistill.objective import StepOutput

__all__ = ["Stack", "StackStepper"]

_TOLERANCE = 0.02  # relative; bfloat16 rounds to 0.4 %


class Stack:
    """Nets of one architecture as one: their weights side by side in memory, one forward and one backward pass for all.

    The nets stay what they are, but the memory of their weights, gradients and statistics is part of the stack's from
    now on.

    Args:
        nets: Two or more, in training mode.

    Attributes:
        parts: A module for each net. The first that is asked has all answer; each returns the answers of its own net.
        asked: Which of them were asked in this step.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self._nets = nets
        self._code = deepcopy(nets[0]).to("meta")  # a hook on one of the nets has nothing to do with the others
        self._weights = _side_by_side([dict(net.named_parameters()) for net in nets])
        self._statistics = _side_by_side([dict(net.named_buffers()) for net in nets])
        self._gradients = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            weight.requires_grad_(nets[0].get_parameter(name).requires_grad).grad = self._gradients[name]
            for net, gradient in zip(nets, self._gradients[name], strict=True):
                net.get_parameter(name).grad = gradient
        self._forward = vmap(self._answer_of_one, in_dims=(0, 0, None), randomness="error")
        self.parts = [_Part(self, which, net) for which, net in enumerate(nets)]

    def expect(self, x: Tensor) -> None:
        """Begin a step, in which every part will be asked about these images (B, C, H, W)."""
        self._x, self._answers, self._pending, self.asked = x, tuple[Tensor, ...](), True, set[int]()

    def answer(self, which: int, x: Tensor) -> Tensor:
        """Return the answers (B, K) of one net.

        Raises:
            RuntimeError: It was asked before in this step, or about other images: the statistics of all would follow.
                Or the pass failed for the net that was asked first.
        """
        if x is not self._x or which in self.asked:
            raise RuntimeError("an objective asks for more than its net's answers to the batch")
        self.asked.add(which)
        if self._pending:
            self._pending = False
            # Whoever replaces torch's functions, such as Kernels, knows nothing of vmap.
            with torch.enable_grad(), torch._C.DisableTorchFunction(), _slow_spots_ignored():
                self._answers = self._forward(self._weights, self._statistics, x).unbind()
        if not self._answers:
            raise RuntimeError("the pass of the nets that are stacked failed")
        return self._answers[which]

    def backward(self, losses: Sequence[Tensor]) -> None:
        """End a step: give each net the gradients of its loss."""
        for gradient in self._gradients.values():
            gradient.zero_()
        if losses:
            torch.autograd.backward(losses)
        self._answers = ()

    def dissolve(self) -> None:
        """Give each net memory of its own again; whoever keeps one would keep all."""
        for net in self._nets:
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.data, tensor.grad = tensor.data.clone(), None

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Undo what questions inside the block do to the statistics of BatchNorm."""
        before = {name: value.clone() for name, value in self._statistics.items()}
        try:
            yield
        finally:
            for name, value in self._statistics.items():
                value.copy_(before[name])

    def _answer_of_one(self, weights: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor) -> Tensor:
        answers: Tensor = functional_call(self._code, (weights, statistics), (x,))
        return answers


class _Part(nn.Module):
    """A net in a stack."""

    def __init__(self, stack: Stack, which: int, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # for an objective that looks at its weights
        self._stack, self._which = stack, which

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of ``x``."""
        return self._stack.answer(self._which, x)


class StackStepper:
    """Takes a step of several nets at once, each with its own objective, optimizer and guard.

    Objectives get the answers of their net to the batch, once a step. If one asks for more, or if it or the net draws
    random numbers (alone, every job has a generator of its own), the nets cannot be stacked.

    Args:
        learners: Two or more, with nets of one architecture.
        batch: Any batch: on copies of the nets, one by one, a step must come to the same as in the stack.

    Attributes:
        learners: They, each with its part of the stack for a model.

    Raises:
        RuntimeError: They cannot be stacked, and are as they were; what else ``vmap`` raises means the same.
    """

    def __init__(self, learners: Sequence[Learner], batch: Batch) -> None:
        apart = [_with_model(unmetered(learner), deepcopy(learner.nets.model)) for learner in learners]
        self._stack = Stack([learner.nets.model for learner in learners])
        self.learners = [_with_model(*pair) for pair in zip(learners, self._stack.parts, strict=True)]
        try:
            self._prove(apart, batch)
        except Exception:
            self.dissolve()
            raise

    def __call__(self, learners: Sequence[Learner], batch: Batch, lrs: Sequence[float | Tensor]) -> None:
        """Train every net on a batch.

        Args:
            learners: The attribute, or the same with other victims.
            batch: What to train on.
            lrs: The learning rate of each.
        """
        outputs = self._losses(learners, batch)
        self._stack.backward([output.loss for output in outputs if isinstance(output, StepOutput)])
        for learner, output, lr in zip(learners, outputs, lrs, strict=True):
            with learner.turn():
                if isinstance(output, Exception):
                    raise output
                learner.guard(output.loss, learner.norm())
                learner.update(lr)
                learner.count(output, batch)

    def dissolve(self) -> None:
        """Give each net memory of its own again; the stack is of no more use."""
        self._stack.dissolve()

    def _losses(self, learners: Sequence[Learner], batch: Batch) -> list[StepOutput | Exception]:
        """Return the loss of each net, or what stopped this one only."""
        self._stack.expect(batch.x)
        outputs: list[StepOutput | Exception] = []
        for which, learner in enumerate(learners):
            try:
                outputs.append(learner.objective.step(batch, learner.nets))
                if which not in self._stack.asked:
                    raise RuntimeError("an objective does not ask for its net's answers to the batch")
            except Exception as error:
                outputs[which:] = [error]
        return outputs

    def _prove(self, apart: Sequence[Learner], batch: Batch) -> None:
        """Compare a step, up to its losses, with one of nets that are not stacked."""
        cuda = [batch.x.device] if batch.x.device.type == "cuda" else []
        with self._stack.statistics_kept(), torch.random.fork_rng(cuda):
            before = _random_states(cuda)
            expected = [_numbers(learner.objective.step(batch, learner.nets)) for learner in apart]
            drawn = not all(torch.equal(*pair) for pair in zip(before, _random_states(cuda), strict=True))
            found = [_numbers(output) for output in self._losses([unmetered(of) for of in self.learners], batch)]
        if drawn:
            raise RuntimeError("random numbers are drawn")
        if not all(_close(*pair) for pair in zip(found, expected, strict=True)):
            raise RuntimeError("they come to other losses than the nets alone")


def _with_model(learner: Learner, model: nn.Module) -> Learner:
    return replace(learner, nets=replace(learner.nets, model=model))


def _numbers(output: StepOutput | Exception) -> tuple[Tensor, Tensor]:
    if isinstance(output, Exception):
        raise output
    return output.loss.detach(), output.logits.detach()


def _close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    """Return whether results agree, or there is nothing to compare: a net that has diverged is for its guard."""
    return all(
        bool((a - b).norm() <= _TOLERANCE * b.norm()) or not bool(b.isfinite().all())
        for a, b in zip(ours, theirs, strict=True)
    )


def _random_states(cuda: Sequence[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda)]


@torch.no_grad()
def _side_by_side(nets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the tensors of one name, each laid out as it is, to one of shape (K, …), of which they become views."""
    if len({repr([(name, tensor.shape) for name, tensor in net.items()]) for net in nets}) > 1:
        raise RuntimeError("they are of different architectures")
    joined = {}
    for name, first in nets[0].items():
        strides = first.numel(), *torch.empty_like(first).stride()
        joined[name] = first.new_empty_strided((len(nets), *first.shape), strides)
        for net, part in zip(nets, joined[name], strict=True):
            net[name].data = part.copy_(net[name])
    return joined


@contextmanager
def _slow_spots_ignored() -> Iterator[None]:
    """Say nothing about operations that are computed net by net: what a stack gains is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
