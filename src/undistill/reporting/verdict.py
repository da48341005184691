"""What the numbers say, in plain words: three questions, an answer each, and nothing that the intervals do not say.

*Leak*: what soft answers gave the best thief beyond the best reference with the same means. *Clone*: how far top-1
answers alone go, and for how many queries. *Price*: what a defense costs those who ask honestly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from undistill.functional import Best, Difference, Interval, best_of, best_proportion_of, clip, wilson_interval
from undistill.reporting.measures import is_tautology
from undistill.reporting.parts.findings import Dot, Finding, Ladder
from undistill.reporting.runs import Extraction, Replicates, RunGroup, Student, Teacher
from undistill.reporting.wording import gap, join, ordinary, points, seeds

__all__ = ["COLLAPSE_WARNING", "collapse_share", "judge", "ladders", "leak_of"]

COLLAPSE_WARNING = "That is a collapse in training, not proof of protection."
_CONFIDENCE = 0.95
_CLONED = 90.0  # percent of answers alike; the OWASP AI Testing Guide (AITG-APP-09) calls more than that vulnerable


def judge(study: RunGroup) -> tuple[Finding, ...]:
    """Say what the numbers of a study mean, of every teacher that was defended or stolen from."""
    asked = [teacher for teacher in study.teachers if teacher.defended or study.extractions_from(teacher.key)]
    return tuple(_judge(study, teacher) for teacher in asked or study.teachers)


def ladders(study: RunGroup) -> Iterator[Ladder]:
    """Yield what each student ends at with the same means: alone, after the normal teacher, and after each defended."""
    defended = [teacher for teacher in study.teachers if teacher.defended]
    everything = {one.means for one in study.extractions}
    for teacher in defended or study.teachers[:1]:
        twin = teacher.twin if teacher.defended else teacher.key
        thefts = study.extractions_from(teacher.key) if teacher.defended else []
        normal = study.extractions_from(twin) if twin is not None else []
        ways = {
            "normal": normal,
            "textbook": [one for one in thefts if one.textbook],
            "adaptive": [one for one in thefts if not one.textbook],
        }
        for means in dict.fromkeys(one.means for one in sorted([*normal, *thefts], key=lambda one: one.means.order)):
            for student in study.students:
                alone = study.references_of(student, means).get("ce") if means.labels is not False else None
                dots = [] if alone is None else [_dot("alone", alone.accuracy)]
                for of, extractions in ways.items():
                    best = _best_mean(one.by.get(student.key) for one in extractions if one.means == means)
                    dots += [] if best is None else [_dot(of, best.accuracy)]
                told = student.name, teacher.name * (len(defended) > 1), means.among(everything)
                yield Ladder(label=", ".join(filter(None, told)), dots=tuple(dots))


def _dot(of: str, accuracy: Interval) -> Dot:
    return Dot(of=of, mean=accuracy.mean, half_width=accuracy.half_width)


def _best_mean(found: Iterable[Replicates | None]) -> Replicates | None:
    return max((one for one in found if one is not None), key=lambda one: one.accuracy.mean, default=None)


def collapse_share(replicates: Replicates) -> str:
    """Say how much collapsed runs answer with one class: ``one class for 97 % of all images``."""
    shares = sorted(round(100 * run.result["selected"]["top_class_share"]) for run in replicates.collapsed)
    span = f"{shares[0]}" if shares[0] == shares[-1] else f"{shares[0]} to {shares[-1]}"
    some = "" if len(replicates.runs) == 1 else f" in {len(replicates.collapsed)} of {len(replicates.runs)} runs"
    return f"one class for {span} % of all images{some}"


@dataclass(frozen=True)
class Leak:
    """What the best thief has beyond the best reference with the same means.

    Attributes:
        best: Who it is, beyond what, and how sure that is, corrected for the choice among all thieves tried.
        student: Who learned.
        thieves: How many were tried that have something to be compared with.
        gained: Runs of the best thief.
    """

    best: Best
    student: Student
    thieves: int
    gained: Replicates


def leak_of(study: RunGroup, teacher: Teacher) -> Leak | None:
    """Return what soft answers of a teacher gave the best thief; None if no thief had something to be compared with.

    Thieves are compared with references of the same student, images and labels. The choice among students and means is
    corrected for like that among thieves: each of C comparisons is made at the confidence 1 - 0.05/C.
    """
    thieves = [one for one in study.extractions_from(teacher.key) if one.soft]
    fields = {
        (student.key, means): (
            student,
            {one.label: one.by[student.key] for one in thieves if one.means == means and student.key in one.by},
            next(study.yardsticks(one, student) for one in thieves if one.means == means and student.key in one.by),
        )
        for student in study.students
        for means in dict.fromkeys(one.means for one in thieves if student.key in one.by)
    }
    contests = [field for field in fields.values() if field[2]]
    found = []
    for student, candidates, references in contests:
        best = _compare(candidates, references, 1 - (1 - _CONFIDENCE) / len(contests))
        if best is not None:
            found.append(Leak(best, student, sum(len(each) for _, each, _ in contests), candidates[best.candidate]))
    return max(found, key=lambda one: (one.best.verdict == "leak", one.best.difference.mean), default=None)


def _compare(
    candidates: Mapping[str, Replicates], references: Mapping[str, Replicates], confidence: float
) -> Best | None:
    """Return the best candidate: by seeds; where all have the same single one, by the test images."""
    everybody = [*candidates.values(), *references.values()]
    if len({tuple(one.accuracies) for one in everybody}) == 1 and len(everybody[0].runs) == 1:
        right = [{name: one.right for name, one in group.items()} for group in (candidates, references)]
        if all(each is not None for group in right for each in group.values()):
            named = ({name: each.tolist() for name, each in group.items() if each is not None} for group in right)
            return best_proportion_of(*named, confidence=confidence)
    by_seed = ({name: one.accuracies for name, one in group.items()} for group in (candidates, references))
    return best_of(*by_seed, confidence=confidence, resolution=everybody[0].resolution)


def _judge(study: RunGroup, teacher: Teacher) -> Finding:
    extractions = study.extractions_from(teacher.key)
    leak = leak_of(study, teacher)
    items = [("Leak", _leak(extractions, leak)), ("Clone", _clone(study, extractions))] if extractions else []
    if teacher.defended:
        textbook = [one for one in extractions if one.textbook]
        textbook = [one for one in textbook if one.means == textbook[-1].means]  # those who have most
        items += [("The textbook thief", _textbook(study, textbook))] if textbook else []
        items.append(("Price", _price(study, teacher)))
    elif teacher.replicates is not None:
        items.append(("The teacher", f"{_accuracy(teacher)}."))
    return Finding(subject=teacher.label, headline=_headline(extractions, leak), items=tuple(items))


def _headline(extractions: Sequence[Extraction], leak: Leak | None) -> str:
    if not extractions:
        return "No thief was tried."
    if leak is None:
        return "What soft answers leak was not measured."
    found = leak.best.difference
    if leak.best.verdict == "leak":
        return f"Soft answers leak {points(found.mean)}."
    if leak.best.verdict == "loss":
        return "No thief tried here gains from soft answers."
    return "Whether soft answers leak is not decided."


def _leak(extractions: Sequence[Extraction], leak: Leak | None) -> str:
    if not any(one.soft for one in extractions):
        return "Nobody tried who looks at more than the named class; try kd, and look again."
    if leak is None:
        return (
            "Not measured: no reference has the thief's images and labels. Train the same student with ce and "
            "label_smoothing (without labels: attack with hard_label) on the same transfer, labels and queries."
        )
    best, found = leak.best, leak.best.difference
    chosen = f"the best of {leak.thieves} thieves" if leak.thieves > 1 else "the only thief tried"
    who = f"{chosen}, {leak.student.name} by {best.candidate},"
    sure = _sure(found)
    if best.verdict == "leak":
        text = f"Soft answers gave {who} {gap(found)} beyond {best.reference}, on the same images {sure}."
    elif best.verdict == "loss":
        text = f"Soft answers gave nothing: {who} ends {gap(found)} from {best.reference}, on the same images"
        text += f" {sure}."
    else:
        text = f"Not decided {sure}: {who} ends {gap(found)} from {best.reference}, on the same images."
    if leak.gained.collapsed:
        text += f" It answers {collapse_share(leak.gained)}. {COLLAPSE_WARNING}"
    return text


def _sure(found: Difference) -> str:
    if found.over == "images":
        return f"(one seed, {found.n:,} test images; other seeds may say otherwise)"
    return f"({seeds(found.n)})"


def _clone(study: RunGroup, extractions: Sequence[Extraction]) -> str:
    """Say how far top-1 answers go."""
    named = [one for one in extractions if not one.soft]
    if not named:
        return "Nobody tried with top-1 answers alone; try hard_label, and look again."
    honest = [one for one in named if not is_tautology(study, one)]
    if not honest:
        return (
            "Not measured: top-1 answers were asked for only about images whose labels the thief has and the victim "
            "names, so they are these labels. Try hard_label with labels=false, or with other images (transfer)."
        )
    tried = [
        (one, student, one.by[student.key], fidelity)
        for one in honest
        for student in study.students
        if student.key in one.by and (fidelity := one.by[student.key].measure("fidelity", 100)) is not None
    ]
    if not tried:
        return "Not measured: these runs were made before fidelity was."
    one, student, runs, fidelity = max(tried, key=lambda each: each[3].mean)
    text = (
        f"From top-1 answers alone, {student.name} by {one.label} names the victim's class for "
        f"{_percent(fidelity, runs)} of the test images, after {ordinary(runs.measure('queries'))} queries "
        f"({seeds(fidelity.n)})."
    )
    budgets = {q.mean for *_, each, _ in tried if (q := each.measure("queries")) is not None}
    if len(budgets) < 2:
        return text
    return f"{text} {_first_above(tried)}"


def _first_above(tried: Sequence[tuple[Extraction, Student, Replicates, Interval]]) -> str:
    """Say with how few queries a student first agreed with the victim about nearly everything, by its interval."""
    sure = [
        (asked.mean, fidelity, runs)
        for *_, runs, fidelity in tried
        if (asked := runs.measure("queries")) is not None and _ends(fidelity, runs)[0] > _CLONED
    ]
    if not sure:
        return f"No number of queries tried brings that surely above {_CLONED:g} %."
    queries, fidelity, runs = min(sure, key=lambda each: each[0])
    return f"It is surely above {_CLONED:g} % from {queries:,.0f} queries on ({_percent(fidelity, runs)})."


def _textbook(study: RunGroup, extractions: list[Extraction]) -> str:
    ends, collapses = [], []
    for one in extractions:
        for student in study.students:
            runs = one.by.get(student.key)
            if runs is None:
                continue
            alone = study.alone(one, student)
            found = runs.beyond(alone) if alone is not None else None
            told = "" if found is None else f", {gap(found)} from the same student alone"
            told += "" if found is None or found.decided else " (not decided)"
            ends.append(f"{student.name} by {one.label} ends at {_percent(runs.accuracy, runs)}{told}")
            if runs.collapsed:
                collapses.append(f"{student.name} answers {collapse_share(runs)}")
    text = f"distills at the defense's own temperature: {'; '.join(ends)}."
    return f"{text} But {join(collapses)}. {COLLAPSE_WARNING}" if collapses else text


def _price(study: RunGroup, teacher: Teacher) -> str:
    if teacher.replicates is None:
        return "The teacher is not among these runs."
    twin = study.teacher(teacher.twin)
    if twin is None or twin.replicates is None:
        return f"The teacher {_accuracy(teacher)}; its normal twin is not among these runs."
    found = teacher.replicates.beyond(twin.replicates)
    if found is None:
        return f"The teacher {_accuracy(teacher)}; its normal twin has no seed in common with it."
    sure = "" if found.decided else ", which is not decided"
    text = f"The teacher {_accuracy(teacher)}, {gap(found)} from its normal twin {_sure(found)}{sure}"
    told = [
        f"{name} {ours.mean:{form}} instead of {theirs.mean:{form}}"
        for name, key, scale, form in (
            ("calibration error (ECE, %)", "selected.ece", 100, ".1f"),
            ("negative log-likelihood", "selected.nll", 1, ".3f"),
            ("AURC (%)", "selected.aurc", 100, ".2f"),
        )
        if (ours := teacher.replicates.measure(key, scale)) is not None
        and (theirs := twin.replicates.measure(key, scale)) is not None
    ]
    return f"{text}; {join(told)}." if told else f"{text}."


def _accuracy(teacher: Teacher) -> str:
    if teacher.replicates is None:
        return ""
    images = teacher.replicates.runs[0].result["test_images"]
    return f"is right for {_percent(teacher.replicates.accuracy, teacher.replicates)} of the {images:,} test images"


def _percent(interval: Interval, of: Replicates) -> str:
    """Write a rate in percent with its interval."""
    low, high = _ends(interval, of)
    return f"{interval.mean:.1f} % [{low:.1f}, {high:.1f}]"


def _ends(interval: Interval, of: Replicates) -> tuple[float, float]:
    """Return the ends of a rate's interval within 0..100: over seeds; of one seed Wilson's, over the test images."""
    ends, images = clip(interval), int(of.runs[0].result["test_images"])
    if ends is not None:
        return ends
    low, high = wilson_interval(round(interval.mean / 100 * images), images)
    return 100 * low, 100 * high
