"""Figures 1 and 2: what a normal and a nasty teacher answer, and where they put images."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undistill.errors import ShapeError
from undistill.functional.similarity import linear_cka
from undistill.orchestrate.plan import Plan
from undistill.orchestrate.request import load_studies
from undistill.reporting import answers
from undistill.reporting.answers import choose_examples
from undistill.reporting.parts import part_of
from undistill.reporting.style import draw
from undistill.run import Failure, Run
from undistill.storage import remember
from undistill.studies import embeddings, pair
from undistill.studies.changes import Changes
from undistill.studies.pair import PairStudy
from undistill.workspace import Workspace

Array = np.ndarray[Any, np.dtype[np.float64]]
Part = dict[str, Any]

TINY = Changes(data={"cifar10": "digits(subset=200, test_subset=60)"}, epochs=4, width=0.0625)


def study(name: str, changes: Changes = TINY) -> PairStudy:
    (found,) = load_studies(name, changes=changes)
    assert isinstance(found, PairStudy)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace in which both teachers are trained."""
    workspace = Workspace(tmp_path_factory.mktemp("runs"), device="cpu")
    for step in Plan.of(study("figure1").recipes).steps:
        workspace.run(step.recipe)
    return workspace


@pytest.fixture(scope="module")
def parts(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    cache = tmp_path_factory.mktemp("cache")
    return {name: study(name).evaluate(workspace, {}, cache).to_json() for name in ("figure1", "figure2")}


def outputs(workspace: Workspace) -> dict[str, tuple[Array, Array]]:
    """Return logits and features of all test images of each teacher, with the last layer's own inputs for features."""
    found = {}
    for name, recipe in (("normal", study("figure1").normal), ("nasty", study("figure1").nasty)):
        run = workspace.find(recipe)
        assert run is not None
        model, data = run.load_model(), run.dataset()
        seen: list[Tensor] = []
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(inputs[0]))
        x = (data.test.x.double() / 255 - data.mean[0]) / data.std[0]
        with torch.no_grad():
            logits = model(x.float())
        found[name] = logits.double().numpy(), seen[0].double().numpy()
    return found


def softmax(logits: Array, temperature: float) -> Array:
    exponentials = np.exp(logits / temperature)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_both_figures_need_two_runs_however_many_seeds() -> None:
    for name in ("figure1", "figure2"):
        (found,) = load_studies(name, seeds=3)
        recipes = [step.recipe for step in Plan.of(found.recipes).steps]
        assert [(r.method, r.model, r.data, r.seed) for r in recipes] == [
            ("ce", "resnet18", "cifar10", 0),
            ("nasty(temperature=4.0, weight=0.04)", "resnet18", "cifar10", 0),
        ]


def test_the_probabilities_are_those_of_the_teachers(workspace: Workspace, parts: dict[str, Part]) -> None:
    part, nets = parts["figure1"], outputs(workspace)
    assert (part["kind"], part["name"], part["failed"], part["temperature"]) == ("responses", "figure1", False, 4.0)
    assert part["classes"] == list("0123456789")
    assert len(part["examples"]) == 8
    for example in part["examples"]:
        for name in ("normal", "nasty"):
            expected = softmax(nets[name][0], 4.0)[example["index"]]
            assert np.allclose(example[name], expected, atol=2e-6)


def test_an_example_shows_its_image(workspace: Workspace, parts: dict[str, Part]) -> None:
    test = study("figure1").normal
    run = workspace.find(test)
    assert run is not None
    images = run.dataset().test
    for example in parts["figure1"]["examples"]:
        image = example["image"]
        assert (image["width"], image["height"], image["channels"]) == (8, 8, 1)
        assert base64.b64decode(image["pixels_base64"]) == bytes(images.x[example["index"], 0].flatten().tolist())
        assert example["label"] == int(images.y[example["index"]])


def test_the_examples_are_the_first_that_both_classify_right(workspace: Workspace, parts: dict[str, Part]) -> None:
    run = workspace.find(study("figure1").normal)
    assert run is not None
    labels = run.dataset().test.y.tolist()
    normal, nasty = (logits.argmax(axis=1).tolist() for logits, _ in outputs(workspace).values())
    for label, example in enumerate(parts["figure1"]["examples"]):
        members = [i for i in range(len(labels)) if labels[i] == label]
        right = [i for i in members if normal[i] == nasty[i] == label]
        assert example["index"] == (right or members)[0]
        assert example["both_right"] == bool(right)
    assert any(example["both_right"] for example in parts["figure1"]["examples"])


def test_the_rule_of_choice_by_hand() -> None:
    labels = torch.tensor([2, 0, 2, 0, 5, 5, 7])
    right = torch.tensor([False, True, True, True, False, False, True])
    assert choose_examples(labels, right, 3) == [1, 2, 4]  # of class 5 none is right: its first
    assert choose_examples(labels, right, 9) == [1, 2, 4, 6]


def test_the_summary_against_plain_loops(workspace: Workspace, parts: dict[str, Part]) -> None:
    nets, summary = outputs(workspace), parts["figure1"]["summary"]
    soft = {name: softmax(logits, 4.0) for name, (logits, _) in nets.items()}
    for name, rows in soft.items():
        entropy = np.mean([-sum(p * np.log(p) for p in row) for row in rows])
        peaks = np.mean([sum(p > 0.1 for p in row) for row in rows])
        assert summary["entropy"][name] == pytest.approx(entropy, abs=2e-5)
        assert summary["peaks"][name] == pytest.approx(peaks, abs=1e-5)
    pairs = list(zip(soft["nasty"], soft["normal"], strict=True))
    kl = np.mean([sum(p * np.log(p / q) for p, q in zip(*rows, strict=True)) for rows in pairs])
    assert summary["kl"] == pytest.approx(kl, abs=2e-5)
    alike = [a.argmax() == b.argmax() for a, b in pairs]
    assert summary["agreement"] == sum(alike) / len(alike)
    assert summary["images"] == len(alike) == 60
    text = " ".join(parts["figure1"]["notes"])
    assert f"the same answer to {100 * summary['agreement']:.2f} %" in text
    assert "n=1" in text


def test_the_embeddings_cover_every_image_in_four_panels(workspace: Workspace, parts: dict[str, Part]) -> None:
    part = parts["figure2"]
    assert (part["kind"], part["name"], part["failed"]) == ("embeddings", "figure2", False)
    assert [panel["name"] for panel in part["panels"]] == [
        "features-normal",
        "features-nasty",
        "logits-normal",
        "logits-nasty",
    ]
    run = workspace.find(study("figure2").normal)
    assert run is not None
    assert part["labels"] == run.dataset().test.y.tolist()
    features = outputs(workspace)["normal"][1].shape[1]
    assert [panel["dimension"] for panel in part["panels"]] == [features, features, 10, 10]
    for panel in part["panels"]:
        points = np.array(panel["points"])
        assert points.shape == (60, 2)
        assert np.isfinite(points).all()
        assert len({tuple(point) for point in panel["points"]}) > 50  # spread out
        assert np.array_equal(points, points.round(2))


def test_the_separation_of_classes_against_plain_loops(workspace: Workspace, parts: dict[str, Part]) -> None:
    part, labels = parts["figure2"], np.array(parts["figure2"]["labels"])
    for panel in part["panels"]:
        space, name = panel["name"].split("-")
        x = outputs(workspace)[name][space == "features"]
        distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))
        assert panel["silhouette"] == pytest.approx(silhouette(distance, labels), abs=1e-3)
        right = 0
        for i in range(len(x)):
            others = sorted((distance[i, j], j) for j in range(len(x)) if j != i)[:5]
            votes = np.bincount(labels[[j for _, j in others]], minlength=10)
            right += int(votes.argmax() == labels[i])
        assert panel["knn_accuracy"] == pytest.approx(right / len(x), abs=1e-4)


def silhouette(distance: Array, labels: Array) -> float:
    """Return the mean of (b - a) / max(a, b): a and b the mean distances to the own and the nearest other class."""
    scores = []
    for i, label in enumerate(labels):
        own = [distance[i, j] for j in range(len(labels)) if labels[j] == label and j != i]
        others = [distance[i, labels == other].mean() for other in set(labels.tolist()) - {label}]
        a, b = np.mean(own), min(others)
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def test_the_similarity_is_that_of_both_teachers(workspace: Workspace, parts: dict[str, Part]) -> None:
    nets = outputs(workspace)
    for i, space in enumerate(("logits", "features")):
        expected = kernel_alignment(nets["normal"][i], nets["nasty"][i])
        assert parts["figure2"]["cka"][space] == pytest.approx(expected, abs=2e-4)
        assert f"{parts['figure2']['cka'][space]:.3f} of the {space}" in " ".join(parts["figure2"]["notes"])


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_the_same_runs_give_the_same_part(
    name: str, workspace: Workspace, parts: dict[str, Part], tmp_path: Path
) -> None:
    again = study(name).evaluate(workspace, {}, tmp_path).to_json()
    assert json.dumps(again, allow_nan=False) == json.dumps(parts[name], allow_nan=False)
    assert json.loads(json.dumps(again)) == again  # plain values


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_both_figures_can_be_drawn(name: str, parts: dict[str, Part]) -> None:
    assert part_of(parts[name]).drawn
    assert len(draw(part_of(parts[name])).axes) == {"figure1": 24, "figure2": 4}[name]


def test_a_second_call_computes_nothing(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: study(name).evaluate(workspace, {}, tmp_path).to_json() for name in ("figure1", "figure2")}
    assert len(list(tmp_path.iterdir())) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(answers, "tsne", refuse)
    monkeypatch.setattr(Run, "load_model", refuse)
    monkeypatch.setattr(Run, "dataset", refuse)
    for name, part in first.items():
        assert study(name).evaluate(workspace, {}, tmp_path).to_json() == part
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(AssertionError, match="computed again"):
        study("figure2").evaluate(workspace, {}, tmp_path / "elsewhere").to_json()


def edit_value(text: str) -> str:
    known = json.loads(text)
    known["value"]["summary"]["kl"] = 0.99
    return json.dumps(known)


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "other JSON": lambda text: "[1, 2]",
    "edited": edit_value,
    "of another key": lambda text: text.replace('"temperature": 4.0', '"temperature": 5.0', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_computed_again(
    damage: str, workspace: Workspace, parts: dict[str, Part], tmp_path: Path
) -> None:
    study("figure1").evaluate(workspace, {}, tmp_path).to_json()
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(DAMAGE[damage](whole))
    assert file.read_text() != whole
    assert study("figure1").evaluate(workspace, {}, tmp_path).to_json() == parts["figure1"]
    assert file.read_text() == whole


def test_what_is_remembered_belongs_to_its_key(tmp_path: Path) -> None:
    assert remember(tmp_path, "x", {"weights": "a"}, lambda: {"v": 1}) == {"v": 1}
    assert remember(tmp_path, "x", {"weights": "b"}, lambda: {"v": 2}) == {"v": 2}
    assert remember(tmp_path, "x", {"weights": "a"}, lambda: {"v": 3}) == {"v": 1}


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_a_missing_teacher_is_a_failed_figure_with_the_reason(name: str, tmp_path: Path) -> None:
    found = study(name)
    failures = {found.nasty.hash: Failure("the loss is NaN", tmp_path / "log.txt")}
    part = found.evaluate(Workspace(tmp_path / "runs"), failures, tmp_path / "cache").to_json()
    assert part["failed"]
    assert part["notes"] == [
        "Failed: normal teacher, seed 0: not run",
        "Failed: nasty teacher, seed 0: the loss is NaN (log: log.txt)",
    ]
    assert not part_of(part).drawn
    assert not (tmp_path / "cache").exists()


def test_images_that_have_changed_are_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Run.dataset
    monkeypatch.setattr(Run, "dataset", lambda run: dataset(run).take(test=40))
    part = study("figure1").evaluate(workspace, {}, tmp_path).to_json()
    assert part["failed"]
    assert "have changed" in part["notes"][0]


def test_weights_that_are_gone_fail_the_figure_only(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workspace.find(study("figure1").normal)
    assert run is not None
    weights = run.folder / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.unlink()
        part = study("figure2").evaluate(workspace, {}, tmp_path).to_json()
    finally:
        weights.write_bytes(kept)
    assert part["failed"]
    assert "cannot read" in part["notes"][0]


def test_a_collapsed_teacher_is_named(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("ollapsed" in note for note in study("figure1").evaluate(workspace, {}, tmp_path).to_json()["notes"])
    monkeypatch.setattr(Run, "collapsed", property(lambda run: run.recipe.kind == "defense"))
    notes = study("figure1").evaluate(workspace, {}, tmp_path).to_json()["notes"]
    assert notes[-1] == "Collapsed: more than 90 % of the answers of the nasty teacher are one class."


def test_a_part_of_the_images_has_every_class_alike(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_IMAGES", 30)
    part = study("figure2").evaluate(workspace, {}, tmp_path).to_json()
    assert np.bincount(part["labels"]).tolist() == [3] * 10
    assert {len(panel["points"]) for panel in part["panels"]} == {30}


def test_the_cache_depends_on_weights_data_and_parameters(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study("figure1").evaluate(workspace, {}, tmp_path).to_json()
    (file,) = tmp_path.iterdir()
    key = json.loads(file.read_text())["key"]
    results = [run.result for recipe in study("figure1").recipes if (run := workspace.find(recipe)) is not None]
    assert list(key["weights"].values()) == [result["weights_sha256"] for result in results]
    assert [key["data"]] * 2 == [result["data_fingerprint"] for result in results]
    monkeypatch.setattr(pair, "__version__", "another")
    study("figure1").evaluate(workspace, {}, tmp_path).to_json()
    assert len(list(tmp_path.iterdir())) == 2


def kernel_alignment(x: Array, y: Array) -> float:
    """Return CKA by its definition, with the Hilbert-Schmidt independence criterion of linear kernels."""

    def hsic(k: Array, m: Array) -> float:
        n = len(k)
        centering = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(k @ centering @ m @ centering)) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_similarity_by_hand() -> None:
    # Of single columns it is the squared correlation: cov = 1 + 2 = 3, variances 2 and 6, 9 / 12.
    a, b = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [1.0], [-2.0]])
    assert linear_cka(a, b) == pytest.approx(0.75)
    assert linear_cka(a + 100, 3 - 7 * b) == pytest.approx(0.75)


@pytest.mark.parametrize("widths", [(3, 3), (5, 2), (1, 8), (40, 30)])
def test_similarity_against_its_definition(widths: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(sum(widths))
    a, b = (torch.randn(20, width, generator=rng) for width in widths)
    b = b + a[:, :1]
    assert linear_cka(a, b) == pytest.approx(kernel_alignment(a.double().numpy(), b.double().numpy()), rel=1e-9)
    assert linear_cka(b, a) == pytest.approx(linear_cka(a, b), rel=1e-9)


def test_similarity_sees_no_rotation_scale_or_shift_but_a_stretch() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=rng)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, x @ torch.diag(torch.tensor([30.0, 1, 1, 1, 1, 1]))) < 0.8
    assert 0 <= linear_cka(x, torch.randn(50, 6, generator=rng)) < 0.5


def test_what_does_not_vary_shares_nothing() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert linear_cka(x, torch.full((9, 3), 0.1)) == 0
    assert linear_cka(torch.full((9, 3), 1e8), x) == 0


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        (torch.zeros(3), torch.zeros(3, 2), "a: expected"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), "b: expected"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "two samples"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "got 3 and 4"),
    ],
)
def test_similarity_refuses_what_does_not_fit(a: Tensor, b: Tensor, problem: str) -> None:
    with pytest.raises(ShapeError, match=problem):
        linear_cka(a, b)
