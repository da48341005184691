"""Leaderboards: ranks that intervals tell apart, entries that are what their audit says, pages that sort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import undistill
from results_page import results_page
from undistill.api import audit
from undistill.cli import main
from undistill.errors import RecipeError, RunError
from undistill.orchestrate.leaderboard import add_entries, leaderboard, read_entries
from undistill.orchestrate.reproduce import Reproduction
from undistill.reporting.formats import markdown_text
from undistill.reporting.parts.audit import Audit
from undistill.reporting.parts.board import Board, ranks
from undistill.reporting.parts.plane import Plane


def test_a_rank_counts_those_that_surely_leak_less() -> None:
    # Nothing, a loss, an overlap with nothing, a leak, a larger one that overlaps it, one far above, and not known.
    leaks = [(-1.0, 1.0), (-9.0, -8.0), (-2.0, 3.0), (2.0, 4.0), (3.5, 6.0), (7.0, 9.0), None]
    assert ranks(leaks) == [1, 1, 1, 3, 4, 6, 7]
    assert ranks([]) == []
    assert ranks([None]) == [1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    folder = tmp_path_factory.mktemp("audits")
    fields: dict[str, Any] = {"model": "mlp(hidden=(16,))", "epochs": 2, "lr": 0.05, "profile": "fast"}
    victim = undistill.train(data="digits(subset=300)", runs=folder / "victims", progress=False, **fields)
    given: dict[str, Any] = {"attacks": ["kd"], "trials": 1, "seeds": 2, "insider": 0, "queries": 100, "jobs": 1}
    return audit(str(victim.folder), policies=["label_only"], out=folder / "audit", progress=False, **given)


@pytest.fixture
def board(found: Reproduction, tmp_path: Path) -> Path:
    add_entries(found.folder, tmp_path, who="us", paper="https://example.org", reported="nothing", flags=("small",))
    return tmp_path


def test_an_entry_is_what_the_audit_says(found: Reproduction, board: Path) -> None:
    part = found.document.parts[0]
    assert isinstance(part, Audit)
    (entries,) = read_entries(board).values()
    by_name = {entry.name: entry for _, entry in entries}
    assert set(by_name) == {finding.subject for finding in part.findings}
    for deal, finding in zip(part.deals, part.findings, strict=True):
        entry = by_name[finding.subject]
        assert (entry.worth, entry.leaks, entry.seeds, entry.who) == (deal.worth, deal.leaks, 2, "us")
        assert entry.judgement == part.verdict_of(deal.name)
        assert entry.flags == ("small",)
    bare, behind = (by_name[finding.subject] for finding in part.findings)
    assert (bare.paper, behind.paper) == ("https://example.org", "")


def test_entering_again_replaces_and_other_means_are_another_board(found: Reproduction, board: Path) -> None:
    before = sorted(board.iterdir())
    add_entries(found.folder, board, who="us", reported="much")
    assert sorted(board.iterdir()) == before
    (entries,) = read_entries(board).values()
    assert [entry.reported for _, entry in entries] == ["much", ""]
    assert add_entries(found.folder, board, who="others") != before  # nobody overwrites what is not theirs
    for path in set(board.iterdir()) - set(before):
        path.unlink()
    content = json.loads(before[0].read_text(encoding="utf-8"))
    content["board"]["queries"] = 50
    (board / "other.json").write_text(json.dumps(content), encoding="utf-8")
    assert [len(entries) for entries in read_entries(board).values()] == [2, 1]
    parts = leaderboard(board).parts
    assert [part.name for part in parts] == ["board", "plane", "board-2"]


def test_the_page_ranks_sorts_and_needs_nothing_beside_it(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "build", str(board), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["boards"][0]["entries"]) == 2
    page = (board / "index.html").read_text(encoding="utf-8")
    assert "data-sortable" in page
    assert page.count("<script>") == 1
    assert "src=" not in page
    document = leaderboard(board)
    first, plane = document.parts
    assert isinstance(first, Board)
    assert isinstance(plane, Plane)
    assert [rank for rank, _ in first.ranked] == sorted(rank for rank, _ in first.ranked)
    # The undefended one is what prices are beside; what all names have in common is left out.
    assert [deal.label for deal in plane.deals] == ["as it is", "behind label_only"]
    assert (board / "figures" / "board.png").is_file()


def test_what_is_no_audit_is_not_entered(found: Reproduction, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no study"):
        add_entries(tmp_path, tmp_path / "board", who="us")
    with pytest.raises(RecipeError, match="who enters it"):
        add_entries(found.folder, tmp_path / "board", who=" ")
    path = found.folder / "study.json"
    kept = path.read_text(encoding="utf-8")
    content = json.loads(kept)
    content["parts"][0]["deals"][0]["worth"]["accuracy"] = 100.0
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        with pytest.raises(RunError, match="was edited"):
            add_entries(found.folder, tmp_path / "board", who="us")
    finally:
        path.write_text(kept, encoding="utf-8")


def test_a_folder_without_entries_or_with_a_damaged_one_is_refused(tmp_path: Path, board: Path) -> None:
    with pytest.raises(RecipeError, match="holds no entry; add one"):
        leaderboard(tmp_path / "none")
    path = next(board.iterdir())
    content = json.loads(path.read_text(encoding="utf-8"))
    for damage in ({}, {**content, "board": {}}, {**content, "entry": {**content["entry"], "judgement": "fine"}}):
        (board / "broken.json").write_text(json.dumps(damage), encoding="utf-8")
        with pytest.raises(RunError, match=r"broken\.json is no entry"):
            leaderboard(board)
    (board / "broken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"broken\.json is no entry"):
        leaderboard(board)


def test_the_page_of_results_shows_a_leaderboard(found: Reproduction, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "board"
    add_entries(found.folder, folder / "entries", who="us")
    (folder / "README.md").write_text("Some words.", encoding="utf-8")
    page = results_page(tmp_path / "results", tmp_path / "docs" / "results.md")
    assert "## board\n\nSome words." in page
    assert "](../results/board/entries/figures/board.png)" in page
    (entries,) = read_entries(folder / "entries").values()
    for _, entry in entries:
        assert markdown_text(entry.name) in page
