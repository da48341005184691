"""FitNet against a loop in plain PyTorch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from undistill.attacks.fitnet import FitNet
from undistill.data import Shape, load_dataset
from undistill.data.dataset import Frame
from undistill.data.loader import Batch, normalize
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.train import fit
from undistill.models import build_model
from undistill.objective import Nets
from undistill.orchestrate.estimate import _parts
from undistill.recipe import make_recipe
from undistill.victim import Access, Victim

DATA = "digits(subset=60, test_subset=30)"
CPU = torch.device("cpu")


def net(seed: int, hidden: int) -> nn.Module:
    return build_model(
        f"mlp(hidden=({hidden},), relu_logits=False)", num_classes=10, in_channels=1, image_size=8, seed=seed
    )


def split(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the input of the last layer of an MLP with one hidden layer, by hand."""
    first, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    features = torch.relu(first(x.flatten(1)))
    return last(features), features


def frame() -> Frame:
    return Frame.of(load_dataset(DATA))


@pytest.mark.parametrize("kd", [0.0, 0.7])
def test_loss_by_hand(kd: float):
    data = load_dataset(DATA)
    student, teacher = net(1, 6), net(2, 9)
    victim = Victim(teacher, access=Access.FEATURES)
    objective = FitNet(weight=3.0, kd=kd, temperature=2.0)
    nets = Nets(student, victim=victim)
    modules = objective.modules(nets, frame())
    assert victim.queries == 0
    projector = modules["projector"]
    assert isinstance(projector, nn.Linear)
    assert projector.weight.shape == (9, 6)
    x, y = normalize(data.train.x[:20], data.mean, data.std), data.train.y[:20]
    output = objective.step(Batch(x, y, y), Nets(student, victim=victim, modules=modules))
    (logits, ours), (answers, theirs) = split(student, x), split(teacher, x)
    ce = nn.functional.cross_entropy(logits, y)
    hint = nn.functional.mse_loss(ours @ projector.weight.T + projector.bias, theirs)
    kl = nn.functional.kl_div((logits / 2).log_softmax(dim=1), (answers / 2).softmax(dim=1), reduction="batchmean")
    torch.testing.assert_close(output.loss, ce + 3 * hint + kd * 4 * kl)
    torch.testing.assert_close(output.logs["hint"], hint)
    torch.testing.assert_close(output.logits, logits)
    assert victim.queries == (40 if kd else 20)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_student_and_projector_are_trained_as_one(optimizer: str, monkeypatch: pytest.MonkeyPatch):
    """One optimizer of PyTorch's own over both, batch by batch, ends with the same weights."""
    data = load_dataset(DATA)
    student, teacher = net(1, 6), net(2, 9)
    start = deepcopy(student)
    made: list[tuple[nn.ModuleDict, nn.ModuleDict]] = []

    class Remembered(FitNet):
        def modules(self, nets: Nets, frame: Frame) -> nn.ModuleDict:
            modules = super().modules(nets, frame)
            made.append((modules, deepcopy(modules)))
            return modules

    config = Training(
        epochs=3,
        batch_size=60,
        lr=0.01,
        holdout=0,
        selection="last",
        schedule="constant",
        augment="none",
        optimizer=optimizer,
    )
    fit(
        Job(Remembered(weight=2.0), Nets(student, victim=Victim(teacher, access=Access.FEATURES)), config),
        data,
        device=CPU,
    )
    ((modules, drawn),) = made
    projector = drawn["projector"]
    parameters = [*start.parameters(), *projector.parameters()]
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    plain = (
        torch.optim.Adam(parameters, **settings)
        if optimizer == "adam"
        else torch.optim.SGD(parameters, momentum=config.momentum, **settings)
    )
    x, y = normalize(data.train.x, data.mean, data.std), data.train.y
    with torch.no_grad():
        theirs = split(teacher, x)[1]
    for _ in range(3):  # one batch an epoch: their order does not matter
        logits, ours = split(start, x)
        loss = nn.functional.cross_entropy(logits, y) + 2 * nn.functional.mse_loss(projector(ours), theirs)
        plain.zero_grad()
        loss.backward()
        plain.step()
    pairs = [*zip(student.parameters(), start.parameters(), strict=True)]
    pairs += zip(modules["projector"].parameters(), projector.parameters(), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_student_is_left_as_it_is_while_its_features_are_counted():
    student = build_model("cnn(channels=4)", num_classes=10, in_channels=1, image_size=8, seed=0).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    FitNet().modules(Nets(student, victim=Victim(net(2, 9), access=Access.FEATURES)), frame())
    assert student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_its_cost_can_be_estimated():
    victim = {"model": "cnn(channels=4)", "epochs": 1}
    recipe = make_recipe(
        {"data": DATA, "model": "mlp(hidden=(8,))", "method": "fitnet", "access": "features", "victim": victim}
    )
    assert all(flops > 0 for flops in _parts(recipe, Shape(60, 30, 10, 1, 8), 60).values())
