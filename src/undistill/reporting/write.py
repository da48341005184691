"""Write what came out of studies as files that people read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undistill.reporting.formats import to_csv, to_html, to_markdown, to_tex
from undistill.reporting.style import draw, drawable, save
from undistill.storage import write_text

__all__ = ["render"]

_SMALL = 400_000  # bytes of an SVG that goes into the page; beyond, of thousands of dots, the PNG does


def render(content: Mapping[str, Any], folder: Path) -> Path:
    """Write the figures, ``tables.md``, ``tables.tex``, ``tables.csv`` and one page, which needs none of the others.

    Args:
        content: What ``results.collect`` returned or ``results.read_study`` read: the same gives the same bytes.
        folder: Where to.

    Returns:
        The page.

    Raises:
        RunError: A file cannot be written.
    """
    pictures = {}
    for part in filter(drawable, content["parts"]):
        stem = folder / "figures" / part["name"]
        save(draw(part), stem)
        pictures[part["name"]] = _data_uri(stem)
    write_text(folder / "tables.md", to_markdown(content))
    write_text(folder / "tables.tex", to_tex(content))
    write_text(folder / "tables.csv", to_csv(content))
    page = folder / "index.html"
    write_text(page, to_html(content, pictures))
    return page


def _data_uri(stem: Path) -> str:
    vector, pixels = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    small = vector.stat().st_size <= _SMALL
    kind, path = ("svg+xml", vector) if small else ("png", pixels)
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
