"""A whole training step as one CUDA graph: captured once, replayed without Python and without launches one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from undistill.data.loader import Batch
from undistill.engine.config import Tuning
from undistill.engine.guard import gradient_norm
from undistill.engine.objective import Nets, Objective, StepOutput
from undistill.engine.stepping import Watch

__all__ = ["Capture", "GraphStepper", "capture_cuda"]

_WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and the optimizer makes its buffers

Run = Callable[[], None]
Capture = Callable[[Run], Run]


def capture_cuda(run: Run) -> Run:
    """Capture what ``run`` launches, which does not run, and return its replay.

    Raises:
        RuntimeError: It does what cannot be captured, such as waiting for the device.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            run()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
    return graph.replay


class GraphStepper:
    """Replays one captured step: forward passes, loss, backward pass, gradient norm and update.

    The batch and the learning rate are written to where the graph reads them. The nets, the optimizer and torch's
    generators are as before when the capture is done: the steps that it takes to get there are undone.

    Args:
        objective: What each step minimises; its step must not wait for the device.
        nets: The net to train and those that the objective looks at.
        optimizer: Over the parameters that are trained; it must take its learning rate from a tensor.
        watch: Told the loss and the gradient norm of every step, after its update.
        batch: Any batch of the size that all will have.
        capture: Makes a replay of a function without arguments.

    Raises:
        RuntimeError: The step cannot be captured; everything is as before.
    """

    tuning: Tuning | None = None  # whoever chose to capture knows

    def __init__(
        self,
        objective: Objective,
        nets: Nets,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        batch: Batch,
        capture: Capture = capture_cuda,
    ) -> None:
        self._objective, self._nets, self._optimizer, self._watch = objective, nets, optimizer, watch
        self._batch = Batch(batch.x.clone(), batch.y.clone(), batch.index.clone())
        self._lr = torch.zeros((), device=batch.x.device)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = _Kept(nets, optimizer)
        try:
            with _on(batch.x.device):
                self._warm_up()
                asked = self._queries
                # Written to, the images are new to the victim, which would otherwise answer from memory for good.
                self._batch.x.copy_(batch.x)
                self._replay = capture(self._run)
            self._queries_a_step = self._queries - asked
        finally:
            kept.put_back()

    def __call__(self, batch: Batch, lr: float) -> StepOutput:
        """Train on a batch."""
        for mine, given in zip(self._tensors(self._batch), self._tensors(batch), strict=True):
            mine.copy_(given, non_blocking=True)
        self._lr.fill_(lr)
        self._replay()
        if self._nets.victim is not None:
            self._nets.victim.queries += self._queries_a_step
        self._watch(self._output.loss, self._norm)
        return self._output

    @staticmethod
    def _tensors(batch: Batch) -> tuple[Tensor, ...]:
        return batch.x, batch.y, batch.index

    @property
    def _queries(self) -> int:
        return self._nets.victim.queries if self._nets.victim is not None else 0

    def _warm_up(self) -> None:
        device = self._lr.device
        if device.type != "cuda":
            for _ in range(_WARM_UP):
                self._run()
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), torch.random.fork_rng([device]):
            for _ in range(_WARM_UP):
                self._run()
        torch.cuda.current_stream(device).wait_stream(stream)

    def _run(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr
        self._optimizer.zero_grad()
        output = self._objective.step(self._batch, self._nets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        self._norm = gradient_norm(self._parameters)
        self._optimizer.step()
        self._output = replace(
            output,
            loss=output.loss.detach(),
            logits=output.logits.detach(),
            logs={name: value.detach() for name, value in output.logs.items()},
        )


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one, on which streams are opened."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Kept:
    """What the steps before a capture change."""

    def __init__(self, nets: Nets, optimizer: torch.optim.Optimizer) -> None:
        self._nets, self._optimizer = nets, optimizer
        self._weights = {key: value.clone() for key, value in nets.model.state_dict().items()}
        self._slots = {
            parameter: {name: value.clone() for name, value in slot.items() if isinstance(value, Tensor)}
            for parameter, slot in optimizer.state.items()
        }
        self._queries = nets.victim.queries if nets.victim is not None else 0

    @torch.no_grad()
    def put_back(self) -> None:
        """Write everything back where it was: a graph knows tensors by their place in memory."""
        for key, value in self._nets.model.state_dict().items():
            value.copy_(self._weights[key])
        for parameter, slot in self._optimizer.state.items():
            for name, value in slot.items():
                if isinstance(value, Tensor):  # what was not there yet starts at zero, as the optimizers do
                    before = self._slots.get(parameter, {}).get(name)
                    value.copy_(before) if before is not None else value.zero_()
        if self._nets.victim is not None:
            self._nets.victim.queries = self._queries
