"""Reference objectives: training without any other net. The yardstick of every defense and attack."""

from __future__ import annotations

from undistill.engine.objective import Objective, register_in
from undistill.registry import Registry

__all__ = ["REFERENCES", "Reference", "list_references", "register_reference"]


class Reference(Objective):
    """An objective that needs nothing but labeled images."""


REFERENCES: Registry[type[Reference]] = Registry("reference", "undistill.references")
register_reference = register_in(REFERENCES)


def list_references() -> tuple[str, ...]:
    """Return the names of all references, sorted."""
    return REFERENCES.names()
