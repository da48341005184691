"""One Markdown page about a folder of results: ``python tools/results_page.py results docs/results.md``.

Each folder in it holds what ``undistill reproduce`` wrote, or a ``report.md`` with a ``README.md`` that says where that
comes from, or ``entries`` of a leaderboard with such a ``README.md``. Whoever adds one writes the page anew.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from undistill.errors import RecipeError
from undistill.orchestrate.leaderboard import leaderboard
from undistill.orchestrate.results import document_of, is_study, read_study
from undistill.reporting.formats import markdown_text, part_markdown
from undistill.reporting.parts import part_of
from undistill.reporting.parts.effect import Effect, EffectRow
from undistill.reporting.wording import change, seeds, signed
from undistill.storage import write_text
from undistill.studies.training import compared

__all__ = ["results_page"]

_INTRODUCTION = """# Results

Every number here was measured and written by the program. This page is made from `results/` by
`python tools/results_page.py results docs/results.md`."""
_SHOWN = ("torch", "python", "device", "device_name", "threads", "profile", "selection", "data", "data_note")


def results_page(results: Path, page: Path) -> str:
    """Return the page about the folders in ``results``, with links that are right from where ``page`` is.

    Args:
        results: Folder of folders.
        page: Path that the page will have.

    Raises:
        RecipeError: No folder holds a study or a report.
        RunError: A ``study.json`` is of another format or was edited.
    """
    blocks: list[str] = []
    opening: list[str] = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        link = f"{Path(os.path.relpath(folder, page.parent)).as_posix()}/"
        if is_study(folder):
            content = read_study(folder)
            blocks += _study(folder.name, content, link)
            opening += _opening(content, folder.name, link)
        elif (folder / "report.md").is_file():
            blocks += _report(folder, link)
        elif (folder / "entries").is_dir():
            blocks += _board(folder, link)
    if not blocks:
        raise RecipeError(f"{results}: no folder in it holds a study.json or a report.md; give the folder of results")
    return "\n\n".join([_INTRODUCTION, *opening, *blocks]) + "\n"


def _study(name: str, content: Mapping[str, Any], link: str) -> Iterator[str]:
    document = document_of(content)
    yield f"## {name}"
    yield f"```\n{document.command}\n```"
    if document.banner:
        yield f"**{markdown_text(document.banner)}**"
    yield f"{document.summary}. {_links(link, 'index.html', 'study.json', 'tables.csv')}."
    for part in document.parts:
        yield part_markdown(part, level=3, figures=f"{link}figures")
    yield _provenance(content["provenance"])


def _opening(content: Mapping[str, Any], name: str, link: str) -> Iterator[str]:
    """Yield what the paper claims and what we found, and the picture, where a study asks for the whole of it."""
    for part in map(part_of, content["parts"]):
        if isinstance(part, Effect):
            found = _found(part)
            if found:
                yield f"{found} [All of it](#{name}):"
                yield f"![{part.title}]({link}figures/{part.name}.png)"


def _found(part: Effect) -> str:
    """Return what was found in sentences; empty where a number is missing."""
    rows = {row.name: row for row in part.rows}
    if {"baseline", "normal-textbook", "nasty-textbook"} <= rows.keys():
        return _by_training(part, rows)
    if {"speedrun-normal", "speedrun-nasty"} <= rows.keys():
        return _against_the_paper(part, rows)
    return ""


def _by_training(part: Effect, rows: Mapping[str, EffectRow]) -> str:
    """Return what a nasty teacher does to a student by how that one is trained."""
    ways = [column for column in part.columns if column.name != "teacher"]
    shown = [row for row in rows.values() if row.of == "nasty"]
    normal, nasty = (rows[f"{which}-textbook"].cells.get("teacher") for which in ("normal", "nasty"))
    if normal is None or nasty is None or normal.mean is None or nasty.mean is None:
        return ""
    known = [row.cells.get(column.name) for row in shown for column in ways]
    if any(cell is None or cell.difference is None for cell in known):
        return ""

    def ends(row: EffectRow) -> str:
        cells = [(column.label, row.cells[column.name]) for column in ways]
        return ", ".join(f"{change(cell.difference or 0.0, cell.difference_interval)} ({how})" for how, cell in cells)

    book, *others = sorted(shown, key=lambda row: row.name != "nasty-textbook")
    found = (
        f"To whom, on {part.columns[0].data} ({seeds(part.seeds)}): the nasty teacher has {nasty.mean:.2f} %, the "
        f"normal one {normal.mean:.2f} %. Points from the same student alone, by how it is trained: {ends(book)}."
    )
    if others:
        cells = [row.cells[column.name] for row in others for column in ways]
        worst = min(cells, key=lambda cell: cell.difference or 0.0)
        asked = ", ".join(row.how for row in others)
        found += (
            f" Of those that ask in another way ({asked}), the one that ends lowest is at "
            f"{change(worst.difference or 0.0, worst.difference_interval)}, not corrected for being chosen."
        )
    spared = next(compared(part), "")
    return f"{found} {spared or 'Of one seed nothing is decided.' * (part.seeds == 1)}".rstrip()


def _against_the_paper(part: Effect, rows: Mapping[str, EffectRow]) -> str:
    """Return the paper's claim and the finding beside it."""
    student = next(column for column in part.columns if column.name != "teacher")
    normal, nasty = (rows[f"speedrun-{which}"].cells for which in ("normal", "nasty"))
    known = [cells.get(column) for cells in (normal, nasty) for column in ("teacher", student.name)]
    if any(cell is None or cell.mean is None or cell.paper is None for cell in known):
        return ""
    if any(cells[student.name].difference is None for cells in (normal, nasty)):
        return ""
    differences = {
        row.name: difference
        for row in part.rows
        if student.name in row.cells and (difference := row.cells[student.name].difference) is not None
    }
    others = [
        row for row in part.rows if row.of == "nasty" and row.name != "speedrun-nasty" and row.name in differences
    ]

    def away(row: EffectRow) -> str:
        return change(differences[row.name], row.cells[student.name].difference_interval)

    printed = {
        which: signed(cells[student.name].paper_difference or 0.0)
        for which, cells in (("normal", normal), ("nasty", nasty))
    }
    claim = (
        f"The paper claims that a nasty teacher is about as accurate as a normal one ({nasty['teacher'].paper} against "
        f"{normal['teacher'].paper} % with ResNet-18 on CIFAR-10), and that who distills from it ends below what the "
        f"same student reaches alone (its {student.label}: {printed['nasty']} points, from a normal teacher "
        f"{printed['normal']})."
    )
    found = (
        f"We found, in a protocol and with a teacher that two cores can train ({seeds(part.seeds)}): nasty "
        f"{nasty['teacher'].mean:.2f} %, normal {normal['teacher'].mean:.2f} %; the {student.label} ends "
        f"{away(rows['speedrun-nasty'])} points from itself alone, from a normal teacher "
        f"{away(rows['speedrun-normal'])}."
    )
    if others:
        best = max(others, key=lambda row: differences[row.name])
        found += (
            f" With the best of {len(others)} other ways to ask the nasty teacher, {best.how}, it ends {away(best)}."
        )
    if part.seeds == 1:
        found += " Of one seed there is no interval: none of these differences is decided."
    return f"{claim} {found}"


def _report(folder: Path, link: str) -> Iterator[str]:
    yield f"## {folder.name}"
    readme = folder / "README.md"
    if readme.is_file():
        yield readme.read_text(encoding="utf-8").strip()
    text = (folder / "report.md").read_text(encoding="utf-8").strip()
    text = re.sub(r"^## ", "### ", text, flags=re.MULTILINE)
    yield text.replace("](report_figures/", f"]({link}report_figures/")
    found: dict[str, set[Any]] = {}
    for provenance in _find("provenance", json.loads((folder / "report.json").read_text(encoding="utf-8"))):
        for key, value in provenance.items():
            found.setdefault(key, set()).add(value)
    yield _provenance({key: sorted(values) for key, values in found.items()})
    yield f"{_links(link, 'report.html', 'report.json')}."


def _board(folder: Path, link: str) -> Iterator[str]:
    yield f"## {folder.name}"
    yield (folder / "README.md").read_text(encoding="utf-8").strip()
    for part in leaderboard(folder / "entries").parts:
        yield part_markdown(part, level=3, figures=f"{link}entries/figures")
    yield f"{_links(link, 'entries/index.html', 'run.sh')}."


def _links(link: str, *files: str) -> str:
    return ", ".join(f"[{file}]({link}{file})" for file in files)


def _provenance(found: Mapping[str, Sequence[Any]]) -> str:
    shown = [
        f"{key.replace('_', ' ')} {', '.join(f'`{value}`' for value in found[key])}" for key in _SHOWN if key in found
    ]
    return f"Provenance: {'; '.join(shown)}."


def _find(key: str, value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what stands under a key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from _find(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _find(key, inner)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/results_page.py RESULTS PAGE.md")
    write_text(Path(sys.argv[2]), results_page(Path(sys.argv[1]), Path(sys.argv[2])))
