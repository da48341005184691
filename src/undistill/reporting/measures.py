"""What thieves are measured by besides accuracy, and what victims give away and are worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from undistill.functional import Interval, mean_interval
from undistill.reporting.cell import Shown
from undistill.reporting.parts import Grid, GridRow
from undistill.reporting.runs import Extraction, Replicates, RunGroup, Student, Teacher
from undistill.reporting.wording import ordinary, value
from undistill.run import Run

__all__ = ["Copied", "copied", "is_tautology", "thieves", "victims"]

_NAMES = 0.999  # of the answers are right: what is left over is no answer to anything
_ACCURATE = 100 * _NAMES


@dataclass(frozen=True)
class Copied:
    """How far a thief answers as his victim does, in percent of the test images.

    Attributes:
        fidelity: Share of all images on which both name the same class.
        excess: How much more that is than of the student alone, in points; None without one, or where it was not kept.
        disputed: Share of those images on which the student alone names another class than the victim.
        images: How many these are, on average.
    """

    fidelity: Interval
    excess: Interval | None
    disputed: Interval | None
    images: float | None


def copied(thief: Replicates, alone: Replicates | None) -> Copied | None:
    """Return how far a thief answers as his victim does; None for runs that were made before that was kept.

    Args:
        thief: Runs of an attack.
        alone: The student alone; those of its runs count that share a seed with the thief.
    """
    fidelity = thief.measure("fidelity", 100)
    if fidelity is None:
        return None
    others = {run.recipe.seed: run for run in alone.runs} if alone is not None else {}
    pairs = [(run, others[run.recipe.seed]) for run in thief.runs if run.recipe.seed in others]
    found = [each for each in (_beside(run, other) for run, other in pairs) if each is not None]
    if not found:
        return Copied(fidelity, None, None, None)
    excess, right, images = zip(*found, strict=True)
    known = [100 * hits / count for hits, count in zip(right, images, strict=True) if count]
    return Copied(
        fidelity,
        mean_interval(excess),
        mean_interval(known) if known else None,
        sum(images) / len(images),
    )


def _beside(thief: Run, alone: Run) -> tuple[float, int, int] | None:
    """Return the excess in points, on how many disputed images the thief follows the victim, and how many these are."""
    own, victim, other = thief.predictions(), thief.predictions("victim"), alone.predictions()
    if own is None or victim is None or other is None:
        return None
    follows, disputed = own == victim, other != victim
    excess = 100 * (int(follows.sum()) + int(disputed.sum()) - len(own)) / len(own)
    return excess, int((follows & disputed).sum()), int(disputed.sum())


def is_tautology(study: RunGroup, extraction: Extraction) -> bool:
    """Tell whether a thief learned from the named class alone, of images of which he has the label, and it is that.

    Then he is the student alone, and his accuracy says nothing of his victim.
    """
    if not extraction.named or extraction.means.labels is False:
        return False
    if not all(replicates.labelled for replicates in extraction.by.values()):
        return False
    runs = [run for replicates in extraction.by.values() for run in replicates.runs]
    told = [run.result.get("answers_right") for run in runs]
    if all(right is not None for right in told):
        return min(float(right) for right in told if right is not None) >= _NAMES
    if extraction.means.transfer is not None:  # asked at every step, about images that nobody kept count of
        return False
    teacher = study.teacher(extraction.teacher)
    if teacher is None or teacher.replicates is None:
        return False
    last = [run.metrics[-1].get("train_accuracy") for run in teacher.replicates.runs if run.metrics]
    return bool(last) and all(each is not None and each >= _ACCURATE for each in last)


def thieves(study: RunGroup) -> Grid | None:
    """Return a table of what every thief had and got; None where no run kept it."""
    rows = [row for one in study.extractions for row in _rows(study, one)]
    columns = (
        "accuracy, %",
        "fidelity, %",
        "excess fidelity, points",
        "fidelity where that reference disagrees, %",
        "KL, nats",
        "queries",
        "images",
        "labels",
        "trained on",
    )
    return Grid("", ("Teacher", "Thief", "Student"), columns, tuple(rows)) if rows else None


def _rows(study: RunGroup, one: Extraction) -> Iterator[GridRow]:
    for student in study.students:
        runs = one.by.get(student.key)
        if runs is None or runs.measure("fidelity") is None:
            continue
        yield GridRow(
            (study.teacher_name(one.teacher), f"{one.label}{_mark(study, one)}", student.name),
            tuple(Shown(text) for text in _texts(study, one, student, runs)),
        )


def _mark(study: RunGroup, one: Extraction) -> str:
    return " (answers are the labels)" if is_tautology(study, one) else ""


def _texts(study: RunGroup, one: Extraction, student: Student, runs: Replicates) -> Iterator[str]:
    reference = study.alone(one, student)
    same = copied(runs, None if reference is None else reference[1])
    yield value(runs.accuracy, with_n=False)
    yield "–" if same is None else value(same.fidelity, with_n=False)
    yield "–" if same is None or same.excess is None else _spread(same.excess)
    disputed = None if same is None else same.disputed
    yield "–" if same is None or disputed is None else f"{value(disputed, with_n=False)} (of {same.images:.0f})"
    yield _spread(runs.measure("kl"), 3)
    for key in ("queries", "images", "labels", "trained_images"):
        yield ordinary(runs.measure(key))


def victims(study: RunGroup) -> Grid | None:
    """Return a table of what every teacher is worth to those who ask honestly, and how much its answers say."""
    rows = [row for teacher in study.teachers if (row := _victim(teacher)) is not None]
    columns = ("accuracy, %", "ECE, %", "NLL, nats", "AURC, %", "median non-target mass")
    return Grid("", ("Teacher",), columns, tuple(rows)) if rows else None


def _victim(teacher: Teacher) -> GridRow | None:
    runs = teacher.replicates
    if runs is None or runs.measure("selected.aurc") is None:
        return None
    cells: Sequence[str] = (
        value(runs.accuracy, with_n=False),
        _spread(runs.measure("selected.ece", 100)),
        _spread(runs.measure("selected.nll"), 3),
        _spread(runs.measure("selected.aurc", 100)),
        _small(runs.measure("selected.non_target_mass")),
    )
    return GridRow((teacher.label,), tuple(Shown(text) for text in cells))


def _spread(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return "–"
    spread = "" if interval.half_width is None else f" ± {interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f}{spread}"


def _small(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.mean:.2g}"
