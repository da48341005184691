"""Executors: when what runs, on which worker, and what is left when something dies."""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_plans import EPOCHS, Log, pick, recipe, study, undisturbed, weights
from filelock import FileLock

from undistill.errors import DeviceError, InterruptedRunError, RecipeError, RunError, UnknownNameError
from undistill.orchestrate.executors import Executor, make_executor
from undistill.orchestrate.executors.local import LocalExecutor, _settle
from undistill.orchestrate.executors.schedule import At, Ended, Event, Lost, Outcome, Pool, Unit, units
from undistill.orchestrate.executors.worker import Progress, carry_out, work
from undistill.orchestrate.plan import Plan, Step
from undistill.storage import write_text
from undistill.workspace import Workspace

# --- what goes together -----------------------------------------------------------------------------------------------


def named(found: Iterable[Unit]) -> list[list[str]]:
    return [[str(step.recipe.name) for step in unit.steps] for unit in found]


def thieves(**changed: Any) -> list[Step]:
    """Four thieves of one teacher, the last of them with a field of its own."""
    teacher = recipe(name="teacher")
    models = ("mlp", "cnn", "preresnet20", "resnet18")
    fields: list[dict[str, Any]] = [{}, {}, {}, changed]
    found = [recipe(m, "kd", **{"victim": teacher, "name": m, **more}) for m, more in zip(models, fields, strict=True)]
    return [step for step in Plan.of(found).steps if step.recipe.kind == "attack"]


def test_thieves_of_one_victim_go_together() -> None:
    assert named(units(thieves(), slots=1)) == [["mlp", "cnn", "preresnet20", "resnet18"]]
    assert named(units(thieves(epochs=3), slots=1)) == [["mlp", "cnn", "preresnet20", "resnet18"]]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"batch_size": 16},
        {"augment": "crop"},
        {"holdout": 0.2},
        {"data": "digits(subset=300, test_subset=60)"},
        {"victim": recipe(lr=0.2)},
        {"access": "probs"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_thieves_that_see_other_batches_or_answers_do_not(changed: dict[str, Any]) -> None:
    assert named(units(thieves(**changed), slots=2)) == [["mlp", "cnn", "preresnet20"], ["resnet18"]]


def test_nets_that_steal_from_nobody_go_alone() -> None:
    plan = Plan.of([recipe("mlp", name="a"), recipe("cnn", name="b")])
    assert named(units(plan.steps, slots=4)) == [["a"], ["b"]]


def test_groups_are_split_over_idle_slots_only() -> None:
    steps = thieves()
    other = Plan.of([recipe("cnn", name="other")]).steps
    assert named(units([*steps, *other], slots=2)) == [["mlp", "cnn", "preresnet20", "resnet18"], ["other"]]
    assert named(units([*steps, *other], slots=3)) == [["mlp", "cnn"], ["preresnet20", "resnet18"], ["other"]]
    assert named(units(steps, slots=3)) == [["mlp"], ["cnn"], ["preresnet20", "resnet18"]]
    assert [len(unit.steps) for unit in units(steps, slots=9)] == [1, 1, 1, 1]
    assert units(steps, slots=0) == units([], slots=2) == []
    assert named(units(steps, slots=1, alone=[steps[0].hash])) == [["mlp"]]


# --- when what runs ---------------------------------------------------------------------------------------------------


class Scripted(Pool):
    """Does nothing, and says what a function of each unit says."""

    def __init__(self, slots: int, say: Any) -> None:
        self.slots, self.say = slots, say
        self.started: list[list[str]] = []
        self.busy: list[Unit] = []
        self.calls: list[str] = []

    def start(self, unit: Unit) -> None:
        assert len(self.busy) < self.slots
        self.busy.append(unit)
        self.started += named([unit])

    def listen(self) -> Iterator[Event]:
        unit = self.busy.pop(0)
        yield At(unit.steps[0].hash, 1.0, "")
        yield At("of nobody", 1.0, "")
        yield self.say(unit)

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


class ScriptedExecutor(Executor):
    pool: Scripted

    def open(self) -> Pool:
        return self.pool


def scripted(tmp_path: Path, say: Any, slots: int = 1) -> tuple[ScriptedExecutor, Scripted]:
    executor, pool = ScriptedExecutor(tmp_path / "runs", tmp_path / "logs"), Scripted(slots, say)
    object.__setattr__(executor, "pool", pool)
    return executor, pool


def finished(unit: Unit) -> Event:
    return Ended(unit, [Outcome("finished", "90.00 %")] * len(unit.steps))


def test_each_run_waits_for_what_it_needs(tmp_path: Path) -> None:
    executor, pool = scripted(tmp_path, finished)
    assert executor.carry_out(study().steps) == {}
    assert pool.started == [
        ["normal"],
        ["normal-mlp-kd", "normal-cnn-kd", "normal-mlp-hard_label"],
        ["nasty"],
        ["nasty-mlp-kd", "nasty-cnn-kd", "nasty-mlp-hard_label"],
    ]
    assert pool.calls == ["close"]


def test_a_failed_run_stops_only_what_needs_it(tmp_path: Path) -> None:
    def say(unit: Unit) -> Event:
        bad = Outcome("failed", "no luck", "a long story")
        good = Outcome("finished", "90.00 %")
        return Ended(unit, [bad if step.recipe.name in {"nasty", "normal-cnn-kd"} else good for step in unit.steps])

    executor, _ = scripted(tmp_path, say)
    log = Log()
    names = {step.hash: step.recipe.name for step in study().steps}
    failures = {names[one]: failure for one, failure in executor.carry_out(study().steps, log).items()}
    assert failures.keys() == {"normal-cnn-kd", "nasty", "nasty-mlp-kd", "nasty-cnn-kd", "nasty-mlp-hard_label"}
    assert failures["nasty"].reason == "no luck"
    assert failures["nasty"].log is not None
    assert "a long story" in failures["nasty"].log.read_text()
    assert failures["nasty-mlp-kd"].reason == f"not run: {failures['nasty'].name} failed: no luck"
    assert [name for kind, name in log.events if kind == "ended"] == [
        "normal",
        "normal-mlp-kd",
        "normal-mlp-hard_label",
    ]


def test_a_lost_unit_is_tried_again_run_by_run(tmp_path: Path) -> None:
    executor, pool = scripted(tmp_path, lambda unit: Lost(unit, "eaten") if len(unit.steps) > 1 else finished(unit))
    assert executor.carry_out(thieves()) == {}
    assert pool.started[0] == ["mlp", "cnn", "preresnet20", "resnet18"]
    assert sorted(pool.started[1:]) == [["cnn"], ["mlp"], ["preresnet20"], ["resnet18"]]


def test_a_run_is_lost_for_good_when_it_dies_twice_without_coming_further(tmp_path: Path) -> None:
    epochs = iter([1, 2, 3, 3, 3])
    steps = Plan.of([recipe()]).steps

    def say(unit: Unit) -> Event:
        lines = "".join(f'{{"epoch": {n + 1}}}\n' for n in range(next(epochs)))
        write_text(tmp_path / "runs" / steps[0].recipe.folder_name / "metrics.jsonl", lines)
        return Lost(unit, "eaten", "by whom")

    executor, pool = scripted(tmp_path, say)
    (failure,) = executor.carry_out(steps).values()
    assert len(pool.started) == 4
    assert failure.reason == "its process was eaten, 2 times"
    assert failure.log is not None
    assert "by whom" in failure.log.read_text()


def test_a_run_that_finished_before_its_process_died_is_finished(tmp_path: Path) -> None:
    steps = Plan.of([recipe()]).steps

    def say(unit: Unit) -> Event:
        Workspace(tmp_path / "runs", device="cpu").run(steps[0].recipe)
        return Lost(unit, "eaten")

    executor, pool = scripted(tmp_path, say)
    assert executor.carry_out(steps) == {}
    assert len(pool.started) == 1


def test_what_an_earlier_coordinator_started_is_not_started_again(tmp_path: Path) -> None:
    executor, pool = scripted(tmp_path, finished)
    steps = study().steps

    def adopt(given: Iterable[Step]) -> list[Unit]:
        pool.busy.append(Unit((steps[0],)))
        return pool.busy[:]

    pool.adopt = adopt  # type: ignore[method-assign]
    assert executor.carry_out(steps) == {}
    assert ["normal"] not in pool.started
    assert pool.started[0] == ["normal-mlp-kd", "normal-cnn-kd", "normal-mlp-hard_label"]


def test_ctrl_c_stops_the_pool(tmp_path: Path) -> None:
    def say(unit: Unit) -> Event:
        if unit.steps[0].recipe.name == "nasty":
            os.kill(os.getpid(), signal.SIGINT)
        return finished(unit)

    executor, pool = scripted(tmp_path, say)
    with pytest.raises(InterruptedRunError, match="interrupted with 5 of 8 runs finished"):
        executor.carry_out(study().steps)
    assert pool.calls == ["stop", "close"]


# --- a worker ---------------------------------------------------------------------------------------------------------


def test_a_run_that_another_process_has_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undistill.orchestrate.executors.worker._BUSY_S", 0.01)
    free, taken = recipe("mlp", name="free"), recipe("cnn(width=0.25)", name="taken")
    lock = FileLock(tmp_path / taken.folder_name / ".lock")
    (tmp_path / taken.folder_name).mkdir()
    lock.acquire()
    looks = []

    class Watching(Workspace):
        def run_together(self, recipes: Any) -> Any:
            looks.append([one.name for one in recipes])
            if len(looks) == 3:
                lock.release()
            return super().run_together(recipes)

    found = carry_out(Watching(tmp_path, device="cpu"), [free, taken])
    assert [one.kind for one in found] == ["finished", "finished"]
    assert looks == [["free", "taken"], ["taken"], ["taken"]]


def test_runs_that_fail_for_want_of_memory_side_by_side_run_alone(tmp_path: Path) -> None:
    class Small(Workspace):
        def run_together(self, recipes: Any) -> Any:
            found = super().run_together(recipes)
            return found if len(recipes) == 1 else [found[0], MemoryError("too much")]

    recipes = [recipe("mlp"), recipe("cnn(width=0.25)")]
    assert [one.kind for one in carry_out(Small(tmp_path, device="cpu"), recipes)] == ["finished", "finished"]


def test_a_bug_is_a_failure_with_its_name(tmp_path: Path) -> None:
    class Broken(Workspace):
        def run_together(self, recipes: Any) -> Any:
            raise ZeroDivisionError("oh\nno")

    (found,) = carry_out(Broken(tmp_path), [recipe()])
    assert (found.kind, found.text) == ("failed", "ZeroDivisionError: oh no")
    assert "Traceback" in found.story


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this machine does not see"):
        work(tmp_path / "elsewhere", tmp_path, "cpu", 1, [], ".shared-1")


def test_progress_is_read_from_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undistill.orchestrate.executors.worker._PROGRESS_S", 0.0)
    given = recipe()
    progress = Progress(tmp_path)
    assert list(progress.look([given])) == []
    Workspace(tmp_path, device="cpu").run(given)
    (at,) = progress.look([given])
    assert (at.hash, at.epochs) == (given.hash, EPOCHS)
    assert re.fullmatch(r"loss [\d.]+, [\d.]+ %", at.text)
    assert list(progress.look([given])) == []


# --- this machine -----------------------------------------------------------------------------------------------------


def local(folder: Path, jobs: int = 2) -> LocalExecutor:
    return LocalExecutor(folder / "runs", folder / "logs", jobs, 1, "cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return undisturbed(tmp_path_factory.mktemp("alone"), study(epochs=20).steps)


def test_two_workers_that_are_killed_give_what_runs_one_by_one_give(tmp_path: Path, alone: dict[str, str]) -> None:
    def kill_all() -> None:
        for child in mp.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    log = Log(kill_all)
    assert local(tmp_path).carry_out(study(epochs=20).steps, log) == {}
    assert log.events.count(("started", "nasty")) == 2
    assert weights(tmp_path / "runs") == alone


COORDINATOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from executor_plans import pick, study
from test_executors import local
if __name__ == "__main__":
    local(Path(sys.argv[2]), jobs=1).carry_out(pick(study(epochs=20), "normal", "nasty"))
"""


def test_ctrl_c_saves_every_run_and_the_next_call_goes_on(tmp_path: Path, alone: dict[str, str]) -> None:
    script = tmp_path / "coordinate.py"
    script.write_text(COORDINATOR)
    command = [sys.executable, script, Path(__file__).parent, tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "runs").glob("nasty-*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "InterruptedRunError: interrupted with 1 of 2 runs finished" in said
    (state,) = (tmp_path / "runs").glob("nasty-*/state.safetensors")
    assert not state.with_name("result.json").exists()
    assert local(tmp_path, jobs=1).carry_out(pick(study(epochs=20), "nasty")) == {}
    assert weights(tmp_path / "runs").items() < alone.items()


def test_workers_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for slot in range(5):
        _settle(None, slot)
    assert taken == [0, 1, 0, 1, 0]
    for device in ("cpu", "cuda:1"):
        _settle(device, 0)
    assert len(taken) == 5


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "said"),
    [
        ("rey", {}, UnknownNameError, "unknown executor 'rey'; did you mean 'ray'?"),
        ("local", {"address": "auto"}, RecipeError, "executor 'local' has no address"),
        ("local", {"options": {"x": "1"}}, RecipeError, "executor 'local' has no options, got x"),
        ("ray", {"address": "here"}, RecipeError, "expected auto, HOST:PORT or ray://HOST:PORT, got 'here'"),
        ("ray", {"options": {"gpu_per_run": "1"}}, RecipeError, "did you mean 'gpus_per_run'?"),
        ("ray", {"options": {"gpus_per_run": "half"}}, RecipeError, "gpus_per_run: expected a number of GPUS"),
        ("ray", {"options": {"cpus_per_run": "0"}}, RecipeError, "cpus_per_run: expected a number of CPUS"),
    ],
)
def test_bad_executors_are_refused(
    kind: str, arguments: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        make_executor(kind, runs=tmp_path, logs=tmp_path, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="torch finds no CUDA here"):
        LocalExecutor(tmp_path, tmp_path, device="cuda").carry_out(pick(study(), "normal"))
