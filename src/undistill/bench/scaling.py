"""How the cost of training grows, measured on a small grid; and what that makes of ImageNet, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from undistill.bench.train import machine, worker
from undistill.bench.work import Work

__all__ = ["bench_scaling", "estimate_imagenet", "plot_scaling"]

_BASE = 1024  # images
_AXES = {
    "images": (_BASE, 4 * _BASE, 16 * _BASE),
    "classes": (10, 100, 1000),
    "students": (1, 2, 4, 8),
    "seeds": (1, 2, 4),
}

# ImageNet-1k: images, bytes of one at 3x224x224, epochs of the usual recipe. Forward passes in GFLOP at 2 a
# multiplication: ResNet-50 (He et al., 2016: 3.8e9 multiplications) and MobileNetV2 (Sandler et al., 2018: 0.3e9).
_IMAGES, _BYTES, _EPOCHS = 1_281_167, 3 * 224 * 224, 90
_TEACHER, _STUDENT = 7.6, 0.6
_BACKWARD = 2  # forward passes that a backward pass costs
_H200 = 989e12  # dense bf16 operations a second, by the data sheet
_SHARE = 0.3  # of them that a well-fed ResNet-50 is assumed to reach


def bench_scaling(
    model: str = "cnn(channels=16)",
    victim: str = "preresnet20",
    *,
    profile: str = "exact",
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int = 128,
    axes: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Measure an epoch of distillation while one thing grows and the rest stays.

    Students share the victim's answers; seeds have a victim each, so they are trained one after the other.

    Args:
        model: Spec of the student.
        victim: Spec of the net that it steals from.
        profile: How to compute.
        device: Where.
        threads: Of the CPU; None for torch's default.
        batch_size: Images a step.
        axes: Values by axis (images, classes, students, seeds); None for a grid that takes about five minutes on CPU.

    Returns:
        ``machine``, ``base`` (what stays), ``rows`` (``axis``, ``value``, ``seconds`` of an epoch of all nets together,
        ``images_per_s`` over all nets, ``memory_mb`` at the peak) and ``imagenet``, an estimate.
    """
    base = Work("kd", (model,), victim, batch_size, images=_BASE, device=device, threads=threads)
    rows = [
        {"axis": axis, "value": value, **_epoch(_grown(base, axis, value), profile, value if axis == "seeds" else 1)}
        for axis, values in (axes or _AXES).items()
        for value in values
    ]
    return {
        "machine": machine(torch.device(device), threads),
        "base": {**asdict(base), "profile": profile},
        "rows": rows,
        "imagenet": estimate_imagenet(),
    }


def estimate_imagenet() -> dict[str, Any]:
    """Return hours on one H200 for a ResNet-50 teacher and a MobileNetV2 student on ImageNet, with what is assumed.

    Nothing of this is measured: operations are counted on paper and divided by an assumed rate.
    """
    rate = _SHARE * _H200
    normal, nasty = (1 + _BACKWARD) * _TEACHER, (2 + _BACKWARD) * _TEACHER
    work = {
        "teacher": normal,
        "nasty teacher": nasty,
        "student by distillation": (1 + _BACKWARD) * _STUDENT + _TEACHER,
        "four students, one victim": 4 * (1 + _BACKWARD) * _STUDENT + _TEACHER,
    }
    return {
        "assumptions": [
            f"{_IMAGES:,} images at 224x224, {_EPOCHS} epochs; ResNet-50 {_TEACHER} GFLOP and MobileNetV2 {_STUDENT} "
            "GFLOP a forward pass, by their papers",
            f"a backward pass costs {_BACKWARD} forward passes; a frozen net costs one",
            f"{100 * _SHARE:.0f} % of the {_H200 / 1e12:.0f} TFLOP/s (bf16, dense) of an H200's data sheet; depthwise "
            "convolutions reach less",
            f"images as uint8 take {_IMAGES * _BYTES / 1e9:.0f} GB: more than the device holds, so that they come from "
            "the host, at no cost assumed here",
        ],
        "hours": {name: round(gflop * 1e9 * _IMAGES * _EPOCHS / rate / 3600, 1) for name, gflop in work.items()},
    }


def plot_scaling(found: dict[str, Any], folder: Path) -> Path:
    """Draw seconds and memory over each axis, and return the path of the figure.

    Seconds are on a logarithmic scale, on which what grows in proportion is parallel to the dashed line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    axes = list(dict.fromkeys(row["axis"] for row in found["rows"]))
    figure = Figure(figsize=(3 * len(axes), 5), layout="constrained")
    panels = figure.subplots(2, len(axes), sharex="col", sharey="row", squeeze=False)
    for (upper, lower), axis in zip(panels.T, axes, strict=True):
        rows = [row for row in found["rows"] if row["axis"] == axis]
        values, seconds = [row["value"] for row in rows], [row["seconds"] for row in rows]
        upper.plot(values, [seconds[0] * value / values[0] for value in values], "k--", lw=0.8, label="in proportion")
        upper.plot(values, seconds, marker="o")
        upper.set(yscale="log")
        lower.plot(values, [row["memory_mb"] for row in rows], marker="o")
        lower.set(xscale="log", xlabel=axis)
        lower.set_xticks(values, [f"{value:,}" for value in values])
        lower.minorticks_off()
    seconds = [row["seconds"] for row in found["rows"]]
    panels[0, 0].set(ylabel="seconds an epoch", ylim=(min(seconds) / 1.5, max(seconds) * 1.5))
    panels[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].yaxis.set_minor_formatter("")
    panels[0, 0].legend(loc="upper left", frameon=False)
    panels[1, 0].set(ylabel="peak memory, MB", ylim=(0, 1.1 * max(row["memory_mb"] for row in found["rows"])))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scaling.png"
    figure.savefig(path, dpi=120)
    return path


def _grown(base: Work, axis: str, value: int) -> Work:
    if axis == "students":
        return replace(base, models=base.models * value)
    if axis == "images":
        return replace(base, images=value)
    return replace(base, classes=value) if axis == "classes" else base


def _epoch(work: Work, profile: str, repetitions: int) -> dict[str, float]:
    """Return the cost of an epoch of the nets of a work, of several repetitions one after the other."""
    steps = -(-work.images // work.batch_size)
    costs = list(_costs(work, profile, steps, repetitions))
    seconds = sum(cost for cost, _ in costs)
    return {
        "seconds": round(seconds, 3),
        "images_per_s": round(work.images * len(work.models) * repetitions / seconds, 1),
        "memory_mb": max(memory for _, memory in costs),
    }


def _costs(work: Work, profile: str, steps: int, repetitions: int) -> Iterator[tuple[float, int]]:
    for _ in range(repetitions):
        with worker(work, profile) as process:
            process.ask("run", 2)
            seconds = min(process.ask("run", steps) for _ in range(2))  # another program may have had the first
            yield seconds, process.ask("report")["memory_mb"]
