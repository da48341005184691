"""What a net has learned after how many minutes: by turbo, by one cycle of the rate, by the paper's protocol cut short.

Each is trained for as many epochs as turbo takes. A study of time: nothing else should run beside it, and ``--jobs 1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from undistill.errors import RecipeError, UnknownNameError
from undistill.recipe import Recipe, load_recipe
from undistill.reporting.parts import Part
from undistill.reporting.parts.curves import Axis, Curves, Line, Panel, Point, Scale
from undistill.run import Failure, Run
from undistill.studies.cells import common, make_cell
from undistill.studies.changes import Changes, adapt, turbo_protocol
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["ProtocolStudy", "protocols"]

_NETS = {"cnn": "CNN", "preresnet20": "PreResNet-20", "preresnet32": "PreResNet-32", "resnet18": "ResNet-18"}
_PROTOCOLS = {
    "turbo": "turbo",
    "cycle": "one cycle, the paper's optimizer",
    "paper": "the paper's protocol, cut short",
}
_HIGHER = {"sgd": 2.0, "adam": 10.0}  # the peak of a cycle by the paper's rate: what was best with a small CNN
_MINUTES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class ProtocolStudy(Study):
    """Nets in training, to be run.

    Attributes:
        nets: Recipes of each net by protocol, one a seed.
        minutes: When to look.
    """

    nets: Mapping[str, Mapping[str, tuple[Recipe, ...]]]
    minutes: tuple[float, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the nets and of the protocols."""
        return tuple(dict.fromkeys((*self.nets, *(name for found in self.nets.values() for name in found))))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """All runs."""
        for found in self.nets.values():
            for recipes in found.values():
                yield from recipes

    def pick(self, keep: Keep) -> ProtocolStudy | None:
        """Return the study with the nets and protocols that were asked for, None if there are none."""
        kept = {
            net: {name: recipes for name, recipes in found.items() if keep(self.name, net, name)}
            for net, found in self.nets.items()
        }
        nets = {net: found for net, found in kept.items() if found}
        return replace(self, nets=nets) if nets else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``curves``: a panel a net, a line a protocol, a point whenever an epoch had ended."""
        panels = tuple(
            Panel(
                name=net,
                title=self.changes.titled("cifar10", f"CIFAR-10, {_NETS[net]}"),
                x=Scale(label="Minutes", scale="log"),
                y=Axis(label="Held-out accuracy, %"),
                lines=tuple(self._line(name, recipes, workspace, failures) for name, recipes in found.items()),
                references=(),
            )
            for net, found in self.nets.items()
        )
        cells = [
            (f"{line.label}, {point.x} minutes", point) for p in panels for line in p.lines for point in line.points
        ]
        return Curves.make(**common(self, cells, _REMARKS), panels=panels)

    def _line(
        self, name: str, recipes: Sequence[Recipe], workspace: Workspace, failures: Mapping[str, Failure]
    ) -> Line:
        runs = [run for recipe in recipes if (run := workspace.find(recipe)) is not None]
        points = tuple(
            Point(x=at, **dict(make_cell(recipes, workspace, failures, read=partial(_accuracy, minutes=at))))
            for at in self.minutes
            if all(_epochs_after(run, at) for run in runs)
        )
        return Line(name=name, label=_PROTOCOLS[name], role="student", against=None, points=points)


_REMARKS = (
    "Accuracy on held-out images after the last epoch that had ended by then; a net that is done stays as it is. "
    "Epochs of one run take equally long.",
    "All hold out a tenth and see as many images. Turbo and one cycle compute like `fast`, the paper's protocol like "
    "`exact`.",
)


@STUDIES.register("protocols")
def protocols(
    *, seeds: int, changes: Changes, nets: Sequence[str] = ("cnn",), minutes: Sequence[float] = _MINUTES
) -> ProtocolStudy:
    """Return the study of accuracy over minutes.

    Args:
        seeds: Repetitions.
        changes: To the recipes.
        nets: A panel each: cnn, preresnet20, preresnet32, resnet18.
        minutes: When to look, above 0.

    Raises:
        RecipeError: A number of minutes is none.
        UnknownNameError: A net is none of the paper's.
    """
    for net in nets:
        if net not in _NETS:
            raise UnknownNameError("net of protocols", net, _NETS)
    if not minutes or any(isinstance(m, bool) or not isinstance(m, int | float) or m <= 0 for m in minutes):
        raise RecipeError(f"minutes: expected numbers above 0, got {list(minutes)}")
    found = {
        net: {name: tuple(adapt(_recipe(net, name, seed), changes) for seed in range(seeds)) for name in _PROTOCOLS}
        for net in nets
    }
    title = "Accuracy over minutes, by protocol"
    return ProtocolStudy("protocols", title, seeds, changes, found, tuple(sorted(minutes)))


def _recipe(net: str, protocol: str, seed: int) -> Recipe:
    if protocol == "turbo":
        return load_recipe(f"turbo/cifar10/{net}", seed=seed)
    paper = load_recipe(f"paper/cifar10/{net}", seed=seed)
    turbo = turbo_protocol(paper)
    fields = {key: turbo[key] for key in ("epochs", "selection", "holdout")}
    if protocol == "cycle":
        rate = paper.lr * _HIGHER[paper.optimizer]
        fields |= {"profile": "fast", "schedule": "one_cycle", "milestones": (), "lr": rate}
    return load_recipe(f"paper/cifar10/{net}", (), seed=seed, **fields)


def _epochs_after(run: Run, minutes: float) -> int:
    """Return how many epochs of a run had ended by then."""
    return min(run.recipe.epochs, int(run.recipe.epochs * 60 * minutes / run.result["seconds"]))


def _accuracy(run: Run, minutes: float) -> float:
    return float(run.metrics[_epochs_after(run, minutes) - 1]["heldout_accuracy"])
