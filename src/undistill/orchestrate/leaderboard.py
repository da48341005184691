"""Leaderboards: one JSON file an entry, taken from an audit; and the page that ranks those which can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from undistill._version import __version__
from undistill.errors import RecipeError, RunError
from undistill.orchestrate.request import Request
from undistill.orchestrate.results import read_study
from undistill.reporting.document import Document
from undistill.reporting.parts import Part
from undistill.reporting.parts.audit import Audit
from undistill.reporting.parts.board import Board, Entry
from undistill.reporting.parts.plane import Plane
from undistill.reporting.write import write
from undistill.storage import digest_of, write_json

__all__ = ["add_entries", "leaderboard", "read_entries", "write_leaderboard"]

_FORMAT = 1


def add_entries(
    study: Path, board: Path, *, who: str, paper: str = "", reported: str = "", flags: tuple[str, ...] = ()
) -> list[Path]:
    """Write what an audit found as entries of a leaderboard: one for the victim, one for each defense on its answers.

    Args:
        study: Folder of the audit.
        board: Folder of the entries, made where there is none.
        who: Who enters it.
        paper: Where the defense comes from.
        reported: What its authors report.
        flags: What a reader must know of it.

    Returns:
        The files; one that was there for the same victim, defense and board is replaced.

    Raises:
        RecipeError: ``who`` is empty.
        RunError: The folder holds no audit, or one that was edited, or that failed in part.
    """
    if not who.strip():
        raise RecipeError("who: say who enters it; an entry without a name is nobody's")
    content = read_study(study)
    parts = [part for part in content["parts"] if part.get("kind") == "audit"]
    if not parts:
        raise RunError(f"{study} holds no audit but a study of {content['study']}; give what `undistill audit` wrote")
    found = Audit(**parts[0])
    if found.failed:
        raise RunError(f"{study}: some of its runs failed; run the audit again, and enter it when all are there")
    about = {**found.board, "fingerprint": content["provenance"]["data_fingerprint"], "undistill": content["undistill"]}
    request = Request.from_json(content["request"])
    written = []
    for deal, finding in zip(found.deals, found.findings, strict=True):
        own = not deal.name  # the victim itself
        victim = digest_of({"victim": request.parameters["victim"], "defense": deal.name})
        entry = Entry(
            name=finding.subject,
            victim=victim,
            who=who,
            paper=paper if own else "",
            reported=reported if own else "",
            judgement=found.verdict_of(deal.name),
            worth=deal.worth,
            price=deal.price,
            leaks=deal.leaks,
            seeds=content["seeds"],
            flags=flags,
            sha256=digest_of(content["sha256"]),
        )
        slug = re.sub(r"[^a-z0-9]+", "-", entry.name.lower()).strip("-")[:60]
        path = board / f"{slug}-{digest_of([about, victim, who])[:8]}.json"
        provenance = {key: content["provenance"][key] for key in ("torch", "device_name", "profile")}
        write_json(path, {"format": _FORMAT, "board": about, "entry": entry.model_dump(), "provenance": provenance})
        written.append(path)
    return written


def read_entries(board: Path) -> dict[str, list[tuple[dict[str, Any], Entry]]]:
    """Return the entries of a folder, by the digest of their board; each with what the board is.

    Raises:
        RecipeError: There is no entry.
        RunError: A file is damaged or of another format.
    """
    found: dict[str, list[tuple[dict[str, Any], Entry]]] = {}
    for path in sorted(board.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            entry, about = Entry(**content["entry"]), content["board"]
            if not {"data", "persons", "seeds"} <= about.keys():
                raise ValueError("its board does not say what it is of")
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            told = str(error).splitlines()[0]
            raise RunError(f"{path} is no entry ({told}); write it with `undistill leaderboard add`") from error
        found.setdefault(digest_of(about), []).append((about, entry))
    if not found:
        raise RecipeError(f"{board} holds no entry; add one: undistill leaderboard add AUDIT --who NAME --to {board}")
    return found


def leaderboard(board: Path) -> Document:
    """Return the page about the entries of a folder: a board for those that can be compared.

    Raises:
        RecipeError: There is no entry.
        RunError: A file is damaged or of another format.
    """
    parts = tuple(part for at, found in enumerate(read_entries(board).values()) for part in _parts(at, found))
    content = {"undistill": __version__, "boards": [part.to_json() for part in parts]}
    return Document("What leaks, and at what price", parts, content)


def write_leaderboard(document: Document, board: Path) -> Path:
    """Write the page ``index.html`` of a leaderboard beside its entries, and the same in other forms; return it."""
    return write(document, board / "index.html", texts="tables", figures="figures")


def _parts(at: int, found: list[tuple[dict[str, Any], Entry]]) -> Iterator[Part]:
    about, entries = found[0][0], tuple(entry for _, entry in found)
    suffix = "" if at == 0 else f"-{at + 1}"
    board = Board.make(
        name=f"board{suffix}",
        header="Leaderboard",
        title=f"Data set {about['data']}; {'; '.join(f'{who}: {has}' for who, has in about['persons'].items())}",
        seeds=about["seeds"],
        notes=(
            "Leak: what the strongest thief, tuned, has beyond the best reference with the same means, with the "
            "interval of its audit, which is corrected for all thieves and persons there.",
            "Rank: 1, and one more for each entry whose interval lies wholly below; a loss counts as nothing, since a "
            "thief can look at the named class alone. Entries whose intervals overlap are not told apart.",
            f"All entries have the same {', '.join(key for key in about)}.",
        ),
        entries=entries,
    )
    yield board
    if len(board.deals) > 1:
        yield Plane.make(
            name=f"plane{suffix}",
            header="Leak against price",
            title="What leaks over what honest users lose by the defense; left out is what has no known price",
            seeds=about["seeds"],
            deals=board.deals,
        )
