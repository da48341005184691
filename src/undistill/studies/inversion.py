"""Figure 6 of the paper: what DeepInversion draws out of a normal and of a nasty ResNet-34.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
    Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from undistill.errors import UndistillError
from undistill.recipe import Recipe
from undistill.reporting.parts import Part
from undistill.reporting.parts.images import ImageGrids, image_panel
from undistill.run import Failure, Run
from undistill.studies.cells import why
from undistill.studies.changes import Changes
from undistill.studies.datafree import data_free
from undistill.studies.protocol import nasty, normal
from undistill.studies.study import STUDIES, Study
from undistill.workspace import Workspace

__all__ = ["InversionStudy", "figure6"]

_ROWS = 8


@dataclass(frozen=True)
class InversionStudy(Study):
    """Images drawn out of a normal and a nasty teacher, both of seed 0, a column a class.

    Attributes:
        extractions: Recipes of the thief, by what the teacher is: ``normal`` or ``nasty``.
    """

    extractions: Mapping[str, Recipe]

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Both extractions."""
        yield from self.extractions.values()

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``images``: ``classes``, ``panels`` as of ``image_panel``, ``runs``: their folders."""
        runs = {name: run for name, recipe in self.extractions.items() if (run := workspace.find(recipe)) is not None}
        about = {
            "name": self.name,
            "title": self.title,
            "seeds": 1,
            "runs": {name: run.folder.name for name, run in runs.items()},
        }
        lost = [
            f"Failed: images of the {name} teacher, seed 0: {why(failures.get(recipe.hash))}"
            for name, recipe in self.extractions.items()
            if name not in runs
        ]
        if lost:
            return ImageGrids.make(**about, notes=tuple(lost), failed=True)
        try:
            classes = list(runs["normal"].dataset().classes)
            panels = [
                image_panel(name, f"{name.capitalize()} teacher", run.images(), len(classes), _ROWS)
                for name, run in runs.items()
            ]
        except UndistillError as error:  # images that are gone take this figure down, and no other
            return ImageGrids.make(**about, notes=(f"Failed: {error}",), failed=True)
        return ImageGrids.make(
            **about,
            classes=tuple(classes),
            panels=tuple(panels),
            notes=tuple(self._notes(runs, workspace)),
            failed=False,
        )

    def _notes(self, runs: Mapping[str, Run], workspace: Workspace) -> Iterator[str]:
        yield f"Of every class the first {_ROWS} images that were drawn: not chosen by eye."
        for name, run in runs.items():
            teacher = workspace.find(self.extractions[name].nested["victim"])
            theirs = f", of test accuracy {teacher.accuracy:.2f} %," if teacher is not None else ""
            yield (
                f"The {name} teacher{theirs} taught a ResNet-18 that saw nothing but its "
                f"{len(run.images() or ()):,} images {run.accuracy:.2f} %."
            )
        yield "One normal and one nasty teacher, both of seed 0 (n=1)."


@STUDIES.register("figure6")
def figure6(*, seeds: int, changes: Changes) -> InversionStudy:
    """Return Figure 6: ResNet-34 on CIFAR-10."""
    teachers = {"normal": normal("cifar10", "resnet34", 0), "nasty": nasty("cifar10", "resnet34", 0)}
    return InversionStudy(
        "figure6",
        f"Images drawn out of a normal and a nasty ResNet-34 trained on {changes.titled('cifar10', 'CIFAR-10')}",
        seeds,
        changes,
        {name: data_free("cifar10", "deep_inversion", teacher, changes) for name, teacher in teachers.items()},
    )
