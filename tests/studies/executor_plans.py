"""A small study for the tests of executors: a net, its nasty twin, two thieves of each and one that steals labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from undistill.orchestrate.plan import Plan, Step
from undistill.orchestrate.progress import Silence
from undistill.recipe import Recipe, make_recipe
from undistill.run import Run
from undistill.workspace import Workspace

EPOCHS = 6


def recipe(model: str = "mlp", method: str = "ce", **fields: Any) -> Recipe:
    common = {"data": "digits(subset=300, test_subset=50)", "epochs": EPOCHS, "batch_size": 32, "selection": "last"}
    return make_recipe({**common, "model": model, "method": method, **fields})


def study(epochs: int = EPOCHS) -> Plan:
    """The nasty twin alone takes ``epochs``: long enough to be killed in the middle."""
    normal = recipe("cnn(width=0.25)", name="normal")
    nasty = recipe(normal.model, "nasty(weight=0.01)", name="nasty", adversary=normal, epochs=epochs)
    return Plan.of(
        recipe(model, method, victim=victim, name=f"{victim.name}-{model.partition('(')[0]}-{method}")
        for victim in (normal, nasty)
        for model, method in (("mlp", "kd"), ("cnn(width=0.25)", "kd"), ("mlp", "hard_label"))
    )


def pick(plan: Plan, *names: str) -> tuple[Step, ...]:
    return tuple(step for step in plan.steps if step.recipe.name in names)


def weights(root: Path) -> dict[str, str]:
    """The checksum of the weights of every run: equal ones mean that every number is equal."""
    return {path.parent.name: Run(path.parent).result["weights_sha256"] for path in root.glob("*/result.json")}


def undisturbed(root: Path, steps: Sequence[Step]) -> dict[str, str]:
    """The same for a study whose runs are carried out one after the other, each alone, in this process."""
    torch.set_num_threads(1)
    for step in steps:
        Workspace(root, device="cpu").run(step.recipe)
    return weights(root)


class Log(Silence):
    """Remembers what it is told, and calls ``act`` once, when a run is this many epochs far."""

    def __init__(self, act: Any = None, name: str = "nasty", epochs: float = 1) -> None:
        self.events: list[tuple[str, str]] = []
        self._act, self._name, self._epochs = act, name, epochs

    def started(self, recipe: Recipe) -> None:
        self.events.append(("started", str(recipe.name)))

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        self.events.append(("at", str(recipe.name)))
        if self._act is not None and recipe.name == self._name and epochs >= self._epochs:
            act, self._act = self._act, None
            self.events.append(("act", str(recipe.name)))
            act()

    def ended(self, recipe: Recipe, text: str, *, ok: bool) -> None:
        self.events.append(("ended" if ok else "failed", str(recipe.name)))


def far(lock: Path) -> bool:
    """Whether the run of a lock has done more than one epoch."""
    metrics = lock.with_name("metrics.jsonl")
    return metrics.exists() and metrics.read_text().count("\n") > 1


def holder(lock: Path) -> int:
    """Return the process that has a lock, or 0."""
    inode = str(lock.stat().st_ino)
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next((int(one[4]) for one in locks if one[5].rpartition(":")[2] == inode), 0)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
