"""The study of how a thief trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from undistill.engine.config import Training
from undistill.errors import RecipeError, UnknownNameError
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request, load_studies
from undistill.recipe import load_recipe
from undistill.reporting.cell import Cell
from undistill.reporting.parts.effect import Effect, EffectRow
from undistill.reporting.parts.table import Column
from undistill.studies.changes import PAPER, Changes
from undistill.studies.effect import effect
from undistill.studies.training import compared, training

WAYS = ("adam", "longer", "longest", "muon")


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100"])
def test_the_students_of_a_column_are_trained_alike(data: str) -> None:
    study = training(seeds=2, changes=PAPER, data=data, thieves=("textbook", "htc"))
    for way in WAYS:
        column = {row: recipes for (row, name), recipes in study.cells.items() if name == way}
        assert set(column) == {"baseline", *(f"{t}-{how}" for t in ("normal", "nasty") for how in ("textbook", "htc"))}
        for recipes in column.values():
            for recipe, alone in zip(recipes, column["baseline"], strict=True):
                for name in Training.model_fields:
                    assert getattr(recipe, name) == getattr(alone, name), name
                assert recipe.model == alone.model
    epochs = [study.cells["baseline", way][0].epochs for way in WAYS]
    assert epochs == [times * epochs[0] for times in (1, 4, 16, 1)]
    for row in ("normal-textbook", "nasty-htc"):
        victims = {tuple(recipe.victim for recipe in study.cells[row, way]) for way in WAYS}
        assert victims == {study.cells[row, "teacher"]}
    for nasty, twin in zip(study.cells["nasty-htc", "teacher"], study.cells["normal-htc", "teacher"], strict=True):
        assert nasty.adversary == twin


def test_the_constant_rate_is_that_of_the_papers_cnn_and_muon_that_of_turbo() -> None:
    study = training(seeds=1, changes=PAPER, data="cifar10")
    paper = load_recipe("paper/cifar10/cnn")
    (found,) = study.cells["baseline", "adam"]
    for name in ("optimizer", "lr", "weight_decay", "schedule", "batch_size"):
        assert getattr(found, name) == getattr(paper, name)
    table = effect(seeds=1, changes=PAPER)
    for row, same in (
        ("baseline", "baseline"),
        ("normal-textbook", "speedrun-normal"),
        ("nasty-textbook", "speedrun-nasty"),
    ):
        assert study.cells[row, "muon"][0].hash == table.cells[same, "cnn"][0].hash  # found again, not trained twice


def test_of_cifar_100_the_papers_temperature_weight_and_sgd() -> None:
    study = training(seeds=1, changes=PAPER, data="cifar100", ways=("sgd", "muon"))
    theirs = load_recipe("paper/cifar100/kd_mobilenetv2__from_nasty_resnet18")
    (found,) = study.cells["nasty-textbook", "sgd"]
    assert found.method == theirs.method
    assert found.victim is not None
    assert theirs.victim is not None
    assert found.victim.method == theirs.victim.method
    for name in ("optimizer", "lr", "momentum", "weight_decay", "schedule", "gamma", "batch_size"):
        assert getattr(found, name) == getattr(theirs, name), name
    assert found.milestones == tuple(round(found.epochs * at / theirs.epochs) for at in theirs.milestones)
    assert "MobileNetV2" in study.remarks[0]
    assert "SGD" in study.remarks[1]
    assert "Muon" in study.remarks[2]


def _part(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> Effect:
    names = {"baseline": (None, ""), "nasty-textbook": ("nasty", "textbook, τ=4")}
    rows = []
    for row, (of, how) in names.items():
        cells = {}
        for way, found in accuracies.items():
            values = {str(seed): value for seed, value in enumerate(found[row])}
            known = dict.fromkeys(("mean", "half_width", "difference", "paper", "paper_difference", "disagrees"))
            n = len(values)
            cells[way] = Cell(values=values, **known, n=n, collapsed_seeds=(), runs={}, failures={}, images=1000)
        rows.append(EffectRow(name=row, label=row, of=of, how=how, cells=cells))
    columns = tuple(Column(name=way, label=way.capitalize(), data="digits") for way in accuracies)
    return Effect.make(name="training", title="", seeds=3, header="", columns=columns, rows=tuple(rows), notes=())


def test_it_says_how_far_apart_the_ways_are() -> None:
    part = _part(
        {
            "adam": {"baseline": (90.0, 91.0, 92.0), "nasty-textbook": (80.0, 85.0, 90.0)},
            "muon": {"baseline": (92.0, 92.0, 92.0), "nasty-textbook": (90.0, 91.0, 89.0)},
        }
    )
    (note,) = compared(part)
    spared = [-2 + 10, -1 + 6, -3 + 2]  # where a student ends by Muon, less where it ends by Adam
    low, high = stats.t.interval(0.95, 2, loc=np.mean(spared), scale=stats.sem(spared))
    assert note.startswith("Nasty teacher, textbook, τ=4: ")
    assert "the first way (Adam)" in note
    assert note.endswith(f"+{np.mean(spared):.2f} [−{-low:.1f}, +{high:.1f}] (Muon).")


def test_of_one_seed_it_does_not() -> None:
    part = _part({way: dict.fromkeys(("baseline", "nasty-textbook"), (90.0,)) for way in ("adam", "muon")})
    assert not list(compared(part))


def test_bad_names() -> None:
    with pytest.raises(UnknownNameError, match="data set of training 'digit'; did you mean 'digits'"):
        load_studies("training", parameters={"data": "digit"})
    with pytest.raises(UnknownNameError, match="thief of training 'hct'; did you mean 'htc'"):
        load_studies("training", parameters={"thieves": ["hct"]})
    with pytest.raises(RecipeError, match="leave out --profile turbo"):
        load_studies("training", changes=Changes(profile="turbo"))
    with pytest.raises(UnknownNameError, match="way of training 'mun'; did you mean 'muon'"):
        load_studies("training", parameters={"ways": ["mun"]})


def test_it_runs_and_measures_each_student_against_the_one_alone(tmp_path: Path) -> None:
    changes = Changes(data={"digits": "digits(subset=200, test_subset=100)"}, epochs=2, width=0.25)
    found = reproduce(Request("training", changes=changes), tmp_path, jobs=1, device="cpu")
    assert not found.failed
    (part,) = found.document.parts
    (study,) = Request("training", changes=changes).load()
    assert [study.cells["baseline", way][0].epochs for way in WAYS] == [2, 8, 32, 2]  # type: ignore[attr-defined]
    assert {recipe.epochs for recipe in study.cells["nasty-textbook", "teacher"]} == {2}  # type: ignore[attr-defined]
    rows = {row["name"]: row for row in part.to_json()["rows"]}
    assert {name: row["of"] for name, row in rows.items()} == {
        "baseline": None,
        "normal-textbook": "normal",
        "nasty-textbook": "nasty",
    }
    for name in ("normal-textbook", "nasty-textbook"):
        for way in WAYS:
            cell, alone = rows[name]["cells"][way], rows["baseline"]["cells"][way]
            assert cell["difference"] == pytest.approx(cell["mean"] - alone["mean"])
            assert cell["paper"] is None
