"""Where a run computes, and how exactly."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from undistill.engine.config import Training, Tuning
from undistill.errors import DeviceError

__all__ = [
    "arithmetic",
    "cuda_precision",
    "exact_arithmetic",
    "fast_arithmetic",
    "memory_kept",
    "pick_device",
    "single_thread",
]

# Options of glibc's mallopt: M_TRIM_THRESHOLD -1, M_TOP_PAD -2, M_MMAP_MAX -4, and its defaults.
_KEEP = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}
_GIVE_BACK = {-4: 65536, -1: 128 * 2**10, -2: 128 * 2**10}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` takes CUDA where there is one.

    Raises:
        DeviceError: The name is not a device, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r} was asked for, but torch finds no CUDA here; use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    if device.type not in {"cpu", "cuda"}:
        raise DeviceError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    return device


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in full float32 with deterministic kernels, as the paper's code does; a no-op on CPU."""
    with _settings(
        device,
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),
    ):
        yield


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one CPU thread, whatever the machine: the same sums everywhere, in the same order.

    Nets whose steps take a millisecond gain nothing from more, and lose much where another process is busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def arithmetic(config: Training, device: torch.device) -> Iterator[None]:
    """Compute as a profile says; threads and the settings of CUDA and of the allocator are put back afterwards."""
    threads = torch.get_num_threads()
    rounding = exact_arithmetic(device) if config.profile == "exact" else fast_arithmetic(device, config.tuning)
    try:
        with rounding, memory_kept(device):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def fast_arithmetic(device: torch.device, tuning: Tuning | None = None) -> Iterator[None]:
    """Let cuDNN choose its kernels by timing and, where the trunk is to be in TF32, convolutions round to it.

    Matrix products stay in float32: the last layer is one. A no-op on CPU.
    """
    conv = "tf32" if cuda_precision(tuning) == "tf32" else "ieee"
    with _settings(
        device,
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch.backends.cudnn.conv, "fp32_precision", conv),  # type: ignore[attr-defined]
        (torch.backends.cudnn, "deterministic", False),
        (torch.backends.cudnn, "benchmark", True),
    ):
        yield


def cuda_precision(tuning: Tuning | None) -> str:
    """Return the precision of the trunk on CUDA: what is pinned, else bf16 where the device has it, else tf32."""
    if tuning is not None and tuning.precision is not None:
        return tuning.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "tf32"


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Keep what tensors on the CPU have freed for those to come, instead of giving it back to the system each time.

    glibc gives large blocks back as soon as they are free, and gets them back page by page: ten thousands of page
    faults a step, a tenth of the time of a small net. No number changes. A no-op on other devices and C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" and os.name == "posix" else None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if mallopt is not None else None
    if mallopt is None or trim is None:
        yield
        return
    for option, value in _KEEP.items():
        mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _GIVE_BACK.items():
            mallopt(option, value)
        trim(0)


@contextmanager
def _settings(device: torch.device, *settings: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes inside the block; a no-op on CPU."""
    if device.type == "cpu":
        yield
        return
    before = [getattr(where, name) for where, name, _ in settings]
    try:
        for where, name, value in settings:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(settings, before, strict=True):
            setattr(where, name, value)
