"""Training by the engine against a plain loop in the style of the paper's code: whole steps, data included.

Each side is a process of its own, with its own memory and settings, and they take turns: while one computes, the others
wait. The ratio of two sides is the median over the rounds of the ratio of their times in one round, so that whatever
else the machine does weighs on both.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from undistill.bench.ours import EngineLoop, step_flops
from undistill.bench.plain import PlainLoop
from undistill.bench.work import APART, STACKING, Work
from undistill.engine.flops import clock, matmul_rate
from undistill.errors import InterruptedRunError, RecipeError, RunError
from undistill.kernels.machine import processor_name

__all__ = ["MFU_LIMIT", "PLAIN", "bench_train", "machine", "measure", "worker"]

PLAIN = "plain"
MFU_LIMIT = 1.3  # beyond, the matrix rate was disturbed, or cannot be told from such a one where operations are saved
_RATES = 4  # measurements of the rate beside one turn, at most
_WARM_UP = 2
_TABLE_1 = ("cnn", "preresnet20", "preresnet32", "resnet18")  # the students of the paper's Table 1


def bench_train(
    models: Sequence[str],
    objectives: Sequence[str],
    profiles: Sequence[str],
    *,
    group: Sequence[str] = _TABLE_1,
    rounds: int = 5,
    seconds: float = 1.0,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Measure every model with every objective, one after the other; see ``measure``.

    Args:
        models: Specs of nets.
        objectives: Of ``normal``, ``nasty``, ``kd``, ``kd-group`` (``group`` from one victim, together, against the
            plain loop run once for each; ``fast`` also with a victim for each) and ``kd-stack`` (four equal students
            from one victim of their kind; ``fast`` is measured with and without a stack).
        profiles: Of ``exact``, ``fast`` and ``turbo``.
        group: Specs of the students of ``kd-group``; default: those of the paper's Table 1.
        rounds: Turns of each side.
        seconds: Shortest time of a turn of the plain loop.
        settings: Other fields of ``Work``.

    Yields:
        What ``measure`` returns.
    """
    works = [
        Work(objective=objective, models=(model,), **settings)  # type: ignore[arg-type]
        for model in models
        for objective in objectives
        if objective not in ("kd-group", "kd-stack")
    ]
    groups = [Work(objective="kd", models=tuple(group), **settings)] if "kd-group" in objectives else []
    equal = models if "kd-stack" in objectives else ()
    stacks = [Work(objective="kd", models=(model,) * 4, victim=model, **settings) for model in equal]
    if not works and not groups and not stacks:
        raise RecipeError("nothing to measure: name a model and an objective (normal, nasty, kd, kd-group or kd-stack)")
    for work in works:
        yield measure(work, profiles, rounds=rounds, seconds=seconds)
    for work in groups:
        sides = [*profiles, *([APART] if "fast" in profiles else [])]
        yield measure(work, sides, rounds=rounds, seconds=seconds)
    for work in stacks:
        sides = [*(profile for profile in profiles if profile != "fast"), *STACKING]
        yield measure(work, sides, rounds=rounds, seconds=seconds)


def measure(work: Work, profiles: Sequence[str], *, rounds: int = 5, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the plain loop and the engine under each profile on the same work.

    Args:
        work: What to train.
        profiles: Of ``exact``, ``fast`` and ``turbo``; where the nets are equal also of ``STACKING``; ``APART``.
        rounds: Turns of each side, after two steps that are not measured.
        seconds: Shortest time of a turn of the plain loop; the others take as many steps.

    Returns:
        ``work``, ``machine``, ``matmul_gflops`` (measured beside every turn; the median), ``step_gflop`` (counted: one
        step of every net), ``steps`` (that every side took) and ``sides``: for each ``images_per_s`` (over all nets),
        ``ratio`` (to the plain loop), ``mfu`` (share of the matrix rate that was measured beside the turn; above 1
        where convolutions have better kernels than products; None above ``MFU_LIMIT``), ``memory_mb`` (peak: of the
        process on CPU, of tensors on CUDA), ``how`` it computes and, for the engine's, ``weights`` (relative difference
        of the weights from those of ``exact`` after equal steps) and ``kl`` (of the nasty term).

    Raises:
        RunError: A side failed.
    """
    sides = [PLAIN, *profiles]
    device = torch.device(work.device)
    with ExitStack() as stack:
        stack.enter_context(_threads(work.threads))
        flops = step_flops(work)
        workers = {side: stack.enter_context(worker(work, side)) for side in sides}
        for each in workers.values():
            each.ask("run", _WARM_UP)
        steps = max(1, round(seconds / max(workers[PLAIN].ask("run", 1), 1e-9)))
        for each in list(workers.values())[1:]:
            each.ask("run", 1)
        turns = [_turn(workers, steps, flops, device) for _ in range(rounds)]
        found = {side: each.ask("report") for side, each in workers.items()}
    exact = found.get("exact", {})
    images = work.batch_size * len(work.models) * steps
    times = [turn for turn, _ in turns]
    return {
        "work": asdict(work),
        "machine": machine(device, work.threads),
        "matmul_gflops": round(median(rate for _, rate in turns) / 1e9, 1),
        "step_gflop": round(flops / 1e9, 2),
        "steps": _WARM_UP + 1 + rounds * steps,
        "sides": {
            side: {
                "images_per_s": round(median(images / turn[side] for turn in times), 1),
                "ratio": round(median(turn[PLAIN] / turn[side] for turn in times), 2),
                "mfu": _mfu([flops * steps / turn[side] / rate for turn, rate in turns]),
                "memory_mb": found[side]["memory_mb"],
                "how": found[side]["how"],
                **_parity(found[side], exact),
            }
            for side in sides
        },
    }


def _turn(
    workers: Mapping[str, _Worker], steps: int, flops: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """Return the seconds that each side takes for some steps, and the matrix rate beside them.

    Other load can only lower the rate: where a side seems faster than it could be, the rate is measured again, and the
    highest one counts.
    """
    rate = matmul_rate(device)
    times = {side: each.ask("run", steps) for side, each in workers.items()}
    fastest = flops * steps / min(times.values())
    for _ in range(_RATES - 1):
        if fastest <= MFU_LIMIT * rate:
            break
        rate = max(rate, matmul_rate(device))
    return times, rate


def _mfu(shares: Sequence[float]) -> float | None:
    """Return the median of the shares of the matrix rate, None where no such share can be."""
    share = round(median(shares), 3)
    return share if share <= MFU_LIMIT else None


def _parity(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Return how far apart two sides are after equal steps, relative to the exact one."""
    if found.get("weights") is None or exact.get("weights") is None or found is exact:
        return {}
    ours, theirs = found["weights"].double(), exact["weights"].double()
    parity = {"weights": float((ours - theirs).norm() / theirs.norm())}
    if found["kl"] is not None:
        parity["kl"] = abs(found["kl"] / exact["kl"] - 1)
    return {name: float(f"{value:.2g}") for name, value in parity.items()}


class _Worker:
    """The near end of a process."""

    def __init__(self, side: str, connection: Connection) -> None:
        self._side, self._connection = side, connection

    def ask(self, *question: Any) -> Any:
        """Send a question and wait for the answer."""
        try:
            self._connection.send(question)
            failed, answer = self._connection.recv()
        except (EOFError, OSError):
            raise RunError(f"the process of {self._side!r} died; it may have run out of memory") from None
        if failed:
            raise RunError(f"{self._side!r} failed: {answer}")
        return answer


@contextmanager
def worker(work: Work, side: str) -> Iterator[_Worker]:
    """Yield a process that trains a work as one side does, when it is asked to."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads and memory
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(far, work, side))
    process.start()
    far.close()
    try:
        yield _Worker(side, near)
    finally:
        near.close()
        process.join(10)
        if process.is_alive():
            process.terminate()


def _serve(connection: Connection, work: Work, side: Any) -> None:
    """Answer ``run, steps`` with seconds, and in the end ``report`` with all else."""
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    turns = _Turns(connection, torch.device(work.device))
    try:
        turns.wait()
        loop: PlainLoop | EngineLoop = PlainLoop(work) if side == PLAIN else EngineLoop(work, side)
        loop.train(turns)
        if turns.question == ("report",):
            connection.send((False, _report(loop, torch.device(work.device))))
            turns.wait()  # for the end: the weights are read from this process
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # nobody asks any more
    except Exception as error:
        connection.send((True, f"{type(error).__name__}: {error}"))


class _Turns:
    """The far end: how many steps are to be taken next, and how long they take."""

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self._connection, self._device = connection, device
        self.question: tuple[Any, ...] = ()
        self._begin: float | None = None

    def wait(self) -> None:
        """Wait for the first question."""
        self.question = self._connection.recv()

    def __call__(self) -> int:
        """Answer with the seconds of the last turn and return the steps of the next; raise once there is none."""
        if self._begin is not None:
            self._connection.send((False, clock(self._device) - self._begin))
            try:
                self.wait()
            except (EOFError, OSError):
                raise InterruptedRunError("nobody asks any more") from None
        what, *arguments = self.question
        if what != "run":
            raise InterruptedRunError("the last turn is over")
        self._begin = clock(self._device)
        return int(arguments[0])


def _report(loop: PlainLoop | EngineLoop, device: torch.device) -> dict[str, Any]:
    report: dict[str, Any] = {"memory_mb": _peak_memory(device), "how": loop.how}
    if isinstance(loop, EngineLoop):
        report |= {"weights": loop.weights(), "kl": loop.kl()}
    return report


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device, threads: int | None) -> dict[str, Any]:
    """Return what a speed was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "name": name,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
    }
