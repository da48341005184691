"""Write a document as files that people read."""

from __future__ import annotations

from pathlib import Path

from undistill.reporting.document import Document
from undistill.reporting.formats import to_csv, to_html, to_markdown, to_tex
from undistill.reporting.style import draw, save
from undistill.storage import write_text

__all__ = ["write"]


def write(document: Document, page: Path, *, texts: str, figures: str) -> Path:
    """Write one page, which needs none of the others, and beside it pictures, Markdown, LaTeX and CSV.

    Args:
        document: What to write: the same gives the same bytes.
        page: Path of the page.
        texts: Name of the other files, without their endings.
        figures: Name of the folder of pictures.

    Returns:
        The page.

    Raises:
        RunError: A file cannot be written.
    """
    folder = page.parent
    drawn = {part.name: draw(part) for part in document.parts if part.drawn}
    for name, figure in drawn.items():
        save(figure, folder / figures / name)
    write_text(folder / f"{texts}.md", to_markdown(document, figures))
    write_text(folder / f"{texts}.tex", to_tex(document, figures))
    write_text(folder / f"{texts}.csv", to_csv(document))
    write_text(page, to_html(document, drawn))
    return page
