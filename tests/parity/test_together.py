"""Runs that train side by side: the same bytes as one by one, one pass of their victim, failures of their own."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undistill.errors import AccessError, DivergenceError, InterruptedRunError, RecipeError
from undistill.recipe import Recipe, make_recipe
from undistill.run import Run
from undistill.victim import Access, Victim, asked_once
from undistill.workspace import Workspace

DATA = "digits(subset=200, test_subset=100)"
TEACHER = {"data": DATA, "model": "cnn(channels=4)", "epochs": 1, "lr": 0.05, "batch_size": 64}


def student(model: str = "cnn(channels=2)", **changes: Any) -> Recipe:
    base = {"data": DATA, "model": model, "epochs": 2, "lr": 0.05, "batch_size": 64, "method": "kd", "victim": TEACHER}
    return make_recipe({**base, **changes})


def group() -> list[Recipe]:
    """Students that differ in net, length, optimizer, attack and in what random numbers they draw."""
    return [
        student(),
        student(model="cnn(channels=3, dropout=0.5)"),
        student(model="mlp(hidden=(16,), relu_logits=False)", epochs=3, optimizer="adam", lr=1e-3),
        student(method="hard_label"),
    ]


def content(run: Run) -> tuple[bytes, dict[str, Any]]:
    result = json.loads((run.folder / "result.json").read_text())
    timing = {key: result.pop(key) for key in ("seconds", "images_per_s")}
    assert all(value > 0 for value in timing.values())
    return (run.folder / "model.safetensors").read_bytes(), result


def test_the_same_bytes_as_one_by_one(tmp_path: Path) -> None:
    apart, together = Workspace(tmp_path / "apart"), Workspace(tmp_path / "together")
    expected = [content(apart.run(recipe)) for recipe in group()]
    found = together.run_together(group())
    assert [content(run) for run in found if isinstance(run, Run)] == expected


def test_the_victim_computes_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    workspace.run(student().victim)  # type: ignore[arg-type]
    passes = 0
    answer = Victim._answer

    def counted(victim: Victim, x: Tensor, access: Access) -> Tensor:
        nonlocal passes
        if not hasattr(victim._model, "counted"):
            victim._model.counted = True  # type: ignore[assignment]

            def count(*_: Any) -> None:
                nonlocal passes
                passes += 1

            victim._model.register_forward_hook(count)
        return answer(victim, x, access)

    monkeypatch.setattr(Victim, "_answer", counted)
    runs = workspace.run_together([student(), student(model="cnn(channels=3)"), student(method="hard_label")])
    # 180 of 200 images are trained on: 3 batches of 64 at most, 2 epochs; in the end each student is compared with the
    # victim on the held-out images, one batch
    # Once a step, on held-out images for each, on the test images for all, and twice on some of them, to check answers.
    assert passes == 2 * 3 + 3 + 1 + 2
    assert [run.result["queries"] for run in runs if isinstance(run, Run)] == [360, 360, 360]


def test_a_failure_is_of_one_run_only(tmp_path: Path) -> None:
    recipes = [student(), student(model="cnn(channels=3)", lr=1e30), student(method="hard_label", access="labels")]
    first, second, third = Workspace(tmp_path / "a").run_together(recipes)
    assert isinstance(second, DivergenceError)
    assert isinstance(first, Run)
    assert isinstance(third, Run)
    assert content(first) == content(Workspace(tmp_path / "b").run(recipes[0]))
    assert content(third) == content(Workspace(tmp_path / "b").run(recipes[2]))


def test_a_run_that_may_not_start_is_a_failure_of_its_own(tmp_path: Path) -> None:
    good, bad = Workspace(tmp_path).run_together([student(), student(model="cnn(channels=3)", access="labels")])
    assert isinstance(good, Run)
    assert isinstance(bad, AccessError)


class StopAt:
    """Asks to stop after so many steps of all runs together."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""


@pytest.mark.parametrize("steps", [5, 12, 13, 23])
def test_interrupted_and_resumed(tmp_path: Path, steps: int) -> None:
    expected = [content(run) for run in Workspace(tmp_path / "whole").run_together(group()) if isinstance(run, Run)]
    Workspace(tmp_path / "cut").run(student().victim)  # type: ignore[arg-type]
    stop = StopAt(steps)
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        Workspace(tmp_path / "cut", watch=lambda recipe: stop).run_together(group())
    found = [content(run) for run in Workspace(tmp_path / "cut").run_together(group()) if isinstance(run, Run)]
    assert found == expected


def test_those_behind_catch_up_first(tmp_path: Path) -> None:
    """One of the group had run alone for a while."""
    expected = [content(run) for run in Workspace(tmp_path / "whole").run_together(group()) if isinstance(run, Run)]
    workspace = Workspace(tmp_path / "cut")
    workspace.run(student().victim)  # type: ignore[arg-type]
    stop = StopAt(4)  # in the second epoch
    with pytest.raises(InterruptedRunError, match="epoch 2 of 2, step 1 of 3"):
        Workspace(tmp_path / "cut", watch=lambda recipe: stop).run(group()[1])
    found = [content(run) for run in workspace.run_together(group()) if isinstance(run, Run)]
    assert found == expected


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 32}, {"holdout": 0.2}, {"data": "digits(subset=100)"}])
def test_other_batches_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        Workspace(tmp_path).run_together([student(), student(**change)])


def test_finished_runs_are_not_trained_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    before = workspace.run(student())
    stamp = (before.folder / "result.json").stat().st_mtime_ns
    again, other = workspace.run_together([student(), student(model="cnn(channels=3)")])
    assert isinstance(again, Run)
    assert isinstance(other, Run)
    assert (again.folder / "result.json").stat().st_mtime_ns == stamp


# --- the victim that they share ---------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x.flatten(1)[:, :3] * 2


def test_another_thief_has_a_meter_of_its_own() -> None:
    net, x = Counting(), torch.rand(5, 1, 2, 2)
    first = Victim(net)
    second = first.another()
    with asked_once(x):
        assert torch.equal(first.logits(x), second.logits(x))
        assert torch.equal(second.labels(x), x.flatten(1)[:, :3].argmax(dim=1))
    assert (first.queries, second.queries, net.passes) == (5, 10, 1)


def test_nothing_is_remembered_outside_of_a_step() -> None:
    net, x = Counting(), torch.rand(5, 1, 2, 2)
    victim = Victim(net)
    with asked_once(x):
        before = victim.logits(x)
        assert torch.equal(victim.logits(x.clone()), before)  # another tensor is another question
        assert net.passes == 2
    x.add_(1)
    assert torch.equal(victim.logits(x), before + 2)
    with asked_once(x):
        assert torch.equal(victim.logits(x), before + 2)
    assert net.passes == 4


def test_victims_of_their_own_answer_for_themselves() -> None:
    net, x = Counting(), torch.rand(5, 1, 2, 2)
    with asked_once(x):
        for victim in (Victim(net), Victim(net)):
            victim.logits(x)
    assert net.passes == 2


def test_tensors_of_inference_mode_are_asked_about_every_time() -> None:
    net = Counting()
    with torch.inference_mode():
        x = torch.rand(5, 1, 2, 2)
        victim = Victim(net)
        before = victim.logits(x)
        x += 1
        assert torch.equal(victim.logits(x), before + 2)


def test_what_a_thief_does_to_an_answer_is_his_own_affair() -> None:
    victim, x = Victim(Counting()), torch.rand(5, 1, 2, 2)
    expected = x.flatten(1)[:, :3] * 2
    with asked_once(x):
        for thief in (victim, victim.another(), victim.another()):
            assert torch.equal(thief.logits(x), expected)
            thief.logits(x).div_(4)
