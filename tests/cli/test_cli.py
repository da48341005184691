"""The command line, as somebody meets it: exit codes, what is on stdout, what is on stderr."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from undistill import __version__
from undistill.cli import main
from undistill.console import make_console, watch
from undistill.recipe import make_recipe
from undistill.studies.study import list_studies

VERBS = (
    "demo",
    "train",
    "defend",
    "attack",
    "audit",
    "leaderboard",
    "report",
    "list",
    "show",
    "data",
    "doctor",
    "bench",
    "reproduce",
)
TINY = ("data=digits", "model=cnn(channels=4)", "epochs=2", "lr=0.05")


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr, every one of which has to be an error."""
        lines = self.err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines), self.err
        return [line.removeprefix("error: ") for line in lines]


def undistill(*args: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Outcome(code, out.getvalue(), err.getvalue())


def process(*args: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "undistill", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **settings,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A nasty teacher, its twin, a thief and the thief's reference, all from the command line."""
    runs = tmp_path_factory.mktemp("runs")
    student = ("model=mlp(hidden=[8])", "epochs=1", "lr=0.05")
    defend = undistill("defend", *TINY, "--runs", runs)
    teacher = next(runs.glob("nasty-*"))
    attack = undistill("attack", f"victim={teacher}", *student, "--runs", runs)
    reference = undistill("train", "data=digits", *student, "--runs", runs)
    return SimpleNamespace(runs=runs, teacher=teacher, defend=defend, attack=attack, reference=reference)


# --- help, version, start-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verbs", "heavy"),
    [
        (
            [verb for verb in VERBS if verb != "reproduce"],
            {"torch", "numpy", "scipy", "yaml", "rich", "undistill.recipe"},
        ),
        (["reproduce"], {"matplotlib", "jinja2", "sklearn", "undistill.reporting.formats", "undistill.orchestrate"}),
    ],
)
def test_nothing_heavy_is_imported_for_help(verbs: list[str], heavy: set[str]) -> None:
    code = (
        "import sys, undistill.cli\n"
        "assert 'pydantic' not in sys.modules\n"  # typer imports it later, and lazily
        f"codes = [undistill.cli.main([*verb, '--help']) for verb in {[[], *([verb] for verb in verbs)]}]\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "print(codes, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == f"{[0] * (len(verbs) + 1)} set()"


def test_help_of_reproduce_names_every_study() -> None:
    shown = " ".join(undistill("reproduce", "--help").out.split())
    assert f"{', '.join(list_studies())}, or all." in shown


def test_help_names_every_verb() -> None:
    shown = undistill("--help")
    assert shown.code == 0
    assert shown.out == undistill().out
    commands = shown.out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert sorted(line.split()[0] for line in commands.splitlines()) == sorted(VERBS)
    assert "..." not in commands


def test_version() -> None:
    assert undistill("--version").out == f"undistill {__version__}\n"


# --- train, defend, attack --------------------------------------------------------------------------------------


def test_defend_trains_twin_and_teacher(made: SimpleNamespace) -> None:
    assert made.defend.code == 0
    result = json.loads((made.teacher / "result.json").read_text())
    line = f"{made.teacher.name}: {result['selected']['accuracy']:.2f} % on 500 test images; {made.teacher}\n"
    assert made.defend.out == line
    twin = next(made.runs.glob("ce-cnn-*"))
    assert [line.split(":")[0] for line in made.defend.err.splitlines()] == [twin.name] * 2 + [made.teacher.name] * 2


def test_attack_takes_data_of_victim(made: SimpleNamespace) -> None:
    assert made.attack.code == 0
    shown = undistill("show", next(made.runs.glob("kd-mlp-*")), "--json").json
    assert shown["recipe"]["data"] == "digits"
    assert shown["recipe"]["method"] == "kd(alpha=0.9, temperature=4.0)"
    assert shown["result"]["queries"] == 1167  # one epoch over nine tenths of 1,297 images


def test_same_recipe_is_not_trained_again(made: SimpleNamespace) -> None:
    again = undistill("defend", *TINY, "--runs", made.runs)
    assert (again.code, again.out) == (0, made.defend.out)
    assert again.err == "this recipe has its result already: nothing to train\n"


def test_json_result_is_that_of_the_run(made: SimpleNamespace) -> None:
    done = undistill("defend", *TINY, "--runs", made.runs, "--json", "--quiet")
    assert done.err == ""
    assert done.json["folder"] == str(made.teacher)
    stored = json.loads((made.teacher / "result.json").read_text())
    assert {key: done.json[key] for key in stored} == stored
    assert done.json["accuracy"] == stored["selected"]["accuracy"]


def test_run_folder_is_a_recipe_to_start_from(made: SimpleNamespace) -> None:
    again = undistill("defend", made.teacher, "--runs", made.runs)
    assert again.out == made.defend.out
    other = undistill("defend", made.teacher, "seed=5", "method.temperature=8", "--dry-run", "--json")
    assert other.json["recipe"]["seed"] == 5
    assert other.json["recipe"]["method"] == "nasty(temperature=8.0, weight=0.04)"


def test_method_field_alone_configures_default_method(tmp_path: Path) -> None:
    shown = undistill("defend", *TINY, "method.weight=0.01", "--dry-run", "--json", "--runs", tmp_path).json
    assert shown["recipe"]["method"] == "nasty(temperature=4.0, weight=0.01)"


def test_dry_run_prints_a_recipe_that_loads_and_trains_nothing(tmp_path: Path) -> None:
    shown = undistill("defend", *TINY, "--dry-run", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    file = tmp_path / "mine.yaml"
    file.write_text(shown.out, encoding="utf-8")
    assert undistill("defend", file, "--dry-run", "--runs", tmp_path / "runs").out == shown.out
    assert f"# run: {tmp_path / 'runs'}/nasty-cnn-" in shown.out


def test_collapse_is_told_in_words(tmp_path: Path) -> None:
    # At this learning rate the ReLU on the MLP's logits dies: every logit is 0, and class 0 wins everywhere.
    done = undistill("train", "data=digits", "model=mlp(hidden=[8])", "epochs=2", "lr=10", "--runs", tmp_path)
    assert done.code == 0
    assert "; collapsed: 100 % of its answers are class 0; " in done.out
    assert "collapsed: 100 % of its answers on the held-out images are one class" in done.err.splitlines()[-1]


def has_epochs(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes(tmp_path: Path) -> None:
    command = ("train", "data=digits", "model=cnn(channels=4)", "epochs=60", "lr=0.05", "--runs", str(tmp_path))
    running = process(*command)
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline and not any(map(has_epochs, tmp_path.iterdir())):
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert re.fullmatch(r"error: interrupted.* run the same command again to go on", err.splitlines()[-1])
    assert "Traceback" not in err
    folder = next(tmp_path.glob("ce-cnn-*"))
    assert not (folder / "result.json").exists()
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    assert "epochs done; run the same command again to go on" in undistill("show", folder).out

    done = undistill(*command)
    assert done.code == 0
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 61))
    assert 0 < before < 60


def test_piped_output_is_plain_and_short(tmp_path: Path) -> None:
    # FORCE_COLOR and the like are for terminals that hide; here nobody asked for color.
    running = process("train", *TINY, "epochs=37", "--runs", str(tmp_path))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "\x1b" not in out + err
    assert len(out.splitlines()) == 1
    lines = err.splitlines()
    assert len(lines) <= 11
    assert re.fullmatch(
        r"ce-cnn-\w+: epoch 4/37, loss [\d.]+, held-out [\d.]+ %, [\d,]+ images/s, \d+:\d\d left", lines[0]
    )
    assert ": epoch 37/37, " in lines[-1]


def test_reader_that_leaves_early_is_no_error() -> None:
    running = process("--help")
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.wait(timeout=60)
    running.stderr.close()


def test_terminal_gets_one_bar_that_ends_with_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr("undistill.console.make_console", lambda stderr: screen)
    callback: Any = watch(make_recipe({"data": "digits", "model": "cnn", "epochs": 2}))
    for epoch in (1, 2):
        for step in (1, 2, 3):
            callback.step(epoch, step, 3)
        record = {"epoch": epoch, "train_loss": 0.25, "heldout_accuracy": 98.46, "heldout_top_class_share": 0.11}
        callback.epoch(record)
    callback.close()
    file: Any = screen.file
    frames = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue()).split("\r")
    last = [frame.strip() for frame in frames if frame.strip()][-1]
    assert re.fullmatch(r"ce-cnn +━{12} 2/2 loss 0.25, held-out 98.5 % [\d,]+ img/s", last)


# --- bad input --------------------------------------------------------------------------------------------------


def test_every_mistake_of_a_recipe_is_told_at_once() -> None:
    failed = undistill("train", "data=digitz", "model=cnnn", "epochs=0", "lr=-1", "sed=3")
    assert failed.code == 2
    told = "\n".join(failed.errors)
    for part in ("'digitz'; did you mean 'digits'?", "'cnnn'; did you mean 'cnn'?", "epochs: ", "lr: ", "'seed'?"):
        assert part in told
    assert len(failed.errors) == 5


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["trian"], 2, "No such command 'trian'. Did you mean 'train'?; see `undistill --help`"),
        (["train", "--epochs", "5"], 2, "No such option: --epochs; fields of a recipe are given as key=value"),
        (["data"], 2, "Missing command; see `undistill data --help`"),
        (["train", "data=digits", "model=resnet81"], 2, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        (["train", *TINY, "method=nasty"], 2, "'nasty' is a defense, not a reference; use `defend`"),
        (["defend", *TINY, "method=kd"], 2, "needs a victim"),
        (["defend", *TINY, "method=ce"], 2, "'ce' is a reference, not a defense; use `train`"),
        (["attack", *TINY, "method=hard_label"], 2, "attack 'hard_label' needs a victim: victim=<run folder"),
        (["defend", *TINY, "method=nasty(temperature=0)"], 2, "temperature: must be greater than 0, got 0"),
        (["defend", *TINY, "method=nasty(weight=-1)"], 2, "weight: must be greater than or equal to 0, got -1"),
        (["attack", "victim=gone", *TINY], 2, "'gone'"),
        (["train", "no/such/run"], 2, "'no/such/run'"),
        (["train", "digits", "resnet18", "lr=1"], 2, "expected key=value, got 'resnet18'"),
        (["train", *TINY, "--device", "tpu"], 2, "unknown device 'tpu'; expected auto, cpu, cuda or cuda:N"),
        (["train", *TINY, "lr=1e30"], 4, "training diverged: "),
        (["show", "nastyy"], 2, "unknown target 'nastyy'; did you mean 'nasty'?"),
        (["list", "model"], 2, "unknown list 'model'; did you mean 'models'?"),
        (["report", "nothing-here"], 1, "'nothing-here'"),
        (["data", "fetch", "digits"], 2, "has nothing to download"),
        (["data", "import", "cifar10", "gone.tar.gz"], 3, "cannot import gone.tar.gz: there is no such file"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistake_is_one_clean_line(
    args: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = undistill(*args, *(["--quiet"] if args[0] in {"train", "defend", "attack"} else []))
    assert failed.code == code
    assert failed.out == ""
    (line,) = failed.errors
    assert told in line


def test_temperature_and_share_out_of_range_are_two_lines(made: SimpleNamespace) -> None:
    failed = undistill("attack", f"victim={made.teacher}", "model=mlp", "method=kd(temperature=0, alpha=1.5)")
    assert failed.code == 2
    assert [line.split(", got")[0] for line in failed.errors] == [
        "method: kd: temperature: must be greater than 0",
        "method: kd: alpha: must be less than or equal to 1",
    ]


def test_attack_that_needs_more_than_the_victim_gives(made: SimpleNamespace) -> None:
    failed = undistill("attack", f"victim={made.teacher}", "model=mlp", "access=labels", "--runs", made.runs)
    assert failed.code == 2
    assert "needs the victim's probs, but it gives labels" in failed.errors[0]


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    failed = undistill("train", *TINY, "--device", "cuda", "--runs", tmp_path)
    assert failed.code == 2
    assert failed.errors == ["device 'cuda' was asked for, but torch finds no CUDA here; use device=cpu or device=auto"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, -1])
def test_debug_shows_the_traceback_before_the_line(place: int) -> None:
    args = ["train", "data=digits", "model=resnet81"]
    args.insert(len(args) if place else 0, "--debug")
    failed = undistill(*args)
    assert failed.code == 2
    assert failed.err.startswith("Traceback")
    assert failed.err.splitlines()[-1].startswith("error: model: unknown model")


def test_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("undistill.recipe.list_recipes", broken)
    failed = undistill("list", "recipes")
    assert failed.code == 1
    assert failed.errors == ["ZeroDivisionError: by zero; run with --debug to see where"]


# --- list, show, report, doctor ---------------------------------------------------------------------------------


def test_list_has_a_line_for_every_member() -> None:
    found = undistill("list", "--json").json
    kinds = ["models", "datasets", "defenses", "output_defenses", "attacks", "references", "recipes", "studies"]
    assert list(found) == kinds
    assert {"rounding", "top_k"} <= set(found["output_defenses"])
    assert tuple(found["studies"]) == list_studies()
    assert found["studies"]["table1"] == "Experimental results on CIFAR-10"
    assert {"resnet18", "cnn", "mlp"} <= set(found["models"])
    assert list(found["references"]) == ["ce", "label_smoothing"]
    for kind in found:
        shown = undistill("list", kind).out
        assert all(name in shown and line in shown for name, line in found[kind].items())
    assert all(line for kind in found for line in found[kind].values())


def test_show_method_card() -> None:
    shown = undistill("show", "nasty").out
    assert "self-undermining" not in shown.splitlines()[0]
    assert re.search(r"^weight +0\.04 +≥ 0 +ω: 0\.04 for CIFAR-10", shown, re.MULTILINE)
    assert "(ICLR 2021), https://openreview.net/forum?id=0zvfm-nZqQs" in shown
    shown = undistill("show", "top_k").out
    assert shown.startswith("top_k (output defense)")
    assert re.search(r"^k +5 +≥ 1 +classes that are kept", shown, re.MULTILINE)
    card = undistill("show", "kd", "--json").json
    assert (card["kind"], card["access"], card["uses_labels"]) == ("attack", "probs", True)
    assert card["parameters"][1] == {
        "name": "alpha",
        "default": 0.9,
        "range": "≥ 0, ≤ 1",
        "description": "α, the share of the softened answers in the loss",
    }


def test_show_model_card() -> None:
    card = undistill("show", "mlp", "--json").json
    assert {"name": "hidden", "default": [512, 512]} in card["parameters"]
    assert "1,841,162 parameters" in undistill("show", "mlp").out


def test_show_study_card() -> None:
    card = undistill("show", "table1", "--json").json
    assert (card["kind"], card["description"]) == ("study", "Experimental results on CIFAR-10")
    assert card["parameters"] == []
    assert card["rows"] == "baseline, resnet18-normal, resnet18-nasty"
    both = undistill("show", "ntl").out  # a defense, and a study
    assert "ntl (defense)" in both
    assert "ntl (study)" in both
    card = undistill("show", "ntl", "--json").json
    assert (card["kind"], [other["kind"] for other in card["also"]]) == ("defense", ["study"])


def test_show_run_by_path_and_by_name(made: SimpleNamespace) -> None:
    shown = undistill("show", made.teacher).out
    assert shown == undistill("show", made.teacher.name, "--runs", made.runs).out
    assert shown.endswith(made.defend.out)
    assert "method: nasty(temperature=4.0, weight=0.04)" in shown
    metrics = undistill("show", made.teacher, "--json").json["metrics"]
    assert [record["epoch"] for record in metrics] == [1, 2]


def test_show_packaged_recipe() -> None:
    shown = undistill("show", "paper/cifar10/nasty_resnet18")
    assert "\nmethod: nasty(temperature=4.0, weight=0.04)\n" in shown.out
    assert re.search(r"^# run: \S*runs/nasty-resnet18-\w+ \(0 of 160 epochs done\)$", shown.out, re.MULTILINE)
    dry = undistill("defend", "paper/cifar10/nasty_resnet18", "seed=1", "--dry-run", "--json").json
    assert dry["recipe"]["seed"] == dry["recipe"]["adversary"]["seed"] == 1


def test_show_recipe_file_and_suggests_runs(made: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\nmodel: cnn\n", encoding="utf-8")
    assert "\nepochs: 160\n" in undistill("show", file).out
    failed = undistill("show", made.teacher.name[:-1], "--runs", made.runs)
    assert failed.errors == [f"unknown target {made.teacher.name[:-1]!r}; did you mean {made.teacher.name!r}?"]


def test_report_prints_the_table_and_the_page(made: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    twin, reference = (next(made.runs.glob(name)) for name in ("ce-cnn-*", "ce-mlp-*"))
    done = undistill("report", twin, reference, "--out", page)
    assert done.code == 0
    assert done.out.splitlines()[-1] == str(page)
    assert re.search(r"cnn\(channels=4\), normal +\d", done.out)
    assert re.search(r"mlp\(hidden=\[8\]\), normal +\d", done.out)
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_demo_hands_its_options_on(made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undistill.reporting.document import Document
    from undistill.reporting.report import make_document

    calls: list[tuple[Path, int]] = []

    def short_demo(out: Path, *, seeds: int = 1, observe: Callable[..., Any]) -> Document:
        calls.append((out, seeds))
        assert undistill("train", *TINY, "--runs", out / "runs", "--quiet").code == 0
        return make_document(out)

    monkeypatch.setattr("undistill.demo.demo", short_demo)
    done = undistill("demo", "--out", tmp_path / "demo", "--seeds", "2")
    assert done.code == 0
    assert calls == [(tmp_path / "demo", 2)]
    assert done.out.splitlines()[-1] == str(tmp_path / "demo" / "report.html")
    studies = undistill("report", tmp_path / "demo", "--out", tmp_path / "demo", "--json").json["studies"]
    assert [study["data"] for study in studies] == ["digits"]


def test_doctor_tells_versions_device_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDISTILL_CACHE", str(tmp_path / "cache"))
    found = undistill("doctor", "--json", "--runs", tmp_path / "runs")
    assert found.code == 0
    assert found.json["versions"]["torch"] == torch.__version__
    assert found.json["folders"]["cache"].startswith(f"{tmp_path / 'cache'} (writable, not made yet, ")
    assert found.json["environment"]["UNDISTILL_CACHE"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    text = undistill("doctor").out
    assert "cuda  " in text


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    required = [
        "no-such-package>=1",
        "torch>=2",
        "no-such-extra>=3; extra == 'fast'",
        "undistill[fast]; extra == 'all'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found = undistill("doctor", "--json")
    assert found.code == 1
    assert found.json["versions"]["no-such-package"] == "missing"
    assert found.json["extras"] == {"fast": "lacks no-such-extra: pip install 'undistill[fast]'"}
    assert found.json["problems"] == ["no-such-package is missing: pip install no-such-package"]


# --- data, bench ------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is published where nobody answers, under the name of a data set."""
    from undistill.data import Remote, list_datasets
    from undistill.data.download import REMOTES

    list_datasets()
    file = tmp_path / "downloaded by hand.gz"
    file.write_bytes(b"published")
    published = Remote("images.gz", "http://127.0.0.1:9/images.gz", f"md5:{md5(b'published').hexdigest()}")
    monkeypatch.setitem(REMOTES, "mnist", (published,))
    monkeypatch.setenv("UNDISTILL_CACHE", str(tmp_path / "cache"))
    return file


def test_data_import_then_verify_fetch_and_list(remote: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "mnist" / "images.gz"
    assert undistill("data", "import", "mnist", remote).out == f"{target}\n"
    assert target.read_bytes() == b"published"
    verified = undistill("data", "verify", "mnist", "--json")
    assert (verified.code, verified.json[0]["state"]) == (0, "ok")
    assert undistill("data", "fetch", "mnist", "--json").json == [str(target)]
    listed = undistill("data", "list", "--json").json
    assert {"name": "mnist", "bytes": 9, "path": str(target)} in listed
    decoded = target.with_name("decoded-1234.npz")
    decoded.write_bytes(b"four")
    listed = undistill("data", "list", "--json").json
    assert [row["path"] for row in listed if row["name"] == "mnist"] == [str(target), str(decoded)]
    assert {"name": "mnist", "bytes": 4, "path": str(decoded)} in listed
    assert "not here" in undistill("data", "list").out


def test_data_that_is_missing_or_altered(remote: Path, tmp_path: Path) -> None:
    missing = undistill("data", "verify", "mnist")
    assert missing.code == 3
    assert missing.errors == ["mnist: images.gz is missing; run `undistill data fetch mnist`"]
    offline = undistill("data", "fetch", "mnist")
    assert offline.code == 3
    assert f"by hand at {tmp_path / 'cache' / 'mnist' / 'images.gz'}" in offline.errors[0]
    undistill("data", "import", "mnist", remote)
    (tmp_path / "cache" / "mnist" / "images.gz").write_bytes(b"altered")
    assert undistill("data", "verify", "mnist").errors[0].startswith("mnist: images.gz is altered")


def test_bench_augment_prints_and_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "threads": 2,
        "images": 64,
        "batch_size": 128,
        "results": [
            {
                "augment": "crop_flip",
                "image_size": 32,
                "baseline": {0: 1000.0, 2: 900.5},
                "undistill": 9000,
                "ratio": 9.0,
            }
        ],
    }
    monkeypatch.setattr("undistill.bench.augment.bench_augment", lambda images, repeats: {**found, "images": images})
    done = undistill("bench", "augment", "--images", "64", "--out", tmp_path / "speed.json")
    assert done.code == 0
    assert re.search(r"crop_flip +32x32 +1,000 +900 +9,000 +9\.0x", done.out)
    stored = json.loads((tmp_path / "speed.json").read_text())
    assert stored == json.loads(json.dumps(found))
    assert undistill("bench", "augment", "--images", "64", "--json").json == stored


def test_piped_tables_are_never_cut() -> None:
    assert make_console().width >= 1000
