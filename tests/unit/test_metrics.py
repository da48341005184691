from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor

from undistill.errors import RecipeError, ShapeError
from undistill.functional import (
    accuracy,
    agreement,
    area_under_risk_coverage,
    batch_mean_accuracy,
    expected_calibration_error,
    is_collapsed,
    mean_entropy,
    negative_log_likelihood,
    non_target_mass,
    prediction_share,
    top_k_accuracy,
)

N, K = 1000, 7


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 2 * torch.randn(N, K, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(logits: Tensor) -> Tensor:
    # drawn from the probabilities of sharper logits, so that accuracy and calibration are neither 0 nor perfect
    return torch.multinomial((1.5 * logits).softmax(1), 1, generator=torch.Generator().manual_seed(1)).squeeze(1)


def one_hot_logits(*classes: int, k: int = 3) -> Tensor:
    return torch.eye(k)[list(classes)]


def test_accuracy_by_hand() -> None:
    logits, labels = one_hot_logits(0, 1, 2, 2), torch.tensor([0, 1, 0, 2])
    assert accuracy(logits, labels) == 0.75
    assert accuracy(logits.argmax(1), labels) == 0.75
    assert accuracy(torch.zeros(4, 3), labels) == 0.5  # ties go to class 0


def test_accuracies_equal_scikit_learn(logits: Tensor, labels: Tensor) -> None:
    assert accuracy(logits, labels) == accuracy_score(labels, logits.argmax(1))
    for k in range(1, K):
        assert top_k_accuracy(logits, labels, k) == top_k_accuracy_score(labels, logits, k=k, labels=range(K))
    assert top_k_accuracy(logits, labels, 1) == accuracy(logits, labels)
    assert top_k_accuracy(logits, labels, K) == 1.0


def test_top_k_gives_no_credit_for_ties() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    assert top_k_accuracy(torch.zeros(4, 4), labels, k=1) == 0.25
    assert top_k_accuracy(torch.zeros(4, 4), labels, k=2) == 0.5


def test_batch_mean_accuracy_weighs_batches_not_samples() -> None:
    # a batch of 4 with 4 hits, then a batch of 1 with none: 1/2 instead of 4/5
    predictions, labels = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 1, 2, 1, 1])
    assert batch_mean_accuracy(predictions, labels, batch_size=4) == 0.5
    assert batch_mean_accuracy(predictions, labels) == accuracy(predictions, labels) == 0.8


def test_batch_mean_accuracy_overweights_the_last_batch_of_the_papers_test_set() -> None:
    # 10,000 images make 78 batches of 128 and one of 16: its 16 misses cost 1/79, not 16/10,000
    predictions = torch.zeros(10_000, dtype=torch.long)
    labels = predictions.clone()
    labels[-16:] = 1
    assert batch_mean_accuracy(predictions, labels) == pytest.approx(78 / 79, abs=1e-12)
    assert accuracy(predictions, labels) == 0.9984


def test_agreement() -> None:
    a, b = one_hot_logits(0, 1, 2, 0), 5 * one_hot_logits(0, 2, 2, 1)
    assert agreement(a, b) == 0.5
    assert agreement(a, b.argmax(1)) == 0.5
    assert agreement(a, 3 * a + 1) == 1.0


def test_negative_log_likelihood(logits: Tensor, labels: Tensor) -> None:
    assert negative_log_likelihood(torch.zeros(2, 8), torch.tensor([0, 7])) == pytest.approx(math.log(8), rel=1e-6)
    expected = log_loss(labels, logits.double().softmax(1), labels=range(K))
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-5)


def loop_ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    probabilities = np.exp(logits.double().numpy())
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    total = 0.0
    for m in range(bins):
        members = [i for i, p in enumerate(probabilities) if m / bins < p.max() <= (m + 1) / bins]
        if members:
            hit_rate = sum(probabilities[i].argmax() == int(labels[i]) for i in members) / len(members)
            confidence = sum(probabilities[i].max() for i in members) / len(members)
            total += len(members) / len(labels) * abs(hit_rate - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_a_plain_loop(logits: Tensor, labels: Tensor, bins: int) -> None:
    expected = loop_ece(logits, labels, bins)
    assert expected > 0.01
    assert expected_calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-5)


def test_ece_by_hand() -> None:
    # confidences 3/4, 3/4 (one hit: gap -1/4 in its bin) and 1/2 (a hit: gap 1/2): (2·1/4 + 1·1/2) / 3
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert expected_calibration_error(logits, labels) == pytest.approx(1 / 3, rel=1e-6)
    # certain and right; certain and wrong
    certain = 1000 * one_hot_logits(0, 1)
    assert expected_calibration_error(certain, torch.tensor([0, 1])) == 0.0
    assert expected_calibration_error(certain, torch.tensor([1, 0])) == 1.0


def loop_aurc(logits: Tensor, labels: Tensor) -> float:
    confidences = logits.double().softmax(1).max(1).values.tolist()
    wrong = (logits.argmax(1) != labels).tolist()
    order = sorted(range(len(wrong)), key=lambda i: -confidences[i])
    return sum(sum(wrong[i] for i in order[:n]) / n for n in range(1, len(wrong) + 1)) / len(wrong)


def test_aurc_equals_a_plain_loop(logits: Tensor, labels: Tensor) -> None:
    assert area_under_risk_coverage(logits, labels) == pytest.approx(loop_aurc(logits, labels), rel=1e-9)
    assert area_under_risk_coverage(logits, logits.argmax(1)) == 0.0
    assert area_under_risk_coverage(logits, labels) < 1 - accuracy(logits, labels)  # its confidence says something


def test_aurc_averages_over_the_orders_of_equal_confidences() -> None:
    # one sure hit, then two alike of which one is wrong: (0 + mean(0, 1)/2 + 1/3) / 3
    logits, labels = torch.tensor([[0.0, 9.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1, 1])
    assert area_under_risk_coverage(logits, labels) == pytest.approx((0 + 1 / 4 + 1 / 3) / 3, rel=1e-9)
    assert area_under_risk_coverage(logits.flip(0), labels) == pytest.approx((0 + 1 / 4 + 1 / 3) / 3, rel=1e-9)
    assert area_under_risk_coverage(torch.zeros(9, 3), torch.arange(9) % 3) == pytest.approx(2 / 3, rel=1e-9)


def test_aurc_compares_confidences_that_round_to_one() -> None:
    logits = torch.tensor([[40.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
    assert logits.softmax(1).max(1).values.tolist() == [1.0, 1.0, 1.0]
    assert area_under_risk_coverage(logits, torch.tensor([0, 1, 0])) == pytest.approx(1 / 9, rel=1e-9)


def test_non_target_mass() -> None:
    assert non_target_mass(torch.tensor([[math.log(3.0), 0.0, 0.0]])) == pytest.approx(2 / 5, rel=1e-6)
    sure = torch.tensor([[50.0, 0.0, 0.0], [0.0, 60.0, 0.0], [0.0, 0.0, 1.0]])  # median: the first
    assert non_target_mass(sure) == pytest.approx(2 * math.exp(-50), rel=1e-9)
    assert non_target_mass(torch.zeros(2, 4)) == pytest.approx(3 / 4, rel=1e-9)  # ties
    assert non_target_mass(torch.tensor([[3.0, -math.inf]])) == 0.0
    assert non_target_mass(torch.zeros(5, 1)) == 0.0


def test_mean_entropy() -> None:
    assert mean_entropy(torch.zeros(3, 10)) == pytest.approx(math.log(10), rel=1e-6)
    assert mean_entropy(1000 * one_hot_logits(0, 1)) == 0.0
    logits = torch.tensor([[math.log(3.0), 0.0]])
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert mean_entropy(logits) == pytest.approx(by_hand, rel=1e-6)
    assert mean_entropy(20 * logits, temperature=20.0) == pytest.approx(by_hand, rel=1e-6)
    masked = torch.tensor([[math.log(3.0), 0.0, -math.inf]])  # a sparse answer has an entropy too
    assert mean_entropy(masked) == pytest.approx(by_hand, rel=1e-6)


def test_prediction_share_and_collapse() -> None:
    predictions = torch.tensor([2] * 9 + [0])
    assert prediction_share(predictions) == (2, 0.9)
    assert prediction_share(one_hot_logits(*predictions.tolist())) == (2, 0.9)
    assert prediction_share(torch.tensor([1, 0, 1, 0])) == (0, 0.5)
    assert not is_collapsed(predictions)  # over 90 %, not 90 %
    assert is_collapsed(predictions, threshold=0.8)
    assert is_collapsed(torch.cat([predictions, torch.tensor([2])]))
    assert not is_collapsed(one_hot_logits(0, 1, 2))
    assert is_collapsed(torch.zeros(5, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_metrics_compute_in_float32(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    rounded = logits.to(dtype)
    for metric in (accuracy, negative_log_likelihood, expected_calibration_error, area_under_risk_coverage):
        value = metric(rounded, labels)
        assert type(value) is float
        assert value == metric(rounded.float(), labels)
        assert value == metric(rounded.requires_grad_(), labels)  # and without a warning
    assert non_target_mass(rounded) == non_target_mass(rounded.float())
    assert mean_entropy(rounded, 20.0) == mean_entropy(rounded.float(), 20.0)


LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    "metric",
    [accuracy, batch_mean_accuracy, lambda z, y: top_k_accuracy(z, y, 2), negative_log_likelihood,
     expected_calibration_error, area_under_risk_coverage],
)  # fmt: skip
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(4, 3, 2), LABELS, r"logits.*expected .*\(B, K\).* got float32 of shape \(4, 3, 2\)"),
        (torch.zeros(4), LABELS, r"got float32 of shape \(4,\)"),
        (torch.zeros(0, 3), LABELS[:0], "not empty"),
        (LOGITS, LABELS[:3], r"labels: expected whole numbers of shape \(4,\)"),
        (LOGITS, LABELS.double(), "got float64"),
        (LOGITS, LABELS + 3, r"labels: expected 0\.\.2, .* got 3\.\.3"),
        (LOGITS, LABELS - 1, r"got -1\.\.-1"),
    ],
)
def test_bad_input_is_refused(metric, logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        metric(logits, labels)


def test_answers_of_different_samples_are_refused() -> None:
    with pytest.raises(ShapeError, match="got 4 and 3"):
        agreement(LABELS, LABELS[:3])
    with pytest.raises(ShapeError, match="logits_b: expected the shape of logits_a"):
        agreement(LOGITS, torch.zeros(4, 5))
    with pytest.raises(ShapeError, match="not empty"):
        prediction_share(LABELS[:0])
    with pytest.raises(ShapeError, match="whole numbers of shape"):
        accuracy(LABELS, LABELS[:3])


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"k: expected a whole number in 1\.\.3, got 5"):
        top_k_accuracy(LOGITS, LABELS)
    with pytest.raises(RecipeError, match=r"k: expected .* got 0"):
        top_k_accuracy(LOGITS, LABELS, 0)
    with pytest.raises(RecipeError, match=r"batch_size: expected .* got 0"):
        batch_mean_accuracy(LOGITS, LABELS, 0)
    with pytest.raises(RecipeError, match=r"bins: expected .* got 0"):
        expected_calibration_error(LOGITS, LABELS, 0)
    with pytest.raises(RecipeError, match="temperature: expected"):
        mean_entropy(LOGITS, 0.0)
    with pytest.raises(RecipeError, match="threshold: expected"):
        is_collapsed(LOGITS, 90)
