"""Interrupted runs go on and end with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from undistill.errors import CheckpointError, InterruptedRunError
from undistill.recipe import Recipe, load_recipe
from undistill.run import Run
from undistill.workspace import Workspace

BASE = {"data": "digits", "model": "cnn(channels=4, dropout=0.2)", "epochs": 4, "lr": 0.05}


class InterruptAt:
    """Press Ctrl-C after a number of steps."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict) -> None:
        pass


def recipe(**changes) -> Recipe:
    return load_recipe(**{**BASE, **changes})


def weights(run: Run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["ce", "nasty"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resumed_run_is_byte_identical(tmp_path: Path, method: str, optimizer: str):
    wanted = recipe(method=method, optimizer=optimizer, lr=0.01)
    whole = Workspace(tmp_path / "whole").run(wanted)
    broken = Workspace(tmp_path / "broken", watch=lambda r: InterruptAt(7) if r.method == wanted.method else None)
    for _ in range(3):  # 40 steps: three interruptions, the first in the middle of an epoch
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            broken.run(wanted)
    resumed = Workspace(tmp_path / "broken").run(wanted)
    assert weights(resumed) == weights(whole)
    same = ("last", "selected", "selected_epoch", "queries")
    assert {key: resumed.result[key] for key in same} == {key: whole.result[key] for key in same}
    assert resumed.metrics == whole.metrics


def test_queries_are_counted_over_all_sessions(tmp_path: Path):
    wanted = recipe(method="kd", victim={**BASE, "epochs": 1}, holdout=0, selection="last")
    broken = Workspace(tmp_path, watch=lambda r: InterruptAt(15) if r.kind == "attack" else None)
    with pytest.raises(InterruptedRunError):
        broken.run(wanted)
    assert Workspace(tmp_path).run(wanted).result["queries"] == 4 * 1297


def test_killed_process_goes_on(tmp_path: Path):
    """SIGKILL gives no time to save anything: what was saved before must do."""
    wanted = recipe(epochs=12)
    whole = Workspace(tmp_path / "whole").run(wanted)
    code = (
        "import sys; from pathlib import Path; from undistill.recipe import load_recipe; "
        "from undistill.run import Workspace; import torch; torch.set_num_threads(1); "
        "Workspace(Path(sys.argv[1])).run(load_recipe(sys.argv[2]))"
    )
    folder = tmp_path / "killed" / wanted.folder_name
    file = tmp_path / "recipe.yaml"
    file.write_text(wanted.to_yaml())
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed"), str(file)], env=os.environ)
        lines = len(Run(folder).metrics)
        deadline = time.monotonic() + 60
        while len(Run(folder).metrics) < lines + 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
    run = Workspace(tmp_path / "killed").run(wanted)
    assert weights(run) == weights(whole)
    assert [record["epoch"] for record in run.metrics] == list(range(1, 13))


def test_damaged_state_is_refused(tmp_path: Path):
    with pytest.raises(InterruptedRunError):
        Workspace(tmp_path, watch=lambda r: InterruptAt(3)).run(recipe())
    state = tmp_path / recipe().folder_name / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*state\.safetensors: the file is damaged"):
        Workspace(tmp_path).run(recipe())


def test_finished_run_is_not_trained_again(tmp_path: Path):
    first = Workspace(tmp_path).run(recipe())
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns

    def never(r: Recipe) -> None:
        raise AssertionError("trained again")

    second = Workspace(tmp_path, watch=never).run(recipe())
    assert second.result == first.result
    assert (second.folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_interrupt_in_the_last_epoch_stops_the_chain(tmp_path: Path):
    """The victim's run ends, but its thief, which comes next, must not start."""

    class AtTheEnd(InterruptAt):
        def step(self, epoch: int, step: int, steps: int) -> None:
            pass

        def epoch(self, record: dict) -> None:
            if record["epoch"] == 4:
                signal.raise_signal(signal.SIGINT)

    wanted = recipe(method="kd", victim=BASE, epochs=1)
    with pytest.raises(InterruptedRunError, match="the end of the last epoch"):
        Workspace(tmp_path, watch=lambda r: AtTheEnd(0) if r.kind == "reference" else None).run(wanted)
    assert not list(tmp_path.glob("kd-*/metrics.jsonl"))
    assert Workspace(tmp_path).run(wanted).finished


def test_state_of_other_images_is_refused(tmp_path: Path):
    def write(seed: int) -> None:
        images = np.random.default_rng(seed).integers(0, 255, (200, 8, 8), np.uint8)
        labels = np.arange(200) % 4
        np.savez(tmp_path / "x.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)

    write(0)
    wanted = recipe(data=str(tmp_path / "x.npz"))
    with pytest.raises(InterruptedRunError):
        Workspace(tmp_path, watch=lambda r: InterruptAt(3)).run(wanted)
    write(1)
    with pytest.raises(CheckpointError, match="was trained with other images"):
        Workspace(tmp_path).run(wanted)
