"""What soft answers gave whom: each thief against the best reference, with the choice among thieves paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from undistill.functional import best_of

__all__ = ["ERROR", "Found", "gains"]

ERROR = 0.05
"""The chance, over all thieves and persons of an audit, of saying that there is a leak where there is none."""

Values = Mapping[int, float]


class Found(NamedTuple):
    """What a thief has beyond the best reference, in points.

    Attributes:
        mean: Over the seeds that it has in common with all references.
        low: What it has at least; holds for all thieves at once.
        high: What it has at most; holds for each thief by itself.
        beyond: Name of the reference.
        seeds: Number of them.
    """

    mean: float
    low: float
    high: float
    beyond: str
    seeds: int

    @property
    def leaks(self) -> bool:
        """Whether it is surely more than nothing."""
        return self.low > 0


def gains(
    thieves: Mapping[str, Values],
    references: Mapping[str, Sequence[tuple[str, Values]]],
    favourite: str | None,
    *,
    persons: int = 1,
    resolution: float = 0.0,
) -> dict[str, Found]:
    """Return what each thief has beyond every one of its references.

    That *a* thief leaks is said where a low end lies above 0, so the error is shared among all: half of what a person
    may spend belongs to one thief, chosen without a test image and by other nets, the rest to all others alike
    (Bonferroni with weights). That *no* thief leaks more than a margin takes no share: it is said only where every high
    end is below it, each at the whole error (an intersection-union test).

    Args:
        thieves: Test accuracy in percent by name and seed.
        references: Of each thief by name the same of those who had as much and no soft answers.
        favourite: The thief that the search found best on held-out images; None where it found none.
        persons: How many share the error.
        resolution: The step in which accuracies are counted, in points.

    Returns:
        By thief; those without two seeds in common with every reference are left out.
    """
    found = {}
    for name, values in thieves.items():
        alone = favourite is None or favourite not in thieves
        share = 1 / len(thieves) if alone or len(thieves) == 1 else 1 / 2
        if not alone and name != favourite:
            share = 1 / 2 / (len(thieves) - 1)
        beside = dict(references[name])
        shared, whole = (
            best_of({name: values}, beside, confidence=1 - error, resolution=resolution)
            for error in (ERROR * share / persons, ERROR)
        )
        if shared is None or whole is None or shared.difference.ends is None or whole.difference.ends is None:
            continue
        low, high = shared.difference.ends[0], whole.difference.ends[1]
        found[name] = Found(shared.difference.mean, low, high, shared.reference, shared.difference.n)
    return found
