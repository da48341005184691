"""An output defense, an attack on features and a kind of figure are one new file each: nothing else is touched."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import undistill
from undistill.attacks import ATTACKS
from undistill.cli.catalog import describe, members
from undistill.defenses import OUTPUT_DEFENSES, build_output_defense
from undistill.errors import AccessError, InterruptedRunError, RecipeError
from undistill.recipe import Recipe, make_recipe
from undistill.registry import Registry
from undistill.reporting.document import Document
from undistill.reporting.parts import PARTS, part_of
from undistill.reporting.write import write
from undistill.run import Run
from undistill.victim import Access, Victim
from undistill.workspace import Workspace

DATA = "digits(subset=100, test_subset=50)"
VICTIM = {"model": "cnn(channels=4)", "epochs": 2, "lr": 0.05}
THIEF: dict[str, Any] = {
    "data": DATA,
    "model": "mlp(hidden=(8,), relu_logits=False)",
    "victim": VICTIM,
    "epochs": 2,
    "batch_size": 30,
    "lr": 0.05,
}

SHY = '''
"""An output defense that is less sure."""

from typing import Any, ClassVar

from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense


@register_output_defense("shy")
class Shy(OutputDefense):
    """Mix every answer with the uniform one."""

    paper = Paper("None", "nowhere", 2000, "https://example.org")
    smoke: ClassVar[dict[str, Any]] = {}

    share: float = Field(0.5, ge=0, lt=1, description="of the uniform answer")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the mixture."""
        return (1 - self.share) * probs + self.share / probs.shape[1]
'''

SPARK = '''
"""Numbers over time, as small as words."""

from collections.abc import Iterator

from undistill.reporting.cell import Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import NORMAL, new_figure


@register_part("spark")
class Spark(Part):
    """One line."""

    kind: str = "spark"
    values: tuple[float, ...]

    def grids(self) -> Iterator[Grid]:
        """Yield the last value."""
        yield Grid("", ("",), ("last",), (GridRow(("value",), (Shown(f"{self.values[-1]:.1f}"),)),))

    @property
    def drawn(self) -> bool:
        """Always."""
        return True

    def draw(self):
        """Return the line."""
        figure = new_figure(2, 1)
        figure.subplots().plot(self.values, color=NORMAL)
        return figure
'''

MIMIC = '''
"""An attack that learns nothing but the victim's features."""

from typing import Any, ClassVar

import torch
from torch import nn

from undistill.attacks import Access, Attack, Batch, Field, Frame, Nets, Paper, StepOutput, register_attack
from undistill import functional as F
from undistill.models.features import logits_and_features

MADE = []


@register_attack("mimic")
class Mimic(Attack):
    """Bring the student's features to the victim's."""

    access = Access.FEATURES
    paper = Paper("None", "nowhere", 2000, "https://example.org")
    smoke: ClassVar[dict[str, Any]] = {}

    weight: float = Field(1.0, ge=0, description="of the distance")

    def modules(self, nets: Nets, frame: Frame) -> nn.ModuleDict:
        """Return a projector with a BatchNorm layer, which has buffers too."""
        x = torch.zeros(2, frame.in_channels, frame.image_size, frame.image_size)
        ours, theirs = logits_and_features(nets.model, x)[1], self.victim(nets).another().features(x)
        MADE.append(nn.ModuleDict({"adapter": nn.Sequential(nn.BatchNorm1d(ours.shape[1]),
                                                            nn.Linear(ours.shape[1], theirs.shape[1]))}))
        return MADE[-1]

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch."""
        logits, features = logits_and_features(nets.model, batch.x)
        distance = nets.modules["adapter"](features) - self.victim(nets).features(batch.x)
        loss = F.cross_entropy(logits, batch.y) + self.weight * distance.square().mean()
        return StepOutput(loss, logits)
'''

DropIn = Callable[[Registry[Any], str, str], ModuleType]


@pytest.fixture
def drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DropIn]:
    """Put a file into the folder of a registry's package, as far as Python can tell."""
    added: list[tuple[Registry[Any], str]] = []

    def drop(registry: Registry[Any], name: str, text: str) -> ModuleType:
        folder = tmp_path / registry.package
        folder.mkdir()
        (folder / f"{name}.py").write_text(dedent(text))
        package = importlib.import_module(registry.package)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(registry, "_loaded", False)
        added.append((registry, name))
        assert name in registry.names()  # found, and not imported by hand
        return sys.modules[f"{registry.package}.{name}"]

    yield drop
    for registry, name in added:
        registry._members.pop(name)
        delattr(sys.modules[registry.package], name)
        del sys.modules[f"{registry.package}.{name}"]


def thief(**changes: Any) -> Recipe:
    return make_recipe({**THIEF, **changes})


# --- an output defense ------------------------------------------------------------------------------------------------


def test_an_output_defense_is_one_file(drop_in: DropIn, tmp_path: Path):
    drop_in(OUTPUT_DEFENSES, "shy", SHY)
    assert "shy" in undistill.list_output_defenses()
    assert describe("output_defenses", members("output_defenses")["shy"]) == "Mix every answer with the uniform one"
    probs = torch.tensor([[0.8, 0.2]])
    torch.testing.assert_close(build_output_defense("shy")(probs, probs), torch.tensor([[0.65, 0.35]]))
    with pytest.raises(RecipeError, match=r"policy: shy: share: must be less than 1, got 2"):
        thief(method="kd", policy="shy(share=2)")
    workspace = Workspace(tmp_path / "runs")
    plain = workspace.run(thief(method="kd"))
    run = workspace.run(thief(method="kd", policy="shy(share=0.3)"))
    assert Run(run.folder).recipe.policy == "shy(share=0.3)"
    assert run.metrics != plain.metrics
    none = workspace.run(thief(method="kd", policy="shy(share=0)"))  # changes nothing, up to rounding and the floor
    for ours, theirs in zip(none.metrics, plain.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_what_a_thief_learns_from_is_what_the_policy_lets_out(drop_in: DropIn, tmp_path: Path):
    """The labels of a policy that names the next class are the student's, to whom nothing else is told."""
    drop_in(
        OUTPUT_DEFENSES,
        "next_class",
        SHY.replace('"shy"', '"next_class"').replace(
            "(1 - self.share) * probs + self.share / probs.shape[1]", "probs.roll(1, dims=1)"
        ),
    )
    net = {"model": "mlp(hidden=(32,), relu_logits=False)", "epochs": 30, "batch_size": 15, "schedule": "one_cycle"}
    fields = {**net, "method": "hard_label", "access": "labels", "selection": "last", "victim": {**net, "lr": 0.05}}
    workspace = Workspace(tmp_path / "runs")
    plain, moved = workspace.run(thief(**fields)), workspace.run(thief(**fields, policy="next_class"))
    assert plain.result["selected"]["accuracy"] > 80
    assert plain.result["heldout"] > 60  # of ten images
    assert moved.result["selected"]["accuracy"] < 20
    assert moved.result["heldout"] < 30
    assert min(run.result["agreement"] for run in (plain, moved)) > 0.6  # with what the victim lets out


# --- an attack on features with a trained adapter ---------------------------------------------------------------------


class InterruptAt:
    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "adam", "lr": 0.001}])
def test_an_attack_with_an_adapter_is_one_file_and_resumes_exactly(
    drop_in: DropIn, tmp_path: Path, optimizer: dict[str, Any]
):
    made = drop_in(ATTACKS, "mimic", MIMIC).MADE
    wanted = thief(method="mimic(weight=2)", access="features", **optimizer)
    whole = Workspace(tmp_path / "whole").run(wanted)
    (adapter,) = made
    broken = Workspace(tmp_path / "broken", watch=lambda recipe: InterruptAt(4) if recipe == wanted else None)
    with pytest.raises(InterruptedRunError):
        broken.run(wanted)  # 3 steps an epoch
    interrupted = made[-1].state_dict()
    with safe_open(Run(tmp_path / "broken" / wanted.folder_name).folder / "state.safetensors", "pt") as state:
        saved = {key: state.get_tensor(key) for key in state.keys()}  # noqa: SIM118
    names = {f"modules/adapter.{name}" for name in adapter["adapter"].state_dict()}
    assert {key for key in saved if key.startswith("modules/")} == names
    resumed = Workspace(tmp_path / "broken").run(wanted)
    assert len(made) == 3
    assert same(made[-1].state_dict(), adapter.state_dict())
    assert not same(interrupted, adapter.state_dict())  # it was trained on
    assert int(adapter["adapter"][0].num_batches_tracked) == 2 * 3
    files = [(run.folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]
    assert whole.metrics == resumed.metrics
    assert whole.result["queries"] == resumed.result["queries"] == 2 * 90


def test_an_attack_on_features_is_refused_below(drop_in: DropIn, tmp_path: Path):
    drop_in(ATTACKS, "mimic", MIMIC)
    with pytest.raises(AccessError, match="attack 'mimic' needs the victim's features, but it gives logits"):
        Workspace(tmp_path / "runs").run(thief(method="mimic"))


def test_an_attack_with_an_adapter_trains_in_the_fast_profile_and_beside_others(drop_in: DropIn, tmp_path: Path):
    """Stacked or captured it would lose its adapter's gradients; alone or beside its equal it comes to the same."""
    drop_in(ATTACKS, "mimic", MIMIC)
    tuning = {"threads": 1, "channels_last": False, "compile": False, "winograd": False, "precision": "float32"}
    fields = {"access": "features", "profile": "fast", "tuning": {**tuning, "stack": True}, "method": "mimic"}
    both = [thief(**fields, lr=lr) for lr in (0.05, 0.02)]
    together = Workspace(tmp_path / "together").run_together(both)
    for recipe, run in zip(both, together, strict=True):
        assert isinstance(run, Run), run
        alone = Workspace(tmp_path / "alone").run(recipe)
        exact = Workspace(tmp_path / "alone").run(recipe.model_copy(update={"profile": "exact", "tuning": None}))
        for record, other, slow in zip(run.metrics, alone.metrics, exact.metrics, strict=True):
            assert record["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
            assert record["train_loss"] == pytest.approx(slow["train_loss"], rel=1e-3)


def test_who_has_no_modules_keeps_the_state_as_it_was(tmp_path: Path):
    wanted = thief(method="kd")
    workspace = Workspace(tmp_path, watch=lambda recipe: InterruptAt(2) if recipe == wanted else None)
    with pytest.raises(InterruptedRunError):
        workspace.run(wanted)
    with safe_open(tmp_path / wanted.folder_name / "state.safetensors", "pt") as state:
        keys = set(state.keys())
    assert {key.partition("/")[0] for key in keys} == {"model", "optimizer", "random", "sums"}
    weights = [key for key in keys if key.startswith("model/")]
    assert {key for key in keys if key.startswith("optimizer/")} == {
        f"optimizer/{index}/momentum_buffer" for index in range(len(weights))
    }


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_features_of_a_rebuilt_victim_are_those_of_the_victim():
    """BatchNorm is not folded where somebody may look at what a convolution says."""
    from undistill.engine.config import Tuning
    from undistill.engine.fast.steps import rebuild
    from undistill.engine.fast.tuning import settled
    from undistill.models import build_model
    from undistill.objective import Nets

    net = build_model("resnet18(width=0.125)", num_classes=4, in_channels=3, image_size=8, seed=0)
    net(torch.randn(16, 3, 8, 8))  # statistics of its own
    x = torch.randn(4, 3, 8, 8)
    victim = Victim(net, access=Access.FEATURES)
    tuning = settled(Tuning(precision="float32"))
    rebuilt = rebuild(Nets(net, victim=victim), x, tuning).victim
    assert rebuilt is not None
    name = next(name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d))
    for layer in (name, ""):
        torch.testing.assert_close(rebuilt.features(x, layer), victim.features(x, layer), rtol=1e-4, atol=1e-5)


# --- a kind of figure -------------------------------------------------------------------------------------------------


def test_a_kind_of_figure_is_one_file(drop_in: DropIn, tmp_path: Path):
    drop_in(PARTS, "spark", SPARK)
    values = {"kind": "spark", "name": "speed", "title": "How it went", "seeds": 1, "values": [1.0, 2.5], "notes": []}
    part = part_of(values)
    assert part.to_json() == values
    page = write(Document("Seen", (part,), {}), tmp_path / "page.html", texts="page", figures="figures")
    assert 'aria-label="speed: How it went"' in page.read_text()
    assert "| value | 2.5 |" in (tmp_path / "page.md").read_text()
    assert "2.5" in (tmp_path / "page.tex").read_text()
    assert (tmp_path / "figures" / "speed.png").is_file()
    assert (tmp_path / "figures" / "speed.svg").read_text().startswith("<svg ")
