"""Teachers that are trained to be defended: each loss against its formula, written out in float64."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.defenses.half_nasty import HalfNasty
from undistill.defenses.light_nasty import LightNasty
from undistill.defenses.nasty import Nasty
from undistill.errors import RecipeError
from undistill.models import build_model
from undistill.objective import Frozen, Nets

FRAME = Frame(10, 1, 8, (0.5,), (0.25,))


def net(seed: int, spec: str = "cnn(channels=4)") -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=1, image_size=8, seed=seed)


def batch(n: int = 12, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (n,), generator=random)
    return Batch(torch.randn(n, 1, 8, 8, generator=random), y, y)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {key: torch.zeros_like(named[key]) if g is None else g for key, g in zip(named, found, strict=True)}


def number(value: Tensor) -> float:
    return float(value.detach())


def divergence(logits: Tensor, twin: Tensor, temperature: float) -> float:
    """τ² KL of softened answers, by plain loops."""
    total = 0.0
    for ours, theirs in zip((logits / temperature).tolist(), (twin / temperature).tolist(), strict=True):
        of = [math.exp(z) / sum(math.exp(other) for other in ours) for z in ours]
        beside = [math.exp(z) / sum(math.exp(other) for other in theirs) for z in theirs]
        total += sum(p * math.log(p / q) for p, q in zip(of, beside, strict=True))
    return temperature**2 * total / len(logits)


# --- nasty in the last layer ------------------------------------------------------------------------------------------


# The MLP has a ReLU behind its last layer, as the paper's does.
SPECS = pytest.mark.parametrize("spec", ["cnn(channels=4)", "preresnet20(width=0.25)", "mlp(hidden=(8,))"])


def losses(model: nn.Module, twin: Frozen, images: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and τ² KL by torch's own functions."""
    ours, theirs = ((each(images.x) / temperature).log_softmax(1) for each in (model, twin))
    kl = nn.functional.kl_div(theirs, ours, reduction="batchmean", log_target=True)
    return nn.functional.cross_entropy(model(images.x), images.y), temperature**2 * kl


@SPECS
def test_half_nasty_is_two_backward_passes_with_zeros_set_in_between(spec: str) -> None:
    model, twin, images = net(1, spec), Frozen(net(2, spec)), batch()
    found = gradients(model, HalfNasty(temperature=3.0, weight=0.5).step(images, Nets(model, twin)).loss)
    labels, away = (gradients(model, loss) for loss in losses(model, twin, images, 3.0))
    *below, weight, bias = found
    for key in below:
        torch.testing.assert_close(found[key], labels[key])
    assert max(float(away[key].abs().max()) for key in below) > 1e-3  # what nasty would add
    for key in (weight, bias):
        torch.testing.assert_close(found[key], labels[key] - 0.5 * away[key], rtol=1e-4, atol=1e-6)
        assert float(away[key].abs().max()) > 1e-3


def test_half_nasty_has_the_loss_of_nasty() -> None:
    model, twin, images = net(1), Frozen(net(2)), batch()
    half, whole = (
        defense(temperature=3.0, weight=0.5).step(images, Nets(model.eval(), twin)) for defense in (HalfNasty, Nasty)
    )
    torch.testing.assert_close(half.loss, whole.loss)
    assert torch.equal(half.logits, whole.logits)
    assert half.logs.keys() == whole.logs.keys()
    assert number(half.logs["adversary_kl"]) == pytest.approx(divergence(half.logits, twin(images.x), 3.0), rel=1e-4)


@SPECS
def test_light_nasty_trains_the_last_layer_of_its_twin_and_nothing_else(spec: str) -> None:
    twin, model, images = net(2, spec).train(), net(1, spec), batch()
    twin(images.x)  # statistics that are not those of a new net
    nets, defense = Nets(model, Frozen(deepcopy(twin))), LightNasty(temperature=3.0, weight=0.5)
    defense.begin(nets, FRAME)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for step in range(3):
        model.train()
        output = defense.step(batch(seed=step), nets)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    before, after = twin.state_dict(), model.state_dict()
    assert [key for key in after if not torch.equal(before[key], after[key])] == [*dict(model.named_parameters())][-2:]


def test_light_nasty_is_the_formula_and_nothing_at_its_start() -> None:
    twin, model, images = net(2), net(1), batch()
    nets, defense = Nets(model, Frozen(twin)), LightNasty(temperature=3.0, weight=0.5)
    defense.begin(nets, FRAME)
    first = defense.step(images, nets)
    assert number(first.logs["adversary_kl"]) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    ce, kl = losses(model, Frozen(twin), images, 3.0)
    assert number(kl) > 0.01
    torch.testing.assert_close(defense.step(images, nets).loss, ce - 0.5 * kl)


def test_light_nasty_needs_a_twin_of_the_same_architecture() -> None:
    with pytest.raises(RecipeError, match="needs a twin of the same architecture"):
        LightNasty().begin(Nets(net(1), Frozen(net(2, "cnn(channels=8)"))), FRAME)
    with pytest.raises(RecipeError, match="defense 'light_nasty' needs an adversary"):
        LightNasty().begin(Nets(net(1)), FRAME)
