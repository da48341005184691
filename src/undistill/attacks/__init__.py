"""Attacks: how a student learns from a victim."""

from __future__ import annotations

from pydantic import Field

from undistill.data.dataset import Frame, Images
from undistill.data.loader import Batch
from undistill.errors import RecipeError
from undistill.objective import Companion, Nets, Objective, Paper, Range, Search, StepOutput, register_in
from undistill.registry import Registry
from undistill.victim import Access, Victim

__all__ = [
    "ATTACKS",
    "Access",
    "Attack",
    "Batch",
    "Companion",
    "DataFreeAttack",
    "Field",
    "Frame",
    "Images",
    "Nets",
    "Paper",
    "Range",
    "Search",
    "StepOutput",
    "list_attacks",
    "register_attack",
]


class Attack(Objective):
    """An objective that trains a student on a victim's answers; it says which, and whether it uses true labels."""

    kind = "attack"

    def victim(self, nets: Nets) -> Victim:
        """Return the victim, which the engine has checked to give enough."""
        if nets.victim is None:
            raise RecipeError(f"attack {self.name!r} needs a victim; got none")
        return nets.victim


class DataFreeAttack(Attack):
    """An attack that sees no image: of the data set it knows the shape, the classes and the normalization."""

    images = "none"
    uses_labels = False

    steps: int = Field(120, ge=1, strict=True, description="batches that make an epoch")

    def steps_per_epoch(self) -> int:
        """Return ``steps``."""
        return self.steps


ATTACKS: Registry[type[Attack]] = Registry("attack", "undistill.attacks")
register_attack = register_in(ATTACKS)


def list_attacks() -> tuple[str, ...]:
    """Return the names of all attacks, sorted."""
    return ATTACKS.names()
