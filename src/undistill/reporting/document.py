"""What is shown to people: a title, how it came to be, and parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undistill.reporting.parts import Part

__all__ = ["Document"]


@dataclass(frozen=True)
class Document:
    """Everything that a report, a study or an audit shows; the forms in ``formats`` are made from it alone.

    Attributes:
        title: Its heading.
        parts: In the order in which they are read.
        content: The same for programs, in plain values; written as JSON.
        command: The command line that makes it; empty where there is none.
        summary: How it was made, in one line.
        banner: What must stand above numbers that are not what they seem; empty if they are.
        provenance: What the runs behind it have in common and where they differ, as name and value.
        source: Said of the numbers in captions that go about alone: ``" of the paper"``, or empty.
    """

    title: str
    parts: tuple[Part, ...]
    content: Mapping[str, Any]
    command: str = ""
    summary: str = ""
    banner: str = ""
    provenance: tuple[tuple[str, str], ...] = ()
    source: str = ""
