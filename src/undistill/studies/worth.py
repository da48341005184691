"""What a victim is worth to those who ask it honestly, and what a defense takes from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undistill._version import __version__
from undistill.data import Dataset, load_dataset
from undistill.defenses import build_output_defense
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.engine.evaluate import ask_all, evaluate
from undistill.functional import Difference, paired_proportions, top_k_accuracy
from undistill.recipe import Recipe, Source
from undistill.storage import remember
from undistill.victim import Access, Victim
from undistill.workspace import Workspace

__all__ = ["MEASURES", "Worth", "price", "worth"]

MEASURES = {"top5": ("top-5", "points"), "ece": ("ECE", "points"), "nll": ("NLL", "nats"), "aurc": ("AURC", "points")}
"""What honest users have of an answer besides its first class, with the unit of a change; top-5 is better high."""


@dataclass(frozen=True)
class Worth:
    """What answers about the test images are worth.

    Attributes:
        accuracy: Percent.
        images: How many there are.
        measures: By name, as of ``MEASURES``.
        right: Whether each image is named rightly.
    """

    accuracy: float
    images: int
    measures: Mapping[str, float]
    right: tuple[bool, ...]


def price(now: Worth, before: Worth) -> Difference:
    """Return by how many points of accuracy a defense changes a victim, with its interval over the test images."""
    return paired_proportions(now.right, before.right)


def worth(source: Source, data: str, policy: str | None, workspace: Workspace, cache: Path) -> Worth | None:
    """Return what a victim's answers about the test images of a data set are worth.

    Args:
        source: The victim.
        data: Spec of the data set.
        policy: Defense on the answers; None for none.
        workspace: Where the runs are.
        cache: Folder for what was measured before.

    Returns:
        None for a recipe without a run.
    """
    if isinstance(source, Recipe) and workspace.find(source) is None:
        return None
    images = load_dataset(data)
    device = pick_device(workspace.device or "auto")
    net, own, checksum = workspace.source(source, images)
    key = {
        "undistill": __version__,
        "net": checksum,
        "data": images.fingerprint,
        "policy": policy,
        "device": device.type,
    }

    def ask() -> dict[str, Any]:
        victim = Victim(
            net.to(device),
            access=Access.LOGITS,
            trained_on=(own.mean, own.std),
            queried_with=(images.mean, images.std),
            policy=None if policy is None else build_output_defense(policy),
        )
        return _measure(_answers(victim, images, device), images.test.y)

    found = remember(cache, "worth", key, ask)
    right = tuple(digit == "1" for digit in found["right"])
    return Worth(found["accuracy"], len(right), {name: found[name] for name in MEASURES}, right)


def _answers(victim: Victim, images: Dataset, device: torch.device) -> Tensor:
    with exact_arithmetic(device):
        asked = ask_all(victim.logits, images.test, mean=images.mean, std=images.std, device=device)
    return asked.cpu()


def _measure(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    found = evaluate(logits, labels)
    return {
        "accuracy": found.accuracy,
        "top5": 100 * top_k_accuracy(logits, labels, min(5, logits.shape[1])),
        "ece": 100 * found.ece,
        "nll": found.nll,
        "aurc": 100 * found.aurc,
        "right": "".join("1" if right else "0" for right in (logits.argmax(1) == labels).tolist()),
    }
