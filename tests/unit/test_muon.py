"""Muon: what it turns, how far, and that the scale of the loss does not matter to it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from undistill.engine.config import Training
from undistill.engine.muon import Muon, matrices_of, orthogonalize
from undistill.engine.optim import learning_rate, make_optimizer
from undistill.models import build_model, list_models


def net() -> nn.Module:
    return build_model("cnn(channels=4)", num_classes=10, in_channels=3, image_size=8, seed=0)


def images(n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def train(model: nn.Module, factor: float, steps: int = 5) -> nn.Module:
    optimizer = Muon(model, lr=0.1, momentum=0.8)
    x, y = images()
    x = x.to(next(model.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        (factor * F.cross_entropy(model(x), y)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16), (1, 9)])
def test_singular_values_become_about_equal(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, steps=6)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.35
    # The singular vectors are kept: in their basis the result is diagonal.
    inside = left.T @ found @ right.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-9


def test_the_direction_is_that_of_torchs_muon():
    gradient = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(torch.zeros(12, 30))
    weight.grad = gradient.clone()
    theirs = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.9, nesterov=True, ns_steps=3)
    theirs.step()
    ours = orthogonalize(gradient, steps=3)
    assert F.cosine_similarity(ours.flatten(), -weight.detach().flatten(), dim=0) > 0.999  # theirs is in bfloat16


@pytest.mark.parametrize("factor", [1e-4, 16.0, 400.0])
def test_the_scale_of_the_loss_changes_nothing(factor: float):
    torch.manual_seed(0)
    start = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 10))
    one, other = (train(deepcopy(start).double(), by) for by in (1.0, factor))
    assert not torch.equal(one[1].weight, start[1].weight.double())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_matrices_turn_by_the_rate_and_keep_their_length():
    before = net()
    after = train(deepcopy(before), 1.0, steps=1)
    for first, second in zip(matrices_of(before), matrices_of(after), strict=True):
        old, new = first.detach(), second.detach()
        assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5)
        # lr as a tangent, if the update were at right angles to the weights; it nearly is
        cosine = F.cosine_similarity(old.flatten(), new.flatten(), dim=0)
        assert float(cosine.acos().tan()) == pytest.approx(0.1, rel=0.15)


def test_all_else_learns_by_adam():
    ours, theirs = net(), net()
    mine = Muon(ours, lr=0.1, momentum=0.8)
    turned = {id(p) for p in matrices_of(theirs)}
    rest = [p for p in theirs.parameters() if id(p) not in turned]
    adam = torch.optim.Adam(rest, lr=0.1 * 0.2, betas=(0.9, 0.99), eps=1e-12)
    for seed in range(3):  # the same gradients for both, whatever the nets have become
        generator = torch.Generator().manual_seed(seed)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if id(b) not in turned:
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", list_models())
def test_the_last_matrix_and_grouped_convolutions_are_adams(name: str):
    spec = name if name in ("lenet", "mlp", "cnn", "speedrun") else f"{name}(width=0.125)"
    model = build_model(spec, num_classes=7, in_channels=3, image_size=32, seed=0)
    found = {id(p) for p in matrices_of(model)}
    assert found
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert id(module.weight) not in found
        if isinstance(module, nn.Linear) and module.out_features == 7:
            assert id(module.weight) not in found


def test_a_saved_optimizer_goes_on_the_same_way():
    one = net()
    whole = train(deepcopy(one), 1.0, steps=4)
    x, y = images()
    optimizer = Muon(one, lr=0.1, momentum=0.8)
    for step in range(4):
        if step == 2:
            saved = deepcopy(optimizer.state_dict())
            optimizer = Muon(one, lr=0.1, momentum=0.8)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        F.cross_entropy(one(x), y).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), whole.parameters(), strict=True))


def test_a_recipe_asks_for_it():
    config = Training(optimizer="muon", lr=0.12, schedule="linear", epochs=4)
    assert config.weight_decay == 0
    assert isinstance(make_optimizer(config, net()), Muon)
    rates = [learning_rate(config, epoch, step, 5) for epoch in range(4) for step in range(5)]
    assert rates == pytest.approx([0.12 * (1 - at / 20) for at in range(20)])
    with pytest.raises(ValueError, match="muon keeps the length of every matrix; set weight_decay=0"):
        Training(optimizer="muon", weight_decay=5e-4)
