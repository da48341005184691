"""Thieves who copy how images relate in a victim's features: losses against loops in float64, and what they ignore."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import undistill.attacks.rkd
from undistill.attacks import Attack, StepOutput
from undistill.attacks.rkd import RKD
from undistill.attacks.similarity import Similarity
from undistill.data.loader import Batch
from undistill.errors import ShapeError, UnknownNameError
from undistill.objective import Nets
from undistill.victim import Access, Victim

ROWS = 7
both = pytest.mark.parametrize("attack", [RKD(), Similarity()], ids=lambda attack: attack.name)


class Given(nn.Module):
    """A net with these features, whatever the images are."""

    def __init__(self, features: Tensor, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Parameter(features.clone())
        torch.manual_seed(1)
        self.last = nn.Linear(features.shape[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features[: len(x)] + 0 * x.sum())
        return logits


def draw(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return features of a victim and of its student."""
    torch.manual_seed(0)
    return torch.randn(rows, 6).relu() + 0.1, torch.randn(rows, 4)


def step(attack: Attack, theirs: Tensor, ours: Tensor, classes: int = 3) -> tuple[StepOutput, Tensor]:
    """Take a step of a student with some features; return it, and the gradient of these."""
    student, victim = Given(ours, classes), Victim(Given(theirs), access=Access.FEATURES)
    y = torch.arange(len(ours)) % classes
    out = attack.step(Batch(torch.zeros(len(ours), 1, 8, 8), y, y), Nets(student, victim=victim))
    torch.testing.assert_close(out.logs["ce"], nn.functional.cross_entropy(student.last(ours), y))
    assert victim.queries == len(ours)
    out.loss.backward()
    assert student.features.grad is not None
    logs = {name: value.detach() for name, value in out.logs.items()}
    return StepOutput(out.loss.detach(), out.logits, logs), student.features.grad


def huber(x: float) -> float:
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


def rkd_by_hand(theirs: Tensor, ours: Tensor) -> tuple[float, float]:
    """Return the means over all pairs and all triples, by loops."""
    found = []
    for features in (f.double().numpy() for f in (theirs, ours)):
        rows = range(len(features))
        distances = [math.dist(features[i], features[j]) for i, j in itertools.product(rows, rows)]
        mean = np.mean([math.dist(features[i], features[j]) for i, j in itertools.combinations(rows, 2)])

        def cosine(i: int, j: int, k: int, f: NDArray[np.float64] = features) -> float:
            if j in (i, k):
                return 0.0
            a, b = f[i] - f[j], f[k] - f[j]
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        found.append(([d / mean for d in distances], [cosine(*three) for three in itertools.product(rows, repeat=3)]))
    (distances, angles), (our_distances, our_angles) = found
    return tuple(  # type: ignore[return-value]
        float(np.mean([huber(a - b) for a, b in zip(*pair, strict=True)]))
        for pair in ((our_distances, distances), (our_angles, angles))
    )


def test_rkd_is_its_formula() -> None:
    theirs, ours = draw()
    ours[0] *= 20  # far enough for the straight part of Huber's
    out, _ = step(RKD(distance=3.0, angle=0.5), theirs, ours)
    distance, angle = rkd_by_hand(theirs, ours)
    assert float(out.logs["distance"]) == pytest.approx(distance, rel=1e-5)
    assert float(out.logs["angle"]) == pytest.approx(angle, rel=1e-5)
    assert float(out.loss) == pytest.approx(float(out.logs["ce"]) + 3 * distance + 0.5 * angle, rel=1e-5)


def test_rkd_takes_a_large_batch_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = draw()
    monkeypatch.setattr(undistill.attacks.rkd, "_TOGETHER", 3)
    out, _ = step(RKD(), theirs, ours)
    parts = [rkd_by_hand(theirs[a:b], ours[a:b]) for a, b in ((0, 3), (3, 5), (5, 7))]
    distance, angle = np.average(parts, axis=0, weights=[3, 2, 2])
    assert float(out.logs["distance"]) == pytest.approx(distance, rel=1e-5)
    assert float(out.logs["angle"]) == pytest.approx(angle, rel=1e-5)
    plain, _ = step(RKD(), theirs[:1], ours[:1])
    assert float(plain.loss) == pytest.approx(float(plain.logs["ce"]))  # one image has no relations


def test_similarity_is_its_formula() -> None:
    theirs, ours = draw()
    out, _ = step(Similarity(weight=5.0), theirs, ours)
    similarities = []
    for features in (theirs.double(), ours.double()):
        rows = [[float(a @ b) for b in features] for a in features]
        similarities.append([[value / math.hypot(*row) for value in row] for row in rows])
    apart = np.square(np.subtract(*similarities)).sum() / ROWS**2
    assert float(out.logs["apart"]) == pytest.approx(apart, rel=1e-5)
    assert float(out.loss) == pytest.approx(float(out.logs["ce"]) + 5 * apart, rel=1e-5)


@both
def test_what_turns_or_stretches_all_features_does_not_matter(attack: Attack) -> None:
    theirs, other = draw()
    torch.manual_seed(2)
    turn, _ = torch.linalg.qr(torch.randn(9, 6))  # six columns, at right angles to each other
    ours = 3 * theirs @ turn.T + (5 if attack.name == "rkd" else 0)
    for features, alike in ((ours, True), (other, False)):
        out, _ = step(attack, theirs, features)
        apart = [value for name, value in out.logs.items() if name != "ce"]
        assert all((float(value) < 1e-9) == alike for value in apart)


@both
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_size_of_features_does_not_matter(attack: Attack, size: float) -> None:
    theirs, ours = draw()
    plain, gradient = step(attack, theirs, ours)
    out, scaled = step(attack, size * theirs, size * ours)
    for name in set(out.logs) - {"ce"}:
        torch.testing.assert_close(out.logs[name], plain.logs[name])
    assert torch.isfinite(scaled).all()
    if size == 1:
        assert torch.equal(scaled, gradient)


@both
@pytest.mark.parametrize("classes", [2, 3])
def test_images_without_a_difference_or_a_feature_give_finite_gradients(attack: Attack, classes: int) -> None:
    theirs, ours = draw()
    dead, equal, close = ours.clone(), ours.clone(), ours.clone()
    dead[1:4] = 0
    equal[1] = equal[2]
    close[1] = close[2] + 1e-7
    nothing = torch.zeros_like(ours)
    for features in (dead, equal, close, nothing, nothing + 1):
        for of_victim in (theirs, torch.zeros_like(theirs)):
            out, gradient = step(attack, of_victim, features, classes)
            assert torch.isfinite(out.loss)
            assert torch.isfinite(gradient).all()
            assert float(gradient.abs().max()) < 1e9


@both
def test_gradient_goes_down_to_the_victims_relations(attack: Attack) -> None:
    theirs, ours = draw()
    attack = type(attack)(
        **{name: 1.0 for name in ("distance", "angle", "weight") if name in type(attack).model_fields}
    )
    student = Given(ours)
    victim = Victim(Given(theirs), access=Access.FEATURES)
    y = torch.arange(ROWS)
    optimizer = torch.optim.Adam([student.features], lr=0.02)
    first = last = math.nan
    for at in range(600):
        out = attack.step(Batch(torch.zeros(ROWS, 1, 8, 8), y % 3, y), Nets(student, victim=victim))
        last = float(sum(value.detach() for name, value in out.logs.items() if name != "ce"))
        first = last if at == 0 else first
        optimizer.zero_grad()
        (out.loss - out.logs["ce"]).backward()
        optimizer.step()
    assert last < 0.1 * first


def test_similarity_of_named_layers() -> None:
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(36 * width, 3)) for width in (2, 5)
    ]
    student, teacher = nets
    victim = Victim(teacher, access=Access.FEATURES)
    x, y = torch.randn(ROWS, 1, 8, 8), torch.arange(ROWS) % 3
    out = Similarity(layer="0", victim_layer="1").step(Batch(x, y, y), Nets(student, victim=victim))
    maps = student[0](x).flatten(1), teacher[:2](x).flatten(1)
    ours, theirs = (nn.functional.normalize(f @ f.T, dim=1) for f in maps)
    torch.testing.assert_close(out.logs["apart"], nn.functional.mse_loss(ours, theirs))
    for wrong in ({"layer": "9"}, {"victim_layer": "9"}):
        with pytest.raises(UnknownNameError, match="unknown module '9'"):
            Similarity(**wrong).step(Batch(x, y, y), Nets(student, victim=victim))
    idle = nn.Sequential(nn.Flatten(1), nn.Linear(64, 3))
    idle.register_module("idle", nn.ReLU())
    idle.forward = lambda x: idle[1](idle[0](x))  # type: ignore[method-assign]
    with pytest.raises(ShapeError, match="module 'idle' of Sequential did not run"):
        Similarity(layer="idle").step(Batch(x, y, y), Nets(idle, victim=victim))
