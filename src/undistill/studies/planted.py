"""The audit tried on itself: victims that leak, and victims that do not, and what it says of each.

Images are noise around a few means (``gaussians``), students have no hidden layer. A soft answer about such an image is
a linear equation for the victim's weights, and as many of them as pixels fix it: a thief ends at the victim's own
accuracy, where the named class of as many images leaves a student points below. The same victim behind ``label_only``
has nothing to leak, though with some smoothing its answers look soft.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from undistill.errors import RecipeError
from undistill.functional import mean_interval, wilson_interval
from undistill.recipe import Recipe, load_recipe
from undistill.registry import Spec
from undistill.reporting.cell import Shown
from undistill.reporting.parts import Grid, GridRow
from undistill.reporting.parts.audit import Audit, Gain, Judgement
from undistill.reporting.parts.values import Values
from undistill.reporting.wording import change
from undistill.run import Failure
from undistill.studies.audit import AuditStudy, audit
from undistill.studies.changes import Changes
from undistill.studies.study import STUDIES, Study
from undistill.workspace import Workspace

__all__ = ["PlantedStudy", "planted"]

_POLICY = "label_only(smoothing=0.3)"
_BARE, _HIDDEN = "leaks: soft answers as they are", f"cannot leak: behind {_POLICY}"
_VERDICTS: tuple[Judgement, ...] = ("leaks", "undistillable", "not decided")
_TITLE = "What the audit says of victims that leak, and of victims that cannot"


@dataclass(frozen=True)
class PlantedStudy(Study):
    """Audits of many victims of which the truth is known."""

    audits: tuple[AuditStudy, ...]

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Those of all audits that are known at first."""
        for one in self.audits:
            yield from one.recipes

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterator[Recipe]:
        """Yield what all audits want."""
        for one in self.audits:
            yield from one.ask(workspace, failed)

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Values:
        """Return a part of kind ``values``: how often which verdict is given of which victims."""
        found = [one.evaluate(workspace, failures, cache) for one in self.audits]
        columns = ("victims", *(f"said: {verdict}" for verdict in _VERDICTS), "strongest thief's gain, points")
        rows = tuple(_row(label, behind, found) for label, behind in ((_BARE, False), (_HIDDEN, True)))
        return Values.make(
            name=self.name,
            title=self.title,
            seeds=self.seeds,
            grid=Grid("", ("Victim",), columns, rows),
            notes=(
                "In brackets: Wilson's 95 % interval of the share. Gain: mean over victims with its 95 % interval, of "
                "the thief that is best on held-out images beside the best reference.",
                *(f"Failed: {note}" for part in found for note in part.notes if note.startswith("Failed")),
            ),
            failed=any(part.failed for part in found),
        )


def _row(label: str, behind: bool, found: list[Audit]) -> GridRow:
    verdicts = Counter(part.verdict_of(_POLICY if behind else "") for part in found)
    gains = [gain.mean for part in found for gain in _favoured(part, behind)]
    shares = (Shown(_share(verdicts[verdict], len(found))) for verdict in _VERDICTS)
    return GridRow((label,), (Shown(f"{len(found)}"), *shares, Shown(_mean(gains))))


def _favoured(part: Audit, behind: bool) -> Iterator[Gain]:
    for front in part.fronts:
        for rival in front.rivals:
            if bool(front.defense) == behind and rival.name == front.favourite and rival.gain is not None:
                yield rival.gain


def _mean(gains: list[float]) -> str:
    if not gains:
        return "–"
    found = mean_interval(gains)
    half = found.half_width
    return change(found.mean, None if half is None else (found.mean - half, found.mean + half))


def _share(count: int, of: int) -> str:
    low, high = wilson_interval(count, of)
    return f"{count} [{100 * low:.0f} %, {100 * high:.0f} %]"


@STUDIES.register("planted")
def planted(
    *, seeds: int, changes: Changes, queries: int = 180, distance: float = 2.3, repetitions: int = 5, trials: int = 4
) -> PlantedStudy:
    """Return the study of what the audit says where the truth is known.

    Args:
        seeds: Victims of each kind: data sets, nets and searches of their own.
        changes: To the recipes.
        queries: Images that a customer asks about: as many as pixels, 64, and some more.
        distance: Between the classes, in standard deviations of a pixel.
        repetitions: Seeds of each audit, 2 or more.
        trials: Settings of each way to learn.

    Raises:
        RecipeError: A number is out of range.
    """
    if repetitions < 2:
        raise RecipeError(f"repetitions: an audit needs 2 seeds or more, got {repetitions}")

    def one(seed: int) -> AuditStudy:
        data = str(Spec("gaussians", {"distance": distance, "seed": seed}))
        return audit(
            seeds=repetitions,
            changes=changes,
            victim=load_recipe("planted/victim", data=data, seed=seed).model_dump(mode="json"),
            suite="quick",
            trials=trials,
            insider=0.0,
            queries=queries,
            policies=(_POLICY,),
        )

    return PlantedStudy("planted", _TITLE, seeds, changes, tuple(one(seed) for seed in range(seeds)))
