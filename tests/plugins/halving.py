"""A study of one file that looks at finished runs and asks again: successive halving over temperatures of a thief."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from undistill.orchestrate.progress import Silence
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.parts import Part
from undistill.reporting.parts.table import Column, Row, Table
from undistill.run import Failure
from undistill.studies.cells import common, make_cell
from undistill.studies.changes import Changes
from undistill.studies.study import STUDIES, Study
from undistill.workspace import Workspace

DATA = "digits(subset=100, test_subset=50)"
ROUNDS = (2, 4)  # epochs
TEMPERATURES = (32.0, 8.0, 2.0, 1.0)


@dataclass(frozen=True)
class Halving(Study):
    """Temperatures for two epochs each; the half that is better on held-out images, for four."""

    victim: str
    temperatures: tuple[float, ...]

    def thief(self, temperature: float, epochs: int) -> Recipe:
        method = f"kd(temperature={temperature})"
        net = {"data": DATA, "model": "cnn(channels=4)", "holdout": 0.3, "batch_size": 8, "lr": 0.05}
        return load_recipe(None, **net, method=method, epochs=epochs, victim=self.victim)

    @property
    def recipes(self) -> Iterator[Recipe]:
        for temperature in self.temperatures:
            yield self.thief(temperature, ROUNDS[0])

    def chosen(self, workspace: Workspace) -> list[float]:
        """The better half of the temperatures, as soon as all have been tried."""
        runs = {temperature: workspace.find(self.thief(temperature, ROUNDS[0])) for temperature in self.temperatures}
        found = {t: run.metrics[-1]["heldout_accuracy"] for t, run in runs.items() if run is not None}
        if len(found) < len(runs):
            return []
        return sorted(found, key=lambda t: (-found[t], t))[: len(found) // 2]

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterator[Recipe]:
        yield from self.recipes
        for temperature in self.chosen(workspace):
            yield self.thief(temperature, ROUNDS[1])

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        def row(temperature: float, epochs: int) -> Row:
            cell = make_cell([self.thief(temperature, epochs)], workspace, failures)
            return Row(name=f"{temperature}-{epochs}", label=f"{temperature}, {epochs}", cells={"kd": cell})

        rows = [row(t, ROUNDS[0]) for t in self.temperatures] + [row(t, ROUNDS[1]) for t in self.chosen(workspace)]
        return Table.make(
            **common(self, [(each.label, each.cells["kd"]) for each in rows]),
            columns=(Column(name="kd", label="kd", data=DATA),),
            rows=tuple(rows),
        )


def halving(
    *, seeds: int, changes: Changes, victim: str, temperatures: list[float] | tuple[float, ...] = TEMPERATURES
) -> Halving:
    """Return the search for a thief's temperature."""
    return Halving("halving", "Temperatures", seeds, changes, victim, tuple(temperatures))


class KilledLater:
    """Kills this process as soon as a study asks again."""

    def __init__(self) -> None:
        self.rounds = 0

    def __call__(self, total: int) -> Silence:
        self.rounds += 1
        if self.rounds == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Silence()


if __name__ == "__main__":
    STUDIES.register("halving")(halving)
    out, victim = sys.argv[1:]
    reproduce(Request("halving", parameters={"victim": victim}), Path(out), jobs=1, device="cpu", observe=KilledLater())
