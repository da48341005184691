"""A study of somebody else: it takes parameters, looks at finished runs and asks again until nothing is missing."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import halving as plugin
import pytest
from halving import ROUNDS, TEMPERATURES, Halving, halving

from undistill.cli import main
from undistill.errors import RecipeError, UnknownNameError
from undistill.orchestrate.progress import Silence
from undistill.orchestrate.reproduce import Reproduction, reproduce, runs_folder
from undistill.orchestrate.request import Request, load_studies
from undistill.orchestrate.results import FinishedRuns, read_study
from undistill.recipe import Recipe, load_recipe
from undistill.studies.changes import Changes
from undistill.studies.study import STUDIES
from undistill.workspace import Workspace


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    STUDIES.names()  # loads its members
    monkeypatch.setitem(STUDIES._members, "halving", halving)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("victims")
    recipe = load_recipe(None, data=plugin.DATA, model="cnn(channels=4)", epochs=8, batch_size=8, lr=0.05, method="ce")
    return str(Workspace(root, device="cpu").run(recipe).folder)


class Rounds:
    """Notes how many runs each round has."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, total: int) -> Silence:
        self.sizes.append(total)
        return Silence()


def request(victim: str, **parameters: object) -> Request:
    return Request("halving", parameters={"victim": victim, **parameters})


def searched(victim: str, out: Path, rounds: Rounds | None = None) -> Reproduction:
    return reproduce(request(victim), out, jobs=1, device="cpu", observe=rounds or Rounds())


@pytest.fixture(scope="module")
def finished(victim: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction, list[int]]:
    """The whole search, undisturbed."""
    out, rounds = tmp_path_factory.mktemp("study"), Rounds()
    with pytest.MonkeyPatch.context() as patch:
        STUDIES.names()
        patch.setitem(STUDIES._members, "halving", halving)
        return out, searched(victim, out, rounds), rounds.sizes


def trained(out: Path) -> dict[str, tuple[str, int, str]]:
    """Method, epochs and weights of every run, as its files tell."""
    found = {}
    for path in runs_folder(out).glob("*/result.json"):
        recipe = load_recipe(path.parent)
        found[recipe.hash] = (recipe.method, recipe.epochs, json.loads(path.read_text())["weights_sha256"])
    return found


# --- asking again -----------------------------------------------------------------------------------------------------


def test_the_better_half_goes_on(finished: tuple[Path, Reproduction, list[int]]) -> None:
    out, found, rounds = finished
    assert (found.trained, found.failed, rounds) == (6, False, [4, 2])
    held_out = {}
    for path in runs_folder(out).glob("*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        if len(records) == ROUNDS[0]:
            temperature = float(load_recipe(path.parent).method.partition("temperature=")[2].rstrip(")"))
            held_out[temperature] = records[-1]["heldout_accuracy"]
    best = sorted(TEMPERATURES, key=lambda t: (-held_out[t], t))[:2]
    longer = {method for method, epochs, _ in trained(out).values() if epochs == ROUNDS[1]}
    assert longer == {f"kd(alpha=0.9, temperature={t})" for t in best}
    rows = [row["name"] for row in found.content["parts"][0]["rows"]]
    assert rows == [*(f"{t}-2" for t in TEMPERATURES), *(f"{t}-4" for t in best)]
    assert len(set(held_out.values())) > 1  # there was something to choose


def test_a_second_call_trains_nothing(finished: tuple[Path, Reproduction, list[int]], victim: str) -> None:
    out, found, _ = finished
    before, rounds = trained(out), Rounds()
    again = searched(victim, out, rounds)
    assert (again.trained, rounds.sizes, trained(out)) == (0, [], before)
    assert again.content == found.content


def test_a_search_that_was_killed_between_its_rounds_goes_on(
    finished: tuple[Path, Reproduction, list[int]], victim: str, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, plugin.__file__, tmp_path / "out", victim], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(trained(tmp_path / "out")) == 4
    assert not list((tmp_path / "out").glob("*/study.json"))
    rounds = Rounds()
    found = searched(victim, tmp_path / "out", rounds)
    assert (found.trained, rounds.sizes) == (2, [2])
    assert trained(tmp_path / "out") == trained(finished[0])
    for file in ("study.json", "tables.md"):
        assert (found.folder / file).read_bytes() == (finished[1].folder / file).read_bytes()


class Broken(Halving):
    """One temperature cannot be trained, and the second round needs it."""

    def thief(self, temperature: float, epochs: int) -> Recipe:
        recipe = super().thief(temperature, epochs)
        return recipe.model_copy(update={"lr": 1e30}) if temperature == 1.0 else recipe

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterator[Recipe]:
        first = list(self.recipes)
        yield from first
        if any(workspace.find(recipe) is not None for recipe in first):
            yield first[1].model_copy(update={"victim": first[0], "seed": 1})
            yield self.thief(8.0, ROUNDS[1])


def test_a_run_that_failed_is_not_tried_twice_in_one_call(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = halving(seeds=1, changes=Changes(), victim=victim, temperatures=[1.0, 8.0])
    broken = Broken(**{name: getattr(given, name) for name in given.__dataclass_fields__})
    failures: dict[str, str] = {}

    def evaluate(self: Broken, workspace: Workspace, found: dict, cache: Path) -> dict:
        failures.update({hash_: failure.reason for hash_, failure in found.items()})
        return Halving.evaluate(replace(given, temperatures=(8.0,)), workspace, {}, cache)

    monkeypatch.setattr(Broken, "evaluate", evaluate)
    monkeypatch.setitem(STUDIES._members, "broken", lambda *, seeds, changes: broken)
    rounds = Rounds()
    reproduce(Request("broken"), tmp_path, jobs=1, device="cpu", observe=rounds)
    assert rounds.sizes == [2, 1]  # the third one needs what failed
    first = next(broken.recipes)
    assert "finite" in failures.pop(first.hash)
    (dependent,) = failures.values()
    assert dependent.startswith(f"not run: {first.folder_name} failed: ")


def test_a_study_of_before_is_asked_once() -> None:
    (table,) = load_studies("table1", changes=Changes(smoke=True))
    assert not table.asks_again
    workspace = FinishedRuns(Path("nowhere"))
    assert [recipe.hash for recipe in table.ask(workspace)] == [recipe.hash for recipe in table.recipes]


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_kept_in_the_request() -> None:
    asked = request("runs/a b", temperatures=(1, 2.5), text="1", small=1e-5)
    assert Request.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    assert asked.parameters["temperatures"] == [1, 2.5]
    assert "parameters" not in Request("table1").to_json()
    assert Request("table1").folder == "table1"
    assert asked.folder != request("runs/a b").folder != request("another").folder  # no question overwrites another
    assert request(Path("runs") / "x").parameters == {"victim": "runs/x"}  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="victim: expected a number, text"):
        request(object())  # type: ignore[arg-type]


def test_the_command_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("runs/a b=c: d", temperatures=[1, 2.5], text="1", small=1e-5, nothing=None, deep={"a": [True]})
    seen: list[Request] = []
    monkeypatch.setattr(Request, "load", lambda self: seen.append(self) or (_ for _ in ()).throw(RecipeError("seen")))
    assert main(shlex.split(asked.command)[1:]) == 2
    assert seen == [asked]


@pytest.mark.parametrize(
    ("study", "parameters", "problem"),
    [
        ("halving", {}, "halving needs victim; give victim=…"),
        ("halving", {"victim": "x", "temperature": 3}, "unknown parameter of halving 'temperature'; did you mean"),
        ("table1", {"victim": "x"}, "table1 takes no parameters, got 'victim'"),
        ("all", {"victim": "x"}, "all takes no parameters, got 'victim'"),
        ("halving", {"victim": "x", "seeds": 3}, "unknown parameter of halving 'seeds'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(study: str, parameters: dict[str, object], problem: str) -> None:
    with pytest.raises((RecipeError, UnknownNameError)) as refused:
        Request(study, parameters=parameters).load()
    assert problem in str(refused.value)


def test_all_is_what_needs_no_parameters() -> None:
    assert "halving" not in {study.name for study in load_studies("all", changes=Changes(smoke=True))}


def test_a_dry_run_shows_the_first_round_then_the_second(
    victim: str, finished: tuple[Path, Reproduction, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "halving", f"victim={victim}", "--dry-run", "--device", "cpu", "--jobs", "1", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "5 runs: 1 there, 4 to run" in shown  # the victim is there
    assert "then whatever is asked for once these are there: halving" in shown
    assert not (tmp_path / "out").exists()
    assert main([*words, str(finished[0])]) == 0
    assert "7 runs: 7 there, 0 to run" in capsys.readouterr().out


def test_report_writes_it_again_and_tells_what_was_edited(
    finished: tuple[Path, Reproduction, list[int]], victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[1].folder
    before = (folder / "tables.md").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "tables.md").read_bytes() == before
    assert f"`undistill reproduce halving victim={victim}`" in before.decode()
    capsys.readouterr()
    original = (folder / "study.json").read_text()
    content = json.loads(original)
    content["parts"][0]["rows"][-1]["cells"]["kd"]["mean"] = 99.5
    (folder / "study.json").write_text(json.dumps(content))
    try:
        with pytest.raises(Exception, match=r"kd\.mean is 99\.5, the runs say"):
            read_study(folder)
    finally:
        (folder / "study.json").write_text(original)


def test_list_show_and_help_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "halving", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["description"] == "Search for a thief's temperature"
    assert {row["name"]: row["default"] for row in card["parameters"]} == {
        "victim": "required",
        "temperatures": list(TEMPERATURES),
    }
    assert main(["list", "studies"]) == 0
    assert "halving" in capsys.readouterr().out
    assert main(["reproduce", "--help"]) == 0
    assert "halving" in capsys.readouterr().out


def test_a_dry_run_in_json_names_who_asks_again(
    victim: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"victim={victim}", "temperatures=[4]", "--dry-run", "--json", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["reproduce", "halving", *words]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["total"], planned["missing"], planned["asks_again"]) == (2, 1, ["halving"])
