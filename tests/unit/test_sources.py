"""Sources of victims: what each is called and gives, and what a recipe may declare of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from undistill.data import load_dataset
from undistill.errors import CheckpointError, RecipeError
from undistill.models import build_model
from undistill.recipe import Recipe, load_recipe
from undistill.victim import Access
from undistill.victim.sources import Source, Weights
from undistill.workspace import Workspace

DATA = "digits(subset=100, test_subset=50)"


class Endpoint(Weights):
    """A source behind a door: it answers with labels, and nothing else."""

    @property
    def gives(self) -> Access:
        return Access.LABELS


def net() -> torch.nn.Module:
    return build_model("mlp", num_classes=10, in_channels=1, image_size=8, seed=3)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    path = tmp_path / "net.safetensors"
    save_file(net().state_dict(), path)
    return Weights(model="mlp", checkpoint=str(path), sha256="")


def thief(victim: Recipe | Weights, **fields: object) -> Recipe:
    return load_recipe(None, **{"data": DATA, "model": "mlp", "method": "kd", "victim": victim, **fields})


def test_every_source_says_what_it_is(weights: Weights) -> None:
    recipe = load_recipe(None, data=DATA, model="mlp", method="ce", epochs=1)
    nasty = load_recipe(None, data=DATA, model="mlp", method="nasty", epochs=1)
    sources: list[Source] = [weights, recipe, nasty]
    assert [source.gives for source in sources] == [Access.GRADIENTS] * 3
    assert len({source.key for source in sources}) == len({source.label for source in sources}) == 3
    assert sources[0].label == f"mlp (weights {weights.sha256[:8]})"
    assert recipe.label == "mlp, normal"
    assert load_recipe(None, data=DATA, model="mlp", method="ce", epochs=1, seed=1).key == recipe.key


def test_weights_load_into_the_net_that_they_are_given(weights: Weights) -> None:
    untrained = build_model("mlp", num_classes=10, in_channels=1, image_size=8, seed=4)
    asked = []
    found = weights.load(lambda spec: asked.append(spec) or untrained)
    assert asked == ["mlp"]
    assert not found.training
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), net().parameters(), strict=True))
    Path(str(weights.checkpoint)).write_bytes(Path(str(weights.checkpoint)).read_bytes() + b" ")
    with pytest.raises(CheckpointError):
        weights.load(lambda spec: untrained)


def test_nested_recipes_are_those_that_must_be_trained(weights: Weights) -> None:
    normal = load_recipe(None, data=DATA, model="mlp", method="ce")
    assert thief(weights).nested == {}
    assert thief(normal).nested == {"victim": normal}
    assert list(load_recipe(None, data=DATA, model="mlp", method="nasty").nested) == ["adversary"]


def test_more_than_a_source_gives_is_refused_before_anything_runs(weights: Weights) -> None:
    behind = Endpoint(**weights.model_dump())
    with pytest.raises(
        RecipeError, match=r"access=logits is more than .*: mlp \(weights .*\) gives labels at most; set"
    ):
        thief(behind)
    assert thief(behind, method="hard_label", access="labels").victim_access is Access.LABELS
    with pytest.raises(RecipeError, match=r"an adversary is asked for logits, but .* gives labels at most"):
        load_recipe(None, data=DATA, model="mlp", method="nasty", adversary=behind)


def test_a_workspace_loads_any_source_that_is_there(weights: Weights, tmp_path: Path) -> None:
    class Constant:
        """One net, whoever asks: no file, no recipe."""

        key = label = checksum = "constant"
        gives = Access.GRADIENTS

        def load(self, build: object) -> torch.nn.Module:
            return net().eval()

    data = load_dataset(DATA)
    found = [Workspace(tmp_path).source(source, data) for source in (weights, Constant())]
    for (each, trained_on, checksum), expected in zip(found, (weights.sha256, "constant"), strict=True):
        assert (trained_on, checksum) == (data, expected)
        assert torch.equal(each(data.test.x[:4] / 255.0), net().eval()(data.test.x[:4] / 255.0))
