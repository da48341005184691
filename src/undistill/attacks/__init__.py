"""Attacks: how a student learns from a victim."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from undistill.engine.objective import Nets, Objective, register_in
from undistill.errors import RecipeError
from undistill.registry import Registry
from undistill.victim import Access, Victim

__all__ = ["ATTACKS", "Attack", "DataFreeAttack", "list_attacks", "register_attack"]


class Attack(Objective):
    """An objective that trains a student on a victim's answers.

    Attributes:
        access: The least that the attack needs of its victim.
        uses_labels: It also needs the true labels of its images.
    """

    access: ClassVar[Access]
    uses_labels: ClassVar[bool]

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
