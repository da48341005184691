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
from undistill.studies.changes import Changes, adapt, turbo_protocol

OURS = ("speedrun", "nasty_speedrun", "budget_speedrun", "kd_cnn__from_speedrun")
TURBO = [name for name in list_recipes() if name.startswith("turbo/")]


def turbo(training: Training) -> Training:
    return training.model_copy(update=turbo_protocol(training))


def test_a_tenth_of_the_epochs_at_a_rate_that_falls_to_zero():
    found = turbo(Training())
    assert (found.epochs, found.optimizer, found.schedule, found.profile) == (16, "muon", "linear", "turbo")
    rates = [learning_rate(found, epoch, step, 391) for epoch in range(16) for step in range(391)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (0.03, pytest.approx(0.03 / (16 * 391)))
    kept = ("batch_size", "holdout", "seed")
    assert all(getattr(found, name) == getattr(Training(), name) for name in kept)


def test_what_holds_nothing_out_holds_a_tenth_out():
    assert turbo(Training(holdout=0, selection="paper")).holdout == 0.1


def test_the_rate_goes_with_the_root_of_the_batch():
    assert turbo(Training(batch_size=512)).lr == 2 * turbo(Training(batch_size=128)).lr


def test_one_protocol_for_every_net():
    mine, yours = turbo(Training()), turbo(Training(optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant"))
    assert mine == yours


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


def test_there_are_two_epochs_at_least():
    assert turbo(Training(epochs=3)).epochs == 2


def test_the_fields_are_a_valid_protocol():
    for paper in (Training(), Training(optimizer="adam", lr=1e-3, epochs=100, schedule="constant", milestones=())):
        assert Training(**turbo(paper).model_dump()) == turbo(paper)


@pytest.mark.parametrize("profile", ["exact", "fast", "turbo"])
def test_a_recipe_in_its_turbo_form_stays_in_it_on_other_data(profile: str):
    recipe = load_recipe("turbo/cifar10/cnn")
    changed = adapt(recipe, Changes(data={"cifar10": "digits"}, profile=profile))
    assert {key: getattr(changed, key) for key in Training.model_fields} == {
        key: getattr(recipe, key) for key in Training.model_fields
    }


def test_recipes_are_there():
    students = ("cnn", "preresnet20", "preresnet32", "resnet18")
    thefts = [f"kd_{student}__from_{nasty}resnet18" for student in students for nasty in ("", "nasty_")]
    assert {name.rpartition("/")[2] for name in TURBO} == {*students, "nasty_resnet18", *thefts, *OURS}


@pytest.mark.parametrize("name", OURS)
def test_recipes_of_the_speedrun_net_have_the_same_protocol(name: str):
    found, other = load_recipe(f"turbo/cifar10/{name}"), load_recipe("turbo/cifar10/resnet18")
    apart = {"model", "method", "adversary", "victim", "epochs", *(["lr"] if name.startswith("budget") else [])}
    assert {key for key in Recipe.model_fields if getattr(found, key) != getattr(other, key)} <= apart


@pytest.mark.parametrize("name", sorted({*TURBO} - {f"turbo/cifar10/{name}" for name in OURS}))
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
