"""Data of which the best answers are known, what thieves make of soft answers there, and what the audit says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import undistill
from undistill.api import reproduce
from undistill.data import dataset_shape, load_dataset
from undistill.errors import RecipeError
from undistill.reporting.parts.values import Values
from undistill.run import Run

DATA = "gaussians(distance=2.3)"
LINEAR = {"model": "mlp(hidden=(), relu_logits=False)", "epochs": 12, "profile": "fast", "selection": "last"}
ADAM = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "schedule": "linear"}


def _best(classes: int, distance: float) -> float:
    """Return the accuracy of who knows the means: each of the others stays below the true class's score."""

    def right(t: float) -> float:
        return float(stats.norm.pdf(t) * stats.norm.cdf(t + distance / np.sqrt(2)) ** (classes - 1))

    return 100 * integrate.quad(right, -9, 9)[0]


@pytest.mark.parametrize(("classes", "distance"), [(2, 1.0), (2, 2.0), (5, 2.3)])
def test_nobody_is_better_than_the_posterior_and_who_has_enough_images_is_as_good(
    classes: int, distance: float
) -> None:
    data = load_dataset(f"gaussians(classes={classes}, distance={distance}, train=20000, test=20000)")
    assert data.shape == dataset_shape(f"gaussians(classes={classes}, distance={distance}, train=20000, test=20000)")
    train, test = ((images.x.flatten(1).numpy().astype(float), images.y.numpy()) for images in (data.train, data.test))
    right = 100 * LinearDiscriminantAnalysis().fit(*train).score(*test)
    # 20,000 test images: 0.35 points of standard error, and what 64 estimated means take.
    assert right == pytest.approx(_best(classes, distance), abs=1.2)
    if classes == 2:
        assert _best(2, distance) == pytest.approx(100 * stats.norm.cdf(distance / 2))


def test_images_are_noise_of_a_known_size_around_means_of_a_known_distance() -> None:
    data = load_dataset("gaussians(classes=4, distance=2, train=40000, test=4)")
    x, y = data.train.x.flatten(1).double(), data.train.y
    means = np.stack([x[y == k].mean(0).numpy() for k in range(4)])
    apart = [np.linalg.norm(means[i] - means[j]) / 20 for i in range(4) for j in range(i)]
    assert apart == pytest.approx([2.0] * 6, abs=0.05)
    spread = (x - x.new_tensor(means)[y]).std(0)
    assert spread.numpy() == pytest.approx(np.full(64, 20.0), rel=0.02)
    assert load_dataset("gaussians(seed=1)").fingerprint != load_dataset("gaussians").fingerprint


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gaussians(classes=1)", "classes must be a whole number of 2 or more"),
        ("gaussians(classes=5, size=2)", "raise size=2"),
        ("gaussians(distance=0)", "distance must be above 0"),
        ("gaussians(distance=9)", "at most 3"),
        ("gaussians(train=0)", "train must be a whole number of 1 or more"),
    ],
)
def test_what_makes_no_data_is_refused(spec: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_dataset(spec)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("toy")
    return undistill.train(data=DATA, runs=runs, progress=False, **LINEAR, **ADAM)  # type: ignore[arg-type]


def test_the_victim_is_nearly_as_good_as_can_be(victim: Run) -> None:
    assert _best(3, 2.3) - 3 < victim.accuracy < _best(3, 2.3) + 2  # of 2,000 test images


def _stolen(victim: Run, method: str, **fields: object) -> float:
    given = {"runs": victim.folder.parent, "queries": 180, "labels": False, "progress": False, **LINEAR, **ADAM}
    return undistill.attack(victim=victim, method=method, **{**given, **fields}).accuracy  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["kd(temperature=1, alpha=1)", "htc", "ttm", "dist", "logit_standardization"])
def test_a_thief_without_labels_gains_where_soft_answers_carry_knowledge(victim: Run, method: str) -> None:
    named = _stolen(victim, "hard_label", access="labels")
    assert _stolen(victim, method, access="probs") > named + 1.5


@pytest.mark.parametrize("method", ["kd(temperature=1)", "dkd(temperature=1, beta=1)", "ttm"])
def test_a_thief_with_labels_gains_beyond_them(victim: Run, method: str) -> None:
    runs = victim.folder.parent
    alone = undistill.train(data=DATA, labels=180, runs=runs, progress=False, **LINEAR, **ADAM).accuracy  # type: ignore[arg-type]
    assert _stolen(victim, method, labels=180, access="probs") > alone + 3


def test_a_soft_answer_is_a_linear_equation_for_the_weights(victim: Run) -> None:
    """As many as pixels, and one, fix the net: least squares on the logarithms of answers, and nothing else."""
    data, net = victim.dataset(), victim.load_model().eval()
    mean, std = data.mean[0], data.std[0]

    def seen(x):  # type: ignore[no-untyped-def]
        return (x.float() / 255 - mean) / std

    x, probe = seen(data.train.x[:80]), seen(data.test.x)
    logs = net(x).log_softmax(1).detach().double().numpy()
    apart = logs[:, 1:] - logs[:, :1]
    design = np.c_[x.flatten(1).double().numpy(), np.ones(len(x))]
    weights = np.linalg.lstsq(design, apart, rcond=None)[0]
    scores = np.c_[probe.flatten(1).double().numpy(), np.ones(len(probe))] @ weights
    named = np.c_[np.zeros(len(probe)), scores].argmax(1)
    assert (named == net(probe).argmax(1).numpy()).mean() > 0.999


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Values:
    found = reproduce(
        "planted",
        out=tmp_path_factory.mktemp("planted"),
        seeds=1,
        jobs=1,
        parameters={"repetitions": 2, "trials": 1},
        progress=False,
    )
    (part,) = found.document.parts
    assert isinstance(part, Values)
    return part


def test_the_audit_finds_no_leak_where_there_is_none(planted: Values) -> None:
    leaking, hidden = planted.grid.rows
    assert [cell.ours.split()[0] for cell in leaking.cells[:1] if cell] == ["1"]
    assert hidden.cells[1] is not None
    assert hidden.cells[1].ours.startswith("0 ")
    gains = [float(row.cells[-1].ours.split()[0].replace("−", "-")) for row in planted.grid.rows if row.cells[-1]]
    assert gains[0] > gains[1] + 1.5
