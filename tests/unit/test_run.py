"""Runs: what they leave on disk, how they find each other, and what stops them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import undistill
from undistill import Run, attack, defend, load_dataset, train
from undistill.attacks.kd import KD
from undistill.data.dataset import Dataset
from undistill.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    RecipeError,
    RunError,
    ShapeError,
    UndistillError,
)
from undistill.models import build_model
from undistill.recipe import Recipe, Weights, load_recipe, make_recipe
from undistill.workspace import Workspace

DATA = "digits(subset=200, test_subset=100)"
MLP = "mlp(hidden=(16,), relu_logits=False)"
CNN = "cnn(channels=4)"
BASE: dict[str, Any] = {"data": DATA, "model": MLP, "epochs": 2, "lr": 0.05}
FILES = {".lock", "recipe.yaml", "metrics.jsonl", "model.safetensors", "predictions.safetensors", "result.json"}


def recipe(**changes: Any) -> Recipe:
    return make_recipe({**BASE, **changes})


def weights(run: Run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def logits_of(model: nn.Module, data: Dataset) -> Tensor:
    """Return the answers to the test images, by torch alone."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        return model((data.test.x.float() / 255 - mean) / std)


def custom_net(num_classes: int = 10, hidden: int = 12) -> nn.Module:
    """A net of somebody else."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, num_classes))


def npz(path: Path, *, shift: int = 0, **changes: Any) -> Path:
    """Write a part of the digits as a file."""
    full = load_dataset(DATA)
    arrays = {
        "train_x": full.train.x[:, 0].numpy(),
        "train_y": (full.train.y.numpy() + shift) % 10,
        "test_x": full.test.x[:, 0].numpy(),
        "test_y": (full.test.y.numpy() + shift) % 10,
    }
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that no test changes."""
    return train(data=DATA, model=CNN, epochs=3, lr=0.05, runs=tmp_path_factory.mktemp("teachers"))


# --- the three verbs


def test_train_defend_attack(tmp_path: Path):
    normal = train(data=DATA, model=MLP, epochs=2, lr=0.05, runs=tmp_path)
    nasty = defend(data=DATA, model=MLP, method="nasty(temperature=4, weight=0.01)", epochs=2, lr=0.05, runs=tmp_path)
    thief = attack(victim=nasty, model=CNN, epochs=2, lr=0.05, runs=tmp_path)
    assert [run.recipe.kind for run in (normal, nasty, thief)] == ["reference", "defense", "attack"]
    assert [run.folder.name for run in (normal, nasty, thief)] == [
        f"{prefix}-{run.recipe.hash}" for prefix, run in (("ce-mlp", normal), ("nasty-mlp", nasty), ("kd-cnn", thief))
    ]
    # The adversary is the twin, which was there; no fourth run.
    assert files(tmp_path) == {run.folder.name for run in (normal, nasty, thief)}
    assert nasty.result["sources_sha256"] == {"adversary": sha256(weights(normal)).hexdigest()}
    assert thief.result["sources_sha256"] == {"victim": sha256(weights(nasty)).hexdigest()}
    assert thief.recipe.data == DATA  # the victim's
    assert thief.recipe.objective == KD()
    assert {"train_ce", "train_adversary_kl"} <= set(nasty.metrics[0])
    assert all(0.1 < nasty.metrics[0][f"train_{whose}confidence"] < 1 for whose in ("", "adversary_"))
    for run in (normal, nasty, thief):
        assert run.finished
        assert files(run.folder) == FILES
        assert [record["epoch"] for record in run.metrics] == [1, 2]


def test_default_folder_of_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    run = train(**{**BASE, "epochs": 1})
    assert run.folder.parent == Path(os.environ["UNDISTILL_RUNS"])
    monkeypatch.delenv("UNDISTILL_RUNS")
    monkeypatch.chdir(tmp_path)
    assert train(**{**BASE, "epochs": 1}).folder.parent == Path("runs")


def test_method_as_an_object(teacher: Run, tmp_path: Path):
    run = attack(victim=teacher, model=MLP, method=KD(temperature=2, alpha=0.5), epochs=1, runs=tmp_path)
    assert run.recipe.objective == KD(temperature=2, alpha=0.5)


def test_train_from_a_recipe(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe(epochs=1).to_yaml())
    assert train(path, runs=tmp_path / "runs", seed=3).recipe.hash == recipe(epochs=1, seed=3).hash


@pytest.mark.parametrize(
    ("verb", "method", "message"),
    [
        (train, "nasty", "'nasty' is a defense, not a reference; use `defend`"),
        (defend, "ce", "'ce' is a reference, not a defense; use `train`"),
        (attack, "label_smoothing", "'label_smoothing' is a reference, not an attack; use `train`"),
    ],
)
def test_wrong_verb(verb: Any, method: str, message: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=message):
        verb(**BASE, method=method, runs=tmp_path)
    assert files(tmp_path) == set()


def test_attack_of_nobody(tmp_path: Path):
    with pytest.raises(RecipeError, match="attack 'kd' needs a victim"):
        attack(data=DATA, model=MLP, runs=tmp_path)
    with pytest.raises(RecipeError, match="victim: expected a run folder, a recipe, or a checkpoint"):
        attack(victim=3, data=DATA, model=MLP, runs=tmp_path)  # type: ignore[arg-type]


# --- what a result says


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def test_result(teacher: Run):
    data, result = load_dataset(DATA), teacher.result
    assert json.loads((teacher.folder / "result.json").read_text()) == result
    logits = logits_of(teacher.load_model(), data)
    answers = logits.argmax(1)
    accuracy = 100 * int((answers == data.test.y).sum()) / 100
    share = answers.bincount(minlength=10)
    assert teacher.accuracy == result["selected"]["accuracy"] == accuracy
    assert result["selected"]["nll"] == pytest.approx(float(F.cross_entropy(logits, data.test.y)), rel=1e-5)
    assert result["selected"]["top_class"] == int(share.argmax())
    assert result["selected"]["top_class_share"] == int(share.max()) / 100
    assert teacher.collapsed == (int(share.max()) > 90)
    assert result["parameters"] == sum(p.numel() for p in teacher.load_model().parameters())
    assert (result["classes"], result["test_images"], result["queries"]) == (10, 100, None)
    assert result["data_fingerprint"] == data.fingerprint
    assert result["data_note"] == "a subset: 200 training and 100 test images"
    assert result["weights_sha256"] == sha256(weights(teacher)).hexdigest()
    assert (result["recipe_hash"], result["name"]) == (teacher.recipe.hash, teacher.folder.name)
    assert result["sources_sha256"] == {}
    assert result["images_per_s"] == pytest.approx(3 * 180 / result["seconds"])
    assert result["provenance"] == {
        "undistill": undistill.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "device_name": processor(),
        "threads": torch.get_num_threads(),
        "profile": "exact",
        "seed": 0,
    }


def test_recipe_of_a_run(teacher: Run):
    again = Run(teacher.folder)
    assert again.recipe.hash == teacher.recipe.hash
    assert load_recipe(teacher.folder / "recipe.yaml") == make_recipe(
        {"data": DATA, "model": CNN, "epochs": 3, "lr": 0.05}
    )


def test_load_model(teacher: Run):
    model = teacher.load_model()
    assert not model.training
    stored = load_file(teacher.folder / "model.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["kd", "hard_label"])
def test_queries(teacher: Run, tmp_path: Path, method: str):
    run = attack(victim=teacher, model=MLP, method=method, epochs=2, holdout=0, selection="last", runs=tmp_path)
    assert run.result["queries"] == 2 * 200  # each image once an epoch, and none for evaluation


def test_selection_on_the_test_set_is_the_papers(tmp_path: Path):
    """Retrain with the weights of each epoch by hand: the recipe of k epochs is the first k epochs of a longer one."""
    fields = {"data": "digits(subset=200, test_subset=130)", "model": MLP, "lr": 0.3, "schedule": "constant"}
    fields |= {"holdout": 0, "batch_size": 50}
    epochs = 6
    paper = train(**fields, epochs=epochs, selection="paper", runs=tmp_path)
    last = [train(**fields, epochs=k, selection="last", runs=tmp_path) for k in range(1, epochs + 1)]
    by_batch, exact = [], []
    for run in last:
        data = run.dataset()
        hits = (logits_of(run.load_model(), data).argmax(1) == data.test.y).float()
        by_batch.append(100 * float((hits[:128].mean() + hits[128:].mean()) / 2))
        exact.append(100 * float(hits.mean()))
    best = max(range(epochs), key=lambda k: (round(by_batch[k], 4), k))
    assert paper.result["selected_epoch"] == best + 1
    assert paper.accuracy == pytest.approx(by_batch[best], abs=1e-3)
    assert paper.result["selected"]["accuracy"] == pytest.approx(exact[best], abs=1e-3)
    assert paper.result["last"]["batch_mean_accuracy"] == pytest.approx(by_batch[-1], abs=1e-3)
    assert last[-1].accuracy == pytest.approx(exact[-1], abs=1e-3)
    for key, value in paper.load_model().state_dict().items():
        assert torch.equal(value, last[best].load_model().state_dict()[key])


def test_selection_on_held_out_images(tmp_path: Path):
    fields = {**BASE, "lr": 0.3, "schedule": "constant", "batch_size": 50}
    epochs = 4
    run = train(**{**fields, "epochs": epochs}, runs=tmp_path)
    _, held_out = load_dataset(DATA).holdout(0.1, 0)
    scores = []
    for k in range(1, epochs + 1):
        shorter = train(**{**fields, "epochs": k}, selection="last", runs=tmp_path)
        data = shorter.dataset()
        answers = logits_of(shorter.load_model(), Dataset("x", data.train, held_out, data.classes, data.mean, data.std))
        scores.append(int((answers.argmax(1) == held_out.y).sum()))
    best = max(range(epochs), key=lambda k: (scores[k], k))
    assert run.result["selected_epoch"] == best + 1
    assert [record["heldout_accuracy"] for record in run.metrics] == [100 * score / 20 for score in scores]
    assert not any(key.startswith("test_") for record in run.metrics for key in record)  # the test set is not looked at
    assert run.result["heldout"] == 100 * scores[best] / 20
    assert run.result["agreement"] is None  # there is no victim


def test_agreement_with_the_victim_on_held_out_images(tmp_path: Path):
    teacher = train(**{**BASE, "model": CNN, "epochs": 5}, runs=tmp_path)
    fields = {"victim": teacher, "model": MLP, "epochs": 2, "lr": 0.05, "runs": tmp_path}
    thief = attack(method="kd(temperature=1)", **fields)
    data = teacher.dataset()
    _, held_out = data.holdout(0.1, 0)
    seen = Dataset("x", data.train, held_out, data.classes, data.mean, data.std)
    mine, theirs = (logits_of(run.load_model(), seen).argmax(1) for run in (thief, teacher))
    assert thief.result["agreement"] == pytest.approx(float((mine == theirs).double().mean()))
    assert thief.result["heldout"] == pytest.approx(100 * float((mine == held_out.y).double().mean()))
    assert thief.result["queries"] == 2 * 180  # of training alone: measuring is not stealing
    none = attack(method="kd(temperature=1)", holdout=0, selection="last", **fields)
    assert (none.result["heldout"], none.result["agreement"]) == (None, None)


def test_top_k_leaves_labels_alone(tmp_path: Path):
    teacher = train(**{**BASE, "model": CNN, "epochs": 5}, runs=tmp_path)
    fields = {"victim": teacher, "model": MLP, "epochs": 1, "lr": 0.05, "runs": tmp_path, "method": "hard_label"}
    plain, top = attack(**fields), attack(**fields, policy="top_k(k=1)")
    assert top.recipe.hash != plain.recipe.hash
    assert weights(top) == weights(plain)  # the label is as it was
    assert top.result["agreement"] == plain.result["agreement"]


# --- objects in place of names


def test_model_as_an_instance(tmp_path: Path):
    mine = custom_net()
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    run = train(data=DATA, model=mine, epochs=1, lr=1e-30, runs=tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())
    trained = run.load_model()
    assert trained is not mine
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())  # lr is next to nothing
    assert run.result["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    again = train(data=DATA, model=mine, epochs=1, lr=1e-30, runs=tmp_path)
    assert again.folder == run.folder
    with torch.no_grad():
        mine[1].weight[0, 0] += 1  # other weights are another run
    assert train(data=DATA, model=mine, epochs=1, lr=1e-30, runs=tmp_path).folder != run.folder
    with pytest.raises(RunError, match="was handed over in Python and is not here; pass the same object again"):
        Run(run.folder).load_model()


def test_data_as_an_instance(tmp_path: Path):
    full = load_dataset(DATA)
    mine = Dataset("mine", full.train, full.test, full.classes, full.mean, full.std)
    run = train(data=mine, model=MLP, epochs=2, lr=0.05, runs=tmp_path)
    assert run.dataset() is mine
    assert weights(run) == weights(train(**BASE, runs=tmp_path))  # the same images, the same bytes
    thief = attack(victim=run, model=CNN, epochs=1, runs=tmp_path)
    assert thief.dataset() is mine
    assert run.folder != train(data=full.take(100, 50), model=MLP, epochs=2, lr=0.05, runs=tmp_path).folder
    with pytest.raises(RunError, match="was handed over in Python"):
        Run(thief.folder).dataset()


def test_nets_as_instances(tmp_path: Path):
    twin, victim = custom_net(), custom_net(hidden=7)
    defended = defend(data=DATA, model=custom_net(), adversary=twin, epochs=1, runs=tmp_path)
    stolen = attack(victim=victim, data=DATA, model=MLP, epochs=1, runs=tmp_path)
    assert len(files(tmp_path)) == 2  # nothing was trained for them
    for run, key, net in ((defended, "adversary", twin), (stolen, "victim", victim)):
        source = getattr(run.recipe, key)
        assert isinstance(source, Weights)
        assert run.result["sources_sha256"] == {key: source.sha256}
        assert net.training  # the object itself is left alone
        assert all(p.requires_grad for p in net.parameters())


def test_model_by_module_and_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes, image_size, hidden=4):\n    return nn.Sequential(\n"
        "        nn.Flatten(), nn.Linear(image_size**2, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), "
        "nn.Linear(hidden, num_classes)\n    )\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train(data=DATA, model="nets_of_mine:make(hidden=6)", epochs=1, runs=tmp_path / "runs")
    assert run.result["parameters"] == 64 * 6 + 6 + 2 * 6 + 6 * 10 + 10
    assert len(logits_of(Run(run.folder).load_model(), load_dataset(DATA))) == 100
    with pytest.raises(RecipeError, match="no 'mak' to build a model with; did you mean 'make'"):
        train(data=DATA, model="nets_of_mine:mak", epochs=1, runs=tmp_path / "runs")


# --- where a victim may come from


def test_every_way_to_a_victim_is_the_same(teacher: Run, tmp_path: Path):
    """A run, its folder, its recipe, and its weights: four ways, one student."""
    own = teacher.folder / "model.safetensors"
    fields = {"data": DATA, "model": MLP, "epochs": 1, "lr": 0.05}
    runs = [
        attack(victim=teacher, **fields, runs=tmp_path / "1"),
        attack(victim=str(teacher.folder), **fields, runs=tmp_path / "2"),
        attack(victim=teacher.recipe, **fields, runs=teacher.folder.parent),
        Workspace(tmp_path / "4").run(
            make_recipe({**fields, "method": "kd", "victim": {"model": CNN, "checkpoint": str(own)}})
        ),
    ]
    assert len({weights(run) for run in runs}) == 1
    assert len({run.recipe.hash for run in runs[:3]}) == 1
    assert len({run.result["sources_sha256"]["victim"] for run in runs}) == 1
    for folder in ("1", "2", "4"):
        assert len(files(tmp_path / folder)) == 1  # the victim was not trained anew
    assert len([run for run in teacher.folder.parent.iterdir() if run.name.startswith("ce-")]) == 1


def test_victim_without_a_run_is_trained_first(tmp_path: Path):
    victim = {"model": CNN, "epochs": 1, "lr": 0.05}
    run = Workspace(tmp_path).run(recipe(method="kd", victim=victim, epochs=1))
    assert files(tmp_path) == {run.folder.name, make_recipe({"data": DATA, **victim}).folder_name}


class Spy(nn.Module):
    """Write down mean and std of what a net is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.asked: list[tuple[float, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:  # not the probe
            self.asked.append((float(x.mean()), float(x.std())))
        return self.net(x)


def test_victim_of_other_pixels_is_asked_in_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thief normalizes with other numbers than its victim was trained with."""
    path = npz(tmp_path / "mine.npz")
    own, other = (f"npz(path={str(path)!r}, mean=({m},), std=({s},))" for m, s in ((0.3, 0.35), (-0.5, 2.0)))
    victim = train(data=own, model=CNN, epochs=1, runs=tmp_path)
    spy = Spy(victim.load_model()).eval()
    monkeypatch.setattr(Run, "load_model", lambda run: spy)
    attack(victim=victim, data=other, model=MLP, epochs=1, holdout=0, selection="last", batch_size=200, runs=tmp_path)
    pixels = (load_dataset(own).train.x.double() / 255 - 0.3) / 0.35
    # Whose answers are checked, twice, and by which the thief is measured.
    tests = (load_dataset(own).test.x.double() / 255 - 0.3) / 0.35
    expected = [
        (pytest.approx(float(x.mean()), abs=1e-4), pytest.approx(float(x.std()), abs=1e-4))
        for x in (tests, tests, tests, pixels)
    ]
    assert spy.asked == expected


def test_checkpoint_of_the_papers_code(teacher: Run, tmp_path: Path):
    state = load_file(teacher.folder / "model.safetensors")
    path = tmp_path / "best_model.tar"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "optim_dict": {}}, path)
    victim = {"model": CNN, "checkpoint": str(path)}
    run = Workspace(tmp_path / "runs").run(recipe(method="kd", victim=victim, epochs=1))
    reference = attack(victim=teacher, data=DATA, model=MLP, epochs=1, lr=0.05, runs=tmp_path / "runs")
    assert weights(run) == weights(reference)


def test_checkpoint_that_changed_or_does_not_fit(teacher: Run, tmp_path: Path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights(teacher))
    wanted = recipe(method="kd", victim={"model": CNN, "checkpoint": str(path)})
    save_file(build_model(CNN, num_classes=10, in_channels=1, image_size=8, seed=9).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"is not the file of the recipe: its checksum differs"):
        Workspace(tmp_path / "runs").run(wanted)
    with pytest.raises(CheckpointError, match="belong to another architecture"):
        Workspace(tmp_path / "runs").run(recipe(method="kd", victim={"model": MLP, "checkpoint": str(path)}))
    path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Workspace(tmp_path / "runs").run(wanted)
    assert not list((tmp_path / "runs").glob("*/state*"))


class Broken(nn.Module):
    """Raises what a stranger's net may raise."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("expected 224x224 images\nand more")


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.flatten(1)[:, :10],)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            custom_net(num_classes=7),
            "the victim answers 7 classes, but digits has 10; choose a net trained for the same",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)), r"the victim cannot take images of shape \(1, 8, 8\): "),
        (nn.Conv2d(3, 10, 1), r"the victim cannot take images of shape \(1, 8, 8\): .*channels"),
        (Broken(), "expected 224x224 images; choose a net trained on such images"),
        (Tuple(), r"the victim does not answer with logits \(B, K\)"),
    ],
    ids=["classes", "size", "channels", "raises", "tuple"],
)
def test_victim_that_does_not_fit(net: nn.Module, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message) as caught:
        attack(victim=net, data=DATA, model=MLP, epochs=1, runs=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_victim_of_another_data_set(tmp_path: Path):
    """A run knows its data set, so nothing is built wrongly on the way to the refusal."""
    keep = [label < 7 for label in load_dataset(DATA).train.y.tolist()]
    keep_test = [label < 7 for label in load_dataset(DATA).test.y.tolist()]
    full = load_dataset(DATA)
    path = npz(
        tmp_path / "seven.npz",
        train_x=full.train.x[:, 0].numpy()[keep],
        train_y=full.train.y.numpy()[keep],
        test_x=full.test.x[:, 0].numpy()[keep_test],
        test_y=full.test.y.numpy()[keep_test],
    )
    seven = train(data=str(path), model=CNN, epochs=1, runs=tmp_path / "runs")
    with pytest.raises(
        CheckpointError, match=r"the victim is trained on seven \(7 classes .* which does not fit digits"
    ):
        attack(victim=seven, data=DATA, model=MLP, epochs=1, runs=tmp_path / "runs")


def test_adversary_that_does_not_fit(tmp_path: Path):
    with pytest.raises(CheckpointError, match="the adversary answers 7 classes, but digits has 10"):
        defend(data=DATA, model=MLP, adversary=custom_net(num_classes=7), epochs=1, runs=tmp_path)


def test_model_that_does_not_fit(tmp_path: Path):
    with pytest.raises(RecipeError, match="hidden must be a list of whole numbers from 1 up"):
        train(data=DATA, model="mlp(hidden=(0,))", epochs=1, runs=tmp_path)
    (tmp_path / "seven.py").write_text(
        "from torch import nn\ndef seven(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(ShapeError, match=r"into \(2, 7\), expected \(2, 10\)"):
            train(data=DATA, model="seven:seven", epochs=1, runs=tmp_path / "runs")


def test_net_without_parameters(tmp_path: Path):
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    with pytest.raises(RecipeError, match="there is nothing to train"):
        train(data=DATA, model=Nothing(), epochs=1, runs=tmp_path)


# --- folders


def test_folder_of_choice(tmp_path: Path):
    folder = tmp_path / "here"
    run = train(**BASE, folder=str(folder), runs=tmp_path / "runs")
    assert run.folder == folder
    assert not (tmp_path / "runs").exists()
    assert train(**BASE, folder=str(folder)).result == run.result


def test_folder_of_another_run(tmp_path: Path):
    run = train(**BASE, folder=str(tmp_path / "here"))
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(RunError, match=r"here holds the run of another recipe \(ce-mlp-[0-9a-f]{12}\); choose another"):
        train(**{**BASE, "lr": 0.1}, folder=str(tmp_path / "here"))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_folder_with_other_files(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="is not empty and not a run; choose another folder"):
        train(**BASE, folder=str(tmp_path))
    assert files(tmp_path) == {"thesis.tex"}


def test_empty_folder_is_fine(tmp_path: Path):
    (tmp_path / "here").mkdir()
    assert train(**{**BASE, "epochs": 1}, folder=str(tmp_path / "here")).finished


def test_file_where_a_folder_should_be(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("precious")
    for place in ({"folder": str(file)}, {"folder": str(file / "run")}, {"runs": file}):
        with pytest.raises(RunError, match=r"cannot write in .*file.*; choose another folder"):
            train(**BASE, **place)
    assert file.read_text() == "precious"


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tests may run as root, whom no permission stops: the system's refusal is made here."""

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot write in .*: Permission denied; choose another folder"):
        train(**BASE, folder=str(tmp_path / "here"))


def test_two_processes_in_one_folder(tmp_path: Path):
    folder = tmp_path / "here"
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="is in use by another process; wait for it, or choose another folder"):
            train(**BASE, folder=str(folder))
        assert files(folder) == {".lock"}
        holder.stdin.close()
    assert train(**BASE, folder=str(folder)).finished


# --- a full disk


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes: the write itself fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FillAt:
    """The disk is full from a step on."""

    def __init__(self, at: int, patch: pytest.MonkeyPatch, name: str) -> None:
        self.left, self.patch, self.name = at, patch, name

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            real = Path.write_bytes

            def write_bytes(path: Path, content: bytes) -> int:
                if self.name in path.name:
                    real(path, content[: len(content) // 2])
                    raise OSError(28, "No space left on device", str(path))
                return real(path, content)

            self.patch.setattr(Path, "write_bytes", write_bytes)

    def epoch(self, record: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize(("name", "at"), [("state.safetensors", 3), ("model.safetensors", 1)])
def test_disk_that_fills_up_while_weights_are_written(tmp_path: Path, name: str, at: int):
    wanted = recipe(batch_size=50, epochs=3)
    whole = Workspace(tmp_path / "whole").run(wanted)
    folder = tmp_path / "full" / wanted.folder_name
    with pytest.MonkeyPatch.context() as patch:
        space = Workspace(tmp_path / "full", watch=lambda r: FillAt(at, patch, name))
        with pytest.raises(
            RunError, match=rf"cannot write .*{name}: the disk is full; free some space and run the same"
        ):
            space.run(wanted)
    assert files(folder) <= {".lock", "recipe.yaml", "metrics.jsonl", "state.safetensors"}
    assert load_file(folder / "state.safetensors")  # whole: what was there before
    with pytest.raises(RunError, match="is not finished; run the same command again to go on"):
        _ = Run(folder).result
    resumed = Workspace(tmp_path / "full").run(wanted)
    assert weights(resumed) == weights(whole)
    assert resumed.metrics == whole.metrics
    assert files(folder) == FILES


def test_disk_that_is_full_for_real(tmp_path: Path):
    """No file can be longer than 2,000 bytes, so the first state cannot be written."""
    wanted = recipe(epochs=1)
    with full_disk(2000), pytest.raises(RunError, match=r"cannot write .*state\.safetensors: the disk is full"):
        Workspace(tmp_path).run(wanted)
    assert files(tmp_path / wanted.folder_name) == {".lock", "recipe.yaml"}
    assert Workspace(tmp_path).run(wanted).finished


def test_disk_that_has_no_room_for_the_log(tmp_path: Path):
    """The state fits, but not every line of the log: the last one is torn, and written anew."""
    wanted = recipe(model="mlp(hidden=(), relu_logits=False)", epochs=100, schedule="constant", selection="last")
    whole = Workspace(tmp_path / "whole").run(wanted)
    assert (whole.folder / "metrics.jsonl").stat().st_size > 16_000
    with full_disk(16_000), pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: the disk is full"):
        Workspace(tmp_path / "full").run(wanted)
    resumed = Workspace(tmp_path / "full").run(wanted)
    assert resumed.metrics == whole.metrics
    assert weights(resumed) == weights(whole)


# --- damage


def test_data_set_that_changed(tmp_path: Path):
    path = npz(tmp_path / "mine.npz")
    fields = {**BASE, "data": str(path), "epochs": 1}
    run = train(**fields, runs=tmp_path / "runs")
    assert train(**fields, runs=tmp_path / "runs").result == run.result
    npz(path, shift=1)
    os.utime(path, ns=(1, 1))  # another time stamp, however coarse the clock is
    with pytest.raises(DataError, match=r"was trained on other images: data set .* has changed since; restore it"):
        train(**fields, runs=tmp_path / "runs")


def copy_of(run: Run, folder: Path) -> Run:
    folder.mkdir()
    for path in run.folder.iterdir():
        if path.name != ".lock":
            (folder / path.name).write_bytes(path.read_bytes())
    return Run(folder)


def test_altered_weights(teacher: Run, tmp_path: Path):
    run = copy_of(teacher, tmp_path / "run")
    content = bytearray(weights(run))
    content[-1] ^= 1
    (run.folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what the run wrote: its checksum differs; delete the folder"):
        run.load_model()
    with pytest.raises(CheckpointError, match="its checksum differs"):
        attack(victim=run, model=MLP, epochs=1, runs=tmp_path / "runs")
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        run.load_model()


def test_damaged_result(teacher: Run, tmp_path: Path):
    run = copy_of(teacher, tmp_path / "run")
    path = run.folder / "result.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(RunError, match=r"result\.json is damaged .*; delete it and run the same command") as caught:
        _ = run.result
    assert "\n" not in str(caught.value)
    path.unlink()
    again = train(data=DATA, model=CNN, epochs=3, lr=0.05, folder=str(run.folder))
    assert weights(again) == weights(teacher)


def test_no_run(tmp_path: Path):
    run = Run(tmp_path)
    assert not run.finished
    assert run.metrics == []
    with pytest.raises(RunError, match=r"is not a run: it has no recipe\.yaml"):
        _ = run.recipe
    with pytest.raises(RunError, match="is not finished; run the same command again"):
        _ = run.accuracy


def test_find(teacher: Run, tmp_path: Path):
    own = Workspace(teacher.folder.parent)
    plain = teacher.recipe.model_copy(update={"folder": None})
    assert own.find(plain) == Run(teacher.folder)
    assert Workspace(tmp_path).find(plain) is None
    assert Workspace(tmp_path).find(teacher.recipe) == Run(teacher.folder)  # it says where it is
    assert own.find(make_recipe({**BASE, "seed": 9})) is None


def test_no_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch finds no CUDA here; use device=cpu or device=auto"):
        train(**BASE, device="cuda", runs=tmp_path)
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        train(**BASE, device="gpu", runs=tmp_path)
    assert files(tmp_path) == set()
    assert train(**{**BASE, "epochs": 1}, device="cpu", runs=tmp_path).result["provenance"]["device"] == "cpu"


def test_one_class_and_nan_are_refused_before_training(tmp_path: Path):
    one = npz(tmp_path / "one.npz", train_y=np.zeros(200, dtype=np.int64), test_y=np.zeros(100, dtype=np.int64))
    pixels = load_dataset(DATA).train.x[:, 0].numpy().astype(np.float32) / 255
    pixels[3, 0, 0] = math.nan
    nan = npz(tmp_path / "nan.npz", train_x=pixels)
    for path, message in ((one, "class"), (nan, "image 3 .* holds NaN")):
        with pytest.raises(DataError, match=message):
            train(**{**BASE, "data": str(path)}, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_tensorboard_beside_the_run(tmp_path: Path):
    pytest.importorskip("tensorboard")
    run = train(**{**BASE, "epochs": 1}, tensorboard=True, runs=tmp_path)
    assert files(run.folder) == {*FILES, "tensorboard"}
    assert run.folder.name == recipe(epochs=1).folder_name


def test_data_sets_that_differ_in_normalization_only_are_different(tmp_path: Path):
    data = undistill.load_dataset("digits(subset=100, test_subset=50)")
    other = dataclasses.replace(data, mean=(0.9,), std=(0.01,))
    runs = [undistill.train(data=d, model="cnn(channels=4)", epochs=1, runs=tmp_path) for d in (data, other)]
    assert runs[0].folder != runs[1].folder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), r"\(2, 5\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), "64"),
    ],
)
def test_module_that_does_not_fit_is_refused(tmp_path: Path, model: nn.Module, message: str):
    with pytest.raises(UndistillError, match=message):
        undistill.train(data="digits(subset=100, test_subset=50)", model=model, epochs=1, runs=tmp_path)


def test_a_bad_student_costs_no_victim(tmp_path: Path):
    with pytest.raises(UndistillError):
        undistill.attack(
            victim={"data": "digits", "model": "cnn(channels=4)", "epochs": 1},
            model="nosuch_module:net",
            runs=tmp_path,
        )
    assert not list(tmp_path.glob("*/result.json"))
    with pytest.raises(CheckpointError, match="choose one for the same images and classes"):
        undistill.attack(
            victim={"data": "digits", "model": "cnn(channels=4)", "epochs": 1},
            data=_three_classes(tmp_path),
            model="cnn(channels=4)",
            runs=tmp_path,
        )
    assert not list(tmp_path.glob("*/result.json"))


def _three_classes(folder: Path) -> str:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8)
    np.savez(folder / "three.npz", train_x=images, train_y=np.arange(60) % 3, test_x=images, test_y=np.arange(60) % 3)
    return str(folder / "three.npz")


def test_victim_with_broken_weights_is_refused(tmp_path: Path):
    model = undistill.build_model("cnn(channels=4)", num_classes=10, in_channels=1, image_size=8)
    torch.save({key: value * torch.nan for key, value in model.state_dict().items()}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="answers NaN or infinity"):
        undistill.attack(
            victim={"checkpoint": str(tmp_path / "nan.pt"), "model": "cnn(channels=4)"},
            data="digits(subset=100, test_subset=50)",
            model="cnn(channels=4)",
            method="hard_label",
            runs=tmp_path / "runs",
        )
