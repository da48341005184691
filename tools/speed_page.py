"""One Markdown page about measurements: ``python tools/speed_page.py results/bench docs/measured-speed.md``.

The folder holds what ``undistill bench train --out`` and ``undistill bench scaling --out`` wrote. Whoever measures anew
writes the page anew.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from undistill.bench.train import MFU_LIMIT, PLAIN
from undistill.errors import RecipeError
from undistill.storage import write_text

__all__ = ["speed_page"]

_Row = dict[str, Any]

_INTRODUCTION = """# Measured speed

Every number here was measured and written by the program. This page is made from `results/bench/` by
`python tools/speed_page.py results/bench docs/measured-speed.md`; [Speed](speed.md) says what the profiles do and
how they are measured."""

_READING = """- **GFLOP/s**: what float32 matrix products reached around then. Other load at that moment moves it.
- **MFU**: operations of the steps against that. *not measured*: it came out above 130 %; the rate beside it was wrong,
  or cannot be told from a wrong one where operations are saved (Winograd, a shared victim). The ratios are paired and
  do not depend on it.
- **memory**: peak, in MB; on CPU of the whole process, torch itself included.
- **weights, KL**: relative difference to `exact` of the weights and of the nasty KL after equal steps.
- **how**: what the last side computed with."""


def speed_page(folder: Path, page: Path) -> str:
    """Return the page about the measurements in a folder, with links that are right from where ``page`` is.

    Args:
        folder: Where the ``.json`` files are.
        page: Path that the page will have.

    Raises:
        RecipeError: There is none, or one is of neither benchmark.
    """
    link = Path(os.path.relpath(folder, page.parent)).as_posix()
    training: list[_Row] = []
    scaling: list[str] = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "imagenet" in found:
            scaling += _scaling(found, f"{link}/{path.stem}.png" if path.with_suffix(".png").is_file() else None)
        elif all("sides" in result for result in found.get("results", [{}])):
            training += found["results"]
        else:
            raise RecipeError(f"{path}: not of `undistill bench train` or `scaling`; keep only their files here")
    blocks = [*_training(training), *scaling]
    if not blocks:
        raise RecipeError(f"{folder}: no .json in it; write one with `undistill bench train --out {folder}/train.json`")
    return "\n\n".join([_INTRODUCTION, *blocks]) + "\n"


def _training(results: Sequence[_Row]) -> Iterator[str]:
    """Yield a section for each machine and kind of batch: how fast each side is, then how it got there."""
    for title, works in _together(results, _where).items():
        yield f"## Training on {title}"
        yield (
            "Images a second of whole steps, over all nets that are trained. In brackets: times the plain loop in the "
            "style of the paper's code, the median over the turns that the sides take."
        )
        for alike in _together(works, lambda work: " / ".join(work["sides"])).values():
            yield from _tables(alike)
        yield _READING


def _tables(works: Sequence[_Row]) -> Iterator[str]:
    """Yield the tables about works with the same sides."""
    sides = list(works[0]["sides"])
    ours = [side for side in sides if side not in (PLAIN, "exact")]
    yield _table(
        ("model", "objective", *sides),
        [(*_name(work), *(_speed(work["sides"][side]) for side in sides)) for work in works],
        left=2,
    )
    every, parity = " / ".join(sides), " / ".join(ours)
    yield _table(
        (
            "model",
            "objective",
            "GFLOP/s",
            f"MFU {every}",
            f"memory {every}",
            *([f"weights {parity}", f"KL {parity}"] if ours else []),
            "how",
        ),
        [
            (
                *_name(work),
                f"{work['matmul_gflops']:,.0f}",
                _each(work, sides, _mfu),
                _each(work, sides, lambda side: f"{side['memory_mb']:,}"),
                *([_parity(work, ours, "weights"), _parity(work, ours, "kl")] if ours else []),
                _each(work, sides[-1:], lambda side: _settings(side["how"])),
            )
            for work in works
        ],
        left=2,
    )


def _scaling(found: _Row, picture: str | None) -> Iterator[str]:
    base, estimate = found["base"], found["imagenet"]
    yield "## How the cost grows"
    yield (
        f"An epoch of distillation under `{base['profile']}` on {_machine(found['machine'])}: `{base['models'][0]}` "
        f"from `{base['victim']}`, {base['images']:,} images of {base['image_size']}x{base['image_size']} in batches "
        f"of {base['batch_size']}, {base['classes']} classes, one student, one seed. One of these grows, the rest "
        "stays. Students share the victim's answers; seeds have a victim each and are trained one after the other."
    )
    if picture is not None:
        yield f"![Time and memory against images, classes, students and seeds]({picture})"
    rows = []
    for axis, group in _together(found["rows"], lambda row: row["axis"]).items():
        rows += [(axis, *_cost(row, group[0])) for row in group]
    yield _table(("what grows", "to", "s an epoch", "images/s", "memory, MB"), rows, left=1)
    yield "In brackets: times the first row of the same kind. Memory is the peak of the process, torch itself included."
    yield "## ImageNet, on paper"
    yield "Nothing of this is measured."
    yield _table(("on one H200", "hours"), [(name, f"{hours:,}") for name, hours in estimate["hours"].items()], left=1)
    yield "\n".join(f"- {line}." for line in estimate["assumptions"])


def _cost(row: _Row, first: _Row) -> Iterator[str]:
    yield f"{row['value']:,} ({row['value'] / first['value']:g}×)"
    yield f"{row['seconds']:,.2f} ({row['seconds'] / first['seconds']:.2f}×)"
    yield f"{row['images_per_s']:,.0f}"
    yield f"{row['memory_mb']:,} ({row['memory_mb'] / first['memory_mb']:.2f}×)"


def _where(result: _Row) -> str:
    work = result["work"]
    size = work["image_size"]
    return f"{_machine(result['machine'])}: batches of {work['batch_size']} images of {size}x{size}"


def _machine(machine: _Row) -> str:
    threads = f"{machine['threads']} of {machine['cores']} cores" if machine["device"] == "cpu" else machine["device"]
    return f"{machine['name']}, {threads}, torch {machine['torch']}"


def _name(result: _Row) -> tuple[str, str]:
    work = result["work"]
    counts = Counter(work["models"])
    nets = ", ".join(f"{count} × `{model}`" if count > 1 else f"`{model}`" for model, count in counts.items())
    return nets, f"kd from `{work['victim']}`" if work["objective"] == "kd" else work["objective"]


def _speed(side: _Row) -> str:
    return f"{side['images_per_s']:,.0f} ({side['ratio']:.2f}×)"


def _each(result: _Row, sides: Sequence[str], show: Callable[[_Row], str]) -> str:
    """Show one thing of every side, in their order."""
    return " / ".join(show(result["sides"][side]) for side in sides)


def _mfu(side: _Row) -> str:
    known = side["mfu"] is not None and side["mfu"] <= MFU_LIMIT
    return f"{100 * side['mfu']:.0f} %" if known else "not measured"


def _parity(result: _Row, sides: Sequence[str], what: str) -> str:
    return _each(result, sides, lambda side: f"{side[what]:.1e}" if what in side else "–")


def _settings(how: str) -> str:
    """Shorten what the engine says of itself to ``channels_last=true compile=false …``."""
    settings = re.findall(r"tuning\.(\S+)", how)
    return f"`{' '.join(settings) or how}`"


def _together(items: Sequence[_Row], key: Callable[[_Row], str]) -> dict[str, list[_Row]]:
    """Group what has one key, in order of first sight."""
    groups: dict[str, list[_Row]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/speed_page.py FOLDER PAGE.md")
    write_text(Path(sys.argv[2]), speed_page(Path(sys.argv[1]), Path(sys.argv[2])))
