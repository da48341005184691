"""Figures 3, 4 and 5: which runs they are, and a share of a data set."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import undistill.studies.curves
from undistill.data import load_dataset
from undistill.data.dataset import Images
from undistill.errors import DataError, RecipeError
from undistill.functional import mean_interval
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.request import load_studies
from undistill.recipe import Recipe
from undistill.registry import Spec
from undistill.reporting.document import Document
from undistill.reporting.formats import to_csv
from undistill.reporting.parts import part_of
from undistill.studies.changes import Changes, adapt
from undistill.studies.curves import CURVES, CurveStudy, Line
from undistill.studies.paper import load_paper
from undistill.studies.protocol import nasty, normal, student
from undistill.studies.tables import TABLES

SMOKE = Changes(smoke=True)


@cache
def figure(name: str, **arguments: Any) -> CurveStudy:
    (found,) = load_studies(name, **arguments)
    assert isinstance(found, CurveStudy)
    return found


def lines(study: CurveStudy) -> dict[tuple[str, str], Line]:
    return {(panel.name, line.name): line for panel in study.panels for line in panel.lines}


# --- which runs -------------------------------------------------------------------------------------------------------


def test_figure3_changes_omega_and_nothing_else() -> None:
    found = lines(figure("figure3"))
    assert [name for _, name in found] == [
        *("teacher", "cnn", "preresnet20", "preresnet32"),
        *("teacher", "shufflenetv2", "mobilenetv2", "resnet18"),
    ]
    for (data, name), line in found.items():
        weights = []
        for point in line.points:
            (recipe,) = point.recipes
            teacher = recipe if name == "teacher" else recipe.victim
            assert isinstance(teacher, Recipe)
            weights.append(Spec.parse(teacher.method).kwargs["weight"])
            same = teacher.model_copy(update={"method": nasty(data, "resnet18", 0).method})
            assert same.hash == nasty(data, "resnet18", 0).hash
            if name != "teacher":
                assert recipe.model_copy(update={"victim": same}).hash == student(data, name, same).hash
        assert weights == [point.x for point in line.points] == sorted(set(weights))


def test_figure4_changes_the_students_temperature_and_nothing_else() -> None:
    found = lines(figure("figure4"))
    assert len(found) == 2 * 3 * 2
    for (data, name), line in found.items():
        model, kind = name.split("-")
        assert line.against == kind
        victim = (nasty if kind == "nasty" else normal)(data, "resnet18", 0)
        for point in line.points:
            (recipe,) = point.recipes
            assert Spec.parse(recipe.method).kwargs == {"alpha": 0.9, "temperature": float(point.x or 0)}
            same = recipe.model_copy(update={"method": student(data, model, victim).method})
            assert same.hash == student(data, model, victim).hash


def test_figure5_trains_the_student_on_a_part_and_its_teacher_on_all() -> None:
    found = lines(figure("figure5"))
    assert len(found) == 2 * 3 * 3
    for (data, name), line in found.items():
        assert [point.x for point in line.points] == [0.1, 0.3, 0.5, 0.7, 0.9, 1]
        for point in line.points:
            (recipe,) = point.recipes
            assert recipe.data == (data if point.x == 1 else f"{data}(subset={point.x})")
            if name.endswith("-alone"):
                assert (recipe.kind, point.reference) == ("reference", None)
            else:
                assert isinstance(recipe.victim, Recipe)
                assert recipe.victim.data == data
                assert point.reference is not None
                assert point.reference.recipes[0].data == recipe.data


@pytest.mark.parametrize("name", CURVES)
def test_what_the_tables_have_is_shared_and_has_their_number(name: str) -> None:
    table_runs = {
        r.hash: where for t in ("table1", "table2") for one in load_studies(t) for where, (r,) in one.cells.items()
    }
    shared = 0
    for (data, line_name), line in lines(figure(name)).items():
        paper = load_paper()["table1" if data == "cifar10" else "table2"]
        printed = [point for point in line.points if point.printed is not None]
        assert [p for p in line.points if p.recipes[0].hash in table_runs] == printed
        assert len(printed) == 1, (line_name, "one point is the setting of the table")
        row, column = table_runs[printed[0].recipes[0].hash]
        assert printed[0].printed == paper.cell(row, column)
        shared += 1
        if line.dashed is not None:
            row = "resnet18-normal" if line_name == "teacher" else "baseline"
            assert line.dashed.point.printed == paper.cell(row, line.dashed.name)
    assert shared == {"figure3": 8, "figure4": 12, "figure5": 18}[name]


def test_the_paper_at_the_setting_of_its_tables() -> None:
    # read off the slides by hand: Table 1 and 2, nasty rows
    points = {
        (*where, p.x): p.printed.value
        for where, line in lines(figure("figure3")).items()
        for p in line.points
        if p.printed
    }
    assert points["cifar10", "teacher", 0.04] == 94.56
    assert points["cifar10", "cnn", 0.04] == 82.46
    assert points["cifar100", "mobilenetv2", 0.005] == 3.45
    found = lines(figure("figure4"))
    assert {p.x: p.printed and p.printed.value for p in found["cifar10", "cnn-normal"].points}[4] == 87.75
    assert {p.x: p.printed and p.printed.value for p in found["cifar100", "resnet18-nasty"].points}[20] == 74.81


def test_the_whole_paper_shares_its_runs() -> None:
    recipes = [recipe for name in (*TABLES, *CURVES) for one in load_studies(name) for recipe in one.recipes]
    # 93 of the tables; Figure 3: four other ω on two data sets, of the teacher and three students; Figure 4: four other
    # τ_s of six students and two teachers; Figure 5: five parts of the data, six students alone and with two teachers
    assert len(Plan.of(recipes).steps) == 93 + 4 * 2 * (1 + 3) + 4 * 6 * 2 + 5 * 6 * 3


def test_grids_are_ordered() -> None:
    path = Path(undistill.studies.curves.__file__).with_name("curves.yaml")
    grids = yaml.safe_load(path.read_text())["grids"]
    assert grids.keys() == set(CURVES)
    for grid in (grid for panels in grids.values() for grid in panels.values()):
        assert grid == sorted(set(grid))


@pytest.mark.parametrize("name", CURVES)
def test_smoke_keeps_every_point(name: str) -> None:
    real, smoke = lines(figure(name)), lines(figure(name, changes=SMOKE))
    assert real.keys() == smoke.keys()
    for where in real:
        assert [p.x for p in real[where].points] == [p.x for p in smoke[where].points]
        assert len({p.recipes[0].hash for p in smoke[where].points}) == len(smoke[where].points)


def test_panels_and_lines_can_be_picked() -> None:
    assert {data for data, _ in lines(figure("figure4", only=("cifar10",)))} == {"cifar10"}
    assert list(lines(figure("figure4", only=("cnn-nasty", "mobilenetv2-normal")))) == [
        ("cifar10", "cnn-nasty"),
        ("cifar100", "mobilenetv2-normal"),
    ]
    kept = figure("figure3", only=("cifar10",), skip=("teacher",))
    assert [name for _, name in lines(kept)] == ["cnn", "preresnet20", "preresnet32"]
    assert not any(recipe.data == "cifar100" for recipe in kept.recipes)


# --- a share of a data set --------------------------------------------------------------------------------------------


def test_a_share_is_that_many_images_of_every_class() -> None:
    whole = load_dataset("digits")
    tenth = load_dataset("digits(subset=0.1)")
    assert len(tenth.train) == round(0.1 * len(whole.train)) == 130
    assert len(tenth.test) == len(whole.test)
    quota = 0.1 * torch.bincount(whole.train.y)
    assert (torch.bincount(tenth.train.y) - quota).abs().max() <= 1
    assert tenth.fingerprint == load_dataset("digits(subset=130)").fingerprint
    assert len(load_dataset("digits(test_subset=0.5)").test) == 250


def test_smaller_shares_are_parts_of_larger_ones() -> None:
    def images(share: float) -> set[bytes]:
        return {image.numpy().tobytes() for image in load_dataset(f"digits(subset={share})").train.x}

    for smaller, larger in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        assert images(smaller) < images(larger)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.5])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(RecipeError, match="or a share between 0 and 1, got"):
        load_dataset(f"digits(subset={share})")


def test_a_share_without_an_image_of_every_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"digits: subset=0.001: cannot put 1 of"):
        load_dataset("digits(subset=0.001)")


@pytest.mark.parametrize(
    ("share", "replacement", "subset"),
    [
        (0.3, "digits", 0.3),
        (0.3, "digits(subset=400)", 120),
        (0.3, "digits(subset=0.5)", 0.15),
        (300, "digits", 300),
        (300, "digits(subset=400)", 300),
        (500, "digits(subset=400)", 400),  # a number of images is no share: all there are
    ],
)
def test_a_share_of_what_stands_in_for_the_data(share: float, replacement: str, subset: float) -> None:
    recipe = student("cifar10", "cnn", normal("cifar10", "resnet18", 0), share=0.3)
    recipe = recipe.model_copy(update={"data": f"cifar10(subset={share})"})
    found = adapt(recipe, Changes(data={"cifar10": replacement}))
    assert Spec.parse(found.data) == Spec("digits", {"subset": subset})
    assert isinstance(found.victim, Recipe)
    assert found.victim.data == replacement


def test_a_share_in_smoke_has_every_class() -> None:
    recipe = adapt(normal("cifar10", "cnn", 0, share=0.1), SMOKE)
    train: Images = load_dataset(recipe.data).train
    assert torch.bincount(train.y).tolist() == [1] * 10


# --- the part ---------------------------------------------------------------------------------------------------------


def made_up(study: CurveStudy, accuracy: dict[tuple[str, float | None], list[float]]) -> dict[str, Any]:
    """The part of a study whose points have these accuracies by line (or dashed line) and x, as if by runs."""
    points = [(line.name, p) for panel in study.panels for line in panel.lines for p in line.points]
    points += [(line.dashed.name, line.dashed.point) for p in study.panels for line in p.lines if line.dashed]
    known = {
        recipe.hash: value
        for name, p in points
        for recipe, value in zip(p.recipes, accuracy.get((name, p.x), []), strict=False)
    }

    def find(recipe: Recipe) -> object:
        value = known.get(recipe.hash)
        result = {"test_images": 10_000, "classes": 10}
        return value and SimpleNamespace(
            accuracy=value, collapsed=value < 5, folder=Path(f"run-{recipe.hash}"), result=result
        )

    workspace: Any = SimpleNamespace(find=find)
    return study.evaluate(workspace, {}, Path()).to_json()


def test_the_part_of_a_figure_by_hand() -> None:
    given = figure("figure3", seeds=2, only=("cifar10",), skip=("preresnet20", "preresnet32"))
    accuracy = {
        **{("teacher", x): [94.0, 95.0] for x in (0.005, 0.01, 0.02, 0.04, 0.08)},
        ("teacher", None): [95.0, 95.5],
        ("cnn", 0.04): [80.0, 81.0],
        ("cnn", 0.08): [3.0],
        ("cnn", None): [86.0, 86.5],
    }
    part = made_up(given, accuracy)
    (panel,) = part["panels"]
    assert (panel["name"], panel["x"]) == ("cifar10", {"label": "ω", "scale": "log"})
    teacher, cnn = panel["lines"]
    assert (teacher["role"], teacher["against"], cnn["role"], cnn["against"]) == ("teacher", None, "student", "nasty")
    point = {p["x"]: p for p in cnn["points"]}
    assert (point[0.04]["mean"], point[0.04]["half_width"]) == pytest.approx(mean_interval([80.0, 81.0])[:2])
    assert point[0.04]["difference"] == pytest.approx(80.5 - 86.25)
    # differences -6 and -5.5: t(0.975, 1) = 12.7062 times 0.25
    assert point[0.04]["difference_interval"] == pytest.approx([-5.75 - 3.17655, -5.75 + 3.17655], abs=1e-4)
    assert (point[0.04]["paper"], point[0.04]["paper_difference"]) == (82.46, -4.18)
    assert point[0.04]["disagrees"] is False  # 80.5 ± 11.0
    assert (point[0.04]["images"], point[0.04]["chance_seeds"], point[0.08]["chance_seeds"]) == (10_000, [], [0])
    assert "After a difference: its 95 % interval, paired by seed" in " ".join(part["notes"])
    assert (point[0.08]["collapsed_seeds"], list(point[0.08]["failures"])) == ([0], ["1"])
    assert (point[0.01]["mean"], point[0.01]["paper"]) == (None, None)
    references = {r["name"]: (r["line"], r["mean"], r["paper"]) for r in panel["references"]}
    assert references == {"teacher": ("teacher", 95.25, 95.13), "cnn": ("cnn", 86.25, 86.64)}
    assert part["failed"] is True
    assert "Failed: CIFAR-10, S: CNN, ω = 0.08, seed 1: not run" in part["notes"]
    assert any("where the points lie is our choice" in note for note in part["notes"])


def test_figure5_measures_against_the_same_images_alone() -> None:
    given = figure("figure5", only=("cnn-alone", "cnn-nasty"))
    part = made_up(given, {("cnn-alone", 0.1): [50.0], ("cnn-alone", 0.3): [60.0], ("cnn-nasty", 0.3): [55.0]})
    alone, nasty_line = part["panels"][0]["lines"]
    assert [p["difference"] for p in alone["points"]] == [None] * 6
    assert [p["difference"] for p in nasty_line["points"]] == [None, -5.0, None, None, None, None]
    assert part["panels"][0]["references"] == []


def test_a_figure_in_words_and_as_csv() -> None:
    given = figure("figure4", only=("cnn-normal", "cnn-nasty"))
    part = made_up(given, {("cnn-nasty", 4): [80.0], ("cnn-nasty", 20): [70.0], ("cnn", None): [86.0]})
    shown = part_of(part)
    assert (shown.heading, shown.drawn) == ("Figure 4", True)
    (grid,) = shown.grids()
    assert (grid.caption, grid.heads) == ("CIFAR-10", ("τₛ =",))
    assert grid.columns == ("1", "2", "4", "10", "20", "trained normally")
    assert [line for _, _, line in grid.lines][2:] == [
        ["S: CNN (nasty)", "failed", "failed", "80.00 (−6.00)", "failed", "70.00 (−16.00)", "–"],
        ["paper", "–", "–", "82.46 (−4.18)", "–", "–", "–"],
    ]
    table = to_csv(Document("", (part_of(part),), {})).splitlines()
    assert table[0] == "study,row,column,x,seed,accuracy,run,failure,paper,difference,difference_low,difference_high"
    (recipe,) = next(p for p in given.panels[0].lines[1].points if p.x == 4).recipes
    assert f"figure4,cifar10,cnn-nasty,4,0,80.0,run-{recipe.hash},,82.46,-6.0,," in table
    assert "figure4,cifar10,cnn-normal,1,0,,,not run,,,," in table
    assert sum(line.startswith("figure4,cifar10,cnn,,0,86.0,") for line in table) == 1
    assert len(table) == 1 + 2 * 5 + 1


def test_nothing_picked_is_no_study() -> None:
    given = figure("figure3", only=("cnn",))
    assert given.pick(lambda *names: "cnn" in names) == given
    assert given.pick(lambda *names: False) is None
