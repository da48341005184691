"""How a thief may ask one victim: by the book, and in the ways that the paper leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TEXTBOOK", "THIEVES"]

TEXTBOOK = "textbook"
"""The paper's thief."""

THIEVES: Mapping[str, tuple[str, dict[str, Any]]] = {
    # With the access of the recipe that it is put into: the same run as that recipe's.
    TEXTBOOK: ("textbook, τ=4", {"method": "kd(temperature=4, alpha=0.9)"}),
    "untempered": ("soft answers, τ=1", {"method": "kd(temperature=1, alpha=0.9)", "access": "probs"}),
    "htc": ("HTC", {"method": "htc(temperature=20, multiplier=3)", "access": "probs"}),
    "ttm": ("TTM", {"method": "ttm", "access": "probs"}),
    "named": ("named class", {"method": "hard_label", "access": "labels"}),
}
"""By name: how it is shown, and what its recipe says."""
