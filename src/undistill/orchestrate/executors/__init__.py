"""Where the runs of a study are carried out: on this machine, on a Ray cluster, or by SLURM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from undistill.errors import RecipeError, UnknownNameError
from undistill.orchestrate.executors.schedule import Executor
from undistill.run import Failure

__all__ = ["EXECUTORS", "Executor", "Failure", "make_executor"]

EXECUTORS = ("local", "ray", "slurm")


def make_executor(
    kind: str,
    *,
    runs: Path,
    logs: Path,
    jobs: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    address: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Executor:
    """Return an executor.

    Args:
        kind: One of ``EXECUTORS``.
        runs: Folder of all runs, which every worker must see.
        logs: Folder for what is known about runs that failed.
        jobs: Runs, or groups of runs that share their victim, at a time; None for as many as the place holds.
        threads: CPU threads of each; None for as many as torch takes.
        device: Overrides the recipes' device.
        address: Of a Ray cluster, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None starts a private one.
        options: Of the kind, as text: ``gpus_per_run`` and ``cpus_per_run`` for Ray, submitit's parameters for SLURM.

    Raises:
        UnknownNameError: There is no such kind.
        RecipeError: The kind has no such option or no address, or a value is not what it must be.
        MissingExtraError: Ray or submitit is not installed.
    """
    place = (runs.absolute(), logs.absolute(), jobs, threads, device)
    options = options or {}
    if kind not in EXECUTORS:
        raise UnknownNameError("executor", kind, EXECUTORS)
    if address is not None and kind != "ray":
        raise RecipeError(f"executor {kind!r} has no address; leave out address, or choose executor ray")
    if kind == "ray":
        from undistill.orchestrate.executors.ray import RayExecutor

        return RayExecutor(*place, address=address, **RayExecutor.read(options))
    if kind == "slurm":
        from undistill.orchestrate.executors.slurm import SlurmExecutor

        return SlurmExecutor(*place, **SlurmExecutor.read(options))
    if options:
        raise RecipeError(f"executor 'local' has no options, got {', '.join(options)}")
    from undistill.orchestrate.executors.local import LocalExecutor

    return LocalExecutor(*place)
