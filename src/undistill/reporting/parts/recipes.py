"""Recipes, to be read and run again."""

from __future__ import annotations

from collections.abc import Iterator

from undistill.reporting.parts import Grid, Part, register_part

__all__ = ["Recipes"]


@register_part("recipes")
class Recipes(Part):
    """Texts with their titles: each, saved as a file, makes the same run again."""

    kind: str = "recipes"
    texts: tuple[tuple[str, str], ...]

    def grids(self) -> Iterator[Grid]:
        """Yield nothing: recipes are no numbers."""
        yield from ()
