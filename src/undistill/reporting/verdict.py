"""What the numbers say, in plain words: three questions, an answer each, and nothing that the intervals do not say.

*Leak*: what soft answers gave the best thief beyond the best reference with the same means. *Clone*: how far top-1
answers alone go, and for how many queries. *Price*: what a defense costs those who ask honestly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from undistill.functional import (
    Best,
    Difference,
    Interval,
    best_of,
    best_proportion_of,
    clip,
    holm,
    paired_difference,
    wilson_interval,
)
from undistill.reporting.measures import is_tautology
from undistill.reporting.parts.findings import Dot, Finding, Ladder
from undistill.reporting.runs import ALONE, Extraction, Replicates, RunGroup, Student, Teacher
from undistill.reporting.wording import change, gap, join, method_label, ordinary, points, seeds

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
        gained: Runs of the best thief.
        thieves: How many were compared.
        left_out: How many have no reference with the same student, protocol and means, or no seed in common with one.
        untried: References that it would have to be compared with, and was not.
        references: How many it was compared with.
        lost: Whether every thief is decidedly below a reference, and the best of no student and means has collapsed.
    """

    best: Best
    student: Student
    gained: Replicates
    thieves: int
    left_out: int
    untried: tuple[str, ...]
    references: int
    lost: bool

    @property
    def verdict(self) -> str:
        """``leak``, ``loss`` or ``not decided``: collapsed thieves decide nothing, nor do references nobody tried."""
        if self.best.verdict == "leak" and not self.untried:
            return "leak"
        return "loss" if self.lost else "not decided"


@dataclass(frozen=True)
class _Contest:
    """Thieves of one student with the same means, and the references that these have to beat."""

    student: Student
    thieves: Mapping[str, Replicates]
    references: Mapping[str, Replicates]
    untried: tuple[str, ...]


def leak_of(study: RunGroup, teacher: Teacher) -> Leak | None:
    """Return what soft answers of a teacher gave the best thief; None if no thief had something to be compared with.

    Thieves are compared with references of the same student, images and labels, over the seeds that all have. The
    choice among students and means is corrected for like that among thieves: each of C comparisons is made at the
    confidence 1 - 0.05/C.
    """
    contests, everybody = list(_contests(study, teacher)), 0
    for one in study.extractions_from(teacher.key):
        everybody += len(one.by) if one.soft else 0
    found = []
    for contest in contests:
        best = _compare(contest, 1 - (1 - _CONFIDENCE) / len(contests))
        if best is not None:
            found.append((best, contest))
    if not found:
        return None
    best, contest = max(
        found, key=lambda one: (one[0].verdict == "leak" and not one[1].untried, one[0].difference.mean)
    )
    compared = sum(len(other.thieves) for _, other in found)
    return Leak(
        best,
        contest.student,
        contest.thieves[best.candidate],
        compared,
        everybody - compared,
        contest.untried,
        len(contest.references),
        compared == everybody
        and all(of.verdict == "loss" and not among.thieves[of.candidate].collapsed for of, among in found),
    )


def _contests(study: RunGroup, teacher: Teacher) -> Iterator[_Contest]:
    soft = [one for one in study.extractions_from(teacher.key) if one.soft]
    for student in study.students:
        tried = [one for one in soft if student.key in one.by]
        for means, policy in dict.fromkeys((one.means, one.policy) for one in tried):
            thieves = [one for one in tried if (one.means, one.policy) == (means, policy)]
            references = study.yardsticks(thieves[0], student)
            if references:
                by = {one.label: one.by[student.key] for one in thieves}
                yield _Contest(student, by, references, tuple(study.untried(thieves[0], student)))


def _compare(contest: _Contest, confidence: float) -> Best | None:
    """Return the best thief over the seeds that all have; of one seed, over the test images."""
    everybody = [*contest.thieves.values(), *contest.references.values()]
    seeds = set.intersection(*(set(one.accuracies) for one in everybody))
    if not seeds:
        return None
    thieves, references = (
        {name: one.at(seeds) for name, one in group.items()} for group in (contest.thieves, contest.references)
    )
    if len(seeds) == 1:
        right = [{name: one.right for name, one in group.items()} for group in (thieves, references)]
        if all(each is not None for group in right for each in group.values()):
            named = ({name: each.tolist() for name, each in group.items() if each is not None} for group in right)
            return best_proportion_of(*named, confidence=confidence)
    by_seed = ({name: one.accuracies for name, one in group.items()} for group in (thieves, references))
    return best_of(*by_seed, confidence=confidence, resolution=everybody[0].resolution)


def _judge(study: RunGroup, teacher: Teacher) -> Finding:
    extractions = study.extractions_from(teacher.key)
    leak = leak_of(study, teacher)
    items = [("Leak", _leak(extractions, leak)), ("Clone", _clone(study, extractions))] if extractions else []
    blind = [one for one in extractions if one.means.transfer == ""]
    items += [("Without an image", _blind(study, blind))] if blind else []
    if teacher.defended:
        textbook = [one for one in extractions if one.textbook]
        textbook = [one for one in textbook if one.means == textbook[-1].means]  # those who have most
        items += [("The textbook thief", _textbook(study, textbook))] if textbook else []
        items.append(("Price", _price(study, teacher)))
    elif teacher.replicates is not None:
        items.append(("The teacher", f"{_accuracy(teacher)}."))
    return Finding(subject=teacher.label, headline=_headline(study, extractions, leak), items=tuple(items))


def _headline(study: RunGroup, extractions: Sequence[Extraction], leak: Leak | None) -> str:
    if not extractions:
        return "No thief was tried."
    if leak is None:
        return "What soft answers leak was not measured."
    if leak.verdict == "leak":
        thief = next(one for one in extractions if one.label == leak.best.candidate)
        told = thief.means.among({one.means for one in study.extractions})
        return f"Soft answers leak {points(leak.best.difference.mean)}{f' ({told})' if told else ''}."
    if leak.verdict == "loss":
        return "No thief tried here gains from soft answers."
    return "Whether soft answers leak is not decided."


def _leak(extractions: Sequence[Extraction], leak: Leak | None) -> str:
    if not any(one.soft for one in extractions):
        return "Nobody tried who learns from probabilities; try kd, and look again."
    if leak is None and all(one.means.transfer == "" for one in extractions if one.soft):
        return "Not measured: a thief without an image has no reference with the same means."
    if leak is None:
        return (
            "Not measured: no reference has the thief's images, labels, protocol and seeds. Train the same student "
            "with ce and label_smoothing (for images without labels: attack with hard_label) on the same transfer, "
            "labels and queries."
        )
    best, gained = leak.best, gap(leak.best.difference)
    chosen = f"the best of {leak.thieves} thieves" if leak.thieves > 1 else "the only thief compared"
    who, sure = f"{chosen}, {leak.student.name} by {best.candidate},", _sure(best.difference)
    same = "with the same images and labels" if leak.gained.labelled else "with the same labels"
    if not best.reference.startswith(ALONE):
        same = "on the same images"
    beyond = f"the best of {leak.references} references, {best.reference}" if leak.references > 1 else best.reference
    if leak.verdict == "leak":
        text = f"Soft answers gave {who} {gained} beyond {beyond}, {same} {sure}."
    elif leak.verdict == "loss":
        text = f"Soft answers gave nothing: {who} ends {gained} from {beyond}, {same} {sure}."
    else:
        text = f"Not decided {sure}: {who} ends {gained} from {beyond}, {same}."
    if leak.untried:
        text += f" Not tried with the same means, and so not beaten: {join(leak.untried)}."
    if leak.left_out:
        text += f" Left out, for want of a reference with the same protocol, means and seeds: {leak.left_out}."
    if leak.gained.collapsed:
        text += f" It answers {collapse_share(leak.gained)}. {COLLAPSE_WARNING}"
    return text


def _sure(found: Difference) -> str:
    if found.over == "images":
        return f"(one seed, {found.n:,} test images; other seeds may say otherwise)"
    return f"({seeds(found.n)})"


def _clone(study: RunGroup, extractions: Sequence[Extraction]) -> str:
    """Say how far top-1 answers go."""
    named = [one for one in extractions if one.named]
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
    best = f"the best of {len(tried)}, " if len(tried) > 1 else ""
    text = (
        f"From top-1 answers alone, {best}{student.name} by {one.label}, names the victim's class for "
        f"{_percent(fidelity, runs)} of the test images, after {ordinary(runs.measure('queries'))} queries "
        f"({seeds(fidelity.n)})."
    )
    return f"{text} {_first_above(tried)}" if len(tried) > 1 else text


def _first_above(tried: Sequence[tuple[Extraction, Student, Replicates, Interval]]) -> str:
    """Say from how many queries on one way of stealing surely agrees with the victim about nearly everything.

    Over seeds, corrected for everything that was tried (Holm); of a way where larger numbers of queries are so too.
    """
    tests = []
    for one, student, runs, _ in tried:
        found, asked = runs.by_seed("fidelity", 100), runs.measure("queries")
        above = paired_difference(found, dict.fromkeys(found, _CLONED), resolution=runs.resolution)
        if asked is not None and above is not None and above.p is not None:
            tests.append(((student.name, one.method), asked.mean, above))
    ways: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for (way, queries, above), p in zip(tests, holm([above.p or 0.0 for *_, above in tests]), strict=True):
        ways.setdefault(way, []).append((queries, above.mean > 0 and p <= 1 - _CONFIDENCE))
    starts = []
    for (student_name, method), line in ways.items():
        line.sort()
        sure = [queries for at, (queries, _) in enumerate(line) if all(ok for _, ok in line[at:])]
        starts += [(min(sure), student_name, method)] if sure else []
    if not starts:
        return f"With no number of queries tried that is surely above {_CLONED:g} %."
    queries, student_name, method = min(starts)
    return f"It is surely above {_CLONED:g} % from {queries:,.0f} queries on, {student_name} by {method_label(method)}."


def _blind(study: RunGroup, extractions: Sequence[Extraction]) -> str:
    """Say how far thieves come who see no image at all."""
    tried = [
        (one, student, one.by[student.key])
        for one in extractions
        for student in study.students
        if student.key in one.by
    ]
    one, student, runs = max(tried, key=lambda each: each[2].accuracy.mean)
    best = f"the best of {len(tried)}, " if len(tried) > 1 else ""
    fidelity = runs.measure("fidelity", 100)
    told = "" if fidelity is None else f", and names the victim's class for {_percent(fidelity, runs)}"
    return (
        f"{best}{student.name} by {one.label}, is right for {_percent(runs.accuracy, runs)} of the test images{told}, "
        f"after {ordinary(runs.measure('queries'))} queries ({seeds(len(runs.runs))})."
    )


def _textbook(study: RunGroup, extractions: list[Extraction]) -> str:
    ends, collapses = [], []
    for one in extractions:
        for student in study.students:
            runs = one.by.get(student.key)
            if runs is None:
                continue
            reference = study.alone(one, student)
            found = runs.beyond(reference[1]) if reference is not None else None
            told = f", {gap(found)} from {reference[0]} {_sure(found)}" if found is not None and reference else ""
            told += "" if found is None or found.decided else ", which is not decided"
            told += _than_from_the_twin(study, one, student)
            ends.append(f"{student.name} by {one.label} ends at {_percent(runs.accuracy, runs)}{told}")
            if runs.collapsed:
                collapses.append(f"{student.name} answers {collapse_share(runs)}")
    text = f"distills at the defense's own temperature: {'; '.join(ends)}."
    return f"{text} But {join(collapses)}. {COLLAPSE_WARNING}" if collapses else text


def _than_from_the_twin(study: RunGroup, one: Extraction, student: Student) -> str:
    """Say how the same thief does with the normal twin; nothing where nobody tried."""
    victim = study.teacher(one.teacher)
    for other in study.extractions_from(victim.twin) if victim is not None and victim.twin is not None else ():
        if (other.method, other.means, other.policy) == (one.method, one.means, one.policy) and student.key in other.by:
            found = one.by[student.key].beyond(other.by[student.key])
            if found is not None:
                undecided = "" if found.decided else ", which is not decided"
                return f", and {gap(found)} from the same thief of the normal twin{undecided}"
    return ""


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
    told = []
    for name, key, scale in (("ECE, points", "ece", 100), ("NLL, nats", "nll", 1), ("AURC, points", "aurc", 100)):
        ours, theirs = (one.by_seed(f"selected.{key}", scale) for one in (teacher.replicates, twin.replicates))
        measured = paired_difference(ours, theirs)
        if measured is not None:
            told.append(f"{name}: {change(measured.mean, measured.ends)}")
    return f"{text}. {'; '.join(told)}." if told else f"{text}."


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
