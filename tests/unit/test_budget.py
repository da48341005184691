"""The budget of a nasty teacher, against nets whose price is known because it is made up."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undistill.data import Images, load_dataset
from undistill.data.dataset import Frame
from undistill.defenses.budget import AccuracyBudget
from undistill.defenses.nasty import Nasty
from undistill.errors import InterruptedRunError, RecipeError
from undistill.models import build_model
from undistill.objective import Batch, Frozen, Nets
from undistill.recipe import load_recipe
from undistill.workspace import Workspace

CPU = torch.device("cpu")
N = 4000
FRAME = Frame(2, 1, 8, (0.0,), (1.0,))
# The pixel is the image's rank in 0..1, the label is 0: who answers 1 for ranks below ``wrong`` errs on that share.
IMAGES = Images(
    (torch.arange(N) % 256).to(torch.uint8).view(N, 1, 1, 1).expand(N, 1, 8, 8).contiguous(),
    torch.zeros(N, dtype=torch.int64),
)


class Errs(nn.Module):
    """Wrong on a share of the images."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        wrong = (x[:, 0, 0, 0] < self.wrong - 1e-6).float()
        return torch.stack((1 - wrong, wrong), dim=1)


def budget(points: float, twin: float = 0.0, begin: float = 0.9) -> AccuracyBudget:
    torch.manual_seed(0)
    return AccuracyBudget(points, Frozen(Errs(twin)), IMAGES, FRAME, CPU, begin=begin)


def run(found: AccuracyBudget, price: Any, steps: int, schedule_price: float = 0.0) -> list[float]:
    """Play a training whose net costs ``price(weight)`` points, and the schedule's price beside it."""
    net, weights = Errs(), []
    for step in range(steps):
        share = 1 - step / steps
        found.pace(share)
        weights.append(found.steer(net))
        net.wrong = (price(weights[-1]) + schedule_price * share) / 100
    return weights


def test_the_price_is_the_difference_in_accuracy_on_the_held_out_images():
    found = budget(1.0, twin=0.10)
    net = Errs(0.25)
    found.pace(0.5)
    for _ in range(400):
        found.steer(net)
    assert found.price == pytest.approx(15, abs=1.5)  # a mean over some 5,000 images


@pytest.mark.parametrize("points", [1.0, 4.0])
def test_the_weight_goes_where_the_price_is_the_budget(points: float):
    weights = run(budget(points), lambda weight: 40 * weight, 3000)
    late = torch.tensor(weights[1500:])
    assert float(late.mean()) == pytest.approx(points / 40, rel=0.3)


def test_before_a_cliff_it_stays_on_the_safe_side():
    # 2 points a tenth, and all is lost above 0.3, long before the budget is spent.
    weights = run(budget(8.0), lambda weight: 20 * weight if weight < 0.3 else 80.0, 3000)
    assert sum(weight >= 0.3 for weight in weights) < 0.05 * len(weights)
    assert max(weights) < 0.35


def test_what_the_schedule_costs_is_allowed_for():
    blind = run(budget(1.0), lambda weight: 10 * weight, 3000)
    found = budget(1.0)
    weights = run(found, lambda weight: 10 * weight, 3000, schedule_price=9.0)
    assert all(weight == 0 for weight in weights[:300])  # while the rate is above nine tenths
    assert sum(weights[1500:]) > 0.5 * sum(blind[1500:])


def test_its_state_goes_on():
    whole, broken = budget(1.0), budget(1.0)
    expected = run(whole, lambda weight: 10 * weight, 200)
    torch.manual_seed(0)
    net, found = Errs(), []
    broken = budget(1.0)
    for step in range(200):
        if step == 90:
            state, random = {k: v.clone() for k, v in broken.state_dict().items()}, torch.get_rng_state()
            broken = budget(1.0)
            broken.load_state_dict(state)
            torch.set_rng_state(random)
        broken.pace(1 - step / 200)
        found.append(broken.steer(net))
        net.wrong = 10 * found[-1] / 100
    assert found == expected


DIGITS = {"data": "digits(subset=400, test_subset=100)", "model": "cnn(channels=4)", "epochs": 2, "batch_size": 32}
SHORT = {**DIGITS, "optimizer": "muon", "lr": 0.06, "schedule": "linear", "selection": "last"}


def test_a_run_that_was_interrupted_ends_as_it_would_have(tmp_path: Path):
    wanted = load_recipe(**SHORT, method="nasty(accuracy_budget=1.0)")

    class Interrupt:
        left = 15

        def step(self, epoch: int, step: int, steps: int) -> None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)

        def epoch(self, record: dict[str, Any]) -> None:
            assert {"train_weight", "train_price", "train_adversary_kl"} <= set(record)

    whole = Workspace(tmp_path / "whole").run(wanted)
    broken = Workspace(tmp_path / "broken", watch=lambda r: Interrupt() if r == wanted else None)
    with pytest.raises(InterruptedRunError):
        broken.run(wanted)
    resumed = Workspace(tmp_path / "broken").run(wanted)
    assert whole.metrics == resumed.metrics
    assert (whole.folder / "model.safetensors").read_bytes() == (resumed.folder / "model.safetensors").read_bytes()


def net(seed: int, channels: int = 4) -> nn.Module:
    return build_model(f"cnn(channels={channels})", num_classes=10, in_channels=1, image_size=8, seed=seed)


def test_it_can_start_from_its_twin():
    frame = Frame.of(load_dataset("digits"))
    model, twin = net(1), net(2)
    Nasty(start="twin").begin(Nets(model, Frozen(twin)), frame)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Nasty().begin(Nets(model, Frozen(net(3))), frame)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(RecipeError, match="needs a twin of the same architecture"):
        Nasty(start="twin").begin(Nets(model, Frozen(net(2, channels=8))), frame)


def test_a_budget_needs_held_out_images_and_no_weight():
    nets = Nets(net(1), Frozen(net(2)), held_out=IMAGES.subset(torch.arange(0)))
    with pytest.raises(RecipeError, match="accuracy_budget is measured on held-out images and there are none"):
        Nasty(accuracy_budget=1.0).companion(nets, FRAME, CPU)
    with pytest.raises(ValueError, match="give a weight, or an accuracy_budget"):
        Nasty(accuracy_budget=1.0, weight=0.04)
    with pytest.raises(ValueError, match="give a weight, or an accuracy_budget"):
        Nasty(weight=None)


def test_without_a_budget_it_is_called_what_it_was():
    assert Nasty().spec == "nasty(temperature=4.0, weight=0.04)"
    steered = Nasty(accuracy_budget=0.5)
    assert steered.spec == "nasty(accuracy_budget=0.5, temperature=4.0, weight=None)"


def test_how_sure_the_net_and_its_twin_are_is_logged() -> None:
    torch.manual_seed(0)
    mine, its = torch.randn(6, 5) * 8, torch.randn(6, 5) * 2

    class Answers(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0 * x.sum()

    y = torch.zeros(6, dtype=torch.long)
    twin = Answers(its).requires_grad_(False)
    logs = Nasty(temperature=4.0).step(Batch(torch.zeros(6, 1, 8, 8), y, y), Nets(Answers(mine), Frozen(twin))).logs
    for name, logits in (("confidence", mine), ("adversary_confidence", its)):
        highest = [max(math.exp(z / 4) for z in row) / sum(math.exp(z / 4) for z in row) for row in logits.tolist()]
        assert float(logs[name]) == pytest.approx(sum(highest) / 6, rel=1e-5)
