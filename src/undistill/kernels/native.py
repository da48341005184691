"""Compile our C sources on the machine that runs them, once."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from undistill.data.download import cache_dir
from undistill.errors import RunError
from undistill.kernels.machine import processor

__all__ = ["check_kind", "find_compiler", "load_library", "sources"]

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
_ATTEMPT_S = 120


def find_compiler() -> str | None:
    """Return the command of the C compiler: ``$CC`` where it is set, else the first of cc, gcc and clang there is."""
    commands = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((command for command in commands if shutil.which(shlex.split(command)[0])), None)


def sources() -> str:
    """Return what tells our C sources from those of another version."""
    files = sorted(Path(__file__).parent.glob("*.c"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def load_library(source: Path) -> ctypes.CDLL:
    """Return a C file as a shared library, compiled for this processor.

    The library lies in ``native/`` in the cache folder, by source, compiler and processor. Its threads are those of
    torch: it is not linked with an OpenMP of its own.

    Args:
        source: A C file that includes nothing but the standard library and ``omp.h``.

    Raises:
        RunError: There is no C compiler, or it cannot compile the file.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RunError(f"{source.name} has to be compiled and there is no C compiler: install one, or name it in CC")
    key = sha256(repr((source.read_bytes(), compiler, _FLAGS, processor())).encode()).hexdigest()[:16]
    library = cache_dir() / "native" / f"{source.stem}-{key}.so"
    if not library.exists():
        _compile(compiler, source, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RunError(f"{source.name} was compiled but cannot be loaded: {error}") from None


def check_kind(**operands: Tensor) -> None:
    """Refuse what does not lie in this machine's memory as float32: a kernel gets addresses, and reads what is there.

    Raises:
        ValueError: One of the operands is not such; it is named.
    """
    for name, operand in operands.items():
        if operand.dtype != torch.float32 or operand.device.type != "cpu" or operand.layout != torch.strided:
            found = f"{operand.dtype} on {operand.device.type} ({operand.layout})"
            raise ValueError(f"{name}: expected a dense float32 tensor on cpu, got {found}; convert it first")


def _compile(compiler: str, source: Path, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=library.parent) as folder:
            object_file, made = Path(folder, "object.o"), Path(folder, library.name)
            _run(*shlex.split(compiler), *_FLAGS, "-c", str(source), "-o", str(object_file))
            _run(*shlex.split(compiler), "-shared", str(object_file), "-o", str(made))
            made.replace(library)  # whole or not at all, whoever else compiles it now
    except OSError as error:
        raise RunError(f"{source.name} cannot be compiled: {error}") from None


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ATTEMPT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]} did not finish in {_ATTEMPT_S} s") from None
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
        raise RunError(f"{command[0]} failed: {reason.strip()}")
