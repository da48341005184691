"""The study of the paper's effect in the turbo protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from undistill.errors import UnknownNameError
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request, load_studies
from undistill.reporting.style import draw
from undistill.studies.changes import PAPER, Changes
from undistill.studies.effect import effect
from undistill.studies.paper import load_paper
from undistill.studies.tables import make_table


def test_it_shares_its_runs_with_table_1_in_turbo() -> None:
    study = effect(seeds=1, changes=PAPER)
    table = make_table("table1", seeds=1, changes=Changes(profile="turbo", models={"resnet18": "speedrun"}))
    for ours, theirs in {"baseline": "baseline", "normal": "resnet18-normal", "nasty": "resnet18-nasty"}.items():
        row = ours if ours == "baseline" else f"speedrun-{ours}"
        for column in ("cnn", "preresnet20", "preresnet32"):
            (mine,), (its,) = study.cells[row, column], table.cells[theirs, column]
            assert (mine.model, mine.epochs, mine.objective) == (its.model, its.epochs, its.objective)
            assert (mine.victim and mine.victim.method) == (its.victim and its.victim.method)
            assert study.paper.cell(row, column) == load_paper()["table1"].cell(theirs, column)


def test_who_asks_whom() -> None:
    study = effect(seeds=2, changes=PAPER, tried_with=("cnn", "preresnet20"))
    assert {column for row, column in study.cells if row == "speedrun-budget-htc"} == {"cnn", "preresnet20"}
    assert {column for row, column in study.cells if row == "speedrun-budget"} == set(study.paper.columns)
    for (row, column), recipes in study.cells.items():
        assert [recipe.seed for recipe in recipes] == [0, 1]
        for recipe in recipes:
            assert {each.seed for each in (recipe, *recipe.sources)} == {recipe.seed}
            victim = recipe if column == "teacher" else recipe.victim
            method = victim.method if victim else None
            assert ("nasty" in (method or "")) == row.startswith(("speedrun-nasty", "speedrun-budget"))
            if "named" in row:
                assert recipe.method.startswith("hard_label")


def _marks(axes: Axes) -> Iterator[tuple[float, bool]]:
    for line in axes.lines:
        if line.get_marker() == "o":
            yield float(line.get_xdata()[0]), line.get_markerfacecolor() != "none"


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="thief of effect 'hct'; did you mean 'htc'"):
        load_studies("effect", parameters={"thieves": ["hct"]})
    with pytest.raises(UnknownNameError, match="student of effect"):
        load_studies("effect", parameters={"tried_with": ["resnet18"]})


def test_it_runs_and_shows_the_papers_numbers_as_those_of_another_protocol(tmp_path: Path) -> None:
    parameters = {"students": ["cnn"], "thieves": ["textbook", "named"]}
    request = Request("effect", seeds=2, changes=Changes(smoke=True), parameters=parameters)
    found = reproduce(request, tmp_path, jobs=1, device="cpu")
    assert not found.failed
    (part,) = found.document.parts
    (grid,) = part.grids()
    printed = [texts for _, theirs, texts in grid.lines if theirs]
    assert printed == [
        ["paper, whole protocol", "–", "86.64"],
        ["paper, whole protocol", "95.13", "87.75 (+1.11)"],
        ["paper, whole protocol", "94.56 (−0.57)", "82.46 (−4.18)"],
    ]
    assert any("Within 0.5 points" in note for note in part.notes)
    asked = {row.name: (row.of, row.how) for row in part.rows}
    assert asked["smoothed"] == (None, "Student alone, labels smoothed by 0.1")
    assert asked["speedrun-nasty"] == ("nasty", "textbook, τ=4")
    assert asked["speedrun-budget-named"] == ("budget", "named class")
    assert not any("≠" in text for _, _, texts in grid.lines for text in texts)
    assert found.document.summary.startswith("2 seeds, profile turbo, ")
    (axes,) = draw(part).axes
    marks = {(round(float(x), 6), fill) for x, fill in _marks(axes)}
    cells = [row.cells["cnn"] for row in part.rows if row.name != "baseline"]
    assert {x for x, fill in marks if fill} == {round(cell.difference, 6) for cell in cells}
    assert {x for x, fill in marks if not fill} == {1.11, -4.18}
    rows = {row["name"]: row["cells"] for row in part.to_json()["rows"]}
    baseline = rows["baseline"]["cnn"]["mean"]
    for name, cells in rows.items():
        for column, cell in cells.items():
            reference = rows["speedrun-normal"]["teacher"]["mean"] if column == "teacher" else baseline
            if name not in ("baseline",) and (name, column) != ("speedrun-normal", "teacher"):
                assert cell["difference"] == pytest.approx(cell["mean"] - reference, abs=1e-9), (name, column)
