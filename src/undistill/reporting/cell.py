"""One number of a table or figure: what our runs say over seeds, beside what a paper prints."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from undistill.functional import Interval
from undistill.reporting.wording import difference, signed, value

__all__ = ["CHANCE", "COLLAPSED", "DISAGREES", "Cell", "Plain", "Reason", "Shown", "show"]

DISAGREES, COLLAPSED, CHANCE = "≠", "†", "≈"


class Plain(BaseModel):
    """Plain values that are written to JSON and read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(Plain):
    """Why a seed has no number: in one line, and the name of the file with the whole story."""

    reason: str
    log: str | None = None


class Cell(Plain):
    """Accuracies in percent, differences in points, by seed where there are several; None where it is not known.

    Attributes:
        values: By seed.
        mean: Of the values.
        half_width: Of its 95 % interval (Student's t).
        n: Number of seeds.
        difference: To our own reference, over the seeds that both have.
        difference_interval: Ends of its 95 % interval, paired by seed; None for one seed.
        paper: As printed.
        paper_difference: As printed.
        disagrees: Whether the paper's number lies outside the 95 % interval in which one more run of ours is expected.
        collapsed_seeds: Seeds with over 90 % of the answers in one class.
        runs: Folders by seed.
        failures: Why a seed has no run.
        images: Number of test images.
        chance_seeds: Seeds whose accuracy is not decidedly above that of guessing.
    """

    values: dict[str, float]
    mean: float | None
    half_width: float | None
    n: int
    difference: float | None
    difference_interval: tuple[float, float] | None = None
    paper: float | None
    paper_difference: float | None
    disagrees: bool | None
    collapsed_seeds: tuple[int, ...]
    runs: dict[str, str]
    failures: dict[str, Reason]
    images: int | None = None
    chance_seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One cell in words.

    Attributes:
        ours: Mean with its interval.
        difference: To our own reference, in brackets, with its interval, or empty.
        marks: ``≠`` where the paper's number is not what a run of ours would be, ``†`` for a collapsed net, ``≈`` for
            one that may be guessing, …
        paper: The paper's number with its difference, or empty.
        warning: Whether it is to stand out: a run failed or collapsed, or a difference is a loss.
        remark: A few words below the number.
    """

    ours: str
    difference: str = ""
    marks: str = ""
    paper: str = ""
    warning: bool = False
    remark: str = ""

    @property
    def line(self) -> str:
        """Ours in one line."""
        return " ".join(filter(None, [f"{self.ours}{self.marks}", self.difference]))


def show(cell: Cell | None, seeds: int) -> Shown | None:
    """Put a cell in words.

    Args:
        cell: The number; None where there is none.
        seeds: How many it should have: another number of them is named.
    """
    if cell is None:
        return None
    printed = "" if cell.paper is None else f"{cell.paper:.2f}"
    if cell.paper_difference is not None:
        printed += f" ({signed(cell.paper_difference)})"
    if cell.mean is None:
        return Shown("failed", paper=printed, warning=True)
    ours = value(Interval(cell.mean, cell.half_width, cell.n), with_n=cell.n != seeds)
    gap = "" if cell.difference is None else difference(cell.difference, cell.difference_interval)
    guessing = set(cell.chance_seeds) - set(cell.collapsed_seeds)
    marks = DISAGREES * bool(cell.disagrees) + COLLAPSED * bool(cell.collapsed_seeds) + CHANCE * bool(guessing)
    return Shown(ours, gap, marks, printed, warning=bool(cell.collapsed_seeds))
