"""The turbo protocol: a tenth of the epochs, and it says that it is another one."""

from __future__ import annotations

import pytest
import torch

from undistill.data import load_dataset
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.optim import learning_rate
from undistill.engine.train import fit
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Nets
from undistill.recipe import Recipe, list_recipes, load_recipe
from undistill.studies.changes import turbo_protocol

TURBO = [name for name in list_recipes() if name.startswith("turbo/")]


def turbo(training: Training) -> Training:
    return training.model_copy(update=turbo_protocol(training))


def test_a_tenth_of_the_epochs_on_one_cycle():
    found = turbo(Training())
    assert (found.epochs, found.schedule, found.profile) == (16, "one_cycle", "turbo")
    rates = [learning_rate(found, epoch, step, 391) for epoch in range(16) for step in range(391)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.2, rel=1e-6)
    assert peak / len(rates) == pytest.approx(0.3, abs=0.01)
    assert rates[0] < 0.2 / 20
    assert rates[-1] < 0.2 / 10_000
    kept = ("batch_size", "optimizer", "momentum", "weight_decay", "augment", "holdout", "seed")
    assert all(getattr(found, name) == getattr(Training(), name) for name in kept)


def test_it_learns_more_than_a_protocol_that_is_cut_short():
    data = load_dataset("digits")
    whole = Training(
        epochs=40,
        batch_size=64,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0,
        schedule="constant",
        augment="crop",
        holdout=0,
        selection="last",
    )
    found = {}
    for name, config in {"cut": whole.model_copy(update={"epochs": 4}), "turbo": turbo(whole)}.items():
        model = build_model("cnn(channels=16)", num_classes=10, in_channels=1, image_size=8, seed=0)
        found[name] = fit(Job(build_method("ce"), Nets(model), config), data, device=torch.device("cpu")).last.accuracy
    assert found["turbo"] > found["cut"] + 1
    assert found["turbo"] > 92


def test_the_peak_for_adam_is_higher():
    assert turbo(Training(optimizer="adam", lr=1e-3)).lr == 1e-2


def test_there_are_two_epochs_at_least():
    assert turbo(Training(epochs=3)).epochs == 2


def test_the_fields_are_a_valid_protocol():
    for paper in (Training(), Training(optimizer="adam", lr=1e-3, epochs=100, schedule="constant", milestones=())):
        assert Training(**turbo(paper).model_dump()) == turbo(paper)


def test_recipes_are_there():
    students = ("cnn", "preresnet20", "preresnet32", "resnet18")
    thefts = [f"kd_{student}__from_{nasty}resnet18" for student in students for nasty in ("", "nasty_")]
    assert {name.rpartition("/")[2] for name in TURBO} == {*students, "nasty_resnet18", *thefts}


@pytest.mark.parametrize("name", TURBO)
def test_recipes_are_the_turbo_form_of_the_papers(name: str):
    found, paper = load_recipe(name), load_recipe(name.replace("turbo/", "paper/"))
    shortened = {"folder", "name", "adversary", "victim", *turbo_protocol(paper)}
    assert {key: getattr(found, key) for key in turbo_protocol(paper)} == turbo_protocol(paper)
    for key in Recipe.model_fields.keys() - shortened:
        assert getattr(found, key) == getattr(paper, key), key
    for nested in (found.adversary, found.victim):
        if nested is not None:
            assert isinstance(nested, Recipe)
            assert nested.hash == load_recipe(f"turbo/cifar10/{'nasty_' * (nested.method != 'ce')}resnet18").hash
    assert found.hash != paper.hash
