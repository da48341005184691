"""What soft answers gave whom: each thief against the best reference, with the choice among thieves paid for."""

from __future__ import annotations

from collections.abc import Mapping

from undistill.functional import Best, best_of

__all__ = ["ERROR", "gains"]

ERROR = 0.05
"""The chance, over all thieves and persons of an audit, of saying that there is a leak where there is none."""


def gains(
    thieves: Mapping[str, Mapping[int, float]],
    references: Mapping[str, Mapping[int, float]],
    favourite: str | None,
    *,
    error: float = ERROR,
    resolution: float = 0.0,
) -> dict[str, Best]:
    """Return what each thief has beyond every reference, in points, with intervals that hold all at once.

    Half of the error belongs to one thief, chosen without a test image, and the other half to all others alike
    (Bonferroni with weights): a suite may grow without the strongest thief being told apart any later.

    Args:
        thieves: Test accuracy in percent by name and seed.
        references: The same, of those who had as much and no soft answers.
        favourite: The thief that was best on held-out images; None where nobody was, and then all are alike.
        error: Between 0 and 1, both excluded.
        resolution: The step in which accuracies are counted, in points.

    Returns:
        By thief; those without two seeds in common with every reference are left out.
    """
    found = {}
    for name, values in thieves.items():
        share = 1 / len(thieves) if favourite is None or len(thieves) == 1 else 1 / 2
        if favourite is not None and name != favourite:
            share = 1 / 2 / (len(thieves) - 1)
        best = best_of({name: values}, references, confidence=1 - share * error, resolution=resolution)
        if best is not None and best.difference.ends is not None:
            found[name] = best
    return found
