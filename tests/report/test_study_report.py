"""``undistill report`` on what a study left: the same bytes again, and nothing from a file that was edited."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from results_page import results_page
from undistill._version import __version__
from undistill.cli import main
from undistill.errors import RecipeError, RunError
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.progress import Silence
from undistill.orchestrate.reproduce import reproduce, runs_folder
from undistill.orchestrate.request import Request
from undistill.orchestrate.results import read_study
from undistill.studies.changes import Changes
from undistill.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The students of one teacher and two points of a curve, in smoke."""
    out = tmp_path_factory.mktemp("made")
    for study, only in (("table1", ("baseline",)), ("figure4", ("cnn-normal",))):
        request = Request(study, only=only, changes=Changes(smoke=True))
        for step in (step for each in request.load() for step in Plan.of(each.recipes).steps):
            Workspace(runs_folder(out)).run(step.recipe)  # here, which takes less time than to start processes
        reproduce(request, out, jobs=1, device="cpu", observe=lambda total: Silence())
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit(folder: Path, pattern: str, replacement: str) -> None:
    path = folder / "study.json"
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


def test_the_page_opens_with_what_the_paper_claims_and_what_was_found(tmp_path: Path) -> None:
    parameters = {"students": ["cnn"], "thieves": ["textbook", "untempered", "named"]}
    request = Request("effect", changes=Changes(smoke=True), parameters=parameters)
    for step in Plan.of(recipe for study in request.load() for recipe in study.recipes).steps:
        Workspace(runs_folder(tmp_path)).run(step.recipe)
    made = reproduce(request, tmp_path, jobs=1, device="cpu", observe=lambda total: Silence())
    (tmp_path / "results").mkdir()
    shutil.copytree(made.folder, tmp_path / "results" / "effect")
    opening, picture = results_page(tmp_path / "results", tmp_path / "page.md").split("\n\n")[2:4]
    (part,) = made.document.parts
    rows = {row["name"]: row["cells"] for row in part.to_json()["rows"]}
    alone = rows["baseline"]["cnn"]["mean"]
    assert "(94.56 against 95.13 %" in opening
    assert "its CNN: −4.18 points, from a normal teacher +1.11" in opening
    nasty, normal = (rows[f"speedrun-{which}"]["teacher"]["mean"] for which in ("nasty", "normal"))
    assert f"nasty {nasty:.2f} %, normal {normal:.2f} %" in opening
    best = max(rows[f"speedrun-nasty-{how}"]["cnn"]["mean"] for how in ("untempered", "named")) - alone
    ends = f"it ends {best:+.2f}.".replace("-", "−").replace("+0.00", "0.00")
    assert "best of 2 other ways to ask the nasty teacher" in opening
    assert ends in opening
    assert "Of one seed there is no interval: none of these differences is decided." in opening
    assert picture.startswith("![")
    assert picture.endswith("(results/effect/figures/effect.png)")


def test_the_page_opens_with_whom_a_nasty_teacher_harms(tmp_path: Path) -> None:
    parameters = {"ways": ["adam", "muon"], "thieves": ["textbook", "named"]}
    made = reproduce(
        Request("training", seeds=2, changes=Changes(smoke=True), parameters=parameters), tmp_path, jobs=1, device="cpu"
    )
    (tmp_path / "results").mkdir()
    shutil.copytree(made.folder, tmp_path / "results" / "training")
    opening, picture = results_page(tmp_path / "results", tmp_path / "page.md").split("\n\n")[2:4]
    (part,) = made.document.parts
    rows = {row["name"]: row["cells"] for row in part.to_json()["rows"]}
    assert f"the nasty teacher has {rows['nasty-textbook']['teacher']['mean']:.2f} %" in opening
    assert "on digits (2 seeds)" in opening

    def apart(row: str, way: str) -> str:
        points = f"{rows[row][way]['mean'] - rows['baseline'][way]['mean']:+.2f}"
        return points.replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")

    said = opening[opening.index("by how it is trained: ") :]
    for label, way in (("Adam, constant rate", "adam"), ("Muon, falling rate", "muon")):
        assert re.match(rf".*?{re.escape(apart('nasty-textbook', way))} \[[^]]*\] \({label}\)", said.split(". ")[0])
    lowest = min(("adam", "muon"), key=lambda way: rows["nasty-named"][way]["difference"])
    assert f"ask in another way (named class), the one that ends lowest is at {apart('nasty-named', lowest)} [" in said
    assert "points that a student is spared" in said
    assert picture.endswith("(results/training/figures/training.png)")


def test_what_a_study_writes(made: Path) -> None:
    assert set(files(made / "table1-smoke")) == {"study.json", "tables.md", "tables.tex", "tables.csv", "index.html"}
    figure = set(files(made / "figure4-smoke"))
    assert figure >= {"study.json", "index.html", "figures/figure4.png", "figures/figure4.svg"}
    page = (made / "figure4-smoke" / "index.html").read_text()
    assert len(re.findall(r'<svg role="img" aria-label="Figure 4: [^"]+"', page)) == 1
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    markdown = (made / "figure4-smoke" / "tables.md").read_text()
    assert "![Figure 4](figures/figure4.png)" in markdown
    assert "`undistill reproduce figure4 --smoke --only cnn-normal`" in markdown
    tex = (made / "figure4-smoke" / "tables.tex").read_text()
    assert r"\includegraphics[width=\linewidth]{figures/figure4.png}" in tex
    assert r"$\tau_s$" in tex
    assert tex.isascii()


def test_report_writes_the_same_bytes_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(out / "figure4-smoke")
    for name in set(before) - {"study.json"}:
        (out / "figure4-smoke" / name).unlink()
    assert main(["report", str(out / "figure4-smoke")]) == 0
    assert files(out / "figure4-smoke") == before
    shown = capsys.readouterr().out
    assert "Figure 4" in shown
    assert shown.splitlines()[-1] == str(out / "figure4-smoke" / "index.html")


def test_report_of_a_folder_of_studies(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(out / "runs")  # nothing but study.json is needed
    before = files(out)
    assert main(["report", str(out)]) == 0
    assert files(out) == before
    shown = capsys.readouterr().out
    assert shown.index("Figure 4") < shown.index("Table 1")
    assert main(["report", str(out / "table1-smoke"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "table1-smoke" / "study.json").read_text())


def test_an_edited_number_is_refused_and_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = out / "table1-smoke"
    true = json.loads((folder / "study.json").read_text())["parts"][0]["rows"][0]["cells"]["cnn"]["mean"]
    edit(folder, r'"mean": [\d.]+', '"mean": 99.5')
    page = (folder / "index.html").read_bytes()
    assert main(["report", str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"parts.table1.rows.baseline.cells.cnn.mean is 99.5, the runs say {true}" in said
    assert "reproduce" not in said or "run the command that made it again" in said
    assert len(said.splitlines()) == 1
    assert (folder / "index.html").read_bytes() == page


def test_an_edited_point_is_named_by_its_x(out: Path) -> None:
    folder = out / "figure4-smoke"
    edit(folder, r'"x": 10,(\s+)"values": \{(\s+)"0": [\d.]+', r'"x": 10,\1"values": {\2"0": 98.5')
    with pytest.raises(RunError, match=r"parts.figure4.panels.cifar10.lines.cnn-normal.points.10.values.0 is 98.5"):
        read_study(folder)


def test_without_runs_the_part_is_named(out: Path) -> None:
    shutil.rmtree(out / "runs")
    folder = out / "figure4-smoke"
    edit(folder, r'"paper": 87.75', '"paper": 7.75')
    with pytest.raises(RunError, match=r"edited: the checksum of parts.figure4; restore it"):
        read_study(folder)


def test_many_edits_are_counted(out: Path) -> None:
    path = out / "table1-smoke" / "study.json"
    path.write_text(re.sub(r'"paper": [\d.]+', '"paper": 1.5', path.read_text()))
    with pytest.raises(RunError, match=r"cells.cnn.paper is 1.5, the runs say 86.64; .*; and 1 more; restore it"):
        read_study(path.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 3}, "seeds is 3, the runs say 1"),
        ({"request": {}}, "the checksum of request"),
        ({"extra": 1}, "extra is 1, the runs say null"),
        ({"sha256": {}}, "was edited"),
        ({"sha256": None}, "was edited"),
        ({"parts": None}, "parts is null, the runs say"),
        ({"parts": []}, "parts.table1 is null, the runs say"),
    ],
)
def test_any_other_edit_is_refused(out: Path, change: dict[str, Any], said: str) -> None:
    path = out / "table1-smoke" / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=said):
        read_study(path.parent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "undistill": "0.0.9", "tables": []}', "has format 1 of undistill 0.0.9; expected format 2"),
        ('{"format": 3, "undistill": "9.0"}', "has format 3 of undistill 9.0; expected format 2"),
        ("[1, 2]", "has format None of undistill"),
        ('{"format": 2', "is damaged"),
    ],
)
def test_another_format_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(RunError, match=re.escape(said)):
        read_study(tmp_path)


def test_a_part_that_is_there_twice_is_refused(out: Path) -> None:
    path = out / "table1-smoke" / "study.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "parts": content["parts"] * 2}))
    with pytest.raises(RunError, match="parts is "):
        read_study(path.parent)


def test_reformatted_json_is_the_same_study(out: Path) -> None:
    path = out / "table1-smoke" / "study.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, sort_keys=True))
    assert read_study(path.parent) == content


def test_studies_and_runs_are_not_mixed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(out / "table1-smoke"), str(out / "runs")]) == 2
    assert "report runs and studies by themselves" in capsys.readouterr().err
    assert main(["report", str(out / "table1-smoke"), "--out", "page.html"]) == 2
    assert "leave --out out" in capsys.readouterr().err


# --- the page about all results ---------------------------------------------------------------------------------------


def test_docs_results_is_what_the_generator_writes() -> None:
    page = ROOT / "docs" / "results.md"
    assert page.read_text(encoding="utf-8") == results_page(ROOT / "results", page), (
        "run: python tools/results_page.py results docs/results.md"
    )


def test_the_page_links_pictures_and_tells_the_command(out: Path) -> None:
    page = out / "docs" / "results.md"
    text = results_page(out, page)
    assert text.index("## figure4-smoke") < text.index("## table1-smoke")
    assert "undistill reproduce figure4 --smoke --only cnn-normal" in text
    assert "**Smoke: " in text
    assert f"undistill {__version__}" in text
    assert "data `digits(subset=100, test_subset=50)`" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert "../figure4-smoke/figures/figure4.png" in links
    for link in links:
        assert (page.parent / link).resolve().is_file(), link


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="give the folder of results"):
        results_page(tmp_path, tmp_path / "page.md")
