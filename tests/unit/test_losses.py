from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from undistill.errors import RecipeError, ShapeError
from undistill.functional import (
    cross_entropy,
    kd_loss,
    kl_divergence,
    label_smoothing_loss,
    self_undermining_loss,
)

TEMPERATURES = [1.0, 4.0, 20.0]


def draw(seed: int, shape: tuple[int, int] = (8, 10), scale: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = (scale * torch.randn(shape, generator=g) for _ in range(2))
    return a, b, torch.randint(shape[1], shape[:1], generator=g)


def textbook_kl(logits_p: Tensor, logits_q: Tensor, temperature: float) -> Tensor:
    """The probability form that most distillation code uses."""
    log_q, p = (logits_q / temperature).log_softmax(1), (logits_p / temperature).softmax(1)
    return F.kl_div(log_q, p, reduction="batchmean")


def kl_gradient_p(logits_p: Tensor, logits_q: Tensor, temperature: float) -> Tensor:
    """∂/∂z_p of τ² KL(p ‖ q) in closed form: τ p ⊙ (log(p/q) - KL) / B."""
    log_p, log_q = ((z.double() / temperature).log_softmax(1) for z in (logits_p, logits_q))
    p, ratio = log_p.exp(), log_p - log_q
    return temperature * p * (ratio - (p * ratio).sum(1, keepdim=True)) / len(p)


def kl_gradient_q(logits_p: Tensor, logits_q: Tensor, temperature: float) -> Tensor:
    """∂/∂z_q of τ² KL(p ‖ q) in closed form: τ (q - p) / B."""
    p, q = ((z.double() / temperature).softmax(1) for z in (logits_p, logits_q))
    return temperature * (q - p) / len(p)


def leaf(logits: Tensor) -> Tensor:
    return logits.clone().requires_grad_()


def number(loss: Tensor) -> float:
    return float(loss.detach())


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, logits)
    return grad


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Compare with a tolerance relative to the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-12))


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    loss = cross_entropy(logits, torch.tensor([1, 0]))
    assert number(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_one_hot() -> None:
    logits, _, labels = draw(0)
    logits = leaf(logits)
    expected = (logits.detach().double().softmax(1) - F.one_hot(labels, 10)) / len(labels)
    close(gradient(cross_entropy(logits, labels), logits), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_cross_entropy_takes_small_integer_labels(dtype: torch.dtype) -> None:
    logits, _, labels = draw(1)
    assert torch.equal(cross_entropy(logits, labels.to(dtype)), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_cross_entropy_against_a_mixture(smoothing: float) -> None:
    logits, _, labels = draw(2)
    target = (1 - smoothing) * F.one_hot(labels, 10) + smoothing / 10
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    loss = label_smoothing_loss(logits, labels, smoothing)
    assert number(loss) == pytest.approx(number(expected), rel=1e-6)
    assert torch.equal(loss, F.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_kl_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2); the second row has p = q, so the mean over the batch is half the divergence
    logits_p = torch.tensor([[math.log(3.0), 0.0], [1.0, 1.0]])
    logits_q = torch.zeros(2, 2)
    pq = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    qp = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(kl_divergence(logits_p, logits_q)) == pytest.approx(pq / 2, rel=1e-6)
    assert float(kl_divergence(logits_q, logits_p)) == pytest.approx(qp / 2, rel=1e-6)
    assert pq != pytest.approx(qp, rel=0.05)  # so a swapped direction would show
    assert float(kl_divergence(4 * logits_p, logits_q, temperature=4.0)) == pytest.approx(pq / 2, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_equals_the_textbook_form_where_that_is_finite(temperature: float) -> None:
    a, b, _ = draw(3)
    ours = [leaf(a), leaf(b)]
    theirs = [leaf(a.double()), leaf(b.double())]
    loss, expected = kl_divergence(*ours, temperature), textbook_kl(*theirs, temperature)
    assert number(loss) == pytest.approx(number(expected), rel=1e-5)
    for z, reference in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True):
        assert z.abs().max() > 0
        close(z, reference)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_gradients_in_closed_form(temperature: float) -> None:
    a, b, _ = draw(4)
    p, q = leaf(a), leaf(b)
    loss = temperature**2 * kl_divergence(p, q, temperature)
    grad_p, grad_q = torch.autograd.grad(loss, [p, q])
    close(grad_p, kl_gradient_p(a, b, temperature))
    close(grad_q, kl_gradient_q(a, b, temperature))


def test_gradients_stay_finite_where_the_textbook_form_gives_nan() -> None:
    temperature = 4.0
    a = torch.tensor([[500.0, 0.0, 1.0], [0.0, 2.0, 500.0]])
    b = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    z = leaf(a)
    loss = textbook_kl(z, b, temperature)
    assert torch.isfinite(loss)
    assert gradient(loss, z).isnan().any(), "the mechanism that kl_divergence exists for is gone"

    z, other = leaf(a), leaf(b)
    loss = temperature**2 * kl_divergence(z, other, temperature)
    grad_z, grad_other = torch.autograd.grad(loss, [z, other])
    z64, other64 = leaf(a.double()), leaf(b.double())  # does not underflow
    expected = temperature**2 * textbook_kl(z64, other64, temperature)
    expected_z, expected_other = torch.autograd.grad(expected, [z64, other64])
    assert number(loss) == pytest.approx(number(expected), rel=1e-6)
    torch.testing.assert_close(grad_z.double(), expected_z, rtol=1e-5, atol=1e-6)
    close(grad_other, expected_other)

    swapped = temperature**2 * kl_divergence(b, a, temperature)  # underflow in the second argument
    assert number(swapped) == pytest.approx(number(temperature**2 * textbook_kl(b.double(), a.double(), 4.0)), rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_loss_is_the_papers_formula(temperature: float) -> None:
    s, t, labels = draw(5)
    z, teacher = leaf(s), leaf(t)
    loss = kd_loss(z, teacher, labels, temperature=temperature, alpha=0.9)
    z64 = leaf(s.double())
    expected = 0.9 * temperature**2 * textbook_kl(t.double(), z64, temperature) + 0.1 * F.cross_entropy(z64, labels)
    assert number(loss) == pytest.approx(number(expected), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert z.grad is not None
    close(z.grad, gradient(expected, z64))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_self_undermining_loss_is_the_papers_formula(temperature: float) -> None:
    t, a, labels = draw(6)
    z, adversary = leaf(t), leaf(a)
    loss = self_undermining_loss(z, adversary, labels, temperature=temperature, weight=0.04)
    ce, kl = F.cross_entropy(t, labels), textbook_kl(t, a, temperature)
    assert number(loss) == pytest.approx(float(ce - 0.04 * temperature**2 * kl), rel=1e-4)
    loss.backward()
    assert adversary.grad is None
    assert z.grad is not None
    ce_gradient = (t.double().softmax(1) - F.one_hot(labels, 10)) / len(labels)
    close(z.grad, ce_gradient - 0.04 * kl_gradient_p(t, a, temperature))

    reversed_loss = ce - 0.04 * temperature**2 * textbook_kl(a, t, temperature)
    assert number(loss) != pytest.approx(number(reversed_loss), rel=1e-3)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_where_even_answers_are_as_far_from_the_twin_as_sure_ones(classes: int) -> None:
    # docs/nasty.md: a/(1-a) = K^(K/(K-1)) / (K-1), where the twin has a for one class, the rest evenly for the others
    odds = classes ** (classes / (classes - 1)) / (classes - 1)
    twin = torch.zeros(1, classes, dtype=torch.float64)
    twin[0, 0] = math.log(odds * (classes - 1))
    sure = torch.full_like(twin, -1e3)
    sure[0, 0] = 0
    even = torch.zeros_like(twin)
    assert kl_divergence(even, twin).item() == pytest.approx(kl_divergence(sure, twin).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("margin", [6.0, 20.0])
def test_the_weight_at_which_an_image_of_two_classes_tips_over(margin: float, temperature: float) -> None:
    # docs/nasty.md: where the two are even, to name the right one more surely pays below ω = 2/margin, whatever τ is
    twin, even = torch.tensor([[margin, 0.0]]), torch.zeros(1, 2, requires_grad=True)
    for share, sign in ((0.95, -1), (1.05, 1)):
        weight = share * 2 / margin
        loss = self_undermining_loss(even, twin, torch.tensor([0]), temperature=temperature, weight=weight)
        (gradient,) = torch.autograd.grad(loss, even)
        assert gradient[0, 0].sign() == sign


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_loss_computes_in_float32(dtype: torch.dtype) -> None:
    a, b, labels = draw(7)
    a, b = a.to(dtype), b.to(dtype)

    def losses(a: Tensor, b: Tensor) -> list[Tensor]:
        return [
            cross_entropy(a, labels),
            label_smoothing_loss(a, labels, 0.1),
            kl_divergence(a, b, 20.0),
            kd_loss(a, b, labels, temperature=20.0, alpha=0.9),
            self_undermining_loss(a, b, labels, temperature=20.0, weight=0.01),
        ]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = losses(a, b)
    for loss, cast, expected in zip(losses(a, b), under_autocast, losses(a.float(), b.float()), strict=True):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert torch.equal(cast, expected)


def test_losses_compile_into_one_graph() -> None:
    t, a, labels = draw(8)

    def step(z: Tensor) -> Tensor:
        return self_undermining_loss(z, a, labels, temperature=4.0, weight=0.04) + kd_loss(
            z, a, labels, temperature=4.0, alpha=0.9
        )

    eager, compiled = leaf(t), leaf(t)
    expected, loss = step(eager), torch.compile(step, backend="aot_eager", fullgraph=True)(compiled)
    torch.testing.assert_close(loss, expected)
    close(gradient(loss, compiled), gradient(expected, eager))


rows = st.integers(2, 6).flatmap(
    lambda k: st.lists(
        st.tuples(*[st.lists(st.floats(-30, 30, width=32), min_size=k, max_size=k)] * 2), min_size=1, max_size=4
    )
)
pairs = rows.map(lambda pairs: tuple(torch.tensor(side) for side in zip(*pairs, strict=True)))
temperatures = st.floats(0.5, 30)


@settings(deadline=None)
@given(pairs, temperatures)
def test_kl_is_not_negative(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    assert float(kl_divergence(*pair, temperature)) >= -1e-5


@settings(deadline=None)
@given(pairs, temperatures, st.floats(-20, 20))
def test_kl_ignores_a_shift_and_is_zero_for_equals(
    pair: tuple[Tensor, Tensor], temperature: float, shift: float
) -> None:
    a, b = pair
    assert float(kl_divergence(a, a + shift, temperature)) == pytest.approx(0, abs=1e-5)
    expected = float(kl_divergence(a, b, temperature))
    assert float(kl_divergence(a + shift, b, temperature)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(deadline=None)
@given(pairs, temperatures)
def test_kl_is_positive_for_unequal_answers(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    p, q = ((z.double() / temperature).softmax(1) for z in pair)
    pinsker = float((p - q).abs().sum(1).square().mean()) / 2  # KL ≥ |p - q|₁² / 2
    assert float(kl_divergence(*pair, temperature)) >= pinsker - 1e-5


@settings(deadline=None)
@given(pairs, temperatures, st.floats(0, 1))
def test_kd_loss_is_linear_in_alpha(pair: tuple[Tensor, Tensor], temperature: float, alpha: float) -> None:
    s, t = pair
    labels = torch.zeros(len(s), dtype=torch.long)
    loss = float(kd_loss(s, t, labels, temperature=temperature, alpha=alpha))
    ends = [float(kd_loss(s, t, labels, temperature=temperature, alpha=end)) for end in (0.0, 1.0)]
    assert ends[0] == pytest.approx(float(F.cross_entropy(s, labels)), rel=1e-5, abs=1e-6)
    assert loss == pytest.approx((1 - alpha) * ends[0] + alpha * ends[1], rel=1e-4, abs=1e-4)


@settings(deadline=None)
@given(pairs, temperatures)
def test_kd_loss_scales_with_the_temperature(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    s, t = pair
    labels = torch.zeros(len(s), dtype=torch.long)
    at_one = float(kd_loss(s, t, labels, temperature=1.0, alpha=1.0))
    scaled = float(kd_loss(temperature * s, temperature * t, labels, temperature=temperature, alpha=1.0))
    assert scaled == pytest.approx(temperature**2 * at_one, rel=1e-3, abs=1e-5 * max(1, temperature**2))


LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), LABELS, r"logits: expected .*\(B, K\).* got float32 of shape \(3,\)"),
        (torch.zeros(4, 3, 1), LABELS, r"got float32 of shape \(4, 3, 1\)"),
        (torch.zeros(0, 3), LABELS[:0], "not empty"),
        (torch.zeros(4, 3, dtype=torch.long), LABELS, "floating-point logits.* got int64"),
        (LOGITS, LABELS[:3], r"labels: expected whole numbers of shape \(4,\).* got int64 of shape \(3,\)"),
        (LOGITS, F.one_hot(LABELS, 3), r"got int64 of shape \(4, 3\)"),
        (LOGITS, LABELS.float(), "got float32"),
        (LOGITS, LABELS.bool(), "got bool"),
    ],
)
def test_bad_shapes_are_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        cross_entropy(logits, labels)
    with pytest.raises(ShapeError, match=message):
        label_smoothing_loss(logits, labels, 0.1)
    with pytest.raises(ShapeError, match=message):
        kd_loss(logits, logits, labels, temperature=4.0, alpha=0.9)
    with pytest.raises(ShapeError, match=message):
        self_undermining_loss(logits, logits, labels, temperature=4.0, weight=0.04)


def test_logits_of_different_classes_are_refused() -> None:
    other = torch.zeros(4, 5)
    with pytest.raises(ShapeError, match=r"logits_q: expected the shape of logits_p, \(4, 3\), got float32 .*\(4, 5\)"):
        kl_divergence(LOGITS, other)
    with pytest.raises(ShapeError, match="teacher_logits: expected the shape of student_logits"):
        kd_loss(LOGITS, other, LABELS, temperature=4.0, alpha=0.9)
    with pytest.raises(ShapeError, match="adversary_logits: expected the shape of trained_logits"):
        self_undermining_loss(LOGITS, other, LABELS, temperature=4.0, weight=0.04)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(RecipeError, match="temperature: expected a finite number > 0, got"):
        kl_divergence(LOGITS, LOGITS, temperature)
    with pytest.raises(RecipeError, match="temperature"):
        kd_loss(LOGITS, LOGITS, LABELS, temperature=temperature, alpha=0.9)
    with pytest.raises(RecipeError, match="temperature"):
        self_undermining_loss(LOGITS, LOGITS, LABELS, temperature=temperature, weight=0.04)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_bad_shares_are_refused(share: float) -> None:
    with pytest.raises(RecipeError, match=r"alpha: expected a number in 0\.\.1, got"):
        kd_loss(LOGITS, LOGITS, LABELS, temperature=4.0, alpha=share)
    with pytest.raises(RecipeError, match=r"smoothing: expected a number in 0\.\.1, got"):
        label_smoothing_loss(LOGITS, LABELS, share)


@pytest.mark.parametrize("weight", [-0.01, math.nan, math.inf])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(RecipeError, match="weight: expected a finite number >= 0, got"):
        self_undermining_loss(LOGITS, LOGITS, LABELS, temperature=4.0, weight=weight)
