"""Several output defenses, one after the other."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from pydantic import field_validator
from torch import Tensor

from undistill.defenses import Field, OutputDefense, build_output_defense, register_output_defense

__all__ = ["Chain"]


@register_output_defense("chain")
class Chain(OutputDefense):
    """Give the answer of one output defense to the next: ``chain(defenses=('top_k(k=3)', 'rounding(digits=2)'))``.

    The order matters: what comes last is what goes out.
    """

    smoke: ClassVar[dict[str, Any]] = {}

    defenses: tuple[str, ...] = Field(
        ("top_k(k=3)", "rounding(digits=2)"), min_length=1, description="specs of output defenses, the first one first"
    )

    @field_validator("defenses")
    @classmethod
    def _known(cls, defenses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(build_output_defense(spec).spec for spec in defenses)

    @cached_property
    def _links(self) -> tuple[OutputDefense, ...]:
        return tuple(build_output_defense(spec) for spec in self.defenses)

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the answers of the last one, (B, K)."""
        for link in self._links:
            probs = link(probs, x)
        return probs
