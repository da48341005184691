"""What every reference, defense and attack must do, whoever wrote it; a new one is tested by being registered."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from undistill.attacks import ATTACKS, Attack, list_attacks
from undistill.data import load_dataset
from undistill.data.dataset import Dataset
from undistill.defenses import DEFENSES, Defense, list_defenses
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.train import fit
from undistill.errors import AccessError, InterruptedRunError, RecipeError, UnknownNameError
from undistill.methods import REFERENCES, build_method, method_class
from undistill.models import build_model
from undistill.objective import Frozen, Nets, Objective, Paper
from undistill.recipe import Recipe, make_recipe
from undistill.registry import Spec
from undistill.run import Run
from undistill.victim import Access, Victim
from undistill.workspace import Workspace

REGISTRIES = (REFERENCES, DEFENSES, ATTACKS)
METHODS = [registry[name] for registry in REGISTRIES for name in registry.names()]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
attacks = pytest.mark.parametrize("method", [ATTACKS[name] for name in ATTACKS.names()], ids=lambda method: method.name)

DATA = "digits(subset=60, test_subset=30)"
BASE: dict[str, Any] = {"data": DATA, "model": "cnn(channels=4)", "epochs": 2, "batch_size": 18, "lr": 0.05}
CPU = torch.device("cpu")
TWO_STEPS = Training(epochs=1, batch_size=30, lr=0.05, holdout=0, selection="last")


def smoke(method: type[Objective]) -> Objective:
    assert "smoke" in vars(method), f"{method.name} declares no smoke arguments of its own; {{}} if the defaults do"
    return method(**method.smoke)


def goes_on(method: type[Objective]) -> bool:
    """Tell whether the student starts from the victim's own weights, and so is the same net."""
    return issubclass(method, Attack) and "begin" in vars(method)


def recipe(method: type[Objective], **changes: Any) -> Recipe:
    fields = {**BASE, "method": smoke(method).spec, **changes}
    if issubclass(method, Attack):
        other = "mlp(hidden=(8,), relu_logits=False)"
        victim = {"model": BASE["model"] if goes_on(method) else other, "epochs": 1, "lr": 0.05}
        fields = {"victim": victim, "access": str(method.access), **fields}
    return make_recipe(fields)


def net(data: Dataset, seed: int, model: str = "cnn(channels=4)") -> torch.nn.Module:
    return build_model(
        model, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size, seed=seed
    )


class Losses:
    """Collect what a run says of its epochs."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, epoch: int, step: int, steps: int) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class InterruptAt:
    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict[str, Any]) -> None:
        pass


def test_the_first_methods_are_there():
    assert {"ce", "label_smoothing"} <= set(REFERENCES.names())
    assert "nasty" in list_defenses()
    assert {"kd", "hard_label"} <= set(list_attacks())
    names = [method.name for method in METHODS]
    assert len(names) == len(set(names))  # one namespace over three registries


@by_name
def test_is_described(method: type[Objective]):
    assert method.__doc__
    assert method.__doc__.strip() != Objective.__doc__
    assert "step" in vars(method)
    for name, field in method.model_fields.items():
        assert field.description, f"{method.name}.{name} has no description"
        assert not field.is_required(), f"{method.name}.{name} has no default"
    if method.name != "ce":  # plain cross-entropy is nobody's invention
        assert isinstance(method.paper, Paper)
        assert method.paper.url.startswith("https://")
        assert method.paper.title in str(method.paper)


@by_name
def test_declares_what_it_needs(method: type[Objective]):
    if issubclass(method, Attack):
        assert isinstance(method.access, Access)
        assert isinstance(method.uses_labels, bool)
    if issubclass(method, Defense):
        assert isinstance(method.needs_adversary, bool)


@by_name
def test_round_trip(method: type[Objective]):
    for configured in (method(), smoke(method)):
        assert build_method(configured.spec) == configured
        assert build_method(Spec.parse(configured.spec)) == configured
        assert build_method({"name": method.name, **configured.model_dump()}) == configured
        old = {name for name, value in method.added.items() if getattr(configured, name) == value}
        assert set(Spec.parse(configured.spec).kwargs) == set(method.model_fields) - old
    assert method_class(method.name) is method


@by_name
def test_unknown_and_wrong_hyperparameters(method: type[Objective]):
    with pytest.raises(RecipeError, match=f"{method.name}: unknown field 'no_such_field'"):
        build_method({"name": method.name, "no_such_field": 1})
    numbers = [name for name, field in method.model_fields.items() if field.annotation in (int, float)]
    for name in numbers:
        for value in (-1e9, "text", math.nan, math.inf):
            with pytest.raises(RecipeError, match=f"{method.name}: {name}: must be"):
                build_method({"name": method.name, name: value})
    if len(numbers) > 1:
        with pytest.raises(RecipeError) as caught:
            build_method({"name": method.name, **dict.fromkeys(numbers, -1e9), "no_such_field": 1})
        assert len(caught.value.problems) == len(numbers) + 1


@by_name
def test_is_frozen(method: type[Objective]):
    for name in method.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(smoke(method), name, 1)


def test_unknown_method():
    with pytest.raises(UnknownNameError, match=r"unknown method 'hard_labels'; did you mean 'hard_label'\?"):
        build_method("hard_labels")


@by_name
def test_trains(method: type[Objective]):
    data = load_dataset(DATA)
    model = net(data, 1)
    start = {key: value.clone() for key, value in model.named_parameters()}
    others = {"twin": net(data, 2), "teacher": net(data, 3)}
    states = {key: {k: v.clone() for k, v in other.state_dict().items()} for key, other in others.items()}
    victim = Victim(others["teacher"], access=getattr(method, "access", Access.LABELS))
    losses = Losses()
    fit(
        Job(smoke(method), Nets(model, Frozen(others["twin"]), victim), TWO_STEPS, callback=losses), data, device=CPU
    )  # an attack with no more than it declares
    (record,) = losses.records
    assert all(math.isfinite(value) for value in record.values())
    assert {"epoch", "train_loss", "train_accuracy"} <= set(record)
    moved = [not torch.equal(value, start[key]) for key, value in model.named_parameters() if value.requires_grad]
    assert moved
    assert all(moved)
    for key, other in others.items():
        assert all(torch.equal(value, states[key][k]) for k, value in other.state_dict().items())
    asked = victim.queries
    assert (asked > 0) == (issubclass(method, Attack) and not goes_on(method))  # who has the weights need not ask
    assert asked % len(data.train) == 0


@by_name
def test_resume_is_exact(method: type[Objective], tmp_path: Path):
    wanted = recipe(method)
    whole = Workspace(tmp_path / "whole").run(wanted)
    broken = Workspace(tmp_path / "broken", watch=lambda r: InterruptAt(4) if r == wanted else None)
    with pytest.raises(InterruptedRunError):
        broken.run(wanted)  # 3 steps an epoch: after the first step of the second one
    assert len(Run(tmp_path / "broken" / wanted.folder_name).metrics) == 1
    resumed = Workspace(tmp_path / "broken").run(wanted)
    same = [(run.folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert same[0] == same[1]
    assert whole.metrics == resumed.metrics
    assert whole.result["queries"] == resumed.result["queries"]


@attacks
def test_attack_without_access_is_refused_before_anything_happens(method: type[Attack], tmp_path: Path):
    weaker = [access for access in Access if access < method.access]
    for access in weaker:
        wanted = recipe(method, access=str(access))
        with pytest.raises(
            AccessError, match=f"{method.name!r} needs the victim's {method.access}, but it gives {access}"
        ):
            Workspace(tmp_path / "runs", watch=lambda r: pytest.fail("trained")).run(wanted)
        assert not (tmp_path / "runs").exists()
    assert bool(weaker) == (method.access > Access.LABELS)


@attacks
def test_attack_takes_no_more_than_it_declares(method: type[Attack]):
    """Below its declared level the victim itself refuses, so the declaration is the truth."""
    data = load_dataset(DATA)
    if method.access == Access.LABELS:
        return
    victim = Victim(net(data, 3), access=Access(method.access - 1))
    with pytest.raises(AccessError, match="the victim gives"):
        fit(Job(smoke(method), Nets(net(data, 1), victim=victim), TWO_STEPS), data, device=CPU)
    assert victim.queries == 0


@attacks
def test_attack_needs_a_victim(method: type[Attack]):
    data = load_dataset(DATA)
    with pytest.raises(RecipeError, match=f"attack {method.name!r} needs a victim"):
        fit(Job(smoke(method), Nets(net(data, 1)), TWO_STEPS), data, device=CPU)


@attacks
def test_attack_that_needs_no_labels_does_not_look_at_them(method: type[Attack]):
    data = load_dataset(DATA)
    states = []
    for shift in (0, 3):
        other = Dataset(
            data.name,
            type(data.train)(data.train.x, (data.train.y + shift) % 10),
            data.test,
            data.classes,
            data.mean,
            data.std,
        )
        model = net(data, 1)
        nets = Nets(model, victim=Victim(net(data, 3), access=method.access))
        fit(Job(smoke(method), nets, TWO_STEPS), other, device=CPU)
        states.append(model.state_dict())
    same = all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert same == (not method.uses_labels)


@pytest.mark.parametrize("name", [name for name in DEFENSES.names() if DEFENSES[name].needs_adversary])
def test_defense_needs_its_adversary(name: str):
    data = load_dataset(DATA)
    with pytest.raises(RecipeError, match=f"defense {name!r} needs an adversary"):
        fit(Job(smoke(DEFENSES[name]), Nets(net(data, 1)), TWO_STEPS), data, device=CPU)
