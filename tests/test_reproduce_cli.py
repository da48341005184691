"""``undistill reproduce``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from undistill.cli import main


def test_dry_run_lists_runs_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table1", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("to run") == 13 + 1
    assert "13 runs: 0 there, 13 to run" in shown
    assert not (tmp_path / "out").exists()


def test_dry_run_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "all", "--seeds", "3", "--dry-run", "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == found["missing"] == len(found["runs"]) == 3 * 93
    assert not any(run["cached"] for run in found["runs"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tabel1"], 2, "unknown study 'tabel1'; did you mean 'table1'?"),
        (["table1", "--only", "resnet18-nast"], 2, "did you mean 'resnet18-nasty'?"),
        (["table1", "--data", "cifar10"], 2, "--data: expected NAME=SPEC, got 'cifar10'"),
        (["table1", "--data", "cifar11=digits"], 2, "did you mean 'cifar10'?"),
        (["table1", "--smoke", "--width", "0.5"], 2, "leave out width"),
        (["table1"], 3, "run `undistill data fetch cifar10`"),
        (["table1", "--device", "tpu"], 2, "unknown device 'tpu'"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "undistill", "reproduce", "table1", "--smoke", "--only", "baseline", "--jobs", "1"]
    command += ["--device", "cpu", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first.startswith("[1/4] smoke-ce-cnn-")
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("error: interrupted with ")
    assert out == ""
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "/4]" not in again.stderr  # fewer were missing
    assert "Table 1" in again.stdout
    assert again.stdout.splitlines()[-1] == str(tmp_path / "table1-smoke" / "index.html")
    content = json.loads((tmp_path / "table1-smoke" / "study.json").read_text())
    assert [cell["n"] for cell in content["tables"][0]["rows"][0]["cells"].values()] == [1, 1, 1, 1]
    third = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True)
    assert "nothing to train" in third.stderr
    assert json.loads(third.stdout) == content
