"""Defenses: objectives that train a teacher whose answers are of little use to a thief."""

from __future__ import annotations

from pydantic import Field

from undistill.data.dataset import Frame, Images
from undistill.data.loader import Batch
from undistill.objective import Companion, Nets, Objective, Paper, StepOutput, register_in
from undistill.registry import Registry

__all__ = [
    "DEFENSES",
    "Batch",
    "Companion",
    "Defense",
    "Field",
    "Frame",
    "Images",
    "Nets",
    "Paper",
    "StepOutput",
    "list_defenses",
    "register_defense",
]


class Defense(Objective):
    """An objective that trains a defended teacher."""

    kind = "defense"


DEFENSES: Registry[type[Defense]] = Registry("defense", "undistill.defenses")
register_defense = register_in(DEFENSES)


def list_defenses() -> tuple[str, ...]:
    """Return the names of all defenses, sorted."""
    return DEFENSES.names()
