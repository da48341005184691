"""``undistill reproduce``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import undistill
import undistill.orchestrate.reproduce
from undistill.cli import main
from undistill.orchestrate.estimate import estimate


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undistill.orchestrate.estimate.estimate", partial(estimate, budget_s=0.2))


def test_dry_run_lists_runs_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "baseline"]
    assert main(["reproduce", "table1", *only, "--dry-run", "--jobs", "2", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("to run") == 4 + 1
    assert "4 runs: 0 there, 4 to run" in shown
    assert re.search(r"estimated from a short probe: [\d.]+ PFLOP, .+ to .+ with 2 at a time on this machine", shown)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["tiny_imagenet(path='/nowhere')", "rest(of='npz(path=\"/nowhere\", subset=9)')"])
def test_dry_run_refuses_a_path_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    assert main(["reproduce", "table1", "--dry-run", "--data", f"cifar10={spec}", "--out", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr()
    assert shown.err == "error: there is no /nowhere; correct the path in the spec of the data set\n"
    assert shown.out == ""


def test_dry_run_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["table1", "--seeds", "3", "--only", "baseline", "--dry-run", "--json", "--out", str(tmp_path)]
    assert main(["reproduce", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == found["missing"] == len(found["runs"]) == 3 * 4
    assert not any(run["cached"] for run in found["runs"])
    assert sum(run["estimate"]["flops"] for run in found["runs"]) == pytest.approx(found["estimate"]["flops"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tabel1"], 2, "unknown study 'tabel1'; did you mean 'table1'?"),
        (["figure33"], 2, "unknown study 'figure33'; did you mean 'figure3'?"),
        (["figure4", "--only", "cnn-nsty"], 2, "unknown row of figure4 'cnn-nsty'; did you mean 'cnn-nasty'?"),
        (["table1", "--profile", "fats"], 2, "unknown profile 'fats'; did you mean 'fast'?"),
        (["table1", "--smoke", "--executor", "lokal"], 2, "unknown executor 'lokal'; did you mean 'local'?"),
        (["table1", "--executor-option", "gpus"], 2, "--executor-option: expected KEY=VALUE, got 'gpus'"),
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


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce", "table1", "--smoke", "--only", "baseline", "--jobs", "1", "--device", "cpu"]
    arguments += ["--out", str(tmp_path)]
    command = [sys.executable, "-m", "undistill", *arguments]
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
    assert [cell["n"] for cell in content["parts"][0]["rows"][0]["cells"].values()] == [1, 1, 1, 1]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert "nothing to train" in captured.err
    assert json.loads(captured.out) == content


def test_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call() -> undistill.orchestrate.reproduce.Reproduction:
        return undistill.reproduce("table1", out=tmp_path, smoke=True, only=["baseline"], jobs=1, progress=False)

    first, second = call(), call()
    assert (first.trained, second.trained) == (4, 0)
    assert second.content == first.content == json.loads((first.folder / "study.json").read_text())
    assert "table1" in undistill.list_studies()
    assert capsys.readouterr() == ("", "")
