"""Thieves without data: what they see, what they ask, and that they go on where they stopped."""

from __future__ import annotations

import base64
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undistill.attacks import ATTACKS
from undistill.attacks.deep_inversion import DeepInversion
from undistill.attacks.dfme import DFME, Extraction
from undistill.attacks.fast_datafree import Bank, FastDataFree, moved
from undistill.attacks.generating import to_pixels
from undistill.data import load_dataset
from undistill.data.dataset import Dataset, Frame, Images
from undistill.data.loader import EmptyBatches, normalize
from undistill.engine import train
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.synthetic import read_images, write_images
from undistill.engine.train import fit
from undistill.errors import CheckpointError, DataError, InterruptedRunError, RecipeError
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Nets, Objective
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.request import load_studies
from undistill.recipe import Recipe, make_recipe
from undistill.reporting.parts import part_of
from undistill.reporting.parts.images import columns, grid, image_panel
from undistill.reporting.report import report
from undistill.reporting.style import draw
from undistill.run import Run
from undistill.studies.changes import Changes
from undistill.studies.inversion import InversionStudy
from undistill.studies.tables import TableStudy
from undistill.victim import Access, BatchStatistics, Victim, WhiteBox
from undistill.workspace import Workspace

DATA = "digits(subset=60, test_subset=30)"
TEACHER = {"data": DATA, "model": "cnn(channels=2)", "epochs": 1, "lr": 0.05, "batch_size": 20}
CPU = torch.device("cpu")
ATTACKERS = [name for name in ATTACKS.names() if ATTACKS[name].images != "train"]
attackers = pytest.mark.parametrize("name", ATTACKERS)


def smoke(name: str, **changes: Any) -> Objective:
    return build_method({"name": name, **ATTACKS[name].smoke, **changes})


def recipe(name: str, **changes: Any) -> Recipe:
    method = changes.pop("method", smoke(name).spec)
    base = {"data": DATA, "model": "cnn(channels=2)", "epochs": 2, "lr": 0.05, "batch_size": 20, "victim": TEACHER}
    return make_recipe({**base, "method": method, "access": str(ATTACKS[name].access), **changes})


def net(data: Dataset, seed: int) -> nn.Module:
    size = {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.image_size}
    return build_model("cnn(channels=2)", seed=seed, **size)


def steal(method: Objective, data: Dataset, **config: Any) -> tuple[dict[str, Tensor], Victim]:
    """Return the student's weights and the victim after a short training."""
    victim = Victim(net(data, 3), access=Access.GRADIENTS)
    model = net(data, 1)
    protocol = {"epochs": 2, "batch_size": 10, "lr": 0.05, "holdout": 0, "selection": "last", **config}
    fit(Job(method, Nets(model, victim=victim), Training(**protocol)), data, device=CPU)
    return model.state_dict(), victim


def content(run: Run) -> tuple[bytes, bytes, Any]:
    files = [(run.folder / name).read_bytes() for name in ("model.safetensors", "images.safetensors")]
    return files[0], files[1], (run.metrics, run.result["queries"])


# --- what a thief sees ------------------------------------------------------------------------------------------------


def test_the_attacks_are_there() -> None:
    assert {"dafl", "deep_inversion", "dfme", "fast_datafree"} <= set(ATTACKERS)
    assert not any(ATTACKS[name].uses_labels for name in ATTACKERS)


@attackers
def test_no_training_image_is_seen(name: str) -> None:
    """With noise for a training set the student is the same to the bit."""
    data = load_dataset(DATA)
    noise = torch.randint(0, 256, data.train.x.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (found, _), (expected, _) = (
        steal(smoke(name), replace(data, train=Images(x, data.train.y))) for x in (noise, data.train.x)
    )
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_batches_without_images_have_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    blanks = EmptyBatches(3, 5, Frame(10, 1, 8, (0.5,), (0.5,)))
    (_, last) = blanks.epoch(7, start=1)
    assert last.x.shape == (5, 1, 8, 8)
    assert {last.x.device.type, last.y.device.type} == {"meta"}
    assert blanks.images == 15
    assert len(blanks) == 3
    monkeypatch.setattr(train, "Loader", lambda *args, **kwargs: pytest.fail("a loader of the training set"))
    steal(smoke("dafl"), load_dataset(DATA))


def test_nothing_can_be_held_out() -> None:
    found = recipe("dafl")
    assert (found.holdout, found.selection) == (0, "last")
    assert isinstance(found.victim, Recipe)
    assert (found.victim.holdout, found.victim.selection) == (0.1, "heldout")  # the owner's own affair
    for wrong in ({"holdout": 0.1}, {"selection": "heldout", "holdout": 0.1}):
        with pytest.raises(RecipeError, match="'dafl' sees no image of the training set, so none can be held out"):
            recipe("dafl", **wrong)
    with pytest.raises(RecipeError, match="none can be held out; set selection=last"):
        steal(smoke("dafl"), load_dataset(DATA), holdout=0.1, selection="heldout")
    assert recipe("deep_inversion").selection == "heldout"  # of the images that it made


# --- what it asks -----------------------------------------------------------------------------------------------------


def test_queries_of_dafl() -> None:
    assert steal(smoke("dafl", steps=3), load_dataset(DATA))[1].queries == 2 * 3 * 10


def test_queries_of_fast_datafree() -> None:
    method = smoke("fast_datafree", steps=3, warm_up=2, draw_steps=4)
    drawn = 2 + 1 + 1  # batches: two ahead, and one before each of the two epochs
    assert steal(method, load_dataset(DATA))[1].queries == 10 * (4 * drawn + 2 * 3)


def test_queries_of_deep_inversion() -> None:
    method = smoke("deep_inversion", count=50, batch=20, iterations=3, adaptive=0.0)
    assert steal(method, load_dataset(DATA))[1].queries == 3 * 50 + 2 * 50
    method = smoke("deep_inversion", count=50, batch=20, iterations=3, adaptive=1.0)
    assert steal(method, load_dataset(DATA))[1].queries == 3 * 50 + (20 + 40) + 2 * 50


def test_queries_of_dfme() -> None:
    method = smoke("dfme", steps=4, student_steps=2, directions=3)
    rounds = 2 * 4 // 2
    assert steal(method, load_dataset(DATA))[1].queries == rounds * (2 * 10 + (3 + 1) * 10)


@pytest.mark.parametrize("budget", [1, 9, 10, 41, 115, 160])
def test_a_budget_is_spent_to_the_last_query_and_not_beyond(budget: int) -> None:
    """160 is what the steps would ask; where a step of the generator no longer fits, students' steps spend the rest."""
    _, victim = steal(smoke("dfme", steps=4, student_steps=2, budget=budget), load_dataset(DATA))
    assert victim.queries == min(budget, 160)


def test_a_budget_holds_over_an_interruption(tmp_path: Path) -> None:
    wanted = recipe("dfme", method=smoke("dfme", steps=4, student_steps=2, budget=130).spec)
    broken = Workspace(tmp_path, watch=lambda r: InterruptAt(6) if r == wanted else None)
    with pytest.raises(InterruptedRunError):
        broken.run(wanted)
    assert Workspace(tmp_path).run(wanted).result["queries"] == 130


def test_probabilities_are_all_that_dfme_gets() -> None:
    assert DFME.access == Access.PROBS
    data = load_dataset(DATA)
    victim = Victim(net(data, 3), access=Access.PROBS)
    config = Training(epochs=1, batch_size=10, lr=0.05, holdout=0, selection="last")
    fit(Job(smoke("dfme"), Nets(net(data, 1), victim=victim), config), data, device=CPU)
    assert victim.queries > 0


@attackers
def test_the_victim_stays_as_it_is(name: str) -> None:
    data = load_dataset(DATA)
    start = net(data, 3).state_dict()
    _, victim = steal(smoke(name), data)
    found = victim._model.state_dict()
    assert all(torch.equal(value, start[key]) for key, value in found.items())


# --- resume -----------------------------------------------------------------------------------------------------------


class InterruptAt:
    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""


@pytest.mark.parametrize("name", [name for name in ATTACKERS if ATTACKS[name].images == "none"])
@pytest.mark.parametrize("at", [2, 6])
def test_resume_in_the_middle_of_an_epoch(name: str, at: int, tmp_path: Path) -> None:
    changes = {"batch_norm": 1.0} if name == "fast_datafree" else {}  # so that it keeps statistics
    method = smoke(name, **changes).spec
    wanted = recipe(name, method=method, schedule="one_cycle")  # 4 steps an epoch, each at a rate of its own
    whole = Workspace(tmp_path / "whole").run(wanted)
    with pytest.raises(InterruptedRunError, match=f"step {at % 4} of 4"):
        Workspace(tmp_path / "broken", watch=lambda r: InterruptAt(at) if r == wanted else None).run(wanted)
    assert content(Workspace(tmp_path / "broken").run(wanted)) == content(whole)


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_set_goes_on_after_the_last_whole_batch(
    batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe("deep_inversion")  # 3 batches of 20
    whole = Workspace(tmp_path / "whole").run(wanted)
    draw_one, drawn = DeepInversion.synthesize, 0

    def interrupted(method: DeepInversion, *args: Any) -> Images | None:
        nonlocal drawn
        if drawn == batches:
            raise KeyboardInterrupt
        drawn += 1
        return draw_one(method, *args)

    monkeypatch.setattr(DeepInversion, "synthesize", interrupted)
    with pytest.raises(InterruptedRunError, match=f"interrupted after {20 * batches} synthetic images; run the same"):
        Workspace(tmp_path / "broken").run(wanted)
    seen = []

    def watched(method: DeepInversion, nets: Nets, frame: Frame, images: Images, device: torch.device) -> Images | None:
        seen.append(len(images))
        return draw_one(method, nets, frame, images, device)

    monkeypatch.setattr(DeepInversion, "synthesize", watched)
    assert content(Workspace(tmp_path / "broken").run(wanted)) == content(whole)
    assert seen == [size for size in (0, 20, 40, 60) if size >= 20 * batches]


def test_a_set_of_another_victim_is_refused(tmp_path: Path) -> None:
    wanted = recipe("deep_inversion")
    folder = tmp_path / wanted.folder_name
    black = Images(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    Workspace(tmp_path).run(wanted.victim)  # type: ignore[arg-type]
    folder.mkdir()
    (folder / "recipe.yaml").write_text(wanted.to_yaml())
    write_images(folder, black, {"origin": "another", "queries": 0})
    with pytest.raises(CheckpointError, match="drawn from another victim"):
        Workspace(tmp_path).run(wanted)
    (folder / "images.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot read"):
        Workspace(tmp_path).run(wanted)


def test_side_by_side_as_one_by_one(tmp_path: Path) -> None:
    wanted = [recipe("dafl"), recipe("dafl", model="cnn(channels=3)"), recipe("deep_inversion", access="gradients")]
    wanted = [one.model_copy(update={"holdout": 0, "selection": "last"}) for one in wanted]
    apart = [content(Workspace(tmp_path / "apart").run(one)) for one in wanted]
    together = Workspace(tmp_path / "together").run_together(wanted)
    assert [content(run) for run in together if isinstance(run, Run)] == apart


def test_a_thief_that_cannot_draw_takes_no_other_down(tmp_path: Path) -> None:
    bad = recipe(
        "deep_inversion", method="deep_inversion", victim={**TEACHER, "model": "mlp(hidden=(8,), relu_logits=False)"}
    )
    bad = bad.model_copy(update={"holdout": 0, "selection": "last"})
    good = recipe("dafl")
    first, second = Workspace(tmp_path).run_together([bad, good])
    assert isinstance(first, RecipeError)
    assert isinstance(second, Run)


# --- the images -------------------------------------------------------------------------------------------------------


@attackers
def test_images_are_kept(name: str, tmp_path: Path) -> None:
    run = Workspace(tmp_path).run(recipe(name))
    images = run.images()
    assert images is not None
    assert images.x.shape[1:] == (1, 8, 8)
    assert len(images) == {"deep_inversion": 60}.get(name, 20)
    assert int(images.y.max()) < 10
    assert len(torch.unique(images.x)) > 20  # pictures, of whatever
    teacher = Workspace(tmp_path).run(recipe(name).victim)  # type: ignore[arg-type]
    assert teacher.images() is None


@pytest.fixture(scope="module")
def taught() -> tuple[Dataset, nn.Module]:
    """A small net that knows digits."""
    data = load_dataset("digits(subset=400, test_subset=300)")
    model = build_model("cnn(channels=8)", num_classes=10, in_channels=1, image_size=8, seed=3)
    config = Training(epochs=8, batch_size=32, lr=0.1, schedule="one_cycle", holdout=0, selection="last")
    fit(Job(build_method("ce"), Nets(model), config), data, device=CPU)
    return data, model.eval()


def test_inverted_images_are_balanced_and_please_the_victim(taught: tuple[Dataset, nn.Module]) -> None:
    data, model = taught
    victim = Victim(model, access=Access.GRADIENTS)
    method = DeepInversion(count=25, batch=25, iterations=60, batch_norm=0.1, jitter=0, flip=False)
    none = Images(data.train.x[:0], data.train.y[:0])
    torch.manual_seed(0)
    images = method.synthesize(Nets(net(data, 1), victim=victim), Frame.of(data), none, CPU)
    assert images is not None
    assert torch.bincount(images.y).tolist() == [3] * 5 + [2] * 5
    answers = victim.labels(normalize(images.x, data.mean, data.std))
    assert float((answers == images.y).double().mean()) > 0.9
    assert method.synthesize(Nets(net(data, 1), victim=victim), Frame.of(data), images, CPU) is None


def test_smoothness_and_norm_do_what_they_say() -> None:
    data = load_dataset(DATA)
    none = Images(data.train.x[:0], data.train.y[:0])

    def roughness(**weights: float) -> tuple[float, float]:
        victim = Victim(net(data, 3), access=Access.GRADIENTS)
        method = DeepInversion(count=20, batch=20, iterations=40, batch_norm=0.0, jitter=1, **weights)
        torch.manual_seed(0)
        images = method.synthesize(Nets(net(data, 1), victim=victim), Frame.of(data), none, CPU)
        assert images is not None
        x = images.x.float() / 255
        away = x - torch.tensor(data.mean)[:, None, None]
        return float((x[..., 1:] - x[..., :-1]).abs().mean()), float(away.abs().mean())

    plain, smooth, small = roughness(), roughness(smoothness=1.0), roughness(l2=1.0)
    assert smooth[0] < 0.5 * plain[0]
    assert small[1] < 0.5 * plain[1]


def test_the_adaptive_term_leaves_the_student_alone_and_changes_the_images() -> None:
    data = load_dataset(DATA)
    student, sets = net(data, 1), []
    start = {key: value.clone() for key, value in student.state_dict().items()}
    for weight in (0.0, 50.0):
        method = smoke("deep_inversion", adaptive=weight, iterations=20, rival_steps=5)
        drawn = Images(data.train.x[:20], data.train.y[:20])
        torch.manual_seed(0)
        victim = Victim(net(data, 3), access=Access.GRADIENTS)
        more = method.synthesize(Nets(student, victim=victim), Frame.of(data), drawn, CPU)
        assert more is not None
        sets.append(more.x)
    assert not torch.equal(*sets)
    assert all(torch.equal(value, start[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("name", ["deep_inversion", "fast_datafree"])
def test_a_victim_without_batch_norm_is_refused(name: str, tmp_path: Path) -> None:
    method = {key: value for key, value in ATTACKS[name].smoke.items() if key != "batch_norm"}
    spec = build_method({"name": name, **method}).spec
    with pytest.raises(RecipeError, match=f"{name} matches the statistics that BatchNorm layers keep, and this victim"):
        Workspace(tmp_path).run(
            recipe(name, method=spec, victim={**TEACHER, "model": "mlp(hidden=(8,), relu_logits=False)"})
        )


def test_pixels() -> None:
    frame = Frame(10, 2, 1, (0.5, 0.0), (0.25, 1.0))
    x = torch.tensor([[[[-9.0]], [[0.5]]], [[[1.0]], [[9.0]]]])
    assert to_pixels(x, frame).flatten().tolist() == [0, 128, 191, 255]
    every = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    gray = Frame(10, 1, 1, (0.3,), (0.4,))
    assert torch.equal(to_pixels(normalize(every, gray.mean, gray.std), gray), every)


class Records:
    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        self.found.append(record)


@pytest.mark.parametrize(
    ("spec", "epochs", "least"),
    [
        ("deep_inversion(count=150, batch=150, iterations=80, batch_norm=1, jitter=0, flip=False)", 20, 60),
        (
            "fast_datafree(steps=15, warm_up=10, batch_norm=1, temperature=4, channels=32, padding=0, flip=False)",
            12,
            40,
        ),
    ],
)
def test_a_student_learns_without_data(taught: tuple[Dataset, nn.Module], spec: str, epochs: int, least: float) -> None:
    data, victim = taught
    model = build_model("cnn(channels=8)", num_classes=10, in_channels=1, image_size=8, seed=1)
    nets = Nets(model, victim=Victim(victim, access=Access.GRADIENTS))
    config = Training(epochs=epochs, batch_size=32, lr=0.05, schedule="one_cycle", holdout=0, selection="last")
    assert fit(Job(build_method(spec), nets, config), data, device=CPU).last.accuracy > least  # of ten classes


@pytest.mark.parametrize("term", ["one_hot", "entropy", "activation"])
def test_the_generator_of_dafl_minimises_each_term(taught: tuple[Dataset, nn.Module], term: str) -> None:
    data, victim = taught
    weights = {"one_hot": 0.0, "entropy": 0.0, "activation": 0.0, term: 1.0}
    method = smoke("dafl", steps=12, latent=16, channels=8, generator_lr=0.01, **weights)
    nets = Nets(net(data, 1), victim=Victim(victim, access=Access.GRADIENTS))
    config = Training(epochs=2, batch_size=32, lr=0.01, holdout=0, selection="last")
    seen = Records()
    fit(Job(method, nets, config, callback=seen), data, device=CPU)
    first, last = (record[f"train_{term}"] for record in seen.found)
    assert last < first - 0.02 * abs(first)


def test_the_generator_of_dfme_follows_the_students_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own schedule, stepped by the epoch as the authors' code does for both optimizers."""
    found = []
    monkeypatch.setattr(Extraction, "update", lambda self, _: found.append(self.optimizer.param_groups[0]["lr"]))
    method = smoke("dfme", steps=2, student_steps=1, generator_lr=1e-4)
    steal(method, load_dataset(DATA), epochs=6, lr=0.1, milestones=(1, 3, 5), gamma=0.3)
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=1e-4)
    schedule, expected = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 5], 0.3), []
    for _ in range(6):
        expected += 2 * schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected, rel=1e-9)
    found.clear()
    steal(smoke("dfme", generator_lr=1e-4, paced=False), load_dataset(DATA), milestones=(1,), gamma=0.3)
    assert set(found) == {1e-4}


def test_dfme_asks_about_what_tanh_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = [], Victim.probs

    def watched(victim: Victim, x: Tensor) -> Tensor:
        asked.append(x)
        return ask(victim, x)

    monkeypatch.setattr(Victim, "probs", watched)
    steal(smoke("dfme"), load_dataset(DATA))
    assert max(float(x.abs().max()) for x in asked) <= 1
    assert all(float(x.std()) > 0.3 for x in asked)  # of a normal variable's tanh it is 0.63


def test_the_generators_rate_decays_by_the_epoch() -> None:
    method = smoke("dafl", steps=3, generator_lr=0.5, generator_decay=0.5)
    assert [method._generator_lr(n) for n in (0, 2, 3, 6)] == [0.5, 0.5, 0.25, 0.125]  # type: ignore[attr-defined]


# --- fast_datafree ----------------------------------------------------------------------------------------------------

STILL = {"padding": 0, "flip": False, "adversarial": 0.0, "reset_after": 0}


def fast(**changes: Any) -> FastDataFree:
    method = smoke("fast_datafree", **{"batch_norm": 1.0, "warm_up": 3, **changes})
    assert isinstance(method, FastDataFree)
    return method


def bank_of(method: FastDataFree, data: Dataset, batches: int) -> Bank:
    """Return the bank of an attack that has drawn so many batches of 10."""
    torch.manual_seed(0)
    student, victim = net(data, 1), Victim(net(data, 3), access=Access.GRADIENTS)
    bank = method.companion(Nets(student, victim=victim), Frame.of(data), CPU)
    for _ in range(batches):
        method._draw(victim, student, bank, 10)
    return bank


def test_the_common_generator_takes_one_step_down_the_sum_of_the_copys_gradients() -> None:
    data = load_dataset(DATA)
    method = fast(draw_steps=3, batch_norm=0.0, one_hot=0.7, generator_lr=0.002, latent_lr=0.01, **STILL)
    before, after = (bank_of(method, data, batches).generator for batches in (0, 1))
    torch.manual_seed(0)
    net(data, 1)  # has its own seed
    bank = method.companion(Nets(net(data, 1)), Frame.of(data), CPU)
    copy, victim = deepcopy(bank.generator), net(data, 3).eval()
    z, y = torch.randn(10, 8).requires_grad_(), torch.randint(10, (10,))
    inner = torch.optim.Adam([*copy.parameters()], lr=0.002, betas=(0.5, 0.999))
    noise = torch.optim.Adam([z], lr=0.01, betas=(0.5, 0.999))
    total = [torch.zeros_like(p) for p in copy.parameters()]
    for _ in range(3):
        inner.zero_grad()
        noise.zero_grad()
        x = (copy(z) - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
        (0.7 * nn.functional.cross_entropy(victim(x), y)).backward()  # type: ignore[no-untyped-call]
        total = [g + p.grad for g, p in zip(total, copy.parameters(), strict=True) if p.grad is not None]
        inner.step()
        noise.step()
    for (name, start), end, g in zip(before.named_parameters(), after.parameters(), total, strict=True):
        if name in ("conv1.bias", "conv2.bias"):  # before a BatchNorm: the gradient is nothing but rounding
            continue
        expected = start - 3 * 0.002 * g / (g.abs() + 1e-8)  # Adam's first step, whatever its betas
        torch.testing.assert_close(end, expected, rtol=0, atol=2e-4)


def test_statistics_are_running_means_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, open_ = [], Victim.white_box

    def watched(victim: Victim, x: Tensor, *, statistics: bool = False) -> WhiteBox:
        opened = open_(victim, x, statistics=statistics)
        seen.append([value.detach() for layer in opened.statistics for value in (layer.mean, layer.var)])
        return opened

    monkeypatch.setattr(Victim, "white_box", watched)
    flow = bank_of(fast(draw_steps=2, momentum=0.9, **STILL), load_dataset(DATA), 3).flow
    first, second, third = seen[1::2]  # of the last step of each batch
    assert len(flow) == 2 * 4
    for found, a, b, c in zip(flow, first, second, third, strict=True):
        torch.testing.assert_close(found, 0.81 * a + 0.09 * b + 0.1 * c)


def test_the_statistics_of_earlier_batches_count_in_the_loss() -> None:
    method = fast(momentum=0.75, one_hot=0.0, batch_norm=2.0)
    layer = BatchStatistics(*(torch.tensor([float(v)]) for v in (1, 2, 10, 20)))
    opened = WhiteBox(torch.zeros(1, 10), torch.zeros(1, 1), (layer,))
    followed = method._followed(opened, [torch.tensor([5.0]), torch.tensor([6.0])])
    assert [float(value) for value in followed] == [0.75 * 5 + 0.25 * 1, 0.75 * 6 + 0.25 * 2]
    assert float(method._loss(opened, followed, torch.tensor([0]), None)) == 2 * ((10 - 4) + (20 - 5))


def test_the_adversarial_term_starts_with_the_last_batch_of_the_warm_up() -> None:
    data, asked = load_dataset(DATA), []
    student = net(data, 1)
    student.register_forward_hook(lambda module, *_: asked.append(module.training))
    victim = Victim(net(data, 3), access=Access.GRADIENTS)
    config = Training(epochs=1, batch_size=10, lr=0.05, holdout=0, selection="last")
    method = fast(steps=4, warm_up=3, draw_steps=5, adversarial=1.0)
    fit(Job(method, Nets(student, victim=victim), config), data, device=CPU)
    learned = asked.index(True)
    assert asked[:learned] == 2 * 5 * [False]  # batches 3 and 4, then the first epoch
    assert asked[learned : learned + 4] == 4 * [True]


def test_the_generators_start_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    monkeypatch.setattr(Bank, "reset", lambda bank: at.append(bank.updates + 1))
    bank_of(fast(warm_up=3, reset_after=2), load_dataset(DATA), 8)
    bank_of(fast(warm_up=3, reset_after=0), load_dataset(DATA), 8)
    assert at == [3 + 2]
    monkeypatch.undo()
    bank = bank_of(fast(latent=64, channels=32), load_dataset(DATA), 1)
    before = deepcopy(bank.generator.state_dict())
    bank.reset()
    after = bank.generator.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"{layer}.{part}" for layer in ("linear", "bn0") for part in ("weight", "bias")}
    assert float(after["linear.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(after["bn0.weight"].abs().max()) < 0.1
    assert not after["linear.bias"].any()


def test_every_image_comes_once_before_any_comes_twice() -> None:
    bank = bank_of(fast(), load_dataset(DATA), 0)
    for shade in range(6):
        bank.add(torch.full((1, 1, 8, 8), shade / 255), torch.tensor([0]))
    shades = [int(shade) for _ in range(6) for shade in bank.sample(2)[:, 0, 0, 0]]
    assert sorted(shades[:6]) == sorted(shades[6:]) == list(range(6))
    assert len(bank.sample(20)) == 20


def test_images_are_moved_as_by_a_random_crop() -> None:
    torch.manual_seed(0)
    x = torch.rand(4000, 2, 5, 5)
    assert torch.equal(moved(x, 0, mirror=False), x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    crops = [padded[:, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    candidates = torch.stack([*crops, *(crop.flip(3) for crop in crops)])
    which = (moved(x, 1, mirror=True) == candidates).flatten(2).all(dim=2)
    assert which.sum(dim=0).tolist() == [1] * 4000
    # Each has a chance of 1/18: 222 of 4000, with a standard deviation of 14.5.
    assert float((which.sum(dim=1) - 4000 / 18).abs().max()) < 5 * 14.5


def test_moving_has_a_gradient_and_takes_uint8() -> None:
    x = torch.ones(3, 1, 4, 4, requires_grad=True)
    moved(x, 2, mirror=True).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}
    assert moved(torch.ones(3, 1, 4, 4, dtype=torch.uint8), 2, mirror=True).dtype == torch.uint8


# --- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command", "fields"),
    [
        (
            "dafl",
            "--lr_G 0.02 --latent_dim 1000 --oh 0.05 --ie 5 --a 0.01",
            "generator_lr latent one_hot entropy activation",
        ),
        (
            "deep_inversion",
            "--bs 256 --r_feature_weight 10 --di_lr 0.05 --iters_mi 2000 --di_var_scale 2.5e-5 --cig_scale 0",
            "batch batch_norm lr iterations smoothness adaptive",
        ),
        (
            "dfme",
            "--grad_m 1 --query_budget 20e6 --lr_G 1e-4 --d_iter 5",
            "directions budget generator_lr student_steps",
        ),
        (
            "fast_datafree",
            "--kd_steps 400 --adv 1.33 --bn 10.0 --oh 0.5 --T 20 --bn_mmt 0.9 --warmup 20 --g_steps 10 --lr_z 0.01 "
            "--lr_g 2e-3",
            "steps adversarial batch_norm one_hot temperature momentum warm_up draw_steps latent_lr generator_lr",
        ),
    ],
)
def test_defaults_are_a_published_command(name: str, command: str, fields: str) -> None:
    values = build_method(name).model_dump()
    assert [values[field] for field in fields.split()] == [float(value) for value in command.split()[1::2]]


# --- Table 6 and Figure 6 ---------------------------------------------------------------------------------------------


def test_table_6_as_the_papers_have_it() -> None:
    (table,) = load_studies("table6", seeds=2)
    assert isinstance(table, TableStudy)
    assert table.rows == ("resnet34-normal", "resnet34-nasty")
    assert {len(recipes) for recipes in table.cells.values()} == {2}
    weights = {"cifar10": (0.05, 5.0, 0.01), "cifar100": (0.5, 20.0, 0.1)}
    for (row, column), recipes in table.cells.items():
        data, measured = column.split("-")
        for seed, found in enumerate(recipes):
            assert (found.data, found.seed, found.holdout, found.selection) == (data, seed, 0, "paper")
            if measured == "teacher":
                assert found.model == "resnet34"
                assert found.kind == ("defense" if row.endswith("nasty") else "reference")
                continue
            assert found.victim == table.cells[row, f"{data}-teacher"][seed]
            assert (found.model, found.epochs, found.batch_size, found.lr) == ("resnet18", 2000, 1024, 0.1)
            assert (found.milestones, found.gamma, found.schedule) == ((800, 1600), 0.1, "step")
            values = found.objective.model_dump()
            assert (values["one_hot"], values["entropy"], values["activation"]) == weights[data]
            assert (values["steps"], values["generator_lr"], values["latent"]) == (120, 0.02, 1000)
    assert len(Plan.of(table.recipes).steps) == 2 * 8
    assert table.paper.cell("resnet34-nasty", "cifar10-dafl").value == 86.15


def test_figure_6_as_the_papers_have_it() -> None:
    (figure,) = load_studies("figure6", seeds=3)
    normal, nasty = figure.recipes
    assert normal.method == nasty.method
    values = normal.objective.model_dump()
    assert values == build_method("deep_inversion").model_dump()  # which are the command's
    assert isinstance(normal.victim, Recipe)
    assert isinstance(nasty.victim, Recipe)
    assert (normal.victim.kind, nasty.victim.kind) == ("reference", "defense")
    assert normal.victim == nasty.victim.adversary


def test_smaller_studies_draw_less() -> None:
    (figure,) = load_studies("figure6", changes=Changes(epochs=16, width=0.25))
    assert {found.objective.model_dump()["iterations"] for found in figure.recipes} == {200}
    (figure,) = load_studies("figure6", changes=Changes(smoke=True))
    assert {found.method for found in figure.recipes} == {smoke("deep_inversion").spec}
    (table,) = load_studies("table6", changes=Changes(smoke=True))
    assert {found.method for found in table.recipes if found.kind == "attack"} == {smoke("dafl").spec}


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> tuple[InversionStudy, Workspace]:
    """A small figure whose runs are there."""
    workspace = Workspace(tmp_path_factory.mktemp("runs"), device="cpu")
    nasty = {**TEACHER, "method": "nasty"}
    thefts = {"normal": recipe("deep_inversion"), "nasty": recipe("deep_inversion", victim=nasty)}
    for theft in thefts.values():
        workspace.run(theft)
    return InversionStudy("figure6", "Images", 1, Changes(), thefts), workspace


def test_figure_6_shows_the_images(figure: tuple[InversionStudy, Workspace], tmp_path: Path) -> None:
    study, workspace = figure
    part = study.evaluate(workspace, {}, tmp_path).to_json()
    assert not part["failed"]
    assert part_of(part).drawn
    for panel, theft in zip(part["panels"], study.extractions.values(), strict=True):
        run = workspace.find(theft)
        assert run is not None
        images = run.images()
        assert images is not None
        assert (panel["columns"], panel["height"], panel["width"]) == (10, 6 * 8 + 5, 10 * 8 + 9)
        shown = np.frombuffer(base64.b64decode(panel["pixels_base64"]), dtype=np.uint8).reshape(53, 89)
        second_three = shown[9:17, 27:35]
        assert np.array_equal(second_three, images.x[images.y == 3][1, 0].numpy())
        assert any(f"60 images {run.accuracy:.2f} %" in note for note in part["notes"])
    drawn = draw(part_of(part))
    assert [axes.get_title() for axes in drawn.axes] == ["Normal teacher", "Nasty teacher"]
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == [str(k) for k in range(10)]
    pixels = np.asarray(drawn.axes[1].get_images()[0].get_array())
    assert pixels.tobytes() == base64.b64decode(part["panels"][1]["pixels_base64"])


def test_figure_6_says_what_is_missing(figure: tuple[InversionStudy, Workspace], tmp_path: Path) -> None:
    study, _ = figure
    part = study.evaluate(Workspace(tmp_path), {}, tmp_path).to_json()
    assert part["failed"]
    assert part["notes"] == [f"Failed: images of the {name} teacher, seed 0: not run" for name in ("normal", "nasty")]
    assert not part_of(part).drawn


def test_a_grid() -> None:
    pixels = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 2, 2)
    found = grid(columns(Images(pixels, torch.tensor([1, 0, 1])), 3, 5))
    assert found.shape == (3, 2 + 1 + 2, 3 * 2 + 2)
    white = 255
    assert found[0].tolist() == [
        [1, 1, white, 0, 0, white, white, white],
        [1, 1, white, 0, 0, white, white, white],
        [white] * 8,
        [white, white, white, 2, 2, white, white, white],
        [white, white, white, 2, 2, white, white, white],
    ]
    with pytest.raises(DataError, match="the run made no images"):
        image_panel("normal", "Normal", None, 3, 5)


def test_the_report_shows_them(figure: tuple[InversionStudy, Workspace], tmp_path: Path) -> None:
    _, workspace = figure
    page = report(workspace.root, tmp_path / "report.html").read_text()
    assert 'aria-label="Images that thieves made' in page
    assert page.count("from the normal teacher, student") == 1
    assert page.count("<image ") >= 2


def test_no_images_file(tmp_path: Path) -> None:
    assert read_images(tmp_path) is None
