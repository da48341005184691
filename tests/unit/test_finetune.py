"""Fine-tuning a victim whose weights are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undistill.attacks.finetune import FineTune
from undistill.data import load_dataset
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.train import fit
from undistill.errors import AccessError, RecipeError
from undistill.models import build_model
from undistill.objective import Nets
from undistill.recipe import Recipe, make_recipe
from undistill.victim import Access, Victim
from undistill.workspace import Workspace

CPU = torch.device("cpu")
DATA = "digits(subset=60, test_subset=30)"
FEW = Training(epochs=1, batch_size=30, optimizer="adam", lr=1e-3, weight_decay=0.1, holdout=0, selection="last")


def net(seed: int, model: str = "cnn(channels=4)") -> torch.nn.Module:
    return build_model(model, num_classes=10, in_channels=1, image_size=8, seed=seed)


def tuned(
    layers: Any, model: str = "cnn(channels=4)", config: Training = FEW
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights before, which are the victim's, and after."""
    victim, student = net(3, model), net(1, model)
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    meter = Victim(victim, access=Access.GRADIENTS)
    fit(Job(FineTune(layers=layers), Nets(student, victim=meter), config), load_dataset(DATA), device=CPU)
    assert all(torch.equal(value, victim.state_dict()[name]) for name, value in before.items())
    assert meter.queries == 0
    return before, student.state_dict()


def test_starts_from_the_victim():
    still = FEW.model_copy(update={"lr": 1e-12, "weight_decay": 0.0})
    for name, value in (pair := tuned("all", config=still))[0].items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(pair[1][name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", ["cnn(channels=4)", "mlp(hidden=(8,), relu_logits=False)", "resnet18(width=0.125)"])
def test_last_leaves_everything_else(model: str):
    before, after = tuned("last", model)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    last = list(before)[-1].rpartition(".")[0]
    assert changed == {f"{last}.weight", f"{last}.bias"}


def test_last_against_a_plain_loop():
    config = FEW.model_copy(
        update={"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "batch_size": 60}
    )
    _, after = tuned("last", config=config.model_copy(update={"schedule": "constant"}))
    data, model = load_dataset(DATA), net(3).eval()
    x = (data.train.x.float() / 255 - data.mean[0]) / data.std[0]
    torch.nn.functional.cross_entropy(model(x), data.train.y).backward()
    assert isinstance(model.fc2, torch.nn.Linear)
    assert model.fc2.weight.grad is not None
    torch.testing.assert_close(after["fc2.weight"], model.fc2.weight.detach() - 0.1 * model.fc2.weight.grad)


def test_a_new_last_layer():
    still = FEW.model_copy(update={"lr": 1e-12, "weight_decay": 0.0})
    before, after = tuned("reinit_last", config=still)
    again = tuned("reinit_last", config=still)[1]
    assert not torch.allclose(before["fc2.weight"], after["fc2.weight"], atol=1e-2)
    torch.testing.assert_close(before["conv2.weight"], after["conv2.weight"], atol=1e-6, rtol=0)
    assert torch.equal(after["fc2.weight"], again["fc2.weight"])


def test_all_layers_move():
    for layers in ("all", "reinit_last"):
        before, after = tuned(layers)
        assert all(not torch.equal(value, after[name]) for name, value in before.items() if "weight" in name)


def test_needs_the_weights():
    with pytest.raises(AccessError, match="the victim gives features, not gradients"):
        Victim(net(0), access=Access.FEATURES).weights()


def test_weights_are_a_copy():
    victim = Victim(net(0), access=Access.GRADIENTS)
    victim.weights()["fc2.bias"].fill_(7)
    assert (victim.weights()["fc2.bias"] != 7).all()


def test_another_net_is_refused():
    nets = Nets(net(1), victim=Victim(net(3, "cnn(channels=8)"), access=Access.GRADIENTS))
    with pytest.raises(RecipeError, match="set model to the victim's model"):
        fit(Job(FineTune(), nets, FEW), load_dataset(DATA), device=CPU)


def test_another_scale_is_refused():
    victim = Victim(net(3), access=Access.GRADIENTS, trained_on=([0.1], [0.2]), queried_with=([0.5], [0.5]))
    with pytest.raises(RecipeError, match="its images were normalized differently; give both"):
        fit(Job(FineTune(), Nets(net(1), victim=victim), FEW), load_dataset(DATA), device=CPU)


def chain(**changes: Any) -> Recipe:
    protocol = {"model": "cnn(channels=8)", "epochs": 12, "batch_size": 50, "optimizer": "adam", "lr": 0.003}
    protocol |= {"weight_decay": 0.0, "schedule": "constant", "holdout": 0, "selection": "last"}
    closed = "patched(channels=1, of='digits(subset=300, test_subset=200)', level=60)"
    victim = {
        **protocol,
        "epochs": 30,
        "data": "digits(channels=1, subset=300, test_subset=200)",
        "method": "ntl(alpha=1.0, beta=0.5, loss_clamp=10.0)",
        "targets": [closed],
    }
    fields = {**protocol, "data": closed, "method": "finetune", "access": "gradients", "victim": victim}
    return make_recipe({**fields, **changes})


def test_gets_a_closed_domain_back_the_more_the_more_data(tmp_path: Path):
    workspace = Workspace(tmp_path)
    base = "patched(channels=1, of='digits(subset=300, test_subset=200)', level=60, subset={})".format
    few, many = (workspace.run(chain(data=base(share))) for share in (0.05, 0.5))
    closed = workspace.run(chain().victim)  # type: ignore[arg-type]
    logits = closed.load_model()(load_dataset(base(0.5)).test.x.float() / 127.5 - 1)
    before = 100 * (logits.argmax(dim=1) == load_dataset(base(0.5)).test.y).float().mean().item()
    assert before < 30
    assert many.accuracy > before + 40
    assert many.accuracy > few.accuracy
    assert many.result["queries"] == 0


def test_the_recipes_of_the_victim_stay_its_own():
    recipe = chain()
    assert recipe.targets == ()
    assert isinstance(recipe.victim, Recipe)
    assert len(recipe.victim.targets) == 1
