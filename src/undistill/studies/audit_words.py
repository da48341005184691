"""What an audit says of one victim: whether its answers leak, to whom, how far it can be copied, and at what price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from undistill.functional import Best, clip
from undistill.functional.statistics import Interval
from undistill.reporting.cell import Cell
from undistill.reporting.parts.audit import Front, judge
from undistill.reporting.parts.findings import Finding
from undistill.reporting.wording import gap, join, points, seeds, signed
from undistill.studies.leak import ERROR
from undistill.studies.suite import ALONE, NAMED
from undistill.studies.worth import MEASURES, Worth, price

__all__ = ["OUTSIDE", "PLANE_NOTE", "THREATS", "Contest", "Offer", "finding", "suite_note"]

OUTSIDE = "A suite proves nothing about attacks outside it: who knows of this defense may find a better one."
PLANE_NOTE = (
    "A defense that names the class alone (label_only) leaks nothing beyond it and costs the honest user all else. "
    "A defense is worth something only where it beats the dotted line between that and the victim as it is: less leak "
    "for less price. Each defense's intervals hold together for all thieves and persons; they are not corrected for "
    "the number of defenses."
)
THREATS = (
    "Where this is listed: MITRE ATLAS 5.6 AML.T0024.002 (Extract AI Model) and AML.T0005.001 (Train Proxy via "
    "Replication), against which AML.M0002 (Passive AI Output Obfuscation) and AML.M0004 (Restrict Number of AI Model "
    "Queries); OWASP ML05:2023 (Model Theft) and AITG-APP-09; NIST AI 100-2 E2025, NISTAML.031 (Model Extraction)."
)


@dataclass(frozen=True)
class Contest:
    """What one person's thieves came to.

    Attributes:
        front: The numbers.
        gains: By thief.
    """

    front: Front
    gains: Mapping[str, Best]


@dataclass(frozen=True)
class Offer:
    """A victim as it answers, and what that is compared with.

    Attributes:
        subject: The victim and the defense on its answers, in words.
        now: What its answers are worth.
        before: What they would be worth without the defense; None where there is none, or no twin.
        without: What that is, in words.
        behind: Whether there is a defense on its answers.
    """

    subject: str
    now: Worth
    before: Worth | None
    without: str
    behind: bool = False


def finding(offer: Offer, contests: Sequence[Contest], margin: float) -> Finding:
    """Return what is known of a victim, in words.

    Args:
        offer: The victim.
        contests: One a person.
        margin: Points that a thief may gain without it being called a leak.
    """
    items = [(contest.front.person.capitalize(), _leak(contest)) for contest in contests]
    items += [("Clone", told)] if not offer.behind and (told := _clone(contests)) else []
    items.append(("Price", _price(offer)))
    return Finding(subject=offer.subject, headline=_headline(contests, margin), items=tuple(items))


def _headline(contests: Sequence[Contest], margin: float) -> str:
    gains = [gain for contest in contests for gain in contest.front.gains]
    if not gains:
        return "It gives no soft answers that could leak."
    if not any(gains):
        return "What soft answers leak was not measured."
    verdict = judge(gains, margin)
    if verdict == "leaks":
        found = [(best, c) for c in contests for best in c.gains.values() if best.verdict == "leak"]
        best, contest = max(found, key=lambda one: one[0].difference.mean)
        who = contest.front.person
        beyond = "labels alone" if best.reference in ALONE else "the named class"
        return f"Soft answers leak: they give the {who} {gap(best.difference)} beyond {beyond}."
    most = max(gain.high for gain in gains if gain is not None)
    if verdict == "undistillable":
        return (
            f"Undistillable under this suite: no thief gains {f'more than {points(most)}' if most > 0 else 'a thing'}."
        )
    return f"Not decided: a thief may gain up to {points(max(most, 0.0))}. More seeds tell more."


def _leak(contest: Contest) -> str:
    front = contest.front
    if not contest.gains:
        return f"has {front.about}. Of nobody who learns from soft answers there are two seeds to compare."
    best = max(contest.gains.values(), key=lambda one: (one.verdict == "leak", one.difference.mean))
    text = f"has {front.about}. Of {_count(len(contest.gains), 'tuned thief', 'tuned thieves')} "
    text += f"{best.candidate} ends furthest, {gap(best.difference)} from {best.reference}"
    text += " alone" if best.reference in ALONE else ""
    text += f" ({seeds(best.difference.n)})"
    text += "." if best.difference.decided else ", which decides nothing."
    if front.favourite is not None and front.favourite != best.candidate and front.favourite in contest.gains:
        chosen = contest.gains[front.favourite]
        text += f" Held-out images favour {front.favourite}: {gap(chosen.difference)}."
    if best.verdict != "leak":
        text += f" No interval lies above 0; the highest ends at {signed(_highest(contest), 1)}."
    return text


def _highest(contest: Contest) -> float:
    return max(best.difference.high or 0.0 for best in contest.gains.values())


def _clone(contests: Sequence[Contest]) -> str:
    """Say how far the named class alone goes, for those who have no labels."""
    told = [
        f"{_percent(rival.fidelity)} ({contest.front.person})"
        for contest in contests
        for rival in contest.front.rivals
        if rival.name == NAMED and rival.fidelity is not None and rival.fidelity.mean is not None
    ]
    if not told:
        return ""
    return (
        f"from the named class alone a student learns to name the victim's for {join(told)} of the test images. Above "
        "90 % OWASP's AITG-APP-09 calls a model vulnerable, above 75 % it warns; about easy data any two good models "
        "agree that often."
    )


def _percent(cell: Cell) -> str:
    interval = Interval(cell.mean or 0.0, cell.half_width, cell.n)
    ends = clip(interval)
    return f"{interval.mean:.1f} %" + ("" if ends is None else f" [{ends[0]:.1f}, {ends[1]:.1f}]")


def _price(offer: Offer) -> str:
    now = offer.now
    text = f"The victim names {now.accuracy:.1f} % of the {now.images:,} test images rightly"
    if offer.before is None:
        return f"{text}: {join([*_worth(now)])}. No defense of its own is known."
    found = price(now, offer.before)
    undecided = "" if found.decided else ", which is not decided"
    return f"{text}, {gap(found)} from {offer.without}{undecided}; {join([*_changes(now, offer.before)])}."


def _worth(now: Worth) -> Iterator[str]:
    for name, (label, unit) in MEASURES.items():
        yield f"{label} {now.measures[name]:.2f}{'' if unit == 'nats' else ' %'}"


def _changes(now: Worth, before: Worth) -> Iterator[str]:
    for name, (label, unit) in MEASURES.items():
        yield f"{label} {signed(now.measures[name] - before.measures[name])} {unit}"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def suite_note(suite: str, trials: int, count: int, margin: float, untried: Sequence[str]) -> Iterator[str]:
    """Yield what a reader must know of how the numbers came about.

    Args:
        suite: Its name.
        trials: Settings of each way to learn.
        count: Number of seeds.
        margin: As of ``finding``.
        untried: Attacks that were left out.
    """
    if untried:
        yield f"Not tried, though they would have what they need: {join(untried)}."
    yield (
        f"Suite {suite}: every way to learn, references too, tries {_count(trials, 'setting', 'settings')}: the "
        "published one, and Sobol points over what it declares and over learning rates from a quarter to four times "
        "the recipe's. The best of short trials go on to all epochs; of these the best on held-out images is run anew "
        f"with {seeds(count)} that the search has not seen. Nothing is chosen on test images."
    )
    yield (
        "References are the student alone with its labels or, where there are none, on the class that the victim "
        "names; and every thief's own way to learn, from the named class alone: what a loss does for whoever trains "
        "with it is no leak."
    )
    yield (
        f"Intervals beyond the best reference hold together, for all thieves and persons, at {100 * (1 - ERROR):g} %: "
        "half of the error is the thief's that is best on held-out images (*), half is shared by the others. All are "
        "over seeds of students of this one victim."
    )
    yield (
        f"Undistillable under this suite: no interval lies above 0, and none reaches above {points(margin)}. {OUTSIDE}"
    )
    yield THREATS
