"""A Ray cluster: every unit is a task, which Ray places where there are CPUs, or a part of a GPU, for it."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undistill.engine.device import pick_device
from undistill.errors import MissingExtraError, RecipeError, RunError, did_you_mean
from undistill.orchestrate.executors.schedule import Ended, Event, Executor, Lost, Outcome, Pool, Unit
from undistill.orchestrate.executors.worker import Progress, work
from undistill.storage import write_text

__all__ = ["RayExecutor"]

_OPTIONS = ("cpus_per_run", "gpus_per_run")
_POLL_S = 0.2  # how soon Ctrl-C is noticed
_KNOCK_S = 3.0  # for a host to take a connection
_CONNECT_S = 45.0  # for a cluster to take a driver
_PROBE_S = 90.0  # for every node to start a process and look at the shared folder
_PATIENCE_S = 60.0  # for runs to save their states and stop
_STORE_BYTES = 100_000_000  # nothing but recipes and outcomes goes through Ray
_CONNECT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Carries out plans on a Ray cluster.

    Attributes:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None starts a cluster of this machine's own, and
            stops it at the end.
        cpus_per_run: CPUs that Ray sets aside for a unit.
        gpus_per_run: GPUs of a unit, or the share of one; None for an equal share of all that there are.
    """

    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float | None = None

    def __post_init__(self) -> None:
        host, _, port = _endpoint(self.address or "auto").rpartition(":")
        if self.address not in {None, "auto"} and not (host and port.isdecimal()):
            raise RecipeError(f"address: expected auto, HOST:PORT or ray://HOST:PORT, got {self.address!r}")

    @staticmethod
    def read(options: Mapping[str, str]) -> dict[str, Any]:
        """Return options as arguments of this class.

        Raises:
            RecipeError: There is no such option, or its value is not a number above 0.
        """
        problems, values = [], {}
        for name, text in options.items():
            try:
                values[name] = float(text)
            except ValueError:
                values[name] = math.nan
            if name not in _OPTIONS:
                hint = did_you_mean(name, _OPTIONS) or f" known: {', '.join(_OPTIONS)}"
                problems.append(f"executor 'ray' has no option {name!r};{hint}")
            elif not 0 <= values[name] < math.inf or (name == "cpus_per_run" and values[name] == 0):
                problems.append(f"{name}: expected a number of {name[:4].upper()}, got {text!r}")
        if problems:
            raise RecipeError(problems)
        return values

    def open(self) -> Pool:
        """Connect to the cluster, or start one, and see that every node sees the folder of runs.

        Raises:
            MissingExtraError: Ray is not installed.
            RecipeError: No node is large enough for a run.
            RunError: The cluster cannot be reached, or a node does not see the folder.
        """
        # Ray reads these when it is imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise MissingExtraError("executor 'ray'", "ray") from None
        if self.address is not None:
            _reach(self.address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if self.address is None:
                _start(ray, self)
            else:
                _connect(ray, self.address)
            return _RayPool(ray, self)
        except BaseException:
            ray.shutdown()
            raise
        finally:
            _restore(handler)  # Ray's would end the coordinator at once

    def share(self, nodes: Iterable[Mapping[str, float]]) -> tuple[float, float, int]:
        """Return CPUs and GPUs of a unit, and how many units run at a time.

        Args:
            nodes: Resources of each node.

        Raises:
            RecipeError: No node is large enough for a unit.
        """
        sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
        total = math.floor(sum(gpus for _, gpus in sizes))
        cpus, gpus = self.cpus_per_run, self.gpus_per_run
        if self.device == "cpu":
            gpus = 0.0
        elif gpus is None:
            gpus = 1 / math.ceil((self.jobs or 1) / total) if total else 0.0
        room = sum(int(min(c / cpus, g / gpus if gpus else math.inf) + 1e-6) for c, g in sizes)
        if not room:
            raise RecipeError(
                f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a run; "
                "choose less: cpus_per_run, gpus_per_run"
            )
        return cpus, gpus, self.jobs or room


class _RayPool(Pool):
    def __init__(self, ray: Any, executor: RayExecutor) -> None:
        self._ray = ray
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus, gpus, self.slots = executor.share(node["Resources"] for node in nodes)
        self._token = executor.root / f".shared-{uuid.uuid4().hex}"
        token = None if executor.address is None else self._token.name
        self._arguments = (executor.root, Path.cwd(), executor.device, executor.threads)
        self._task = ray.remote(max_retries=0, num_cpus=cpus, num_gpus=gpus)(work)
        self._progress = Progress(executor.root)
        self._units: dict[Any, Unit] = {}
        self._shared_as = token
        if token is not None:
            write_text(self._token, "this folder is shared\n")
            try:
                self._probe(nodes)
            except BaseException:
                self._token.unlink(missing_ok=True)
                raise

    def _probe(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Have every node look for the token: an empty unit does no more."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        looking = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = self._task.options(num_cpus=0, num_gpus=0, scheduling_strategy=there)
            looking[task.remote(*self._arguments, [], self._shared_as)] = _name(node)
        deadline = time.monotonic() + _PROBE_S
        while looking:
            (answered, _) = self._ray.wait(list(looking), timeout=max(0.0, deadline - time.monotonic()))
            if not answered:
                raise RunError(f"no answer from {', '.join(looking.values())} in {_PROBE_S:g} s; see `ray status`")
            name = looking.pop(answered[0])
            try:
                self._ray.get(answered[0])
            except self._ray.exceptions.RayError as error:
                raise RunError(f"node {name} cannot take runs: {_reason(error)}") from error

    def start(self, unit: Unit) -> None:
        self._units[self._task.remote(*self._arguments, unit.recipes, self._shared_as)] = unit

    def listen(self) -> Iterable[Event]:
        ended, _ = self._ray.wait(list(self._units), num_returns=1, timeout=_POLL_S)
        yield from self._progress.look([recipe for unit in self._units.values() for recipe in unit.recipes])
        for task in ended:
            yield self._outcome(task, self._units.pop(task))

    def _outcome(self, task: Any, unit: Unit) -> Event:
        errors = self._ray.exceptions
        try:
            return Ended(unit, self._ray.get(task))
        except errors.TaskCancelledError:
            return Ended(unit, [Outcome("interrupted")] * len(unit.steps))
        except errors.RayTaskError as error:
            return Ended(unit, [Outcome("failed", _reason(error), str(error))] * len(unit.steps))
        except errors.RayError as error:
            return Lost(unit, f"lost ({type(error).__name__})", str(error))

    def stop(self) -> None:
        for task in self._units:
            self._ray.cancel(task)
        if self._units:
            self._ray.wait(list(self._units), num_returns=len(self._units), timeout=_PATIENCE_S)

    def close(self) -> None:
        self._token.unlink(missing_ok=True)
        self._ray.shutdown()


def _start(ray: Any, executor: RayExecutor) -> None:
    """Start a cluster of one node."""
    where = pick_device(executor.device or "auto")
    ray.init(
        address="local",
        num_cpus=math.ceil((executor.jobs or os.cpu_count() or 1) * executor.cpus_per_run),
        num_gpus=torch.cuda.device_count() if where.type == "cuda" else 0,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )


def _connect(ray: Any, address: str) -> None:
    cache = {name: os.environ[name] for name in ("UNDISTILL_CACHE",) if name in os.environ}
    ray.init(
        address,
        runtime_env={"env_vars": cache} if cache else None,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )


def _reach(address: str) -> None:
    """Refuse a cluster that cannot be reached: Ray itself waits for minutes, or ends the process.

    Raises:
        RunError: Nobody listens at the address, or it is not a cluster that this Ray can talk to.
    """
    hint = "start one with `ray start --head`, or see its address with `ray status`"
    token = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token"
    host, _, port = _endpoint(address).rpartition(":")
    if host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"no Ray cluster answers at {address} ({error}); {hint}") from error
    try:
        command = [sys.executable, "-c", _CONNECT, address]
        probe = subprocess.run(command, capture_output=True, text=True, timeout=_CONNECT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"what listens at {address} does not answer as a Ray cluster does; {hint}{token}") from None
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        raise RunError(f"cannot connect to a Ray cluster at {address}: {said}; {hint}{token}")


def _endpoint(address: str) -> str:
    return "" if address == "auto" else address.removeprefix("ray://")


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _reason(error: Any) -> str:
    """Return in one line what a task raised, or what Ray says of it."""
    cause = getattr(error, "cause", None)
    return " ".join(str(error if cause is None else cause).split())


def _restore(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
