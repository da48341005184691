"""The report against the results on disk, by hand arithmetic."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from undistill.api import attack, defend, train
from undistill.engine.evaluate import predict
from undistill.errors import CheckpointError, RecipeError, RunError
from undistill.reporting.answers import pairs, tsne
from undistill.reporting.document import Document
from undistill.reporting.formats import to_html, to_markdown, to_rich, to_tex
from undistill.reporting.measures import copied
from undistill.reporting.parts import Part
from undistill.reporting.parts.findings import Findings
from undistill.reporting.parts.values import Values
from undistill.reporting.report import make_document, report
from undistill.reporting.runs import Replicates, RunGroup, collect
from undistill.reporting.runs_table import make_table
from undistill.reporting.verdict import judge, leak_of
from undistill.reporting.wording import distinguish, join, method_label, model_label, signed
from undistill.run import Run

_DATA = "digits(subset=400, test_subset=60)"
_PROTOCOL: dict[str, Any] = {"data": _DATA, "epochs": 6, "schedule": "one_cycle", "augment": "none"}
_MLP = "mlp(hidden=(8,), relu_logits=False)"
_NASTY = "nasty(temperature=20, weight=0.02)"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the runs of two seeds: teachers, an MLP and a CNN as students."""
    root = tmp_path_factory.mktemp("report") / "runs"
    for seed in (0, 1):
        common = {**_PROTOCOL, "runs": root, "seed": seed}
        normal = train(model="cnn(channels=4)", **common)
        nasty = defend(model="cnn(channels=4)", method=_NASTY, **common)
        train(model=_MLP, **common)
        train(model=_MLP, method="label_smoothing", **common)
        attack(victim=normal, model=_MLP, method="kd(temperature=20)", **common)
        for method in ("kd(temperature=20)", "kd(temperature=1)", "hard_label"):
            attack(victim=nasty, model=_MLP, method=method, **common)
    attack(victim=nasty, model="cnn(channels=2)", method="hard_label", **common)
    return root


@pytest.fixture(scope="session")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(folder, tmp_path_factory.mktemp("page") / "report.html")


def _runs(folder: Path, model: str, method: str, victim: str | None = None) -> list[Run]:
    """Find runs by reading every folder, independently of the report's own grouping."""
    runs = [Run(path.parent) for path in folder.glob("*/recipe.yaml")]
    found = [
        run
        for run in runs
        if run.recipe.model == model
        and run.recipe.method.startswith(method.partition("(")[0])
        and run.recipe.method.endswith(method.partition("(")[2])
        and (victim is None or run.recipe.victim.method.startswith(victim))
    ]
    return sorted(found, key=lambda run: run.recipe.seed)


def _accuracies(runs: list[Run]) -> list[float]:
    return [json.loads((run.folder / "result.json").read_text())["selected"]["accuracy"] for run in runs]


def _rows(page: Path) -> dict[tuple[str | None, str], dict[str, Any]]:
    study = json.loads(page.with_suffix(".json").read_text())["studies"][0]
    return {(row["teacher"], row["method"]): row for row in study["rows"]}


NORMAL, NASTY = "cnn(channels=4), normal", "cnn(channels=4), nasty (τ=20, ω=0.02)"


def test_table_holds_the_mean_of_the_results(folder: Path, page: Path) -> None:
    rows = _rows(page)
    students = json.loads(page.with_suffix(".json").read_text())["studies"][0]["students"]
    mlp = students.index(_MLP)
    alone = _accuracies(_runs(folder, _MLP, "ce"))
    assert len(alone) == 2
    for key, runs in {
        (None, "Student baseline"): _runs(folder, _MLP, "ce"),
        (None, "Student alone, label_smoothing (ε=0.1)"): _runs(folder, _MLP, "label_smoothing"),
        (NORMAL, "kd (τ=20, α=0.9)"): _runs(folder, _MLP, "kd(temperature=20.0)", "ce"),
        (NASTY, "kd (τ=20, α=0.9)"): _runs(folder, _MLP, "kd(temperature=20.0)", "nasty"),
        (NASTY, "kd (τ=1, α=0.9)"): _runs(folder, _MLP, "kd(temperature=1.0)", "nasty"),
        (NASTY, "hard_label"): _runs(folder, _MLP, "hard_label", "nasty"),
    }.items():
        values = _accuracies(runs)
        cell = rows[key]["students"][mlp]
        assert [run["accuracy"] for run in cell["runs"]] == values
        assert [run["hash"] for run in cell["runs"]] == [run.recipe.hash for run in runs]
        assert cell["n"] == 2
        assert cell["mean"] == pytest.approx(sum(values) / 2)
        low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values) or 1e-12)
        assert cell["half_width"] == pytest.approx((high - low) / 2, abs=1e-6)
        if key[1] == "Student baseline":
            assert cell["difference"] is None
        else:
            found = cell["difference"]
            gaps = np.subtract(values, alone)
            assert found["mean"] == pytest.approx(gaps.mean())
            assert (found["n"], found["over"]) == (2, "seeds")
            # never surer than rounding to one of 60 images lets it be
            error = max(stats.sem(gaps), math.sqrt((100 / 60) ** 2 / 6 / 2))
            low, high = stats.t.interval(0.95, 1, loc=gaps.mean(), scale=error)
            assert (found["low"], found["high"]) == pytest.approx((low, high))
        last = [json.loads((run.folder / "result.json").read_text())["last"]["accuracy"] for run in runs]
        assert [run["last_epoch_accuracy"] for run in cell["runs"]] == last


def test_a_defended_teacher_is_compared_with_its_twin(folder: Path, page: Path) -> None:
    rows = _rows(page)
    normal = _accuracies(_runs(folder, "cnn(channels=4)", "ce"))
    nasty = _accuracies(_runs(folder, "cnn(channels=4)", "nasty"))
    assert rows[NORMAL, "kd (τ=20, α=0.9)"]["teacher_accuracy"]["difference"] is None
    cell = rows[NASTY, "hard_label"]["teacher_accuracy"]
    assert cell["mean"] == pytest.approx(sum(nasty) / 2)
    assert cell["difference"]["mean"] == pytest.approx(sum(nasty) / 2 - sum(normal) / 2)


def test_order_is_that_of_the_paper(page: Path) -> None:
    rows = list(_rows(page))
    textbook = "kd (τ=20, α=0.9)"
    assert rows == [
        (None, "Student baseline"),
        (None, "Student alone, label_smoothing (ε=0.1)"),
        (NORMAL, textbook),
        (NASTY, textbook),
        (NASTY, "hard_label"),
        (NASTY, "kd (τ=1, α=0.9)"),
    ]


def test_all_forms_hold_the_same_numbers(page: Path) -> None:
    expected = []
    for row, (teacher, _) in zip(_rows(page).values(), _rows(page), strict=True):
        cells = row["students"] if teacher is None else [row["teacher_accuracy"], *row["students"]]
        expected.append([f"{cell['mean']:.2f}" for cell in cells if cell is not None])
    expected[4] = expected[4][1:]  # a teacher's accuracy stands in its first row only
    expected[5] = expected[5][1:]
    markdown = [line for line in page.with_suffix(".md").read_text().splitlines() if line.startswith("|")][2:]
    markdown = markdown[: len(expected)]
    text = page.with_suffix(".tex").read_text()
    text = text[text.index(r"\begin{table}") :].partition(r"\end{table}")[0]
    tex = [line for line in text.splitlines() if line.endswith(r"\\")][1:]
    body = re.findall(
        r"<tr[^>]*>(.*?)</tr>", page.read_text().partition('class="results"')[2].partition("</table>")[0], re.S
    )
    for numbers, *forms in zip(expected, markdown, tex, body[1:], strict=True):
        for form in forms:
            text = re.sub(r"<[^>]*>", " ", form)
            means = [n for n in re.findall(r"(?<![±(−\d.$] )(?<![(+−\d.])\d+\.\d\d(?!\d)", text) if "pm" not in n]
            assert [n for n in means if n in numbers] == numbers


def test_numbers_of_seeds_are_named_where_they_differ(page: Path) -> None:
    table = page.with_suffix(".md").read_text()
    assert "(n=2)" in table
    assert "(n=1)" in table


def test_same_numbers_of_seeds_stand_in_a_note(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    for run in _runs(tmp_path / "runs", "cnn(channels=2)", "hard_label"):
        shutil.rmtree(run.folder)
    (study,) = collect(tmp_path / "runs")
    table = make_table(study)
    assert not table.with_n
    assert "Mean ± 95 % interval (Student's t) over 2 seeds." in table.notes


def _forge(folder: Path, copy: Path, accuracies: Mapping[tuple[str, str, str | None], float], **changes: Any) -> Path:
    """Copy runs and write other accuracies into their results; ``changes`` go into those results too."""
    shutil.copytree(folder, copy)
    for (model, method, victim), accuracy in accuracies.items():
        runs = _runs(copy, model, method, victim)
        assert runs
        for run in runs:
            path = run.folder / "result.json"
            result = json.loads(path.read_text())
            result["last"] = {**result["last"], "accuracy": accuracy, **changes}
            result["selected"] = {**result["selected"], "accuracy": accuracy, **changes}
            path.write_text(json.dumps(result))
    return copy


_BOOK = (_MLP, "kd(temperature=20.0)", "nasty")
_LOW_TAU = (_MLP, "kd(temperature=1.0)", "nasty")
_HARD = (_MLP, "hard_label", "nasty")
_ALONE = (_MLP, "ce", None)
_SMOOTH = (_MLP, "label_smoothing", None)
_TWIN_BOOK = (_MLP, "kd(temperature=20.0)", "ce")
_TWIN = ("cnn(channels=4)", "ce", None)
_DEFENDED = ("cnn(channels=4)", "nasty", None)
_CNN_HARD = ("cnn(channels=2)", "hard_label", None)


@pytest.mark.parametrize(
    ("book", "low_tau", "headline", "said"),
    [
        (50.0, 99.0, "Soft answers leak 39.0 points.", "Soft answers gave the best of 2 thieves, mlp by kd (τ=1"),
        (
            20.0,
            10.0,
            "No thief tried here gains from soft answers.",
            "gave nothing: the best of 2 thieves, mlp by kd (τ=20",
        ),
        (
            50.0,
            61.0,
            "Whether soft answers leak is not decided.",
            "Not decided (2 seeds): the best of 2 thieves, mlp by kd (τ=1",
        ),
        (
            99.0,
            50.0,
            "Soft answers leak 39.0 points.",
            "the best of 2 thieves, mlp by kd (τ=20, α=0.9), +39.0 points [",
        ),
    ],
)
def test_verdict_follows_the_numbers(
    folder: Path, tmp_path: Path, book: float, low_tau: float, headline: str, said: str
) -> None:
    numbers = {_ALONE: 59.0, _SMOOTH: 60.0, _TWIN_BOOK: 96.0, _BOOK: book, _LOW_TAU: low_tau, _HARD: 59.0}
    (study,) = collect(_forge(folder, tmp_path / "runs", {**numbers, _TWIN: 99.0, _DEFENDED: 98.4}))
    normal, finding = judge(study)
    assert (normal.subject, finding.subject) == (NORMAL, NASTY)
    assert normal.headline == "Soft answers leak 36.0 points."
    assert finding.headline == headline
    told = dict(finding.items)
    assert said in told["Leak"]
    assert "alone by label_smoothing (ε=0.1)" in told["Leak"]  # the better one of the two references
    assert "The teacher is right for 98.4 % [" in told["Price"]
    assert "−0.6 points [" in told["Price"]
    assert "from its normal twin (2 seeds), which is not decided" in told["Price"]
    assert f"mlp by kd (τ=20, α=0.9) ends at {book:.1f} %" in told["The textbook thief"]
    assert "from top-1 answers" not in told["Leak"]
    assert list(told) == ["Leak", "Clone", "The textbook thief", "Price"]


def test_a_leak_of_half_a_point_or_of_one_seed_is_not_decided(folder: Path, tmp_path: Path) -> None:
    numbers = {_ALONE: 60.0, _SMOOTH: 60.0, _TWIN_BOOK: 60.5, _BOOK: 60.5, _LOW_TAU: 60.5}
    copy = _forge(folder, tmp_path / "runs", numbers)
    assert {one.headline for one in judge(collect(copy)[0])} == {"Whether soft answers leak is not decided."}
    for runs in (_runs(copy, *which) for which in numbers):
        shutil.rmtree(runs[1].folder)
    leak = dict(judge(collect(copy)[0])[1].items)["Leak"]
    assert "one seed, 60 test images; other seeds may say otherwise" in leak


def test_verdict_without_a_reference_or_a_thief_says_so(folder: Path) -> None:
    (study,) = collect(_runs(folder, *_BOOK))
    finding = judge(study)[-1]
    assert finding.headline == "What soft answers leak was not measured."
    assert "no reference has the thief's images, labels, protocol and seeds" in dict(finding.items)["Leak"]
    assert dict(finding.items)["Clone"].startswith("Nobody tried with top-1 answers alone")
    (study,) = collect(_runs(folder, *_DEFENDED))
    assert judge(study)[0].headline == "No thief was tried."
    (study,) = collect([*_runs(folder, *_HARD), *_runs(folder, *_ALONE)])
    assert dict(judge(study)[-1].items)["Leak"].startswith("Nobody tried who learns from probabilities")


def test_a_leak_takes_every_reference_and_no_collapse(folder: Path, tmp_path: Path) -> None:
    numbers = {_ALONE: 59.0, _SMOOTH: 60.0, _TWIN_BOOK: 96.0, _BOOK: 20.0, _LOW_TAU: 99.0}
    copy = _forge(folder, tmp_path / "runs", numbers)
    for run in _runs(copy, *_SMOOTH):
        shutil.rmtree(run.folder)
    finding = judge(collect(copy)[0])[1]
    assert finding.headline == "Whether soft answers leak is not decided."
    assert "and so not beaten: label_smoothing." in dict(finding.items)["Leak"]
    numbers = {_ALONE: 95.0, _SMOOTH: 95.0, _BOOK: 10.0, _LOW_TAU: 10.0}
    copy = _forge(folder, tmp_path / "collapsed", numbers, collapsed=True, top_class_share=1.0)
    finding = judge(collect(copy)[0])[1]
    assert finding.headline == "Whether soft answers leak is not decided."
    assert "not proof of protection" in dict(finding.items)["Leak"]


def test_references_of_other_seeds_leave_those_that_all_have(folder: Path, tmp_path: Path) -> None:
    copy = _forge(folder, tmp_path / "runs", {_ALONE: 59.0, _SMOOTH: 60.0, _LOW_TAU: 99.0, _BOOK: 50.0})
    shutil.rmtree(_runs(copy, *_SMOOTH)[1].folder)
    leak = dict(judge(collect(copy)[0])[1].items)["Leak"]
    assert "one seed, 60 test images" in leak
    assert "nan" not in leak


def test_who_has_the_weights_learns_from_no_soft_answers(folder: Path, tmp_path: Path) -> None:
    victim = _runs(folder, *_TWIN)[0]
    stolen = attack(
        victim=victim, model="cnn(channels=4)", method="finetune", access="gradients", runs=tmp_path, **_PROTOCOL
    )
    (study,) = collect([victim, stolen])
    assert "Nobody tried who learns from probabilities" in dict(judge(study)[0].items)["Leak"]


def test_one_seed_of_two_victims_is_refused(tmp_path: Path) -> None:
    common = {**_PROTOCOL, "epochs": 1, "model": _MLP, "runs": tmp_path}
    for seed in (0, 1):
        attack(victim=train(seed=seed, **common), method="kd", **common)
    with pytest.raises(RunError, match="differ in the seed of a victim"):
        collect(tmp_path)


def test_names_that_are_the_labels_are_no_theft(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    for run in _runs(tmp_path / "runs", *_DEFENDED):
        path = run.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[-1]["train_accuracy"] = 100.0
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (study,) = collect(tmp_path / "runs")
    assert dict(judge(study)[-1].items)["Clone"].startswith("Not measured: top-1 answers were asked for only about")
    assert any("nothing stolen" in note for note in make_table(study).notes)
    assert "(answers are the labels)" in report(tmp_path / "runs", tmp_path / "r.md").read_text()


def test_excess_and_disputed_fidelity_are_counted_image_by_image(folder: Path) -> None:
    (study,) = collect(folder)
    thief = next(one for one in study.extractions if one.label == "kd (τ=1, α=0.9)")
    student = next(one for one in study.students if one.name == "mlp")
    found = copied(thief.by[student.key], study.references_of(student, thief.means)["ce"])
    excess, disputed, total = [], [], []
    for run, alone, victim in zip(*(_runs(folder, *each) for each in (_LOW_TAU, _ALONE, _DEFENDED)), strict=True):
        data = run.dataset()
        own, other, theirs = (
            predict(one.load_model(), data.test, mean=data.mean, std=data.std, device=torch.device("cpu")).argmax(1)
            for one in (run, alone, victim)
        )
        rows = range(len(data.test))
        same = [int(own[i] == theirs[i]) for i in rows]
        apart = [i for i in rows if other[i] != theirs[i]]
        excess.append(100 * (sum(same) - (len(same) - len(apart))) / len(same))
        disputed.append(100 * sum(same[i] for i in apart) / len(apart))
        total.append(100 * sum(same) / len(same))
    assert found is not None
    assert found.excess is not None
    assert found.disputed is not None
    assert found.fidelity.mean == pytest.approx(np.mean(total))
    assert found.excess.mean == pytest.approx(np.mean(excess))
    assert found.disputed.mean == pytest.approx(np.mean(disputed))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_studies_without_an_effect_rarely_say_one(folder: Path, seeds: int) -> None:
    """Simulated: two teachers' worth of thieves, students and means, none of which gains or loses anything."""
    (study,) = collect(folder)
    teacher = next(teacher for teacher in study.teachers if teacher.defended)
    rng, said = np.random.default_rng(seeds), 0
    for _ in range(_SIMULATED):
        draw = partial(_simulated, rng, rng.normal(0, 1, seeds))
        references = {where: {method: draw() for method in found} for where, found in study.references.items()}
        extractions = tuple(replace(one, by={key: draw() for key in one.by}) for one in study.extractions)
        leak = leak_of(replace(study, references=references, extractions=extractions), teacher)
        said += leak is not None and leak.best.verdict != "not decided"
    assert said <= 0.06 * _SIMULATED


_SIMULATED = 500


@dataclass(frozen=True)
class _Simulated(Replicates):
    """Accuracies without runs."""

    drawn: Mapping[int, float] = field(default_factory=dict)

    @property
    def accuracies(self) -> dict[int, float]:
        return dict(self.drawn)

    @property
    def resolution(self) -> float:
        return 0.2


def _simulated(rng: np.random.Generator, shared: np.ndarray) -> Replicates:
    """Return accuracies around 90 %, counted over 500 images, some of whose spread all nets of a seed share."""
    values = np.round((90 + shared + rng.normal(0, 0.7, len(shared))) / 0.2) * 0.2
    return _Simulated((), dict(enumerate(values.tolist())))


def test_collapsed_students_are_marked_in_words(folder: Path, tmp_path: Path) -> None:
    copy = _forge(folder, tmp_path / "runs", {_BOOK: 8.0}, collapsed=True, top_class_share=0.97)
    page = report(copy, tmp_path / "report.html")
    for suffix, mark in ((".html", "<sup>†</sup>"), (".md", "†"), (".tex", r"$^\dagger$")):
        text = page.with_suffix(suffix).read_text().replace("\N{NO-BREAK SPACE}%", " %").replace(r"\%", "%")
        assert mark in text
        assert "one class for 97 % of all images in 2 of 2 runs" in text
        assert "That is a collapse in training, not proof of protection." in text
    cell = _rows(page)[NASTY, "kd (τ=20, α=0.9)"]["students"][-1]
    assert [run["collapsed"] for run in cell["runs"]] == [True, True]
    assert "collapsed in 2 of 2" in page.read_text()
    (study,) = collect(copy)
    assert [cell.marks for cell in make_table(study).cells].count("†") == 1


def test_early_stopping_that_saves_a_student_is_named(folder: Path, tmp_path: Path) -> None:
    copy = _forge(folder, tmp_path / "runs", {_BOOK: 90.0})
    for run in _runs(copy, *_BOOK):
        path = run.folder / "result.json"
        result = json.loads(path.read_text())
        result["last"]["accuracy"] = 28.8
        path.write_text(json.dumps(result))
    (study,) = collect(copy)
    table = make_table(study)
    assert [cell.marks for cell in table.cells].count("‡") == 1
    assert any(note.endswith("mlp, kd (τ=20, α=0.9) from the nasty teacher to 28.8 %.") for note in table.notes)


def test_the_papers_selection_is_named_and_used(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = train(model=_MLP, runs=root, **{**_PROTOCOL, "selection": "paper", "holdout": 0})
    (study,) = collect(root)
    table = make_table(study)
    result = json.loads((run.folder / "result.json").read_text())
    (cell,) = table.cells
    assert cell.accuracy.mean == result["selected"]["batch_mean_accuracy"]
    assert any("selection: paper" in note for note in table.notes)
    assert any("One seed (n=1)" in note for note in table.notes)


def test_a_student_of_another_protocol_is_no_reference(folder: Path, tmp_path: Path) -> None:
    victim = _runs(folder, *_DEFENDED)[0]
    stolen = attack(victim=victim, model=_MLP, method="hard_label", runs=tmp_path, **{**_PROTOCOL, "epochs": 1})
    (study,) = collect([folder, stolen])
    assert {student.label for student in study.students if student.label.startswith("mlp")} == {
        f"{_MLP} [epochs=1]",
        f"{_MLP} [epochs=6]",
    }
    (short,) = (student for student in study.students if student.label.endswith("[epochs=1]"))
    assert not any(key == short.key for key, _ in study.references)


def test_a_run_brings_its_victim_and_adversary(folder: Path) -> None:
    (run, _) = _runs(folder, *_BOOK)
    (study,) = collect(run.folder)
    assert {(found.recipe.model, found.recipe.kind, found.recipe.seed) for found in study.runs} == {
        (_MLP, "attack", 0),
        ("cnn(channels=4)", "defense", 0),
        ("cnn(channels=4)", "reference", 0),
    }


def test_folders_are_searched_one_level_down_and_runs_counted_once(folder: Path) -> None:
    (nested,) = collect(folder.parent)
    (twice,) = collect([folder, folder])
    assert len(nested.runs) == len(twice.runs) == len(list(folder.glob("*/result.json"))) == 17


class _Checked(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    void = frozenset({"meta", "img", "br", "link", "line", "rect", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.references: list[str] = []
        self.silent: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "action", "data"}]
        if tag == "section":
            self.sections.append(given.get("id") or "")
        described = given.get("alt") or given.get("aria-label")
        if tag in {"img", "svg"} and not described and given.get("aria-hidden") != "true":
            self.silent.append(str(given))
        if tag == "svg" and described:
            assert given["role"] == "img"
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parse(text: str) -> _Checked:
    parser = _Checked()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


def test_page_is_whole_and_stands_alone(page: Path) -> None:
    text = page.read_text()
    parser = _parse(text)
    assert parser.sections == [
        *("verdict", "table", "thieves", "victims", "curves", "answers", "maps", "distance", "recipes", "provenance")
    ]
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in parser.references)
    assert not re.search(r"url\((?!#)|@import|https?://(?!openreview|www\.w3\.org)", text)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert not parser.silent
    assert not re.search(r"\b(nan|NaN|inf|None)\b", re.sub(r"<pre.*?</pre>", "", text, flags=re.S))
    assert str(page.parent) not in text
    assert "/runs" not in text  # where the runs lie is nobody's business


def test_same_runs_give_the_same_bytes(folder: Path, page: Path, tmp_path: Path) -> None:
    again = report(folder, tmp_path)
    assert again == tmp_path / "report.html"
    for suffix in (".html", ".md", ".tex", ".json"):
        assert again.with_suffix(suffix).read_bytes() == page.with_suffix(suffix).read_bytes()


def test_sections_that_do_not_apply_are_left_out(folder: Path, tmp_path: Path) -> None:
    parser = _parse(report(_runs(folder, *_TWIN), tmp_path / "normal.html").read_text())
    assert parser.sections == ["verdict", "table", "victims", "curves", "recipes", "provenance"]
    assert "Students learn by" not in (tmp_path / "normal.html").read_text()
    assert r"\begin{tabular}{lr}" in (tmp_path / "normal.tex").read_text()


def _shown(group: RunGroup) -> list[Part]:
    table = make_table(group)
    return [Values.make(name="table", title=table.caption, grid=table.grid)]


def test_names_are_escaped(folder: Path, tmp_path: Path) -> None:
    (study,) = collect(_runs(folder, *_TWIN))
    strange = replace(study, data=r"a_b&c<i>|50%\x")
    document = Document("", (Findings.make(name="verdict", title=strange.data), *_shown(strange)), {})
    assert r"a\_b&c\<i\>\|50%\\x" in to_markdown(document)
    assert r"a\_b\&c\textless{}i\textgreater{}\textbar{}50\%\textbackslash{}x" in to_tex(document)
    html = to_html(document, {})
    assert "a_b&amp;c&lt;i&gt;|50%" in html
    assert "<i>" not in html


def test_tex_keeps_its_columns(page: Path) -> None:
    tex = page.with_suffix(".tex").read_text()
    tex = tex[tex.index(r"\begin{table}") :].partition(r"\end{table}")[0]
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", tex)
    for line in tex.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") == len(columns) - 1
    assert r"label\_smoothing ($\varepsilon$=0.1)" in tex
    assert not set("τωαε±−†‡%") & set(re.sub(r"\\%|^%.*$", "", tex, flags=re.MULTILINE))


def test_terminal_table_has_all_rows(folder: Path) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(*(table for part in make_document(folder).parts for table in to_rich(part)))
    text = console.export_text()
    assert text.partition("Thieves")[0].count("kd (τ=20, α=0.9)") == 2
    assert "Student baseline" in text


def test_distances_agree_with_a_plain_computation(folder: Path) -> None:
    (study,) = collect(folder)
    (pair,) = pairs(study)
    assert not isinstance(pair, str)
    normal, nasty = _runs(folder, *_TWIN)[0], _runs(folder, *_DEFENDED)[0]
    data = normal.dataset()
    z, w = (
        predict(run.load_model(), data.test, mean=data.mean, std=data.std, device=torch.device("cpu")).double().numpy()
        for run in (normal, nasty)
    )

    def softmax(x: np.ndarray, tau: float) -> np.ndarray:
        e = np.exp(x / tau - (x / tau).max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    rows = {name: (left, right) for name, left, right in pair.distances}
    for tau in (1, 20):
        p, q = softmax(w, tau), softmax(z, tau)
        assert float(rows[f"KL(nasty ‖ normal) at τ={tau}"][1]) == pytest.approx(
            (p * np.log(p / q)).sum(1).mean(), abs=6e-4
        )
        assert float(rows[f"Mean entropy at τ={tau}"][0]) == pytest.approx(-(q * np.log(q)).sum(1).mean(), abs=6e-4)
        assert float(rows[f"Mean entropy at τ={tau}"][1]) == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=6e-4)
    same = 100 * (z.argmax(1) == w.argmax(1)).mean()
    assert rows["Same answer as the normal one"][1] == f"{same:.2f} %"
    assert rows["Accuracy"][1] == f"{_accuracies([nasty])[0]:.2f} %"


def test_figures_are_left_out_with_a_reason(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(_runs(folder, *_DEFENDED)[0].folder, copy / "alone")
    (study,) = collect(copy)
    (reason,) = pairs(study)
    assert isinstance(reason, str)
    assert "the run of its normal twin is not here" in reason
    parser = _parse(report(copy, tmp_path / "report.html").read_text())
    assert "maps" not in parser.sections
    assert reason.partition("(τ")[0] in (tmp_path / "report.html").read_text()


def test_a_module_as_victim(tmp_path: Path) -> None:
    torch.manual_seed(0)
    victim = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = attack(victim=victim, model=_MLP, method="hard_label", runs=tmp_path / "runs", **_PROTOCOL)
    (study,) = collect(run)
    (teacher,) = study.teachers
    assert teacher.label.startswith("Sequential #")
    report(run, tmp_path / "report.html")
    assert "Sequential #" in (tmp_path / "report.html").read_text()


def test_a_report_measures_the_space_and_not_its_map(folder: Path) -> None:
    """Against a plain loop: of each image's five nearest others by features, does the majority have its class?"""
    maps = next(part for part in make_document(folder).parts if part.name == "maps")
    (pair,) = pairs(collect(folder)[0])
    x, y = pair.defended.features.double().numpy(), pair.data.test.y[pair.mapped].numpy()
    right = []
    for i in range(len(x)):
        distances = np.linalg.norm(x - x[i], axis=1)
        distances[i] = np.inf
        right.append(np.bincount(y[np.argsort(distances)[:5]]).argmax() == y[i])
    shown = next(panel for panel in maps.panels if panel.name == "features-nasty")
    assert shown.knn_accuracy == pytest.approx(np.mean(right), abs=0.02)  # votes that tie
    assert shown.dimension == x.shape[1]


def test_maps_of_equal_vectors_are_one_point() -> None:
    assert (tsne(torch.ones(20, 4)) == 0).all()


def test_pages_of_any_form_are_written(folder: Path, tmp_path: Path) -> None:
    written = report(_runs(folder, *_TWIN), tmp_path / "x.md")
    assert written == tmp_path / "x.md"
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"x.{kind}" for kind in ("html", "md", "tex", "csv", "json")),
        "x_figures",
    }
    assert "![Training](x_figures/curves.png)" in written.read_text()
    assert (tmp_path / "x_figures" / "curves.png").is_file()


def test_thieves_behind_different_policies_are_told_apart(tmp_path: Path) -> None:
    common = {**_PROTOCOL, "epochs": 1, "runs": tmp_path / "runs"}
    victim = train(model=_MLP, **common)
    for policy in (None, "top_k(k=2)"):
        attack(victim=victim, model=_MLP, method="kd(temperature=2)", policy=policy, **common)
    (group,) = collect(tmp_path / "runs")
    assert sorted(one.label for one in group.extractions) == ["kd (τ=2, α=0.9)", "kd (τ=2, α=0.9), behind top_k(k=2)"]


def test_runs_of_unknown_methods_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    (stranger,) = _runs(tmp_path / "runs", *_CNN_HARD)
    recipe = stranger.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("method: hard_label", "method: only_in_a_notebook", 1))
    page = report(tmp_path / "runs", tmp_path / "report.html").read_text()
    assert f"Runs of methods that are unknown here, left out: {stranger.folder.name}." in page
    assert "Soft answers" in page


def test_words() -> None:
    assert method_label("kd(alpha=0.9, temperature=20.0)") == "kd (τ=20, α=0.9)"
    assert method_label("hard_label") == "hard_label"
    assert model_label("instance(type='my.nets.Wide', sha256='1234567890abcdef')") == "Wide #123456"
    assert [signed(x) for x in (1.204, -0.4, 0.004, -0.004)] == ["+1.20", "−0.40", "0.00", "0.00"]
    assert [join(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    details = [{"lr": 0.1, "x": {"y": 1}}, {"lr": 0.2, "x": {"y": 1}}, {"lr": 0.3, "x": {"y": 2}}]
    assert distinguish(["a", "a", "b"], details) == ["a [lr=0.1]", "a [lr=0.2]", "b"]


def test_errors_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no folder .*give a run folder"):
        report(tmp_path / "nowhere", tmp_path / "r.html")
    with pytest.raises(RunError, match="holds no finished run"):
        report(tmp_path, tmp_path / "r.html")
    with pytest.raises(RunError, match="no runs were given"):
        report([], tmp_path / "r.html")
    with pytest.raises(RecipeError, match=r"ends in \.html, \.md"):
        report(folder, tmp_path / "r.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        report(_runs(folder, *_TWIN), tmp_path / "file" / "r.html")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"selected": 3}'])
def test_a_damaged_result_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "runs" / "one"
    shutil.copytree(_runs(folder, *_TWIN)[0].folder, run)
    (run / "result.json").write_text(damage)
    with pytest.raises(RunError, match=r"one/result\.json is damaged .*delete it"):
        report(tmp_path / "runs", tmp_path / "r.html")
    (run / "result.json").unlink()
    with pytest.raises(RunError, match="one is not finished"):
        report(run, tmp_path / "r.html")
    with pytest.raises(RunError, match="1 unfinished"):
        report(tmp_path / "runs", tmp_path / "r.html")
    (run / "recipe.yaml").write_text("data: nowhere")
    with pytest.raises(RunError, match=r"the recipe of .*one cannot be used"):
        report(run, tmp_path / "r.html")


def test_unfinished_runs_are_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    (_runs(tmp_path / "runs", *_HARD)[0].folder / "result.json").unlink()
    (study,) = collect(tmp_path / "runs")
    assert make_table(study).notes[-1] == "Unfinished runs that are left out: 1."


def test_altered_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    weights = _runs(tmp_path / "runs", *_DEFENDED)[0].folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="not what the run wrote"):
        report(tmp_path / "runs", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_data_that_changed_are_two_studies(folder: Path, tmp_path: Path) -> None:
    copy = _forge(folder, tmp_path / "runs", {_TWIN: 50.0})
    path = _runs(copy, *_CNN_HARD)[0].folder / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "data_fingerprint": "0" * 64}))
    studies = collect(copy)
    assert sorted(len(study.runs) for study in studies) == [1, 16]
    parser = _parse(report(copy, tmp_path / "r.html").read_text())
    assert parser.sections[0] == "verdict-1"
    assert math.isclose(len(set(parser.sections)), len(parser.sections))
