"""Non-transferable learning: its loss, its styles, and that it closes a domain."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from undistill.data import load_dataset
from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.defenses.ntl import NTL, closing_loss
from undistill.defenses.ntl_augment import Outwards
from undistill.errors import RecipeError, UnknownNameError
from undistill.functional.mmd import mmd
from undistill.models import build_model
from undistill.models.features import logits_and_features, logits_and_output
from undistill.objective import Nets
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.request import Request, load_studies
from undistill.orchestrate.results import document_of
from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.registry import Spec
from undistill.reporting.formats import part_markdown, to_html
from undistill.reporting.parts import part_of
from undistill.reporting.parts.areas import area
from undistill.reporting.style import draw
from undistill.run import Run
from undistill.studies.changes import Changes, adapt
from undistill.studies.curves import Line, Panel
from undistill.studies.ntl import make_table
from undistill.studies.ntl_figure import SHIFTS, ntl_figure, shift_towards
from undistill.studies.ntl_ownership import OwnershipStudy, Suspect, ntl_ownership
from undistill.studies.ntl_removal import ntl_removal
from undistill.workspace import Workspace

CPU = torch.device("cpu")
FRAME = Frame(10, 1, 8, (0.5,), (0.5,))
DIGITS = "digits(channels=1, subset=300, test_subset=200)"
NEGATIVE = "negative(channels=1, of='digits(subset=300, test_subset=200)')"


def batch(n: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1
    return Batch(x, torch.arange(n) % 10, torch.arange(n))


def net(model: str = "cnn(channels=2)", seed: int = 0) -> nn.Module:
    return build_model(model, num_classes=10, in_channels=1, image_size=8, seed=seed)


class TestLoss:
    def test_worked_values(self):
        def value(loss: float, distance: float, **clamps: float) -> float:
            found = closing_loss(torch.tensor([loss]), torch.tensor(distance), alpha=0.1, beta=0.2, **clamps)
            return found.item()

        assert value(3.0, 2.0) == pytest.approx(-0.3 * 0.4)
        assert value(30.0, 2.0) == pytest.approx(-1.0 * 0.4)
        assert value(3.0, 20.0) == pytest.approx(-0.3)
        assert value(30.0, 20.0, loss_clamp=2.5, distance_clamp=0.5) == pytest.approx(-2.5 * 0.5)

    def test_each_image_is_clamped_by_itself(self):
        losses = torch.tensor([500.0, 2.0], requires_grad=True)
        found = closing_loss(losses, torch.tensor(4.0), alpha=0.1, beta=0.1)
        assert found.item() == pytest.approx(-(1 + 0.2) / 2 * 0.4)
        found.backward()
        assert losses.grad is not None
        assert losses.grad.tolist() == pytest.approx([0.0, -0.1 / 2 * 0.4])

    @pytest.mark.parametrize("layer", ["", "conv2"])
    def test_a_step_against_the_formula(self, layer: str):
        source, targets = batch(), (batch(seed=1), batch(seed=2))
        model = net("mlp(hidden=(16,), relu_logits=False)") if not layer else net()
        model.eval()  # so that images go through one by one
        ntl = NTL(alpha=0.3, beta=0.2, layer=layer)
        output = ntl.step(Batch(source.x, source.y, source.index, targets), Nets(model))

        def features(x: torch.Tensor) -> torch.Tensor:
            if not layer:
                return logits_and_features(model, x)[1]
            return model.conv2(F.relu(F.max_pool2d(model.bn1(model.conv1(x)), 2))).flatten(1)

        expected = F.cross_entropy(model(source.x), source.y)
        for target in targets:
            loss = 0.3 * F.cross_entropy(model(target.x), target.y)
            distance = 0.2 * mmd(features(source.x), features(target.x))
            assert loss < 1
            assert distance < 1
            expected = expected - loss * distance / 2
        torch.testing.assert_close(output.loss, expected)
        torch.testing.assert_close(output.logits, model(source.x))
        assert output.logs["ce"].item() == pytest.approx(F.cross_entropy(model(source.x), source.y).item())

    def test_a_clamped_factor_has_no_gradient(self):
        loss, distance = torch.tensor([20.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
        closing_loss(loss, distance, alpha=0.1, beta=0.1).backward()
        assert loss.grad == 0
        assert distance.grad == pytest.approx(-0.1)

    def test_unknown_layer(self):
        one = batch()
        with pytest.raises(UnknownNameError, match=r"unknown module 'conv9'; did you mean 'conv3'"):
            NTL(layer="conv9").step(Batch(one.x, one.y, one.index, (one,)), Nets(net()))

    def test_needs_targets_or_styles(self):
        with pytest.raises(RecipeError, match="needs target domains, or its styles"):
            NTL().step(batch(), Nets(net()))

    def test_output_of_a_layer(self):
        model = net().eval()
        x = batch().x
        logits, features = logits_and_output(model, x, "fc1")
        torch.testing.assert_close(logits, model(x))
        assert features.shape == (6, 8)


class TestStyles:
    def outwards(self, seed: int = 0) -> Outwards:
        torch.manual_seed(seed)
        return Outwards(FRAME, CPU, directions=2, distances=(0.5, 1.5), lr=0.01)

    def test_images_stay_images(self):
        outwards, source = self.outwards(), batch(9)
        parts = outwards.push(source.x)
        assert [len(part) for part in parts] == [3, 3, 3]
        pushed = torch.cat(parts)
        assert pushed.shape == source.x.shape
        assert pushed.min() >= -1
        assert pushed.max() <= 1
        assert (pushed - source.x).abs().mean() > 0.05
        assert not pushed.requires_grad

    def test_none_of_the_way_is_no_change(self):
        outwards, x = self.outwards(), batch().x
        torch.testing.assert_close(outwards.styles[0](x, torch.zeros(len(x))), x, atol=1e-5, rtol=0)

    def test_other_scales_of_pixels(self):
        x = batch().x
        other = Frame(10, 1, 8, (0.25,), (0.4,))
        torch.manual_seed(0)
        scaled = Outwards(other, CPU, directions=2, distances=(0.5, 1.5), lr=0.01)
        pixels = (x + 1) / 2
        torch.manual_seed(1)
        mine = torch.cat(scaled.push((pixels - 0.25) / 0.4))
        reference = self.outwards()
        torch.manual_seed(1)
        one = torch.cat(reference.push(x))
        torch.testing.assert_close(mine * 0.4 + 0.25, (one + 1) / 2, atol=1e-5, rtol=1e-5)

    def test_learning_brings_images_away(self):
        data = load_dataset(DIGITS)
        x, y = data.train.x[:50].float() / 127.5 - 1, data.train.y[:50]
        outwards = self.outwards()
        styles = [{k: v.clone() for k, v in style.state_dict().items()} for style in outwards.styles]
        for _ in range(60):
            outwards.learn(x, y, weight=0.1)
        assert outwards.steps == 60
        for style, before in zip(outwards.styles, styles, strict=True):
            assert not torch.equal(style.warp, before["warp"])

        def distance(state: dict[str, torch.Tensor] | None, which: int) -> float:
            style = outwards.styles[which]
            learned = {k: v.clone() for k, v in style.state_dict().items()}
            if state is not None:
                style.load_state_dict(state)
            torch.manual_seed(0)
            with torch.no_grad():
                pushed = style(x, torch.ones(len(x))).clamp(-1, 1)
                found = mmd(outwards.critic(x)[1], outwards.critic(pushed)[1]).item()
            style.load_state_dict(learned)
            return found

        far = [which for which in range(4) if outwards.distances[which] == 1.5]
        gains = [distance(None, which) - distance(styles[which], which) for which in far]
        assert max(gains) > 0.05

    def test_state_goes_on(self):
        one, other = self.outwards(0), self.outwards(1)
        source = batch()
        for _ in range(3):
            one.learn(source.x, source.y, weight=0.5)
        other.load_state_dict({key: value.clone() for key, value in one.state_dict().items()})
        for outwards in (one, other):
            torch.manual_seed(5)
            outwards.learn(source.x, source.y, weight=0.5)
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def recipe(**changes: Any) -> Any:
    fields = {
        "data": DIGITS,
        "model": "cnn(channels=8)",
        "epochs": 30,
        "batch_size": 50,
        "optimizer": "adam",
        "lr": 0.003,
        "weight_decay": 0.0,
        "schedule": "constant",
        "holdout": 0,
        "selection": "last",
    }
    return make_recipe({**fields, **changes})


def accuracy(run: Run, spec: str) -> float:
    data = load_dataset(spec)
    with torch.no_grad():
        logits = run.load_model()(data.test.x.float() / 127.5 - 1)
    return 100 * (logits.argmax(dim=1) == data.test.y).float().mean().item()


def test_closes_a_domain_and_keeps_its_own(tmp_path: Path):
    tinted = "patched(channels=1, of='digits(subset=300, test_subset=200)', level=60)"
    runs = Workspace(tmp_path)
    usual = runs.run(recipe())
    closed = runs.run(recipe(method="ntl(alpha=1.0, beta=0.5, loss_clamp=10.0)", targets=[tinted]))
    assert accuracy(usual, tinted) > 75
    assert accuracy(closed, tinted) < 30
    assert closed.accuracy > usual.accuracy - 4
    assert closed.result["target_fingerprints"] == [load_dataset(tinted).fingerprint]


def test_resume_with_targets_is_exact(tmp_path: Path):
    wanted = recipe(method="ntl", targets=[NEGATIVE], epochs=2, augment="crop")
    whole = Workspace(tmp_path / "whole").run(wanted)

    class Stop:
        def __init__(self) -> None:
            self.left = 8

        def step(self, epoch: int, step: int, steps: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        def epoch(self, record: dict[str, Any]) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        Workspace(tmp_path / "broken", watch=lambda r: Stop()).run(wanted)
    resumed = Workspace(tmp_path / "broken").run(wanted)
    assert (whole.folder / "model.safetensors").read_bytes() == (resumed.folder / "model.safetensors").read_bytes()
    assert whole.metrics == resumed.metrics


def test_targets_train_another_net_than_none(tmp_path: Path):
    one, other = (
        Workspace(tmp_path).run(recipe(method="ntl", targets=targets, epochs=1)) for targets in ([NEGATIVE], [])
    )
    assert one.result["weights_sha256"] != other.result["weights_sha256"]


def line_of(panel: Panel, name: str) -> Line:
    return next(line for line in panel.lines if line.name == name)


class TestStudies:
    def test_rows(self):
        table = make_table(seeds=2, changes=Changes())
        assert len(table.nets) == 12
        assert {recipe.seed for recipe in table.recipes} == {0, 1}
        to = next(net for net in table.nets if net.name == "mnist-to-usps")
        assert to.recipes[0].data.startswith("mnist(channels=3, image_size=28")
        assert to.recipes[0].targets == ("usps(channels=3, image_size=28)",)
        only = table.pick(lambda *names: "usps" in names)
        assert only is not None
        assert {net.source for net in only.nets} == {"usps"}
        assert table.pick(lambda *names: False) is None

    def test_data_is_replaced_in_source_and_targets(self):
        changes = Changes(data={"usps": "digits(subset=50)"}, epochs=1, width=0.5)
        table = make_table(seeds=1, changes=changes)
        used = {spec for recipe in table.recipes for spec in (recipe.data, *recipe.targets)}
        assert "digits(channels=3, image_size=28, subset=50)" in used
        assert not any(spec.startswith("usps") for spec in used)
        assert {recipe.epochs for recipe in table.recipes} == {1}
        assert all("width=0.5" in recipe.model for recipe in table.recipes)

    def test_smoke_runs_through(self, tmp_path: Path):
        table = make_table(seeds=1, changes=Changes(smoke=True)).pick(lambda *names: "mnist" in names)
        assert table is not None
        figure = ntl_figure(seeds=1, changes=Changes(smoke=True))
        workspace = Workspace(tmp_path / "runs")
        assert table.evaluate(workspace, {}, tmp_path / "cache").to_json()["failed"]
        assert figure.evaluate(workspace, {}, tmp_path / "cache").to_json()["failed"]
        for each in table.recipes:
            workspace.run(each)
        part = table.evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert not part["failed"]
        assert part == table.evaluate(workspace, {}, tmp_path / "cache").to_json()
        rows = {row["name"]: row["cells"] for row in part["rows"]}
        for name, cells in rows.items():
            run = workspace.find(next(net for net in table.nets if net.name == name).recipes[0])
            assert run is not None
            assert cells["mnist"]["mean"] == run.accuracy
            for domain, cell in cells.items():
                assert cell["mean"] == pytest.approx(accuracy(run, table.domains[domain]), abs=1e-3)
        assert rows["mnist-supervised"]["usps"]["difference"] is None
        found = rows["mnist-to-usps"]["usps"]
        assert found["difference"] == found["mean"] - rows["mnist-supervised"]["usps"]["mean"]
        areas = figure.evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert areas == json.loads(json.dumps(areas))
        assert [panel["name"] for panel in areas["panels"]] == [
            "mnist-supervised",
            "mnist-to-mnist_m",
            "mnist-source-only",
        ]
        for panel in areas["panels"]:
            row = rows[panel["name"]]
            for name, accuracies in zip(areas["directions"], panel["accuracies"], strict=True):
                assert accuracies[0] == row["mnist"]["mean"]
                assert len(accuracies) == len(areas["radii"])
                assert not math.isnan(sum(accuracies)), name
        assert len(draw(part_of(areas)).axes) == 4

    def test_removal(self):
        study = ntl_removal(seeds=1, changes=Changes(data={"mnist": "digits(subset=200)"}))
        plan = Plan.of(study.recipes)
        table = make_table(seeds=1, changes=Changes(data={"mnist": "digits(subset=200)"}))
        closed = next(net for net in table.nets if net.name == "mnist-to-mnist_m").recipes[0]
        assert closed.hash in {step.hash for step in plan.steps}  # the same net as in the table
        there, here = study.panels
        shares = [Spec.parse(point.recipes[0].data).kwargs["subset"] for point in there.lines[0].points]
        assert shares == [0.01, 0.05, 0.1]
        assert [Spec.parse(point.recipes[0].data).kwargs["subset"] for point in here.lines[0].points] == [2, 10, 20]
        for panel in study.panels:
            for line in panel.lines:
                for point in line.points:
                    (recipe,) = point.recipes
                    assert point.reference is not None
                    if line.against is None:
                        assert recipe.victim is None
                        assert recipe.epochs == line_of(panel, "kd-nasty").points[0].recipes[0].epochs
                    else:
                        assert isinstance(recipe.victim, Recipe)
                        assert bool(recipe.victim.targets) == (line.against == "nasty")
                    assert point.reference.recipes[0].hash in {step.hash for step in plan.steps}

    def test_area_over_seeds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def fake(run: Run, data: Any, test: Any, shifts: Any, workspace: Any) -> dict[str, Any]:
            return {"accuracies": [[80.0 if run.recipe.seed else 20.0] * 9 for _ in shifts]}

        monkeypatch.setattr("undistill.studies.ntl_figure._measure", fake)
        study = ntl_figure(seeds=2, changes=Changes(smoke=True))
        workspace = Workspace(tmp_path / "runs")
        first, second = ([recipe for recipe in study.recipes if recipe.seed == seed] for seed in (0, 1))
        assert len(first) == len(second) == 3
        for each in first:
            workspace.run(each)
        alone = ntl_figure(seeds=1, changes=Changes(smoke=True)).evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert [(panel["area"], panel["half_width"]) for panel in alone["panels"]] == [(0.0, None)] * 3
        lost = study.evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert lost["failed"]
        assert lost["notes"][0] == "Failed: MNIST, as usual, seed 1: not run"
        for each in second:
            workspace.run(each)
        for panel in study.evaluate(workspace, {}, tmp_path / "cache").to_json()["panels"]:
            assert panel["areas"] == {"0": 0.0, "1": 1.0}
            assert panel["area"] == 0.5
            assert panel["half_width"] == pytest.approx(12.7062 / 2, rel=1e-4)  # t of one degree of freedom
            assert panel["accuracies"] == [[50.0] * 9] * 10


class TestOwnership:
    def test_the_nets(self):
        study = ntl_ownership(seeds=2, changes=Changes(data={"mnist": "digits(subset=200)"}))
        assert study.clean == "digits(channels=3, image_size=28, subset=200)"
        assert load_dataset(study.patched).train.x.shape == (200, 3, 28, 28)
        assert study.rows[:5] == ("usual", "usual-all-0.01", "usual-all-0.1", "usual-last-0.01", "usual-last-0.1")
        assert len(study.suspects) == 14
        for suspect in study.suspects:
            for seed, recipe in enumerate(suspect.recipes):
                assert recipe.seed == seed
                owner = recipe.victim if isinstance(recipe.victim, Recipe) else recipe
                assert owner.targets == ((study.patched,) if suspect.marked else ())
                assert owner.seed == seed
        last = next(suspect for suspect in study.suspects if suspect.name == "marked-last-0.1").recipes[0]
        assert last.method == "finetune(layers='last')"
        assert Spec.parse(last.data).kwargs["subset"] == 20
        only = study.pick(lambda *names: "marked" in names)
        assert only is not None
        assert only.rows == ("marked",)

    def test_gaps_and_verdicts(self, tmp_path: Path):
        level = "digits(channels=1, subset=300, test_subset=200)"
        patched = f"patched(level=60, of={level!r})"
        marked = recipe(method="ntl(alpha=1.0, beta=0.5, loss_clamp=10.0)", targets=[patched])
        suspects = (Suspect("usual", "Usual", False, (recipe(),)), Suspect("marked", "Marked", True, (marked,)))
        study = OwnershipStudy("ntl_ownership", "Whose?", 1, Changes(), level, patched, suspects)
        workspace = Workspace(tmp_path / "runs")
        assert study.evaluate(workspace, {}, tmp_path / "cache").to_json()["failed"]
        runs = {suspect.name: workspace.run(suspect.recipes[0]) for suspect in suspects}
        part = study.evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert not part["failed"]
        for row in part["rows"]:
            clean, marked = (accuracy(runs[row["name"]], spec) for spec in (level, patched))
            cells = row["cells"]
            assert cells["clean"]["mean"] == pytest.approx(clean, abs=1e-3)
            assert cells["patched"]["mean"] == pytest.approx(marked, abs=1e-3)
            assert cells["patched"]["difference"] == pytest.approx(marked - clean, abs=1e-3)
            assert row["gaps"]["0"] == pytest.approx(clean - marked, abs=1e-3)
            assert row["shows"]["0"] == (clean - marked >= 20)
        usual, owners = part["rows"]
        assert (usual["shows"]["0"], owners["shows"]["0"]) == (False, True)
        assert "Marked: it shows in 1 of 1 seeds." in part["notes"]
        assert any(f"at most {usual['gaps']['0']:.2f} points" in note for note in part["notes"])

    def test_smoke(self, tmp_path: Path):
        (study,) = load_studies(
            "ntl_ownership", changes=Changes(smoke=True), only=["usual", "marked", "marked-reinit_last-0.5"]
        )
        workspace = Workspace(tmp_path / "runs")
        for each in study.recipes:
            workspace.run(each)
        part = study.evaluate(workspace, {}, tmp_path / "cache").to_json()
        assert not part["failed"]
        assert part == json.loads(json.dumps(part))
        request = Request("ntl_ownership", changes=Changes(smoke=True))
        page = to_html(
            document_of({"request": request.to_json(), "undistill": "0", "provenance": {}, "parts": [part]}), {}
        )
        assert "What we measured" in page
        assert "The paper, and ours" not in page
        table = part_markdown(part_of(part))
        assert "| Net with the mark, fine-tuned on 50 %, all layers, last one new |" in table


class TestLabels:
    """There is no paper's protocol behind these studies: they must not be called a reduced one."""

    def test_data_of_ones_own(self):
        request = Request("ntl", changes=Changes(data={"usps": "npz(path='usps.npz')"}))
        assert request.folder == "ntl-changed"
        assert request.banner.startswith("Changed: usps replaced by npz(path='usps.npz'). The protocol")
        assert "educed" not in request.banner
        assert Request("ntl").banner == ""
        assert Request("ntl").folder == "ntl"
        assert "cannot be compared" in Request("ntl", changes=Changes(smoke=True)).banner

    def test_the_papers_studies_stay_reduced(self):
        changes = Changes(data={"cifar10": "digits"})
        for study in ("table1", "figure4", "all"):
            request = Request(study, changes=changes)
            assert request.folder == f"{study}-reduced"
            assert request.banner.startswith("Reduced: cifar10 replaced by digits. Not the paper's protocol")


def test_changes_replace_data_in_targets():
    changes = Changes(data={"mnist_m": "npz(path='m.npz', image_size=28, channels=3)", "mnist": "npz(path='a.npz')"})
    adapted = adapt(load_recipe("ntl/kd"), changes)
    assert adapted.data == "npz(channels=3, image_size=28, path='m.npz', subset=0.1)"
    assert isinstance(adapted.victim, Recipe)
    assert adapted.victim.targets == ("npz(channels=3, image_size=28, path='m.npz')",)
    (patched,) = adapt(load_recipe("ntl/patch"), changes).targets
    assert Spec.parse(patched) == Spec("patched", {"of": "npz(path='a.npz', subset=20000)"})
    assert adapt(load_recipe("ntl/target"), Changes(epochs=1)).targets == load_recipe("ntl/target").targets


class TestArea:
    def test_worked_values(self):
        radii = (0.0, 0.5, 1.0)
        assert area([[100, 100, 100]], radii) == pytest.approx(1)
        assert area([[0, 0, 0]], radii) == 0
        # Half the way out is a quarter of the disc.
        assert area([[100, 50, 0]], radii) == pytest.approx(0.25, abs=2e-3)
        assert area([[100, 50, 0], [100, 100, 100]], radii) == pytest.approx(0.625, abs=2e-3)

    @pytest.mark.parametrize("name", SHIFTS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_shifts_start_at_the_source(self, name: str, channels: int):
        x = torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(SHIFTS[name](x, 0.0), x, atol=1e-5, rtol=0)
        distances = [(SHIFTS[name](x, step / 4) - x).abs().mean().item() for step in range(5)]
        assert distances[1] > 1e-3
        assert distances[4] > distances[1]
        assert torch.equal(SHIFTS[name](x, 0.5), SHIFTS[name](x, 0.5))

    def test_the_way_to_another_domain(self):
        source, target = load_dataset(DIGITS).test, load_dataset(NEGATIVE).test
        x = source.x.float() / 255
        end = shift_towards(source, target)(x, 1.0)
        rows = {bytes(row.flatten().numpy()): i for i, row in enumerate(target.x)}
        found = [rows[bytes((row * 255).round().to(torch.uint8).flatten().numpy())] for row in end]
        assert torch.equal(target.y[torch.tensor(found)], source.y)
        assert len(set(found)) > 100
        half = shift_towards(source, target)(x, 0.5)
        torch.testing.assert_close(half, (x + end) / 2)
