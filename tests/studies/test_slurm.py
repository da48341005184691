"""SLURM: submitit's executor for this machine, and its real one in front of a SLURM of a few lines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from executor_plans import Log, far, holder, pick, study, undisturbed, weights

from undistill.errors import RecipeError, RunError
from undistill.orchestrate.executors import make_executor
from undistill.orchestrate.executors.schedule import Executor
from undistill.orchestrate.executors.slurm import SlurmExecutor

pytest.importorskip("submitit")

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def executor(folder: Path, **options: str) -> Executor:
    places = {"runs": folder / "runs", "logs": folder / "logs"}
    return make_executor("slurm", **places, jobs=2, threads=1, device="cpu", options=options)  # type: ignore[arg-type]


@linux
def test_a_job_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    steps, log, killed = pick(study(epochs=40), "normal", "normal-mlp-kd", "nasty"), Log(), list[str]()
    killer = threading.Thread(target=kill_nasty, args=(tmp_path / "runs", killed))
    killer.start()
    assert executor(tmp_path, cluster="local").carry_out(steps, log) == {}
    killer.join()
    assert killed == ["nasty"]
    assert log.events.count(("started", "nasty")) == 2
    assert ("at", "nasty") in log.events
    assert weights(tmp_path / "runs") == undisturbed(tmp_path / "alone", steps)


def kill_nasty(runs: Path, killed: list[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for lock in runs.glob("nasty-*/.lock"):
            if name(lock) == "nasty" and far(lock) and holder(lock):
                os.kill(holder(lock), signal.SIGKILL)
                killed.append("nasty")
                return
        time.sleep(0.02)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a SLURM that is on PATH."""
    commands, state = tmp_path / "bin", tmp_path / "queue"
    commands.mkdir()
    state.mkdir()
    script = commands / "fake_slurm.py"
    source = Path(__file__).with_name("fake_slurm.py").read_text(encoding="utf-8")
    script.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    script.chmod(0o755)
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (commands / name).symlink_to(script)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


COORDINATOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from executor_plans import pick, study
from test_slurm import executor
executor(Path(sys.argv[2]), slurm_partition="tiny").carry_out(pick(study(epochs=80), "normal", "nasty"))
"""


@linux
def test_jobs_outlive_their_coordinator_and_are_not_sent_twice(tmp_path: Path, queue: Path) -> None:
    steps = pick(study(epochs=80), "normal", "nasty")
    command = [sys.executable, "-c", COORDINATOR, Path(__file__).parent, tmp_path]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    lock = wait_for_nasty(tmp_path / "runs")
    first.kill()
    first.wait()
    subprocess.run(["scancel", "2", "--signal", "USR2"], check=True)  # out of time: submitit puts it back
    log = Log()
    assert executor(tmp_path).carry_out(steps[1:], log) == {}
    assert [event for event in log.events if event[0] != "at"] == [("started", "nasty"), ("ended", "nasty")]
    assert len(list(queue.glob("*.sh"))) == 2
    assert "#SBATCH --partition=tiny" in (queue / "1.sh").read_text()
    assert not list((tmp_path / "logs" / "slurm").glob("*.runs.json"))
    assert lock.with_name("result.json").exists()
    assert weights(tmp_path / "runs") == undisturbed(tmp_path / "alone", steps)


def name(lock: Path) -> str:
    return lock.parent.name.rpartition("-")[0]


def wait_for_nasty(runs: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for lock in runs.glob("nasty-*/.lock"):
            if name(lock) == "nasty" and far(lock):
                return lock
        time.sleep(0.02)
    raise TimeoutError


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"no sbatch on this machine.*cluster=local"):
        executor(tmp_path).open()


def test_options_are_submitits() -> None:
    found = SlurmExecutor.read(
        {"slurm_partition": "gpu", "timeout_min": "60", "slurm_time": "01:00:00", "slurm_setup": "['module load x']"}
    )
    assert found["cluster"] == "slurm"
    assert found["parameters"] == {
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "slurm_time": "01:00:00",
        "slurm_setup": ["module load x"],
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slurm_partitoin": "gpu"}, "did you mean 'slurm_partition'"),
        ({"cluster": "pbs"}, "cluster: expected slurm, local, debug, got 'pbs'"),
        ({"cluster": "local", "timeout_min": "soon"}, "submitit does not take these options"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        executor(tmp_path, **options).open()
