"""What an audit says of one victim: whether its answers leak, to whom, how far it can be copied, and at what price."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from undistill.functional import Interval, clip
from undistill.reporting.cell import Cell
from undistill.reporting.parts.audit import Front, judge
from undistill.reporting.parts.findings import Finding
from undistill.reporting.wording import change, gap, join, seeds, signed
from undistill.studies.leak import ERROR, Found
from undistill.studies.suite import ALONE, NAMED
from undistill.studies.worth import MEASURES, Worth, price

__all__ = ["PLANE_NOTE", "Contest", "Offer", "finding", "suite_note"]

PLANE_NOTE = (
    "A defense that names the class alone (label_only) leaks nothing beyond it and costs the honest user all else. "
    "A defense is worth something only where it beats the dotted line between that and the victim as it is: less leak "
    "for less price. Shown of each person is the thief with the highest gain, with the highest of all lower and of all "
    "upper ends; a large loss is drawn at the lower edge. Intervals are corrected for thieves and persons, not for the "
    "number of defenses."
)
_OUTSIDE = "A suite proves nothing about attacks outside it: who knows of this defense may find a better one."
_THREATS = (
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
    gains: Mapping[str, Found]

    @property
    def tried(self) -> list[str]:
        """Names of all thieves."""
        return [rival.name for rival in self.front.rivals if rival.role == "thief"]


@dataclass(frozen=True)
class Offer:
    """A victim as it answers, and what that is compared with.

    Attributes:
        subject: The victim and the defense on its answers, in words.
        now: What its answers are worth; None where it has no run.
        before: What they would be worth without the defense; None where there is nothing to compare with.
        without: What that is, in words.
        behind: Whether there is a defense on its answers.
    """

    subject: str
    now: Worth | None
    before: Worth | None
    without: str
    behind: bool = False


def finding(offer: Offer, contests: Sequence[Contest], margin: float) -> Finding:
    """Return what is known of a victim, in words.

    Args:
        offer: The victim.
        contests: One a person.
        margin: Points that gains must surely stay below for the victim to be called undistillable.
    """
    items = [(contest.front.person.capitalize(), _leak(contest)) for contest in contests]
    items += [("Clone", told)] if not offer.behind and (told := _clone(contests)) else []
    items.append(("Price", _price(offer)))
    return Finding(subject=offer.subject, headline=_headline(contests, margin), items=tuple(items))


def _headline(contests: Sequence[Contest], margin: float) -> str:
    gains = [gain for contest in contests for gain in contest.front.gains]
    if not gains:
        return "Nobody learned from soft answers."
    if not any(gains):
        return "What soft answers leak was not measured."
    verdict = judge(gains, margin)
    if verdict == "leaks":
        found = [(one, contest) for contest in contests for one in contest.gains.values() if one.leaks]
        best, contest = max(found, key=lambda one: one[0].mean)
        beyond = "labels alone" if best.beyond.partition(" ")[0] in ALONE else "the named class"
        return f"Soft answers leak: they give the {contest.front.person} {_gap(best)} beyond {beyond}."
    most = max(gain.high for gain in gains if gain is not None)
    if verdict == "undistillable":
        return f"Undistillable under this suite: no thief gains {_bound(most)}."
    if not all(gains):
        return "Not decided: of some thieves there is no number."
    return f"Not decided: a thief may gain {_up_to(most)}."


def _bound(most: float) -> str:
    return f"more than {_rounded_up(most)} points" if most > 0 else "anything"


def _up_to(most: float) -> str:
    return f"up to {_rounded_up(most)} points"


def _rounded_up(number: float) -> str:
    return f"{math.ceil(10 * number - 1e-9) / 10:.1f}"


def _gap(found: Found) -> str:
    """Write a gain in a sentence, with its ends."""
    return f"{signed(found.mean, 1)} points{change(0.0, (found.low, found.high)).removeprefix('0.00')}"


def _leak(contest: Contest) -> str:
    has = f"has {contest.front.about}."
    if not contest.tried:
        return f"{has} Nobody was tried who learns from soft answers."
    failed = [name for name in contest.tried if name not in contest.gains]
    left_out = f" Without a number, their own or a reference's: {join(failed)}." if failed else ""
    if not contest.gains:
        return f"{has}{left_out}"
    thief, best = max(contest.gains.items(), key=lambda one: (one[1].leaks, one[1].mean))
    count = len(contest.gains)
    text = f"{has} {f'Of {count} tuned thieves' if count > 1 else 'The only thief,'} {thief}"
    text += f"{' ends furthest,' if count > 1 else ' ends'} {_gap(best)} from {best.beyond}"
    text += f"{' alone' if best.beyond in ALONE else ''} ({seeds(best.seeds)})."
    chosen = contest.front.favourite
    if chosen is not None and chosen != thief and chosen in contest.gains:
        text += f" Held-out images favor {chosen}: {_gap(contest.gains[chosen])}."
    if not best.leaks:
        most = max(one.high for one in contest.gains.values())
        text += f" No interval lies above 0, and none reaches above {signed(most, 1)}."
    return text + left_out


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
    now, before = offer.now, offer.before
    if now is None:
        return "Not measured: the victim has no result."
    text = f"The victim names {now.accuracy:.1f} % of the {now.images:,} test images rightly"
    if before is None:
        return f"{text}: {join([*_worth(now)])}. There is nothing without a defense to compare that with."
    found = price(now, before)
    sure = "" if found.decided else " (not decided)"
    changes = join([*_changes(now, before)])
    return f"{text}, {gap(found)}{sure} beside {offer.without}; of its answers, {changes}."


def _worth(now: Worth) -> Iterator[str]:
    for name, (label, unit) in MEASURES.items():
        yield f"{label} {now.measures[name]:.2f}{'' if unit == 'nats' else ' %'}"


def _changes(now: Worth, before: Worth) -> Iterator[str]:
    for name, (label, unit) in MEASURES.items():
        yield f"{label} {signed(now.measures[name] - before.measures[name])} {unit}"


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
        f"Suite {suite}: every way to learn, references too, tries {trials} setting{'s' * (trials != 1)}: the "
        "published one, and Sobol points over what it declares and over learning rates from a quarter to four times "
        "the recipe's. The best of short trials go on to all epochs; of these the best on held-out images, a share of "
        f"the person's own, is run anew with {seeds(count)} that the search has not seen. Nothing is chosen on test "
        "images."
    )
    yield (
        "References are the student alone with its labels or, where there are none, on the class that the victim "
        "names; and the thief's own way to learn, from the named class alone: what a loss does for whoever trains with "
        "it is no leak. Each counts as tuned and as published, whichever is better."
    )
    yield (
        f"The lower ends of all gains hold together, for all thieves and persons, at {100 * (1 - ERROR):g} %: half of "
        "a person's share of the error is the thief's that the search found best on held-out images (*), half is "
        "shared by the others. Each upper end holds by itself: that no thief gains more is said only where none does."
    )
    yield (
        "All intervals are over seeds of students of this one victim, with the settings as chosen, one draw of the "
        "person's images and these test images. The number of seeds is to be set beforehand: who adds some until it is "
        "decided decides too often."
    )
    yield (
        "Undistillable under this suite: no lower end lies above 0, and no upper end above "
        f"{margin:g} point{'s' * (margin != 1)}. {_OUTSIDE}"
    )
    yield _THREATS
