"""Which way of computing is the fastest here: tried once, remembered for this machine."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch

from undistill.data.download import cache_dir
from undistill.data.loader import Batch
from undistill.engine.config import Tuning
from undistill.engine.device import cuda_precision
from undistill.engine.stepping import Learner
from undistill.errors import RunError
from undistill.kernels.machine import processor
from undistill.kernels.mode import Kernels
from undistill.kernels.native import find_compiler, sources
from undistill.objective import Nets
from undistill.storage import write_json

__all__ = ["choose_for", "choose_tuning", "describe", "outline", "settled"]

_log = logging.getLogger(__name__)

_WORTH_PROBING = 400  # steps of a job; probing takes some ten
_WORTH_COMPILING_S = 1200.0  # what a job is to take without; compiling takes half a minute
_TINY_S = 0.05  # a step that more threads may slow down
_SMALL_S = 0.2  # a step of one of several equal nets; larger ones gain nothing in a stack, and take much memory there
_PAYS = 0.97  # of the time: less gain than this is noise
_TURNS = 3  # of either side of a comparison
_MORE_TURNS = 6  # where both take less than a second: there, noise weighs more and costs less

Step = Callable[[], float]  # takes a step and returns its seconds
Trial = Callable[[Tuning], Step]


def choose_for(learners: Sequence[Learner], batch: Batch, trial: Trial) -> Tuning:
    """Return how to compute the steps of one net, or of equal nets side by side, every field set.

    Args:
        learners: Those that take the step.
        batch: Of the usual size.
        trial: As of ``choose_tuning``, of a step of all of them.
    """
    config, nets = learners[0].config, learners[0].nets
    pinned = config.tuning or Tuning()
    stack = pinned.stack if len(learners) > 1 else False
    untried = settled(pinned).model_copy(update={"stack": bool(stack)})
    if next(nets.model.parameters()).is_cuda:
        # A graph replays what it has seen: what is trained beside the net, and batches of targets, are outside.
        graphs = pinned.graphs is not False and nets.companion is None and not nets.modules and not batch.targets
        precision = "float32" if batch.x.is_meta else cuda_precision(pinned)
        return _possible(untried.model_copy(update={"graphs": graphs, "precision": precision}))
    if nets.companion is not None:  # a trial would train it
        return _possible(untried)
    what = learners[0].objective.spec, outline(nets), tuple(batch.x.shape), config.optimizer, len(learners)
    if stack is not None:
        pinned = pinned.model_copy(update={"stack": False, "compile": False if stack else pinned.compile})
    try:
        tuning = choose_tuning(pinned, trial, what, learners[0].steps)
    except Exception as error:  # of the first net's step: when it is taken, only this net will fail
        _log.warning("no tuning could be tried (%s: %s)", type(error).__name__, str(error).partition("\n")[0])
        return _possible(untried)
    return _possible(tuning.model_copy(update={"stack": True}) if stack else tuning)


def outline(nets: Nets) -> str:
    """Return what tells nets of different cost apart."""
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in nets.model.named_parameters()]
    return repr((str(nets.model), parameters, nets.adversary is not None, nets.victim is not None))


def _possible(tuning: Tuning) -> Tuning:
    """Return the tuning but for what cannot be done here: a remembered one may be from before the compiler went."""
    try:
        if tuning.winograd:
            Kernels()
    except RunError as error:
        _log.warning("convolutions are computed directly: %s", error)
        return tuning.model_copy(update={"winograd": False})
    return tuning


def choose_tuning(pinned: Tuning, trial: Trial, what: tuple[Any, ...], steps: int) -> Tuning:
    """Return how to compute on CPU, every field set: what is pinned, what is remembered, or what a trial shows.

    Layouts are always tried, fewer threads for tiny steps, stacks for small steps of equal nets, and compiling,
    which a stack cannot be, where the job is long enough to pay for it.
    Short jobs try nothing. What was found is kept in ``tuning.json`` in the cache folder.

    Args:
        pinned: Fields that are not to be chosen.
        trial: Makes a function that takes a step and returns its seconds. Whatever either of them raises means that
            the tuning does not work here.
        what: Everything that the speed depends on besides this machine and ``pinned``: net, shape of a batch, …
        steps: Of the job.
    """
    path, key = cache_dir() / "tuning.json", _key(pinned, what)
    known = _read(path).get(key)
    tuning, seconds = _recalled(known)
    if tuning is None:
        if steps < _WORTH_PROBING:
            return settled(pinned)
        tuning, seconds = _probe(pinned, trial)
    if pinned.compile is None and tuning.compile is None and steps * seconds >= _WORTH_COMPILING_S:
        tuning, seconds = _better(trial, tuning.model_copy(update={"compile": False}), compile=True, stack=False)
    entry = {"tuning": tuning.model_dump(), "step_s": seconds, "what": repr(what)}
    if known != entry:
        _remember(path, key, entry)
    return tuning if tuning.compile is not None else tuning.model_copy(update={"compile": False})


def settled(pinned: Tuning) -> Tuning:
    """Return how to compute without a trial, every field set."""
    default = Tuning(
        channels_last=True,
        winograd=False,
        compile=False,
        threads=torch.get_num_threads(),
        precision="float32",
        graphs=False,
        stack=False,
    )
    return default.model_copy(update=pinned.model_dump(exclude_none=True))


def describe(tuning: Tuning) -> str:
    """Return a tuning in one line, as fields of a recipe."""
    return " ".join(f"tuning.{name}={str(value).lower()}" for name, value in tuning.model_dump().items())


def _probe(pinned: Tuning, trial: Trial) -> tuple[Tuning, float]:
    """Compare the cheap alternatives and return the best with its seconds; ``compile`` stays open if not pinned."""
    tuning = settled(pinned)
    seconds = _warm(trial(tuning))()
    if pinned.channels_last is None:
        tuning, seconds = _better(trial, tuning, channels_last=False)
    if pinned.winograd is None and tuning.channels_last:
        tuning, seconds = _better(trial, tuning, winograd=True)
    if pinned.threads is None and tuning.threads != 1 and seconds < _TINY_S:
        tuning, seconds = _better(trial, tuning, threads=1)
    if pinned.stack is None and seconds < _SMALL_S:
        tuning, seconds = _better(trial, tuning, stack=True)
    return tuning.model_copy(update={"compile": pinned.compile}), seconds


def _better(trial: Trial, tuning: Tuning, **change: Any) -> tuple[Tuning, float]:
    """Return the better one of a tuning and its change, and its seconds; they take turns: machines are noisy."""
    other = tuning.model_copy(update=change)
    ours = _warm(trial(tuning))
    try:
        theirs = _warm(trial(other))
        turns = [(ours(), theirs()) for _ in range(_TURNS)]
        if sum(turns[0]) < 1:
            turns += [(ours(), theirs()) for _ in range(_MORE_TURNS)]
    except Exception as error:  # no compiler, a net that cannot be traced, …: then it is not for this machine
        reason = str(error).partition("\n")[0]
        _log.warning("%s does not work here (%s: %s)", describe(other), type(error).__name__, reason)
        return tuning, ours()
    share = median(b / a for a, b in turns)
    _log.info("%s takes %.2f of the time of %s", describe(other), share, describe(tuning))
    if share < _PAYS:
        return other, min(b for _, b in turns)
    return tuning, min(a for a, _ in turns)


def _warm(step: Step) -> Step:
    """Take a step that does not count."""
    step()
    return step


def _key(pinned: Tuning, what: tuple[Any, ...]) -> str:
    machine = processor(), find_compiler(), sources(), os.cpu_count(), torch.get_num_threads(), torch.__version__
    return sha256(repr((machine, pinned.model_dump(), what)).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none yet, or damaged: it will be written anew
    return found if isinstance(found, dict) else {}


def _recalled(entry: Any) -> tuple[Tuning | None, float]:
    try:
        return Tuning(**entry["tuning"]), float(entry["step_s"])
    except (KeyError, TypeError, ValueError):
        return None, math.nan


def _remember(path: Path, key: str, entry: dict[str, Any]) -> None:
    try:
        write_json(path, {**_read(path), key: entry})
    except RunError as error:
        _log.warning("%s; the next run will try again", error)
