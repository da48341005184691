"""Pictures of one normal and one nasty teacher, computed once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from undistill._version import __version__
from undistill.data.dataset import Dataset
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.errors import DataError, UndistillError
from undistill.recipe import Recipe
from undistill.reporting.parts import Part
from undistill.run import Failure, Run
from undistill.storage import remember
from undistill.studies.cells import why
from undistill.studies.study import Study
from undistill.workspace import Workspace

__all__ = ["TEACHERS", "PairStudy", "Teachers"]

TEACHERS = ("normal", "nasty")


@dataclass(frozen=True)
class Teachers:
    """Both finished runs.

    Attributes:
        runs: By ``normal`` and ``nasty``.
        data: What they were trained on.
        device: Where to ask them.
    """

    runs: Mapping[str, Run]
    data: Dataset
    device: torch.device


@dataclass(frozen=True)
class PairStudy(Study):
    """A figure that shows a normal and a nasty teacher side by side, both of seed 0.

    Attributes:
        normal: Recipe of the normal teacher.
        nasty: Recipe of the nasty teacher.
    """

    kind: ClassVar[type[Part]]

    normal: Recipe
    nasty: Recipe

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Both teachers."""
        yield self.normal
        yield self.nasty

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What decides the picture beside the teachers, as plain values."""

    @abstractmethod
    def compute(self, teachers: Teachers) -> dict[str, Any]:
        """Return what the picture shows, as plain values."""

    @abstractmethod
    def remarks(self, picture: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a reader must know beside what was computed."""

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return what ``compute`` does, with ``runs``: their folders; without it where a teacher is missing."""
        recipes = dict(zip(TEACHERS, (self.normal, self.nasty), strict=True))
        runs = {name: run for name, recipe in recipes.items() if (run := workspace.find(recipe)) is not None}
        about = {
            "name": self.name,
            "title": self.title,
            "seeds": 1,
            "runs": {name: run.folder.name for name, run in runs.items()},
        }
        lost = [
            f"Failed: {name} teacher, seed 0: {why(failures.get(recipe.hash))}"
            for name, recipe in recipes.items()
            if name not in runs
        ]
        if lost:
            return self.kind.make(**about, notes=tuple(lost), failed=True)
        device = pick_device(workspace.device or self.normal.device)
        weights = {name: run.result["weights_sha256"] for name, run in runs.items()}
        data = runs["normal"].result["data_fingerprint"]
        key = {"undistill": __version__, **self.parameters, "weights": weights, "data": data, "device": device.type}
        try:
            picture = remember(cache, self.name, key, lambda: self._ask(runs, device))
        except UndistillError as error:  # weights or data that are gone take this figure down, and no other
            return self.kind.make(**about, notes=(f"Failed: {error}",), failed=True)
        notes = [*self.remarks(picture), "One normal and one nasty teacher, both of seed 0 (n=1)."]
        notes += [
            f"Collapsed: more than 90 % of the answers of the {name} teacher are one class."
            for name, run in runs.items()
            if run.collapsed
        ]
        return self.kind.make(**about, **picture, notes=tuple(notes), failed=False)

    def _ask(self, runs: Mapping[str, Run], device: torch.device) -> dict[str, Any]:
        data = runs["normal"].dataset()
        if data.fingerprint != runs["normal"].result["data_fingerprint"]:
            raise DataError(f"the images of {self.normal.data} have changed since the teachers were trained")
        with exact_arithmetic(device):
            return self.compute(Teachers(runs, data, device))
