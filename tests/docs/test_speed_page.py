"""The page about measured speed: every number on it is one of the files', and the one in docs is of the files there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from speed_page import speed_page
from undistill.bench.scaling import estimate_imagenet
from undistill.errors import RecipeError

ROOT = Path(__file__).parents[2]
MACHINE = {"device": "cpu", "name": "EPYC", "cores": 2, "threads": 1, "torch": "2.13.0"}
HOW = "fast computes with tuning.channels_last=true tuning.compile=false"


def side(images_per_s: float, ratio: float, mfu: float, **parity: Any) -> dict[str, Any]:
    return {"images_per_s": images_per_s, "ratio": ratio, "mfu": mfu, "memory_mb": 1400, "how": "eager", **parity}


def result(objective: str = "nasty", *models: str, **machine: Any) -> dict[str, Any]:
    work = {"objective": objective, "models": models or ("cnn",), "victim": "resnet18", "batch_size": 64}
    return {
        "work": {**work, "image_size": 32},
        "machine": {**MACHINE, **machine},
        "matmul_gflops": 95.4,
        "sides": {
            "plain": side(200.4, 1.0, 0.2),
            "exact": side(260.0, 1.3, 0.26),
            "fast": side(1380.2, 6.887, 0.61, weights=1.8e-4, kl=2.5e-3, how=HOW),
        },
    }


def scaling() -> dict[str, Any]:
    base = {"models": ["cnn"], "victim": "preresnet20", "batch_size": 64, "images": 1024, "classes": 10}
    costs = [
        ("images", 1024, 2.0, 500),
        ("images", 4096, 8.2, 520),
        ("students", 1, 2.0, 500),
        ("students", 4, 3.0, 600),
    ]
    keys = ("axis", "value", "seconds", "memory_mb")
    rows = [{**dict(zip(keys, cost, strict=True)), "images_per_s": 512.0} for cost in costs]
    base |= {"image_size": 32, "profile": "exact"}
    return {"machine": MACHINE, "base": base, "rows": rows, "imagenet": estimate_imagenet()}


def written(folder: Path, **files: Any) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return speed_page(folder, folder.parent / "docs" / "page.md")


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_docs_page_is_what_the_generator_writes() -> None:
    folder, page = ROOT / "results" / "bench", ROOT / "docs" / "measured-speed.md"
    assert page.read_text(encoding="utf-8") == speed_page(folder, page), (
        "run: python tools/speed_page.py results/bench docs/measured-speed.md"
    )


def test_a_training_measurement(tmp_path: Path) -> None:
    text = written(tmp_path / "bench", train={"results": [result()]})
    assert "## Training on EPYC, 1 of 2 cores, torch 2.13.0: batches of 64 images of 32x32" in text
    header, speeds, _, costs = rows(text)
    assert header == ["model", "objective", "plain", "exact", "fast"]
    assert speeds == ["`cnn`", "nasty", "200 (1.00×)", "260 (1.30×)", "1,380 (6.89×)"]
    assert costs[2:5] == ["95", "20 % / 26 % / 61 %", "1,400 / 1,400 / 1,400"]
    assert costs[5:] == ["1.8e-04", "2.5e-03", "`channels_last=true compile=false`"]


def test_an_impossible_share_of_the_matrix_rate_is_not_shown(tmp_path: Path) -> None:
    found = result()
    for name, mfu in {"plain": 1.25, "exact": 5.88, "fast": None}.items():
        found["sides"][name]["mfu"] = mfu
    text = written(tmp_path / "bench", train={"results": [found]})
    assert rows(text)[3][3] == "125 % / not measured / not measured"
    assert "came out above 130 %; the rate beside it was wrong" in text


def test_the_page_in_docs_has_no_impossible_share() -> None:
    page = (ROOT / "docs" / "measured-speed.md").read_text(encoding="utf-8")
    shares = [int(share) for share in re.findall(r"(\d+) %(?= [/|])", page)]
    assert shares
    assert max(shares) <= 130


def test_students_of_one_victim_are_named_with_it(tmp_path: Path) -> None:
    text = written(tmp_path / "bench", train={"results": [result("kd", "cnn", "preresnet20")]})
    assert rows(text)[1][:2] == ["`cnn`, `preresnet20`", "kd from `resnet18`"]


def test_measurements_of_one_machine_stand_together(tmp_path: Path) -> None:
    one = {"results": [result("normal"), result("normal", threads=2)]}
    text = written(tmp_path / "bench", a=one, b={"results": [result("nasty")]})
    assert len(re.findall("## Training on .*, 1 of 2 cores", text)) == 1
    assert len(re.findall("## Training on .*, 2 of 2 cores", text)) == 1
    first, _ = text.split("2 of 2 cores")
    assert [row[1] for row in rows(first)] == ["objective", "normal", "nasty"] * 2


def test_works_with_other_sides_have_tables_of_their_own(tmp_path: Path) -> None:
    stack = result("kd", "cnn", "cnn")
    stack["sides"]["stacked"] = stack["sides"].pop("fast")
    _, _, header, costs, equal, others, *_ = rows(written(tmp_path / "bench", a={"results": [result(), stack]}))
    assert header[5] == "weights fast"
    assert len(costs) == len(header)
    assert equal[:2] == ["model", "objective"]
    assert equal[-1] == "stacked"
    assert others[0] == "2 × `cnn`"


def test_growth_is_told_against_the_first_of_its_kind(tmp_path: Path) -> None:
    text = written(tmp_path / "bench", scaling=scaling())
    grown = [row for row in rows(text) if row[0] in ("images", "students")]
    assert grown == [
        ["images", "1,024 (1×)", "2.00 (1.00×)", "512", "500 (1.00×)"],
        ["images", "4,096 (4×)", "8.20 (4.10×)", "512", "520 (1.04×)"],
        ["students", "1 (1×)", "2.00 (1.00×)", "512", "500 (1.00×)"],
        ["students", "4 (4×)", "3.00 (1.50×)", "512", "600 (1.20×)"],
    ]
    estimate = estimate_imagenet()
    assert ["nasty teacher", str(estimate["hours"]["nasty teacher"])] in rows(text)
    assert all(f"- {assumption}." in text for assumption in estimate["assumptions"])
    assert "![" not in text


def test_the_plot_is_linked_from_where_the_page_is(tmp_path: Path) -> None:
    written(tmp_path / "bench", scaling=scaling())
    (tmp_path / "bench" / "scaling.png").touch()
    text = speed_page(tmp_path / "bench", tmp_path / "docs" / "page.md")
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["../bench/scaling.png"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no \.json in it; write one with"):
        written(tmp_path / "empty")
    with pytest.raises(RecipeError, match=r"augment\.json: not of `undistill bench train`"):
        written(tmp_path / "bench", augment={"results": [{"baseline": {}}]})
