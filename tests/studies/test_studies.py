"""Studies: the plan, the paper's tables as recipes, the executor and the numbers that come out."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from undistill.errors import DataError, RecipeError, RunError, UnknownNameError
from undistill.functional import Interval
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.progress import Silence
from undistill.orchestrate.reproduce import Reproduction, check_data, plan_studies, reproduce, runs_folder
from undistill.orchestrate.request import Request, load_studies
from undistill.orchestrate.results import document_of
from undistill.recipe import Recipe, load_recipe
from undistill.registry import Spec
from undistill.reporting.formats import to_csv, to_html, to_markdown, to_tex
from undistill.reporting.wording import difference, value
from undistill.studies.cells import against, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.paper import PaperCell, load_paper
from undistill.studies.study import STUDIES, list_studies
from undistill.studies.tables import TABLES, TableStudy
from undistill.workspace import Workspace

SMOKE = Changes(smoke=True)
TABLE1 = Request("table1", changes=SMOKE)


def quiet(total: int) -> Silence:
    return Silence()


def study(name: str, **arguments: object) -> TableStudy:
    (found,) = load_studies(name, **arguments)  # type: ignore[arg-type]
    assert isinstance(found, TableStudy)
    return found


def weights(out: Path) -> dict[str, str]:
    """The checksum of the weights of every run: equal ones mean that every number is equal."""
    found = {path.parent.name: json.loads(path.read_text()) for path in runs_folder(out).glob("*/result.json")}
    return {name: result["weights_sha256"] for name, result in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction]:
    """Table 1 in smoke, by one worker, undisturbed."""
    out = tmp_path_factory.mktemp("study")
    return out, reproduce(TABLE1, out, jobs=1, device="cpu", observe=quiet)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_table1_is_thirteen_runs() -> None:
    # 4 students alone, one of them the normal teacher and the adversary; 1 nasty teacher; 4 students from each teacher
    plan = Plan.of(study("table1").recipes)
    assert len(plan.steps) == 4 + 1 + 4 + 4
    assert sum(step.recipe.kind == "defense" for step in plan.steps) == 1
    assert len(Plan.of(study("table1", seeds=3).recipes).steps) == 3 * 13


def test_table4_adds_two_adversaries_to_table1() -> None:
    # two more nasty teachers with four students each, and ResNeXt-29 alone; the CNN is a student already
    both = Plan.of([*study("table1").recipes, *study("table4").recipes])
    assert len(both.steps) == 13 + 2 + 2 * 4 + 1


def test_all_five_tables() -> None:
    # Tables 2 and 3: 5 nets alone, 3 nasty teachers, 2 x (3 + 4 + 4) students; Table 5: on CIFAR-10 ResNet-50 alone
    # and 4 students (ResNeXt-29 is in Table 4), on CIFAR-100 4 students
    recipes = [recipe for name in TABLES for recipe in study(name).recipes]
    assert len(Plan.of(recipes).steps) == 24 + 2 * (5 + 3 + 22) + (1 + 4) + 4


@pytest.mark.parametrize("name", TABLES)
def test_steps_come_after_what_they_need(name: str) -> None:
    seen: set[str] = set()
    for step in Plan.of(study(name, seeds=2).recipes).steps:
        assert set(step.needs) <= seen
        assert step.hash not in seen
        seen.add(step.hash)


def test_cells_without_changes_are_the_packaged_recipes() -> None:
    cells = study("table1", seeds=2).cells
    expected = load_recipe("paper/cifar10/kd_cnn__from_nasty_resnet18", seed=1)
    assert cells["resnet18-nasty", "cnn"][1].hash == expected.hash


def test_table4_takes_its_adversaries_with_their_own_protocol() -> None:
    victim = study("table4").cells["resnet18-nasty-cnn", "resnet18"][0].victim
    assert isinstance(victim, Recipe)
    assert isinstance(victim.adversary, Recipe)
    assert victim.adversary.hash == load_recipe("paper/cifar10/cnn").hash
    assert Spec.parse(victim.method).kwargs == {"temperature": 4.0, "weight": 0.04}


def test_tables_without_any_result_miss_everything(tmp_path: Path) -> None:
    plan = Plan.of(study("table1").recipes)
    assert plan.missing(Workspace(tmp_path)) == plan.steps


def test_what_nobody_needs_any_more_is_not_missing(finished: tuple[Path, Reproduction]) -> None:
    recipe = study("table1", changes=SMOKE).cells["resnet18-nasty", "cnn"][0]
    edited = load_recipe(None, **{**{k: getattr(recipe, k) for k in Recipe.model_fields}, "lr": 0.5, "folder": None})
    missing = Plan.of([edited]).missing(Workspace(runs_folder(finished[0])))
    assert [step.hash for step in missing] == [edited.hash]  # its teacher is there; the adversary is not asked for


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_has_a_cell_and_the_other_way_round(name: str) -> None:
    paper = load_paper()[name]
    printed = {(r, c) for r in paper.rows for c in paper.columns if paper.cell(r, c).value is not None}
    assert set(study(name).cells) == printed


def test_self_column_distills_the_teacher_into_itself() -> None:
    recipe = study("table2").cells["resnet50-nasty", "self"][0]
    assert isinstance(recipe.victim, Recipe)
    assert recipe.model == recipe.victim.model == "resnet50"


@pytest.mark.parametrize("name", TABLES)
def test_smoke_keeps_the_shape_of_a_study(name: str) -> None:
    real, smoke = study(name), study(name, changes=SMOKE)
    assert smoke.cells.keys() == real.cells.keys()
    families = [{Spec.parse(step.recipe.model).name for step in Plan.of(one.recipes).steps} for one in (real, smoke)]
    assert families[0] == families[1]
    for step in Plan.of(smoke.recipes).steps:
        assert step.recipe.folder_name.startswith("smoke-")
        assert step.recipe.data.startswith("digits(")
        assert step.recipe.epochs <= 2


def test_reduced_recipes_scale_their_milestones_and_all_that_they_build_on() -> None:
    changes = Changes(data={"cifar100": "digits"}, epochs=20, width=0.5)
    recipe = adapt(load_recipe("paper/cifar100/kd_resnet18__from_nasty_resnet50"), changes)
    assert recipe.milestones == (6, 12, 16)  # 60, 120 and 160 of 200
    assert isinstance(recipe.victim, Recipe)
    assert isinstance(recipe.victim.adversary, Recipe)
    for each in (recipe, recipe.victim, recipe.victim.adversary):
        assert (each.data, each.epochs) == ("digits", 20)
        assert Spec.parse(each.model).kwargs == {"width": 0.5}
        assert each.folder_name.startswith("reduced-")


def test_filters() -> None:
    assert study("table4", only=["baseline"]).rows == ("baseline",)
    assert study("table4", skip=["baseline", "resnet18-normal"]).rows == (
        "resnet18-nasty",
        "resnet18-nasty-cnn",
        "resnet18-nasty-resnext29",
    )
    found = load_studies("all", only=["resnet50-nasty", "table5", "figure1"], skip=["table3"])
    assert [one.name for one in found] == ["table2", "table5", "figure1"]
    assert found[0].rows == ("resnet50-nasty",)


def test_all_is_every_registered_study_tables_first() -> None:
    names = tuple(one.name for one in load_studies("all"))
    assert set(list_studies()) - set(names) == {"audit"}  # which needs a victim
    assert names[:5] == TABLES
    assert set(names[5:]) >= {"figure1", "figure2", "figure3", "figure4", "figure5"}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("tabel1", {}, UnknownNameError, "did you mean 'table1'"),
        ("table1", {"only": ["resnet18-nasti"]}, UnknownNameError, "did you mean 'resnet18-nasty'"),
        ("table1", {"skip": ["resnet50-nasty"]}, UnknownNameError, "row of table1 'resnet50-nasty'"),
        ("table1", {"only": ["baseline"], "skip": ["baseline"]}, RecipeError, "leave no row"),
        ("table1", {"seeds": 0}, RecipeError, "seeds: must be 1 or more"),
        ("table1", {"changes": Changes(data={"cifar1": "digits"})}, UnknownNameError, "did you mean 'cifar10'"),
        ("table1", {"changes": Changes(data={"cifar10": "digit"})}, RecipeError, "did you mean 'digits'"),
        ("table1", {"changes": Changes(smoke=True, epochs=3)}, RecipeError, "leave out epochs"),
        ("table1", {"changes": Changes(width=0)}, RecipeError, "width: must be above 0, got 0"),
        ("table1", {"changes": Changes(profile="fats")}, UnknownNameError, "did you mean 'fast'"),  # type: ignore[arg-type]
    ],
)
def test_bad_studies_are_refused(name: str, arguments: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_studies(name, **arguments)  # type: ignore[arg-type]


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_second_call_trains_nothing(finished: tuple[Path, Reproduction]) -> None:
    out, first = finished
    before = {path: path.stat().st_mtime_ns for path in runs_folder(out).rglob("*")}
    second = reproduce(TABLE1, out, jobs=1, device="cpu", observe=quiet)
    assert second.trained == 0
    assert {path: path.stat().st_mtime_ns for path in runs_folder(out).rglob("*")} == before
    assert second.content == first.content


def test_an_edited_recipe_runs_again_with_what_builds_on_it_only(finished: tuple[Path, Reproduction]) -> None:
    given = study("table1", changes=SMOKE)
    cells = dict(given.cells)
    (nasty,) = cells["resnet18-nasty", "teacher"]
    edited = nasty.model_copy(update={"method": "nasty(temperature=4.0, weight=0.05)"})
    cells["resnet18-nasty", "teacher"] = (edited,)
    for (row, column), (recipe,) in given.cells.items():
        if row == "resnet18-nasty" and column != "teacher":
            cells[row, column] = (recipe.model_copy(update={"victim": edited}),)
    plan, missing = plan_studies([replace(given, cells=cells)], finished[0])
    assert len(plan.steps) == 13
    assert [step.recipe.kind for step in missing] == ["defense", "attack", "attack", "attack", "attack"]


def kill_workers() -> None:
    for child in mp.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)


class Killer(Silence):
    """Kills all workers once, as soon as one has trained an epoch."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        if not self.killed:
            self.killed.append(recipe.hash)
            kill_workers()


COORDINATOR = """
import sys
from pathlib import Path
from undistill.studies.changes import Changes
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request
if __name__ == "__main__":
    reproduce(Request("table1", changes=Changes(smoke=True)), Path(sys.argv[1]), jobs=1, device="cpu")
"""


def test_a_killed_coordinator_and_killed_workers_change_nothing(
    finished: tuple[Path, Reproduction], tmp_path: Path
) -> None:
    (out, undisturbed), killer = finished, Killer()
    script = tmp_path / "coordinate.py"
    script.write_text(COORDINATOR)
    process = subprocess.Popen([sys.executable, script, tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[3/"):
            break
    process.kill()
    process.wait()
    process.stderr.close()
    time.sleep(0.5)  # its workers notice at once; the locks of their runs go with them
    assert 3 <= len(weights(tmp_path / "out")) < 13
    found = reproduce(TABLE1, tmp_path / "out", jobs=2, device="cpu", observe=lambda total: killer)
    assert killer.killed
    assert 0 < found.trained <= 10
    assert len(weights(out)) == 13
    assert weights(tmp_path / "out") == weights(out)
    for file in ("study.json", "tables.md", "tables.tex", "tables.csv", "index.html"):
        assert (found.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes()


class Murderer(Silence):
    """Kills every worker that trains the CNN."""

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        if recipe.model.startswith("cnn"):
            kill_workers()


def test_failed_runs_are_failed_cells_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study("table1", changes=SMOKE)
    (nasty,), (kd,) = given.cells["resnet18-nasty", "teacher"], given.cells["resnet18-nasty", "preresnet20"]
    broken = nasty.model_copy(update={"lr": 1e30})
    cells = {
        ("baseline", "cnn"): (given.cells["baseline", "cnn"][0].model_copy(update={"epochs": 500}),),
        ("resnet18-normal", "teacher"): given.cells["resnet18-normal", "teacher"],
        ("resnet18-nasty", "teacher"): (broken,),
        ("resnet18-nasty", "preresnet20"): (kd.model_copy(update={"victim": broken}),),
    }
    STUDIES.names()  # loads its members
    monkeypatch.setitem(STUDIES._members, "broken", lambda *, seeds, changes: replace(given, cells=cells))
    request = Request("broken", changes=SMOKE)
    found = reproduce(request, tmp_path, jobs=1, device="cpu", observe=lambda total: Murderer())
    assert found.failed
    content = json.loads((found.folder / "study.json").read_text())
    baseline, normal, nasty_row = (row["cells"] for row in content["parts"][0]["rows"])
    assert not normal["teacher"]["failures"]
    assert baseline["cnn"]["failures"]["0"]["reason"] == "its process was killed by signal 9, 2 times"
    diverged = nasty_row["teacher"]["failures"]["0"]
    assert "finite" in diverged["reason"]
    assert "DivergenceError" in (tmp_path / "logs" / diverged["log"]).read_text()
    cell = nasty_row["preresnet20"]
    assert (cell["mean"], cell["n"], cell["paper"]) == (None, 0, 88.01)
    assert cell["failures"]["0"] == {
        "reason": f"not run: {broken.folder_name} failed: {diverged['reason']}",
        "log": None,
    }
    for text in ("tables.md", "tables.tex", "index.html"):
        assert "failed" in (found.folder / text).read_text()
    assert f"table1,resnet18-nasty,preresnet20,,0,,,{cell['failures']['0']['reason']}," in (
        found.folder / "tables.csv"
    ).read_text().replace('"', "")


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match="another study runs in"):
        reproduce(TABLE1, tmp_path, device="cpu", observe=quiet)


def test_the_data_of_all_studies_in_smoke_is_there() -> None:
    recipes = [recipe for study in load_studies("all", changes=SMOKE) for recipe in study.recipes]
    steps = [step.recipe for step in Plan.of(recipes).steps]
    check_data({spec for recipe in steps for spec in (recipe.data, *recipe.targets, recipe.transfer) if spec})


def test_missing_data_are_told_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10: .* is missing; run `undistill data fetch cifar10`"):
        reproduce(Request("table5"), tmp_path, device="cpu", observe=quiet)
    assert not runs_folder(tmp_path).exists()
    with pytest.raises(DataError, match=r"fetch cifar10`.*fetch cifar100`"):
        check_data(["cifar10", "digits", "cifar100(subset=10)"])
    with pytest.raises(DataError, match="there is no file"):
        check_data(["npz(path='nowhere.npz')"])
    with pytest.raises(DataError, match="nowhere is no unpacked Tiny-ImageNet"):  # and no archive is asked for
        check_data(["tiny_imagenet(path='nowhere')"])


# --- the numbers ------------------------------------------------------------------------------------------------------


class Found:
    """A workspace whose runs have these accuracies, seed by seed."""

    def __init__(self, recipes: Mapping[Any, tuple[Recipe, ...]], values: Mapping[Any, list[float]]) -> None:
        self.accuracies = {recipes[w][seed].hash: v for w in values for seed, v in enumerate(values[w])}

    def find(self, recipe: Recipe) -> object:
        accuracy = self.accuracies.get(recipe.hash)
        if accuracy is None:
            return None
        result = {"test_images": 500, "classes": 10}
        return SimpleNamespace(accuracy=accuracy, collapsed=False, folder=Path("run"), result=result)


def made_up(values: dict[tuple[str, str], list[float]], *, seeds: int, table: str = "table1") -> dict[str, Any]:
    """A table with these accuracies, as if by runs."""
    given = study(table, seeds=seeds)
    cells = {where: given.cells[where] for where in values}
    workspace: Any = Found(cells, values)
    part = replace(given, cells=cells).evaluate(workspace, {}, Path()).to_json()
    return {"request": Request(table, seeds).to_json(), "undistill": "0", "provenance": {}, "parts": [part]}


def cells_of(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    rows = content["parts"][0]["rows"]
    return {(row["name"], column): cell for row in rows for column, cell in row["cells"].items()}


def test_numbers_by_hand() -> None:
    # Student's t, 2 degrees of freedom: t(0.975) = 4.302653; the standard deviation of (81, 82, 84) is sqrt(7 / 3)
    values = {("baseline", "cnn"): [85.0, 86.0, 87.0], ("resnet18-nasty", "cnn"): [81.0, 82.0, 84.0]}
    cell = cells_of(made_up(values, seeds=3))["resnet18-nasty", "cnn"]
    assert cell["mean"] == pytest.approx(247 / 3)
    assert cell["half_width"] == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-6)
    assert cell["difference"] == pytest.approx(247 / 3 - 86)
    # differences -4, -4, -3: their standard deviation is sqrt(1 / 3)
    assert cell["difference_interval"] == pytest.approx([-11 / 3 - 4.302653 / 3, -11 / 3 + 4.302653 / 3], rel=1e-6)
    assert (cell["paper"], cell["paper_difference"], cell["n"]) == (82.46, -4.18, 3)
    assert cell["disagrees"] is False


@pytest.mark.parametrize(("printed", "disagrees"), [(74.7, True), (74.8, False), (None, None)])
def test_the_paper_disagrees_where_no_run_of_ours_is_expected(printed: float | None, disagrees: bool | None) -> None:
    recipes = {"": study("table1", seeds=3).cells["baseline", "cnn"]}
    workspace: Any = Found(recipes, {"": [81.0, 82.0, 84.0]})  # 82.33 - 3.79 * sqrt(3 + 1) = 74.74
    assert make_cell(recipes[""], workspace, {}, PaperCell(value=printed)).disagrees is disagrees


def test_differences_are_over_common_seeds_and_equal_ones_decide_nothing_by_chance() -> None:
    recipes = study("table1", seeds=4).cells
    where, reference = ("resnet18-nasty", "cnn"), ("baseline", "cnn")
    workspace: Any = Found(recipes, {where: [80.2, 80.6, 50.0], reference: [80.0, 80.4]})
    found = against(*(make_cell(recipes[each], workspace, {}) for each in (where, reference)))
    assert found.difference == pytest.approx(0.2)
    # two differences of one image of 500: t(0.975, 1) * sqrt(0.2^2 / 6 / 2)
    assert found.difference_interval == pytest.approx((0.2 - 0.7336, 0.2 + 0.7336), abs=1e-4)
    assert against(found, None) is found
    alone = against(*(make_cell(recipes[each][:1], workspace, {}) for each in (where, reference)))
    assert (alone.difference, alone.difference_interval) == (pytest.approx(0.2), None)


def test_an_accuracy_that_may_be_chance_is_marked() -> None:
    # Wilson's interval of 12.8 % of 500 is 10.15 to 16.01, of 12.6 % it is 9.97 to 15.8
    values = {("baseline", "cnn"): [12.6, 80.0], ("baseline", "preresnet20"): [12.8, 80.0]}
    content = made_up(values, seeds=2)
    cells = cells_of(content)
    assert cells["baseline", "cnn"]["chance_seeds"] == [0]
    assert cells["baseline", "preresnet20"]["chance_seeds"] == []
    _, cnn, net, *_ = next(document_of(content).parts[0].grids()).rows[0].cells
    assert (cnn.marks, net.marks) == ("≈", "")
    assert any(note.startswith("≈ Of a seed, Wilson's 95 % interval") for note in content["parts"][0]["notes"])
    assert r"$\approx$" in to_tex(document_of(content))


def test_a_difference_is_shown_with_its_interval() -> None:
    values = {("baseline", "cnn"): [85.0, 86.0, 87.0], ("resnet18-nasty", "cnn"): [81.0, 82.0, 84.0]}
    document = document_of(made_up(values, seeds=3))
    shown = "(−3.67 [−5.1, −2.2])"
    assert next(document.parts[0].grids()).rows[1].cells[1].difference == shown
    assert f"82.33 ± 3.79 {shown}" in to_markdown(document).replace("\\", "")
    assert shown in to_html(document, {})
    assert r"($-$3.67 [$-$5.1, $-$2.2])" in to_tex(document)
    *_, low, high = to_csv(document).splitlines()[-1].split(",")
    assert (float(low), float(high)) == pytest.approx((-5.1009, -2.2325), abs=1e-4)


def test_how_numbers_are_written() -> None:
    assert difference(0.0) == "(0.00)"
    assert difference(1.5, (0.04, 2.96)) == "(+1.50 [+0.04, +2.96])"
    assert difference(-1.5, (-3.04, 0.04)) == "(−1.50 [−3.04, +0.04])"
    assert value(Interval(99.6, 0.7, 3), with_n=False) == "99.60 [98.90, 100.00]"
    assert value(Interval(0.5, 1.0, 3), with_n=True, digits=1) == "0.5 [0.0, 1.5] (n=3)"
    assert value(Interval(99.6, 0.3, 3), with_n=True) == "99.60 ± 0.30 (n=3)"
    assert value(Interval(100.0, 0.0, 2), with_n=False) == "100.00 ± 0.00"
    assert value(Interval(99.6, None, 1), with_n=True) == "99.60 (n=1)"


def test_one_seed_says_nothing_about_agreement() -> None:
    assert cells_of(made_up({("baseline", "cnn"): [10.0]}, seeds=1))["baseline", "cnn"]["disagrees"] is None


def test_study_json_equals_arithmetic_on_the_runs(finished: tuple[Path, Reproduction]) -> None:
    out, found = finished
    content = json.loads((found.folder / "study.json").read_text())
    assert (content["study"], content["kind"], content["seeds"]) == ("table1", "smoke", 1)
    assert content["provenance"]["profile"] == ["exact"]
    assert content["provenance"]["selection"] == ["paper"]
    (table,) = content["parts"]
    assert [row["name"] for row in table["rows"]] == ["baseline", "resnet18-normal", "resnet18-nasty"]
    cells = cells_of(content)
    paper = load_paper()["table1"]

    def accuracy(cell: dict[str, dict[str, str]]) -> float:
        result = json.loads((runs_folder(out) / cell["runs"]["0"] / "result.json").read_text())
        return float(result["selected"]["batch_mean_accuracy"])

    for (row, column), cell in cells.items():
        assert cell["mean"] == cell["values"]["0"] == accuracy(cell)
        assert cell["paper"] == paper.cell(row, column).value
        assert cell["paper_difference"] == paper.cell(row, column).difference
        if cell["paper_difference"] is None:
            assert cell["difference"] is None
        else:
            reference = ("resnet18-normal", "teacher") if column == "teacher" else ("baseline", column)
            assert cell["difference"] == pytest.approx(cell["mean"] - cells[reference]["mean"])


def test_self_is_measured_against_the_normal_teacher() -> None:
    values = {
        ("resnet50-normal", "teacher"): [78.0],
        ("resnet50-normal", "self"): [],
        ("resnet50-nasty", "teacher"): [77.0],
        ("resnet50-nasty", "self"): [75.5],
    }
    cells = cells_of(made_up(values, seeds=1, table="table2"))
    assert cells["resnet50-nasty", "self"]["difference"] == pytest.approx(-2.5)
    assert cells["resnet50-nasty", "teacher"]["difference"] == pytest.approx(-1.0)
    assert cells["resnet50-normal", "teacher"]["difference"] is None
    assert cells["resnet50-normal", "self"]["failures"]["0"]["reason"] == "not run"


def test_tables_put_the_paper_beside_ours_and_mark_what_differs() -> None:
    values = {("baseline", "cnn"): [80.0, 80.2, 80.1], ("resnet18-nasty", "cnn"): [82.0, 83.0, 82.5]}
    content = made_up(values, seeds=4)
    shown = next(document_of(content).parts[0].grids()).rows[0].cells
    assert shown[1] is not None
    # t(0.975, 2) * 0.1 / sqrt(3) = 0.248
    assert shown[1].line == "80.10 ± 0.25 (n=3)≠"
    assert shown[1].paper == "86.64"
    assert shown[0] is None
    markdown = to_markdown(document_of(content))
    assert "`undistill reproduce table1 --seeds 4`: 4 seeds, profile exact" in markdown
    assert "| Student baseline | – | 80.10 ± 0.25 (n=3)≠ |" in markdown
    assert "| paper | – | 86.64 |" in markdown
    assert "Failed: Student baseline, CNN, seed 3: not run" in markdown
    tex = to_tex(document_of(content))
    assert r"80.10 $\pm$ 0.25 (n=3)$\neq$" in tex
    assert tex.count(r"\begin{tabular}{lrrrrr}") == 1
    page = to_html(document_of(content), {})
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)
    assert "86.64" in page
    assert "80.10" in page


def test_what_is_not_the_paper_says_so_on_top(finished: tuple[Path, Reproduction]) -> None:
    folder = finished[1].folder
    assert folder.name == "table1-smoke"
    for file in ("tables.md", "tables.tex", "index.html"):
        assert "cannot be compared with the paper" in (folder / file).read_text()
    reduced = Changes(data={"cifar10": "x.npz"}, epochs=5, width=0.25)
    assert "cifar10 replaced by x.npz, 5 epochs, nets of width 0.25" in Request("table1", changes=reduced).banner
    assert Request("table1").banner == Request("table1", changes=Changes(profile="fast")).banner == ""
    assert Request("table1", changes=Changes(profile="turbo")).banner.startswith("Turbo: ")


def test_profiles_have_folders_of_their_own() -> None:
    folders = [Request("table1", changes=changes).folder for changes in (Changes(), Changes(profile="fast"))]
    assert folders == ["table1", "table1-fast"]
    assert Changes(profile="turbo", epochs=3).label == "reduced-turbo"


def test_a_net_can_be_replaced_wherever_it_is() -> None:
    changes = Changes(models={"resnet18": "speedrun(widths=(8, 16, 16))"}, width=0.5)
    (study,) = load_studies("table1", changes=changes)
    nasty = study.cells["resnet18-nasty", "cnn"][0].victim  # type: ignore[attr-defined]
    assert nasty.model == nasty.adversary.model == "speedrun(width=0.5, widths=(8, 16, 16))"
    assert {Spec.parse(model).name for model in study.models} == {"cnn", "preresnet20", "preresnet32", "speedrun"}
    assert "resnet18 replaced by speedrun" in Request("table1", changes=changes).banner
    assert "--model" in Request("table1", changes=changes).command
    with pytest.raises(UnknownNameError, match="net of this study 'resnet81'; did you mean 'resnet18'"):
        load_studies("table1", changes=Changes(models={"resnet81": "speedrun"}))
    with pytest.raises(RecipeError, match="did you mean 'speedrun'"):
        load_studies("table1", changes=Changes(models={"resnet18": "speedrum"}))


def test_a_request_survives_json_and_is_the_command() -> None:
    changes = Changes(data={"cifar10": "npz(path='my set.npz')"}, epochs=5, width=0.25)
    request = Request("table4", 3, ("baseline",), ("resnet18-nasty",), changes)
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    words = shlex.split(request.command)
    assert words[:5] == ["undistill", "reproduce", "table4", "--seeds", "3"]
    assert words[-6:] == ["--data", "cifar10=npz(path='my set.npz')", "--epochs", "5", "--width", "0.25"]


def test_all_in_turbo_but_for_the_study_of_ways_to_train():
    with pytest.raises(RecipeError, match="--skip training"):
        load_studies("all", changes=Changes(profile="turbo"))
    studies = load_studies("all", changes=Changes(profile="turbo"), skip=["training"])
    assert {study.name for study in studies} >= {"table1", "table6", "effect"}
    without = [r for study in studies for r in study.recipes if r.objective.images == "none"]
    assert without
    assert {r.holdout for r in without} == {0}
    with pytest.raises(RecipeError, match="leave no row"):
        load_studies("all", skip=list_studies())
