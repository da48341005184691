"""What the README and CONTRIBUTING say is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import undistill
from undistill.recipe import make_recipe
from undistill.registry import Registry

ROOT = Path(__file__).parents[2]


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    lines = re.findall(r"([\d.]+) %, (\d+) queries", capsys.readouterr().out)
    teacher, alone, named, soft = (float(accuracy) for accuracy, _ in lines)
    assert [int(queries) for _, queries in lines] == [0, 0, 300, 300]
    assert teacher > 95
    assert alone < named < teacher
    assert alone < soft < teacher
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_readme_yaml_is_a_recipe():
    (text,) = blocks("README.md", "yaml")
    assert make_recipe(yaml.safe_load(text)).kind == "attack"


def test_contributing_defense_and_model_work(tmp_path: Path):
    defense, _, _, model = blocks("CONTRIBUTING.md", "python")
    try:
        exec(compile(defense, "CONTRIBUTING.md", "exec"), {"__name__": "quiet"})
        exec(compile(model, "CONTRIBUTING.md", "exec"), {"__name__": "linear"})
        run = undistill.defend(data="digits", model="linear", method="quiet(weight=0.1)", epochs=1, runs=tmp_path)
        assert "train_penalty" in run.metrics[0]
    finally:
        for registry, name in ((_registry("defenses", "DEFENSES"), "quiet"), (_registry("models", "MODELS"), "linear")):
            registry._members.pop(name, None)


def test_contributing_output_defense_and_feature_attack_work(tmp_path: Path):
    _, policy, attack, _ = blocks("CONTRIBUTING.md", "python")
    try:
        exec(compile(policy, "CONTRIBUTING.md", "exec"), {"__name__": "hedging"})
        exec(compile(attack, "CONTRIBUTING.md", "exec"), {"__name__": "follow"})
        tiny = {"data": "digits(subset=100, test_subset=50)", "model": "mlp(hidden=(8,))", "epochs": 1}
        victim = undistill.train(**tiny, runs=tmp_path)
        run = undistill.attack(
            victim=victim, method="follow", access="features", policy="hedging(share=0.2)", **tiny, runs=tmp_path
        )
        assert "train_distance" in run.metrics[0]
    finally:
        for registry, name in (
            (_registry("defenses", "OUTPUT_DEFENSES"), "hedging"),
            (_registry("attacks", "ATTACKS"), "follow"),
        ):
            registry._members.pop(name, None)


def _registry(package: str, name: str) -> Registry[object]:
    module = __import__(f"undistill.{package}", fromlist=[name])
    registry: Registry[object] = getattr(module, name)
    return registry


def test_readme_names_everything_that_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    defenses = undistill.list_defenses() + undistill.list_output_defenses()
    for names in (defenses, undistill.list_attacks(), undistill.list_datasets()):
        for name in set(names) - {"npz", "image_folder"}:
            assert f"`{name}`" in text


def test_readme_demo_table_is_the_one_that_the_program_wrote():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- demo table: (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert shown
    written = (ROOT / shown[1]).read_text(encoding="utf-8")
    here = shown[2].strip().replace("](results/digits_demo/", "](").replace("### ", "## ")
    assert here in written


def test_public_names_are_sorted_and_there():
    assert sorted(undistill.__all__) == undistill.__all__
    for name in undistill.__all__:
        assert getattr(undistill, name) is not None
