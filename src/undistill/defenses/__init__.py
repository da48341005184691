"""Defenses: objectives that train a teacher whose answers are of little use to a thief."""

from __future__ import annotations

from typing import ClassVar

from undistill.engine.objective import Objective, register_in
from undistill.registry import Registry

__all__ = ["DEFENSES", "Defense", "list_defenses", "register_defense"]


class Defense(Objective):
    """An objective that trains a defended teacher.

    Attributes:
        needs_adversary: The method moves away from a frozen, normally trained twin.
        uses_targets: The method can look at images of other domains, ``batch.targets``.
    """

    needs_adversary: ClassVar[bool] = False
    uses_targets: ClassVar[bool] = False


DEFENSES: Registry[type[Defense]] = Registry("defense", "undistill.defenses")
register_defense = register_in(DEFENSES)


def list_defenses() -> tuple[str, ...]:
    """Return the names of all defenses, sorted."""
    return DEFENSES.names()
