"""What the numbers say, in plain words; nothing here is said that was not measured."""

from __future__ import annotations

from collections.abc import Iterator

from undistill.functional import Interval
from undistill.reporting.parts.findings import Dot, Finding, Ladder
from undistill.reporting.runs import Extraction, Replicates, RunGroup, Student, Teacher
from undistill.reporting.wording import join, points

__all__ = ["COLLAPSE_WARNING", "collapse_share", "judge", "ladders"]

Found = tuple[Extraction, Student, Replicates]

NEAR = 1.0  # points: a thief who comes this near has what there was to steal
COLLAPSE_WARNING = "That is a collapse in training, not proof of protection."


def judge(study: RunGroup) -> tuple[Finding, ...]:
    """Say what the numbers of a study mean."""
    defended = [teacher for teacher in study.teachers if teacher.defended]
    if defended:
        return tuple(_judge_defended(study, teacher) for teacher in defended)
    return tuple(_judge_normal(study, teacher) for teacher in study.teachers)


def ladders(study: RunGroup) -> Iterator[Ladder]:
    """Yield what each student ends at: alone, after the normal teacher, and after each defended one."""
    defended = [teacher for teacher in study.teachers if teacher.defended]
    for teacher in defended or study.teachers[:1]:
        twin = teacher.twin if teacher.defended else teacher.key
        thefts = study.extractions_from(teacher.key) if teacher.defended else []
        ways = {
            "normal": study.extractions_from(twin) if twin is not None else [],
            "textbook": [one for one in thefts if one.textbook],
            "adaptive": [one for one in thefts if not one.textbook],
        }
        for student in study.students:
            dots = [] if student.baseline is None else [_dot("alone", student.baseline)]
            for of, extractions in ways.items():
                best = [got for _, found, got in _best(study, extractions) if found is student]
                dots += [_dot(of, got.accuracy) for got in best]
            several = f"{student.name}, {teacher.name}" if len(defended) > 1 else student.name
            yield Ladder(label=several, dots=tuple(dots))


def _dot(of: str, accuracy: Interval) -> Dot:
    return Dot(of=of, mean=accuracy.mean, half_width=accuracy.half_width)


def collapse_share(replicates: Replicates) -> str:
    """Say how much collapsed runs answer with one class: ``one class for 97 % of all images``."""
    shares = sorted(round(100 * run.result["selected"]["top_class_share"]) for run in replicates.collapsed)
    span = f"{shares[0]}" if shares[0] == shares[-1] else f"{shares[0]} to {shares[-1]}"
    some = "" if len(replicates.runs) == 1 else f" in {len(replicates.collapsed)} of {len(replicates.runs)} runs"
    return f"one class for {span} % of all images{some}"


def _judge_normal(study: RunGroup, teacher: Teacher) -> Finding:
    extractions = study.extractions_from(teacher.key)
    items = [("The teacher", f"{_accuracy(teacher)}.")] if teacher.replicates is not None else []
    if extractions:
        items.append(("A thief", f"gets, against the same student trained alone: {_ends(study, extractions)}."))
    return Finding(
        subject=teacher.label,
        headline="Nothing defends this model." if extractions else "No thief was tried.",
        items=tuple(items),
    )


def _judge_defended(study: RunGroup, teacher: Teacher) -> Finding:
    extractions = study.extractions_from(teacher.key)
    textbook = [extraction for extraction in extractions if extraction.textbook]
    adaptive = [extraction for extraction in extractions if not extraction.textbook]
    items = [("The teacher", _cost(study, teacher))]
    if textbook:
        items.append(("The textbook thief", _textbook(study, textbook)))
    if extractions:
        items.append(("The adaptive thief", _adaptive(study, teacher, adaptive)))
    return Finding(subject=teacher.label, headline=_headline(study, teacher, textbook, adaptive), items=tuple(items))


def _headline(study: RunGroup, teacher: Teacher, textbook: list[Extraction], adaptive: list[Extraction]) -> str:
    if not textbook and not adaptive:
        return "No thief was tried."
    if all(student.baseline is None and _normal(study, teacher, student) is None for student in study.students):
        return "Without reference students nobody can tell what was stolen."
    best = _best(study, textbook)
    undone = [student.name for _, student, replicates in best if _like_alone(student, replicates)]
    if undone and len(undone) == len(best):
        return "Not even the textbook thief is stopped."
    if _stolen(study, teacher, adaptive):
        return "A thief who adapts can steal this model."
    if undone:
        return f"The textbook thief is not stopped with every student: not with {join(undone)}."
    if not adaptive:
        return "Only the textbook thief was tried; nothing is known of one who adapts."
    if all(student.baseline is None for student in study.students):
        return "No thief tried here gets what the normal twin gives."
    return "No thief tried here comes near a student trained alone."


def _cost(study: RunGroup, teacher: Teacher) -> str:
    if teacher.replicates is None:
        return "is not among these runs."
    twin = study.teacher(teacher.twin)
    if twin is None or twin.replicates is None:
        return f"{_accuracy(teacher)}; its normal twin is not among these runs."
    change = teacher.replicates.accuracy.mean - twin.replicates.accuracy.mean
    cost = "costs nothing" if abs(change) < 0.1 else f"{'costs' if change < 0 else 'gains'} {points(change)}"
    return f"{_accuracy(teacher)}, its normal twin for {twin.replicates.accuracy.mean:.1f} %: the defense {cost}."


def _accuracy(teacher: Teacher) -> str:
    if teacher.replicates is None:
        return ""
    n, images = teacher.replicates.accuracy.n, teacher.replicates.runs[0].result["test_images"]
    seeds = f" (mean of {n} seeds)" if n > 1 else ""
    return f"is right for {teacher.replicates.accuracy.mean:.1f} % of the {images:,} test images{seeds}"


def _textbook(study: RunGroup, extractions: list[Extraction]) -> str:
    best = _best(study, extractions)
    ways = join(sorted({extraction.label for extraction in extractions}))
    ends = join([_against_alone(student, replicates) for _, student, replicates in best])
    text = f"distills at the defense's own temperature: {ways}. Against the same student trained alone, {ends}."
    collapses = [f"{s.name} answers {collapse_share(replicates)}" for _, s, replicates in best if replicates.collapsed]
    return f"{text} But {join(collapses)}. {COLLAPSE_WARNING}" if collapses else text


def _adaptive(study: RunGroup, teacher: Teacher, extractions: list[Extraction]) -> str:
    if not extractions:
        return "was not tried. Lower the temperature (kd at τ=1) or use hard labels (hard_label), and look again."
    ways = join(sorted({extraction.label for extraction in extractions}))
    text = f"asks in another way: {ways}. At best, {_ends(study, extractions)}."
    stolen = _stolen(study, teacher, extractions)
    if not stolen:
        return f"{text} None comes within {NEAR:g} point of its reference; a stronger thief may."
    blind = [
        s.name
        for _, s, _ in _stolen(study, teacher, [extraction for extraction in extractions if not extraction.uses_labels])
    ]
    labels = f" With {join(blind)} it takes not a single true label." if blind else ""
    short = [
        f"{student.name} {_normal(study, teacher, student):.1f} %"
        for _, student, replicates in stolen
        if not _like_alone(student, replicates)
    ]
    normal = f" The normal teacher gives no more: {join(short)}." if short else ""
    return f"{text}{normal} So this model can be stolen by a thief who adapts.{labels}"


def _ends(study: RunGroup, extractions: list[Extraction]) -> str:
    """Say how the best extraction of each student ends."""
    return join(
        [
            f"{_against_alone(student, got)} with {extraction.label}"
            for extraction, student, got in _best(study, extractions)
        ]
    )


def _against_alone(student: Student, replicates: Replicates) -> str:
    got, alone = replicates.accuracy.mean, student.baseline
    if alone is None:
        return f"{student.name} ends at {got:.1f} % (no reference of the same protocol)"
    change = got - alone.mean
    if abs(change) < 0.1:
        return f"{student.name} ends level at {got:.1f} %"
    return (
        f"{student.name} {'gains' if change > 0 else 'loses'} {points(change)} ({got:.1f} against {alone.mean:.1f} %)"
    )


def _stolen(study: RunGroup, teacher: Teacher, extractions: list[Extraction]) -> list[Found]:
    """Return each student's best extraction, where it comes near the student alone or what the normal twin gives."""
    return [
        (extraction, student, replicates)
        for extraction, student, replicates in _best(study, extractions)
        if _like_alone(student, replicates) or _near(replicates, _normal(study, teacher, student))
    ]


def _like_alone(student: Student, replicates: Replicates) -> bool:
    return student.baseline is not None and _near(replicates, student.baseline.mean)


def _near(replicates: Replicates, goal: float | None) -> bool:
    return goal is not None and replicates.accuracy.mean >= goal - NEAR - 1e-9


def _normal(study: RunGroup, teacher: Teacher, student: Student) -> float | None:
    """Return the most that a student got from the normal twin, in percent; what collapsed there tells nothing."""
    extractions = study.extractions_from(teacher.twin) if teacher.twin is not None else []
    tried = [extraction.by[student.key] for extraction in extractions if student.key in extraction.by]
    return max((replicates.accuracy.mean for replicates in tried if not replicates.collapsed), default=None)


def _best(study: RunGroup, extractions: list[Extraction]) -> list[Found]:
    """Return the extraction by which each student gets the most."""
    best = []
    for student in study.students:
        tried = [
            (extraction, student, extraction.by[student.key])
            for extraction in extractions
            if student.key in extraction.by
        ]
        if tried:
            best.append(max(tried, key=lambda found: found[2].accuracy.mean))
    return best
