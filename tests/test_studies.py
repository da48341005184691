"""Studies: the plan, the paper's tables as recipes, the executor and the numbers that come out."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from undistill.errors import DataError, RecipeError, RunError, UnknownNameError
from undistill.recipe import Recipe, load_recipe
from undistill.registry import Spec
from undistill.run import Workspace
from undistill.studies.formats import make_grid, to_html, to_markdown, to_tex
from undistill.studies.local import Failure
from undistill.studies.paper import PaperCell, load_paper
from undistill.studies.plan import Plan
from undistill.studies.progress import Silence
from undistill.studies.reproduce import Reproduction, check_data, plan_studies, reproduce, runs_folder
from undistill.studies.results import CellResult, TableResult, evaluate, to_json
from undistill.studies.tables import TABLES, Changes, TableStudy, adapt, load_studies

SMOKE = Changes(smoke=True)


def quiet(total: int) -> Silence:
    return Silence()


def study(name: str, **arguments: object) -> TableStudy:
    (found,) = load_studies(name, **arguments)  # type: ignore[arg-type]
    return found


def weights(out: Path) -> dict[str, str]:
    """The checksum of the weights of every run: equal ones mean that every number is equal."""
    found = {path.parent.name: json.loads(path.read_text()) for path in runs_folder(out).glob("*/result.json")}
    return {name: result["weights_sha256"] for name, result in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction]:
    """Table 1 in smoke, by one worker, undisturbed."""
    out = tmp_path_factory.mktemp("study")
    return out, reproduce("table1", load_studies("table1", changes=SMOKE), out, jobs=1, device="cpu", observe=quiet)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_table1_is_thirteen_runs() -> None:
    # 4 students alone, one of them the normal teacher and the adversary; 1 nasty teacher; 4 students from each teacher
    plan = study("table1").plan
    assert len(plan.steps) == 4 + 1 + 4 + 4
    assert sum(step.recipe.kind == "defense" for step in plan.steps) == 1
    assert len(study("table1", seeds=3).plan.steps) == 3 * 13


def test_table4_adds_two_adversaries_to_table1() -> None:
    # two more nasty teachers with four students each, and ResNeXt-29 alone; the CNN is a student already
    both = Plan.of([*study("table1").recipes, *study("table4").recipes])
    assert len(both.steps) == 13 + 2 + 2 * 4 + 1


def test_the_whole_paper() -> None:
    # Tables 2 and 3: 5 nets alone, 3 nasty teachers, 2 x (3 + 4 + 4) students; Table 5: on CIFAR-10 ResNet-50 alone
    # and 4 students (ResNeXt-29 is in Table 4), on CIFAR-100 4 students
    recipes = [recipe for one in load_studies("all") for recipe in one.recipes]
    assert len(Plan.of(recipes).steps) == 24 + 2 * (5 + 3 + 22) + (1 + 4) + 4


@pytest.mark.parametrize("name", TABLES)
def test_steps_come_after_what_they_need(name: str) -> None:
    seen: set[str] = set()
    for step in study(name, seeds=2).plan.steps:
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
    plan = study("table1").plan
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
    families = [{Spec.parse(step.recipe.model).name for step in one.plan.steps} for one in (real, smoke)]
    assert families[0] == families[1]
    for step in smoke.plan.steps:
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
    assert [one.name for one in load_studies("all", only=["resnet50-nasty"])] == ["table2", "table3"]


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
    ],
)
def test_bad_studies_are_refused(name: str, arguments: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_studies(name, **arguments)  # type: ignore[arg-type]


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_second_call_trains_nothing(finished: tuple[Path, Reproduction]) -> None:
    out, first = finished
    before = {path: path.stat().st_mtime_ns for path in runs_folder(out).rglob("*")}
    second = reproduce("table1", load_studies("table1", changes=SMOKE), out, jobs=1, device="cpu", observe=quiet)
    assert second.trained == 0
    assert {path: path.stat().st_mtime_ns for path in runs_folder(out).rglob("*")} == before
    assert second.results == first.results


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


class Killer(Silence):
    """Kills, once, all workers while they train the nets that everything else waits for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.killed: list[str] = []

    def started(self, recipe: Recipe) -> None:
        self.seen.append(recipe.hash)

    def at(self, recipe: Recipe, epochs: float, text: str) -> None:
        if recipe.kind == "defense" and not self.killed:
            self.killed.append(recipe.hash)
            kill_workers()


def kill_workers() -> None:
    for child in mp.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)


def test_two_workers_one_of_them_killed_give_what_one_gives(
    finished: tuple[Path, Reproduction], tmp_path: Path
) -> None:
    (out, one), killer = finished, Killer()
    studies = load_studies("table1", changes=SMOKE)
    two = reproduce("table1", studies, tmp_path, jobs=2, device="cpu", observe=lambda total: killer)
    assert one.trained == two.trained == 13
    assert len(killer.killed) == 1
    assert killer.seen.count(killer.killed[0]) == 2
    assert len(weights(out)) == 13
    assert weights(tmp_path) == weights(out)
    for file in ("study.json", "tables.md", "tables.tex", "index.html"):
        assert (two.folder / file).read_bytes() == (one.folder / file).read_bytes()


COORDINATOR = """
import sys
from pathlib import Path
from undistill.studies.reproduce import reproduce
from undistill.studies.tables import Changes, load_studies
if __name__ == "__main__":
    reproduce("table1", load_studies("table1", changes=Changes(smoke=True)), Path(sys.argv[1]), jobs=1, device="cpu")
"""


def test_a_killed_coordinator_leaves_a_study_that_goes_on(finished: tuple[Path, Reproduction], tmp_path: Path) -> None:
    out, undisturbed = finished
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
    studies = load_studies("table1", changes=SMOKE)
    found = reproduce("table1", studies, tmp_path / "out", jobs=1, device="cpu", observe=quiet)
    assert 0 < found.trained <= 10
    assert weights(tmp_path / "out") == weights(out)
    assert (found.folder / "study.json").read_bytes() == (undisturbed.folder / "study.json").read_bytes()


class Murderer(Silence):
    """Kills every worker that takes the CNN."""

    def started(self, recipe: Recipe) -> None:
        if recipe.model.startswith("cnn"):
            kill_workers()


def test_failed_runs_are_failed_cells_and_the_rest_goes_on(tmp_path: Path) -> None:
    given = study("table1", changes=SMOKE)
    (nasty,), (kd,) = given.cells["resnet18-nasty", "teacher"], given.cells["resnet18-nasty", "preresnet20"]
    broken = nasty.model_copy(update={"lr": 1e30})
    cells = {
        ("baseline", "cnn"): given.cells["baseline", "cnn"],
        ("resnet18-normal", "teacher"): given.cells["resnet18-normal", "teacher"],
        ("resnet18-nasty", "teacher"): (broken,),
        ("resnet18-nasty", "preresnet20"): (kd.model_copy(update={"victim": broken}),),
    }
    found = reproduce(
        "table1", [replace(given, cells=cells)], tmp_path, jobs=1, device="cpu", observe=lambda total: Murderer()
    )
    assert found.failed
    (result,) = found.results
    assert not result.cells["resnet18-normal", "teacher"].failures
    (killed,) = result.cells["baseline", "cnn"].failures.values()
    assert killed.reason == "its process was killed by signal 9, 2 times"
    (diverged,) = result.cells["resnet18-nasty", "teacher"].failures.values()
    assert "finite" in diverged.reason
    assert diverged.log is not None
    assert "DivergenceError" in diverged.log.read_text()
    (skipped,) = result.cells["resnet18-nasty", "preresnet20"].failures.values()
    assert skipped.reason == f"not run: {broken.folder_name} failed: {diverged.reason}"
    content = json.loads((found.folder / "study.json").read_text())
    cell = content["tables"][0]["rows"][2]["cells"]["preresnet20"]
    assert (cell["mean"], cell["n"], cell["paper"]) == (None, 0, 88.01)
    assert cell["failures"]["0"]["reason"] == skipped.reason
    for text in ("tables.md", "tables.tex", "index.html"):
        assert "failed" in (found.folder / text).read_text()


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match="another study runs in"):
        reproduce("table1", load_studies("table1", changes=SMOKE), tmp_path, device="cpu", observe=quiet)


def test_missing_data_are_told_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10: .* is missing; run `undistill data fetch cifar10`"):
        reproduce("table5", load_studies("table5"), tmp_path, device="cpu", observe=quiet)
    assert not runs_folder(tmp_path).exists()
    with pytest.raises(DataError, match=r"fetch cifar10`.*fetch cifar100`"):
        check_data(["cifar10", "digits", "cifar100(subset=10)"])
    with pytest.raises(DataError, match="there is no file"):
        check_data(["npz(path='nowhere.npz')"])


# --- the numbers ------------------------------------------------------------------------------------------------------


def made_up(values: dict[tuple[str, str], list[float]], failed: int = 0) -> TableResult:
    """Table 1 with these accuracies, as if by runs."""
    seeds = max(map(len, values.values())) + failed
    given = study("table1", seeds=seeds)
    cells = {}
    for where in values:
        runs = {
            seed: SimpleNamespace(
                accuracy=accuracy,
                collapsed=False,
                folder=Path("run"),
                recipe=given.cells[where][0],
                result={"provenance": {"profile": "exact"}, "data_fingerprint": "f"},
            )
            for seed, accuracy in enumerate(values[where])
        }
        lost = {seed: Failure("it broke") for seed in range(seeds) if seed not in runs}
        cells[where] = CellResult(given.paper.cell(*where), runs, lost)  # type: ignore[arg-type]
    return TableResult(given, cells)


def test_numbers_by_hand() -> None:
    # Student's t, 2 degrees of freedom: t(0.975) = 4.302653; the standard deviation of (81, 82, 84) is sqrt(7 / 3)
    cell = CellResult(PaperCell(value=82.46, difference=-4.18), {}, {})
    (result,) = [made_up({("resnet18-nasty", "cnn"): [81.0, 82.0, 84.0]})]
    found = replace(result.cells["resnet18-nasty", "cnn"], reference=86.0)
    assert found.paper == cell.paper
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(247 / 3)
    assert found.accuracy.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-6)
    assert found.difference == pytest.approx(247 / 3 - 86)
    assert found.disagrees is False
    assert replace(found, paper=PaperCell(value=78.0)).disagrees is True  # 82.33 - 3.79 = 78.54
    assert replace(found, paper=PaperCell(value=79.0)).disagrees is False
    assert replace(found, paper=PaperCell()).disagrees is None


def test_one_seed_says_nothing_about_agreement() -> None:
    cell = made_up({("baseline", "cnn"): [10.0]}).cells["baseline", "cnn"]
    assert cell.disagrees is None


def test_study_json_equals_arithmetic_on_the_runs(finished: tuple[Path, Reproduction]) -> None:
    out, found = finished
    content = json.loads((found.folder / "study.json").read_text())
    assert (content["study"], content["kind"], content["seeds"]) == ("table1", "smoke", 1)
    assert content["provenance"]["profile"] == ["exact"]
    assert content["provenance"]["selection"] == ["paper"]
    (table,) = content["tables"]
    assert [row["name"] for row in table["rows"]] == ["baseline", "resnet18-normal", "resnet18-nasty"]
    cells = {(row["name"], column): cell for row in table["rows"] for column, cell in row["cells"].items()}
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


def test_self_is_measured_against_the_normal_teacher(tmp_path: Path) -> None:
    given = study("table2", seeds=1)
    values = {("resnet50-normal", "teacher"): 78.0, ("resnet50-nasty", "self"): 75.5, ("resnet50-nasty", "teacher"): 77}

    class Found:
        def find(self, recipe: Recipe) -> object:
            where = next((w for w in values if given.cells[w][0].hash == recipe.hash), None)
            return None if where is None else SimpleNamespace(accuracy=values[where], collapsed=False)

    result = evaluate(given, Found(), {})  # type: ignore[arg-type]
    assert result.cells["resnet50-nasty", "self"].difference == pytest.approx(-2.5)
    assert result.cells["resnet50-nasty", "teacher"].difference == pytest.approx(-1.0)
    assert result.cells["resnet50-normal", "teacher"].difference is None
    assert result.cells["resnet50-normal", "self"].failures[0].reason == "not run"


def test_tables_put_the_paper_beside_ours_and_mark_what_differs() -> None:
    values = {("baseline", "cnn"): [80.0, 80.2, 80.1], ("resnet18-nasty", "cnn"): [82.0, 83.0, 82.5]}
    result = made_up(values, failed=1)
    grid = make_grid(result)
    assert grid.rows[0][1][1] is not None
    # t(0.975, 2) * 0.1 / sqrt(3) = 0.248
    assert grid.rows[0][1][1].mine == "80.10 ± 0.25 (n=3)≠"
    assert grid.rows[0][1][1].paper == "86.64"
    assert grid.rows[0][1][0] is None
    markdown = to_markdown([grid], Changes())
    assert "| Student baseline | – | 80.10 ± 0.25 (n=3)≠ |" in markdown
    assert "| paper | – | 86.64 |" in markdown
    assert "Failed: Student baseline, CNN, seed 3: it broke" in markdown
    tex = to_tex([grid], Changes())
    assert r"80.10 $\pm$ 0.25 (n=3)$\neq$" in tex
    assert tex.count(r"\begin{tabular}{lrrrrr}") == 1
    page = to_html([grid], Changes(), to_json("table1", [result])["provenance"])
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)
    assert "86.64" in page
    assert "80.10" in page


def test_what_is_not_the_paper_says_so_on_top(finished: tuple[Path, Reproduction]) -> None:
    folder = finished[1].folder
    assert folder.name == "table1-smoke"
    for file in ("tables.md", "tables.tex", "index.html"):
        assert "cannot be compared with the paper" in (folder / file).read_text()
    reduced = Changes(data={"cifar10": "x.npz"}, epochs=5, width=0.25)
    assert "cifar10 replaced by x.npz, 5 epochs, nets of width 0.25" in to_markdown([], reduced)
