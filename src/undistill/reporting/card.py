"""What a model card says of extraction, from an audit: for the page on which a model is handed on."""

from __future__ import annotations

from collections.abc import Iterator

from undistill._version import __version__
from undistill.reporting.formats import markdown_text
from undistill.reporting.parts.audit import Audit

__all__ = ["model_card"]


def model_card(audit: Audit) -> str:
    """Return a section for a model card, GitHub Markdown: what the model's answers give away, to whom, and the price.

    It holds of the model as it is, without defenses on its answers, and repeats the sentences of the audit.
    """
    return "\n\n".join(_blocks(audit)) + "\n"


def _blocks(audit: Audit) -> Iterator[str]:
    found = audit.findings[0]
    yield "## Extraction: what this model's answers give away"
    yield f"**{markdown_text(found.headline)}** ({markdown_text(found.subject)}. {markdown_text(audit.about)})"
    yield "\n".join(f"- **{lead}** {markdown_text(text)}" for lead, text in found.items)
    thieves = sorted({rival.name for front in audit.fronts for rival in front.rivals if rival.role == "thief"})
    yield f"Tried: {', '.join(thieves) or 'no thief'}; {audit.seeds} seeds; undistill {__version__}."
    yield "\n".join(f"- {markdown_text(note)}" for note in audit.notes)
