"""What came out of studies, as one file of plain values that cannot be edited unnoticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from undistill._version import __version__
from undistill.errors import RunError, UndistillError
from undistill.orchestrate.request import Request
from undistill.recipe import Recipe
from undistill.reporting.card import model_card
from undistill.reporting.cell import DISAGREES
from undistill.reporting.document import Document
from undistill.reporting.parts import part_of
from undistill.reporting.parts.audit import Audit
from undistill.reporting.write import write
from undistill.run import Failure, Run
from undistill.storage import write_json, write_text
from undistill.studies.study import Study
from undistill.workspace import Workspace

__all__ = [
    "FinishedRuns",
    "collect",
    "document_of",
    "find_studies",
    "is_study",
    "read_study",
    "write_pages",
    "write_study",
]

_FILE, _FORMAT = "study.json", 2
_TOLD = 3  # differences that a message spells out


@dataclass(frozen=True)
class FinishedRuns(Workspace):
    """A workspace that looks for a run until it finds it, and then no more: many numbers share one."""

    known: dict[str, Run] = field(default_factory=dict, repr=False)

    def find(self, recipe: Recipe) -> Run | None:
        """Return the finished run of a recipe, or None."""
        if recipe.hash not in self.known:
            run = super().find(recipe)
            if run is None:
                return None
            self.known[recipe.hash] = run
        return self.known[recipe.hash]


def collect(
    request: Request,
    studies: Sequence[Study],
    workspace: Workspace,
    failures: Mapping[str, Failure],
    cache: Path,
) -> dict[str, Any]:
    """Return what came out of studies: accuracies in percent, differences in points.

    It holds nothing of when or how often the studies were interrupted: the same runs give the same values.

    Args:
        request: What was asked for.
        studies: What it stands for.
        workspace: Where the runs are.
        failures: Why runs have no result, by hash.
        cache: Folder for what takes long to compute.

    Raises:
        RunError: A result is damaged.
    """
    runs = (workspace.find(recipe) for study in studies for recipe in study.ask(workspace, failures))
    content = {
        "format": _FORMAT,
        "undistill": __version__,
        "study": request.study,
        "request": request.to_json(),
        "kind": request.label,
        "changes": request.changes.describe(),
        "seeds": request.seeds,
        "provenance": _provenance(run for run in runs if run is not None),
        "parts": [part.to_json() for study in studies for part in study.parts(workspace, failures, cache)],
    }
    return {**content, "sha256": _checksums(content)}


def document_of(content: Mapping[str, Any]) -> Document:
    """Return what came out of studies as a document for people.

    Args:
        content: What ``collect`` returned or ``read_study`` read.

    Raises:
        RunError: A part is damaged.
    """
    request = Request.from_json(content["request"])
    seeds = "1 seed" if request.seeds == 1 else f"{request.seeds} seeds"
    profiles = " and ".join(content["provenance"].get("profile", [])) or request.changes.profile
    return Document(
        title=_title(request, content["parts"]),
        parts=tuple(part_of(part if request.comparable else _apart_from_paper(part)) for part in content["parts"]),
        content=content,
        command=request.command,
        summary=f"{seeds}, profile {profiles}, undistill {content['undistill']}",
        banner=request.banner,
        provenance=tuple(
            (key.replace("_", " "), ", ".join(map(str, found))) for key, found in content["provenance"].items()
        ),
        source=" of the paper" if request.of_paper else "",
    )


def _title(request: Request, parts: Sequence[Mapping[str, Any]]) -> str:
    if request.study == "audit":  # it is about somebody's own model
        return str(parts[0]["title"])
    return "The paper, and ours beside it" if request.comparable else "What we measured"


def _apart_from_paper(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part without the paper's numbers, which are of other data or protocol; a note says so, or the part."""
    if part.get("printed"):
        return part

    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        printed = dict.fromkeys(("paper", "paper_difference", "disagrees")) if "paper_difference" in value else {}
        return {key: strip(inner) for key, inner in value.items()} | printed

    stripped: dict[str, Any] = strip(part)
    if stripped != part:
        notes = [note for note in part["notes"] if not note.startswith(DISAGREES)]
        stripped["notes"] = ["Not comparable with the paper's numbers, which are of other data or protocol.", *notes]
    return stripped


def write_pages(document: Document, folder: Path) -> Path:
    """Write what came out of a study for people into its folder, and return the page; of an audit a model card too."""
    for part in document.parts:
        if isinstance(part, Audit):
            write_text(folder / "model_card.md", model_card(part))
    return write(document, folder / "index.html", texts="tables", figures="figures")


def write_study(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``study.json``.

    Raises:
        RunError: The file cannot be written.
    """
    write_json(folder / _FILE, content)


def is_study(folder: Path) -> bool:
    """Return whether a folder holds what came out of a study."""
    return (folder / _FILE).is_file()


def find_studies(folder: Path) -> tuple[Path, ...]:
    """Return the folder, if it is one of a study, or those in it that are, sorted."""
    if is_study(folder):
        return (folder,)
    return tuple(sorted(path.parent for path in folder.glob(f"*/{_FILE}")))


def read_study(folder: Path) -> dict[str, Any]:
    """Return what ``write_study`` wrote.

    Raises:
        RunError: The folder holds no study, or one of another format, or one that was edited; says what differs.
    """
    path = folder / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RunError(f"{folder} holds no study: no {_FILE}; give a folder that `undistill reproduce` made") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run the command that made it again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content if isinstance(content, dict) else {}
        raise RunError(
            f"{path} has format {found.get('format')} of undistill {found.get('undistill', '?')}; expected format "
            f"{_FORMAT}, which this undistill {__version__} writes: run the command that made it again, which trains "
            "nothing where the runs are there"
        )
    edited = _edited(content)
    if edited:
        told = _differences(content, edited, folder) or [f"the checksum of {piece}" for piece in edited]
        more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        raise RunError(
            f"{path} was edited: {'; '.join([*told[:_TOLD], *more])}; restore it, or run the command that made it again"
        )
    return content


def _provenance(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Return every value that occurs among the runs."""
    found: dict[str, set[Any]] = {}
    for run in runs:
        own = {**run.result["provenance"], "selection": run.recipe.selection, "data": run.recipe.data}
        own |= {key: run.result[key] for key in ("data_note", "data_fingerprint")}
        for key, value in own.items():
            if key != "seed" and value:
                found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in found.items()}


def _pieces(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what has a checksum of its own: every part, which parts there are, and every other entry."""
    for key, value in content.items():
        if key == "parts" and isinstance(value, list):
            named = [(f"parts.{part.get('name')}", part) for part in value if isinstance(part, dict)]
            yield from named
            yield key, [name for name, _ in named]
        elif key != "sha256":
            yield key, value


def _checksums(content: Mapping[str, Any]) -> dict[str, str]:
    return {name: sha256(json.dumps(piece, sort_keys=True).encode()).hexdigest() for name, piece in _pieces(content)}


def _edited(content: Mapping[str, Any]) -> list[str]:
    """Return the pieces that are not as they were written."""
    written = content.get("sha256")
    written = written if isinstance(written, dict) else {}
    found = _checksums(content)
    return [name for name in {**written, **found} if written.get(name) != found.get(name)]


def _differences(content: Mapping[str, Any], edited: Sequence[str], folder: Path) -> list[str]:
    """Return where edited pieces differ from what the runs say; nothing where that cannot be told."""
    runs = folder.parent / "runs"
    if "request" in edited or not runs.is_dir():
        return []
    try:
        request = Request.from_json(content["request"])
        true = collect(request, request.load(), FinishedRuns(runs), {}, folder.parent / "cache")
    except (UndistillError, KeyError, TypeError, ValueError):
        return []
    given, said = dict(_pieces(content)), dict(_pieces(true))
    return [text for name in edited for text in _compare(name, given.get(name), said.get(name))]


def _compare(where: str, given: Any, said: Any) -> Iterator[str]:
    """Yield the places where two values differ; why runs failed, only the failed runs knew."""
    if isinstance(given, dict) and isinstance(said, dict):
        for key in {**said, **given}:
            if key not in ("failures", "failed", "notes"):
                yield from _compare(f"{where}.{key}", given.get(key), said.get(key))
    elif isinstance(given, list) and isinstance(said, list) and len(given) == len(said):
        for i, pair in enumerate(zip(given, said, strict=True)):
            named = pair[1].get("name", pair[1].get("x", i)) if isinstance(pair[1], dict) else i
            yield from _compare(f"{where}.{named}", *pair)
    elif given != said:
        yield f"{where} is {_short(given)}, the runs say {_short(said)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"
