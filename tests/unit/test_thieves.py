"""Thieves who learn from answers: each loss against its formula, written out in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from undistill.attacks import ATTACKS, Access, Attack, StepOutput
from undistill.attacks.averager import Averager
from undistill.attacks.dist import DIST
from undistill.attacks.dkd import DKD
from undistill.attacks.kd import KD
from undistill.attacks.label_correcting import LabelCorrecting
from undistill.attacks.logit_standardization import LogitStandardization
from undistill.attacks.mkd import MKD
from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.objective import Nets
from undistill.victim import Victim

FROM_ANSWERS = [  # to a student that need not have layers
    name
    for name, attack in ((name, ATTACKS[name]) for name in ATTACKS.names())
    if attack.images == "train" and attack.access <= Access.LOGITS and "modules" not in vars(attack)
]


class Answers(nn.Module):
    """Answers with these logits, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)] + 0 * x.sum()


def step(attack: Attack, t: Tensor, s: Tensor, y: Tensor, access: Access = Access.PROBS) -> tuple[StepOutput, Tensor]:
    """Take one step of an attack on a victim with logits t by a student with logits s; return it, and the gradient."""
    student = Answers(s.clone())
    x = torch.zeros(len(t), 1, 8, 8)
    victim = Victim(Answers(t.clone()).requires_grad_(False), access=access)
    torch.manual_seed(0)
    frame = Frame(t.shape[1], 1, 8, (0.5,), (0.5,))
    nets = Nets(student, victim=victim, companion=attack.companion(Nets(student), frame, torch.device("cpu")))
    out = attack.step(Batch(x, y, torch.arange(len(y)), partial=bool((y < 0).any())), nets)
    out.loss.backward()
    assert student.logits.grad is not None
    return StepOutput(out.loss.detach(), out.logits), student.logits.grad


def draw(classes: int = 7, rows: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(classes)
    return 3 * torch.randn(rows, classes), torch.randn(rows, classes), torch.arange(rows) % classes


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1).mean()


def ce(s: Tensor, y: Tensor) -> Tensor:
    return -s.double().log_softmax(1)[range(len(y)), y].mean()


def test_dist_is_its_formula() -> None:
    t, s, y = draw()
    out, _ = step(DIST(temperature=2.0, by_image=3.0, by_class=0.5, label_weight=0.25), t, s, y)
    p, q = ((each.double() / 2).softmax(1).numpy() for each in (t, s))
    by_image = np.mean([stats.pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    by_class = np.mean([stats.pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    expected = 0.25 * float(ce(s, y)) + 4 * (3 * (1 - by_image) + 0.5 * (1 - by_class))
    assert float(out.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 7])
def test_dkd_is_its_formula(classes: int) -> None:
    t, s, y = draw(classes)
    out, _ = step(DKD(temperature=4.0, alpha=1.5, beta=6.0, label_weight=0.5), t, s, y)
    p, q = ((each.double() / 4).softmax(1) for each in (t, s))
    pairs, others = [], []
    for each in (p, q):
        true = each[range(len(y)), y]
        pairs.append(torch.stack([true, 1 - true], dim=1))
        rest = torch.stack([torch.cat([row[:k], row[k + 1 :]]) for row, k in zip(each, y.tolist(), strict=True)])
        others.append(rest / rest.sum(1, keepdim=True))
    expected = 0.5 * ce(s, y) + 16 * (1.5 * kl(*pairs) + 6 * kl(*others))
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)
    if classes == 2:
        assert float(kl(*others)) == 0


def test_dkd_with_the_victims_own_weights_is_kd() -> None:
    # KL(p ‖ q) = KL(b_t ‖ b_s) + (1 - p_y) KL(o_t ‖ o_s), image by image (eq. 5 of the paper)
    t, s, y = (each[:1] for each in draw())
    left = 1 - float((t / 4).softmax(1)[0, y[0]])
    parts, gradient = step(DKD(temperature=4.0, alpha=1.0, beta=left, label_weight=0.0), t, s, y)
    whole, expected = step(KD(temperature=4.0, alpha=1.0), t, s, y)
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_logit_standardization_is_its_formula() -> None:
    t, s, y = draw()
    out, _ = step(LogitStandardization(temperature=2.0, multiplier=9.0, label_weight=0.1), t, s, y)
    p, q = (torch.from_numpy(stats.zscore(each.double().numpy(), axis=1, ddof=1)) / 2 for each in (t, s))
    expected = 0.1 * ce(s, y) + 36 * kl(p.softmax(1), q.softmax(1))
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


def test_standardized_answers_do_not_depend_on_their_size_or_place() -> None:
    t, s, y = draw()
    attack = LogitStandardization()
    plain, _ = step(attack, t, s, y, Access.LOGITS)
    moved, _ = step(attack, 0.2 * t - 5, s, y, Access.LOGITS)
    assert float(plain.loss) == pytest.approx(float(moved.loss), rel=1e-5)


def test_the_averager_learns_from_the_mean_of_its_class() -> None:
    t, s, y = draw(4, 10)
    out, _ = step(Averager(temperature=4.0, alpha=0.7), t, s, y, Access.LOGITS)
    means = torch.stack([t[[j for j in range(10) if y[j] == y[i]]].double().mean(0) for i in range(10)])
    expected = 0.7 * 16 * kl((means / 4).softmax(1), (s.double() / 4).softmax(1)) + 0.3 * ce(s, y)
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


def test_mkd_is_its_formula() -> None:
    t, s, y = draw()
    attack = MKD(temperature=4.0, alpha=0.7, rank=3)
    out, _ = step(attack, t, s, y)
    torch.manual_seed(0)
    frame = Frame(7, 1, 8, (0.5,), (0.5,))
    weights = attack.companion(Nets(Answers(s)), frame, torch.device("cpu")).state_dict()
    moved = []
    for row, label in zip((t.double() / 4).softmax(1), y.tolist(), strict=True):
        u, v, scale = (weights[f"weights/{name}"][label].double() for name in ("left", "right", "scale"))
        matrix = (scale * torch.eye(7) + u @ v.T).softmax(0)
        assert matrix.sum(0).tolist() == pytest.approx([1.0] * 7)
        moved.append(matrix @ row)
    expected = 0.7 * 16 * kl(torch.stack(moved), (s.double() / 4).softmax(1)) + 0.3 * ce(s, y)
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_matrices_of_mkd_come_towards_a_student_that_stands_still() -> None:
    t, s, y = draw()
    student = Answers(s).requires_grad_(False)
    attack = MKD(matrix_lr=0.05, alpha=1.0)
    frame = Frame(7, 1, 8, (0.5,), (0.5,))
    nets = Nets(student, victim=Victim(Answers(t).requires_grad_(False), access=Access.PROBS))
    companion = attack.companion(nets, frame, torch.device("cpu"))
    nets = Nets(student, victim=nets.victim, companion=companion)
    losses = [float(attack.step(Batch(torch.zeros(12, 1, 8, 8), y, y), nets).loss) for _ in range(200)]
    assert losses[-1] < 0.05 * losses[0]
    still = {name: value.clone() for name, value in companion.state_dict().items() if name.startswith("weights/")}
    companion.pace(0.0)
    attack.step(Batch(torch.zeros(12, 1, 8, 8), y, y), nets)
    assert all(torch.equal(value, companion.state_dict()[name]) for name, value in still.items())  # at a rate of 0
    companion.pace(0.5)
    again = attack.companion(nets, frame, torch.device("cpu"))
    again.load_state_dict({name: value.clone() for name, value in companion.state_dict().items()})
    again.pace(0.5)
    for each in (companion, again):  # it goes on as if nothing had happened
        attack.step(Batch(torch.zeros(12, 1, 8, 8), y, y), Nets(student, victim=nets.victim, companion=each))
    for name, value in companion.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("classes", [2, 7])
def test_label_correcting_is_its_formula(classes: int) -> None:
    t, s, y = draw(classes)
    y[:4] = t.argmax(1)[:4]
    out, _ = step(LabelCorrecting(temperature=4.0, alpha=0.7), t, s, y)
    exchanged, divergences, entropies = 0, [], []
    for scores, ours, label in zip(t.double().tolist(), s.double().numpy(), y.tolist(), strict=True):
        top = scores.index(max(scores))
        scores[top], scores[label] = scores[label], scores[top]
        exchanged += top != label
        entropies.append(-special.log_softmax(ours)[label])
        p, q = (special.softmax(np.asarray(each) / 4) for each in (scores, ours))
        divergences.append(stats.entropy(p, q))
    assert 0 < exchanged <= 8
    expected = 0.7 * 16 * np.mean(divergences) + 0.3 * np.mean(entropies)
    assert float(out.loss) == pytest.approx(expected, rel=1e-5)


def test_label_correcting_learns_from_a_victim_that_is_right_as_kd_does() -> None:
    t, s, y = draw()
    right = t.argmax(1)
    ours, gradient = step(LabelCorrecting(), t, s, right)
    theirs, expected = step(KD(), t, s, right)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(gradient, expected)
    wrong, _ = step(LabelCorrecting(), t, s, y)
    assert not torch.equal(wrong.loss, step(KD(), t, s, y)[0].loss)
    level, _ = step(LabelCorrecting(), torch.zeros_like(t), s, y)  # the label is among the highest
    assert torch.equal(level.loss, step(KD(), torch.zeros_like(t), s, y)[0].loss)


@pytest.mark.parametrize("attack", [DIST(), DKD(), LabelCorrecting(), LogitStandardization(), Averager(), MKD()])
def test_probabilities_do_as_well_as_logits(attack: Attack) -> None:
    t, s, y = draw()
    (probs, _), (logits, _) = (step(attack, t, s, y, access) for access in (Access.PROBS, Access.LOGITS))
    assert float(probs.loss) == pytest.approx(float(logits.loss), rel=1e-4)


@pytest.mark.parametrize(("name", "classes"), list(itertools.product(FROM_ANSWERS, [2, 10])))
def test_saturated_and_level_answers_give_finite_gradients(name: str, classes: int) -> None:
    attack = ATTACKS[name](**ATTACKS[name].smoke)
    sure = torch.zeros(4, classes)
    sure[:, 0] = 1e4
    for t, s in itertools.product((sure, torch.zeros_like(sure)), repeat=2):
        out, gradient = step(attack, t, s, torch.tensor([0, 1, 0, 1]), attack.access)
        assert torch.isfinite(out.loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in FROM_ANSWERS if ATTACKS[name].partial_labels])
def test_labels_that_are_not_known_do_not_count(name: str) -> None:
    attack = ATTACKS[name](**ATTACKS[name].smoke)
    t, s, y = draw()
    hidden = y.clone()
    hidden[::2] = -1
    _, gradient = step(attack, t, s, hidden, attack.access)
    moved = hidden.clone()
    moved[0] = -1
    _, same = step(attack, t, s, moved, attack.access)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient, same)
