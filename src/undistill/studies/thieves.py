"""How a thief may ask one victim: by the book, and in the ways that the paper leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TEXTBOOK", "THIEVES", "ways_to_ask"]

TEXTBOOK = "textbook"
"""The paper's thief."""


def ways_to_ask(temperature: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by name how each is shown, and what its recipe says.

    Args:
        temperature: τ_s of the textbook's thief; the others keep theirs.
    """
    return {
        # With the access of the recipe that it is put into: the same run as that recipe's.
        TEXTBOOK: (f"textbook, τ={temperature}", {"method": f"kd(temperature={temperature}, alpha=0.9)"}),
        "untempered": ("soft answers, τ=1", {"method": "kd(temperature=1, alpha=0.9)", "access": "probs"}),
        "htc": ("HTC", {"method": "htc(temperature=20, multiplier=3)", "access": "probs"}),
        "ttm": ("TTM", {"method": "ttm", "access": "probs"}),
        "named": ("named class", {"method": "hard_label", "access": "labels"}),
    }


THIEVES: Mapping[str, tuple[str, dict[str, Any]]] = ways_to_ask(4)
"""At the paper's temperature for CIFAR-10."""
