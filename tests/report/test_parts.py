"""Parts of documents: what was written is read as it was, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undistill.errors import RunError, UnknownNameError
from undistill.orchestrate.results import read_study
from undistill.reporting.parts import PARTS, part_of

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/study.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_study_that_was_published_is_read_to_the_byte(folder: Path) -> None:
    content = read_study(folder)
    content["parts"] = [part_of(part).to_json() for part in content["parts"]]
    written = json.dumps(content, indent=2, allow_nan=False) + "\n"
    assert written == (folder / "study.json").read_text(encoding="utf-8")


def test_every_published_kind_is_known() -> None:
    kinds = {part["kind"] for folder in STUDIES for part in read_study(folder)["parts"]}
    assert kinds <= set(PARTS.names())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"rows": 3}, "rows"), ({"columns": [{"name": "a"}]}, "label"), ({"stray": 1}, "stray")],
)
def test_a_damaged_part_is_one_clear_error(change: dict[str, Any], said: str) -> None:
    part = {"kind": "table", "name": "table1", "title": "T", "seeds": 1, "columns": [], "rows": [], **change}
    with pytest.raises(RunError, match=said):
        part_of(part)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="curvs"):
        part_of({"kind": "curvs", "name": "x", "title": "x"})
