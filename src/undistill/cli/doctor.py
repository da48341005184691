"""``undistill doctor``."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import typer

from undistill._version import __version__
from undistill.cli.options import AsJson, Runs
from undistill.cli.output import print_heading, print_json

__all__ = ["doctor"]

_VARIABLES = ("UNDISTILL_CACHE", "UNDISTILL_RUNS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_REQUIREMENT = re.compile(r"^(?P<package>[\w.\-]+)(?P<extras>\[.*?\])?.*?(extra\s*==\s*['\"](?P<extra>[\w\-]+)['\"])?$")


def doctor(runs: Runs = None, as_json: AsJson = False) -> None:
    """Show versions, devices, folders and what is missing.

    The exit code is 0 unless something is missing that everything needs.
    """
    core, extras = _requirements()
    found = {
        "versions": {
            "undistill": __version__,
            "python": platform.python_version(),
            **{package: _version(package) or "missing" for package in core},
        },
        "extras": {extra: _state_of_extra(extra, packages) for extra, packages in extras.items()},
        "environment": {name: os.environ.get(name, "not set") for name in _VARIABLES},
    }
    broken = [f"{package} is missing: pip install {package}" for package in core if _version(package) is None]
    try:
        found |= {"device": _device(), "folders": _folders(runs)}
    except Exception as error:  # whatever keeps torch or ourselves from being imported
        broken.append(f"cannot be imported: {type(error).__name__}: {error}")
    if as_json:
        print_json({**found, "problems": broken})
    else:
        for title, facts in found.items():
            print_heading(title)
            width = max(map(len, facts), default=0)
            for name, value in facts.items():
                typer.echo(f"  {name.ljust(width)}  {value}")
        for problem in broken:
            typer.secho(problem, fg=typer.colors.RED)
    if broken:
        raise typer.Exit(1)


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Return the packages that are needed, and those of each extra."""
    try:
        declared = metadata.requires("undistill") or []
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        declared = ["torch", "numpy"]
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in declared:
        match = _REQUIREMENT.match(line)
        if match is None or match["extras"]:  # undistill[track] in another extra
            continue
        if match["extra"]:
            extras.setdefault(match["extra"], []).append(match["package"])
        else:
            core.append(match["package"])
    return core, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _state_of_extra(extra: str, packages: list[str]) -> str:
    missing = [package for package in packages if _version(package) is None]
    return f"lacks {', '.join(missing)}: pip install 'undistill[{extra}]'" if missing else "installed"


def _device() -> dict[str, str]:
    import torch

    from undistill.kernels.machine import processor_name
    from undistill.kernels.native import find_compiler

    return {
        "cpu": f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "cuda": _cuda(),
        "C compiler": find_compiler() or "none: the profile fast trains up to twice as fast on CPU with one",
    }


def _cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return f"no: this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return f"no: torch is built for CUDA {torch.version.cuda}, but finds no working NVIDIA driver and device"
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)


def _folders(runs: Path | None) -> dict[str, str]:
    from undistill.api import default_root
    from undistill.data import cache_dir

    return {"runs": _folder(runs or default_root()), "cache": _folder(cache_dir())}


def _folder(path: Path) -> str:
    """Say whether a folder can be written, or made, and how much fits into it."""
    path = path.absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = "writable" if there.is_dir() and os.access(there, os.W_OK) else "NOT writable"
    made = "" if there == path else ", not made yet"
    return f"{path} ({writable}{made}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free)"
