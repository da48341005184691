"""A table of numbers and texts that are in words already."""

from __future__ import annotations

from collections.abc import Iterator

from undistill.reporting.parts import Grid, Part, register_part

__all__ = ["Values"]


@register_part("values")
class Values(Part):
    """One table."""

    kind: str = "values"
    grid: Grid

    def grids(self) -> Iterator[Grid]:
        """Yield the table."""
        yield self.grid
