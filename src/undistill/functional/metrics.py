"""What a classifier's answers are worth, as plain Python numbers.

Rates are fractions in 0..1. Logits of any floating dtype are computed in float32. These functions wait for the device
and check values too: they belong after an epoch, not into a step. For the KL divergence of two nets see
``kl_divergence``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.errors import ShapeError
from undistill.functional._checks import (
    check_count,
    check_labels,
    check_logits,
    check_share,
    check_temperature,
    is_integer,
)
from undistill.functional.losses import cross_entropy

__all__ = [
    "accuracy",
    "agreement",
    "area_under_risk_coverage",
    "batch_mean_accuracy",
    "expected_calibration_error",
    "is_collapsed",
    "mean_entropy",
    "negative_log_likelihood",
    "non_target_mass",
    "prediction_share",
    "top_k_accuracy",
]


def accuracy(logits_or_predictions: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose highest logit is that of their label; the first class wins a tie.

    Args:
        logits_or_predictions: Logits (N, K), or predicted classes (N,).
        labels: Whole numbers in 0..K-1, shape (N,).

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
    """
    return _share(_hits(logits_or_predictions, labels))


def batch_mean_accuracy(logits_or_predictions: Tensor, labels: Tensor, batch_size: int = 128) -> float:
    """Return the unweighted mean of the accuracies of consecutive batches, as the nasty teacher's authors report it.

    A smaller last batch counts as much as a full one: of 10,000 images in batches of 128, the last 16 weigh 8 times
    too much. Use it to compare with the paper's tables only.

    Args:
        logits_or_predictions: Logits (N, K), or predicted classes (N,), in the order of evaluation.
        labels: Whole numbers in 0..K-1, shape (N,).
        batch_size: At least 1.

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
        RecipeError: ``batch_size`` is out of range.
    """
    check_count("batch_size", batch_size)
    batches = torch.split(_hits(logits_or_predictions, labels), batch_size)
    return sum(_share(hits) for hits in batches) / len(batches)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 5) -> float:
    """Return the share of samples whose label is among the k highest logits; the first class wins a tie.

    Args:
        logits: Shape (N, K).
        labels: Whole numbers in 0..K-1, shape (N,).
        k: 1 to K.

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
        RecipeError: ``k`` is out of range.
    """
    _check(logits, labels)
    check_count("k", k, most=logits.shape[1])
    top = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    return _share((top == labels[:, None]).any(dim=1))


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Return the share of samples to which two classifiers give the same answer.

    Args:
        logits_a: Logits (N, K), or predicted classes (N,).
        logits_b: Logits (N, K), or predicted classes (N,), of the same samples.

    Raises:
        ShapeError: The shapes or dtypes do not fit.
    """
    if logits_a.dim() == logits_b.dim() == 2:
        check_logits(logits_a=logits_a, logits_b=logits_b)
    a, b = _predictions(logits_a), _predictions(logits_b)
    if len(a) != len(b):
        raise ShapeError(f"agreement: expected answers to the same samples, got {len(a)} and {len(b)} of them")
    return _share(a == b)


@torch.no_grad()
def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

    Args:
        logits: Shape (N, K).
        labels: Whole numbers in 0..K-1, shape (N,).

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
    """
    _check(logits, labels)
    return float(cross_entropy(logits, labels))


@torch.no_grad()
def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return Σ_m |B_m|/N · |accuracy(B_m) - confidence(B_m)| over bins B_m of equal width.

    The confidence of a sample is its highest probability; bin m holds those in ((m-1)/M, m/M] (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, eq. 3).

    Args:
        logits: Shape (N, K).
        labels: Whole numbers in 0..K-1, shape (N,).
        bins: M, at least 1.

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
        RecipeError: ``bins`` is out of range.
    """
    _check(logits, labels)
    check_count("bins", bins)
    confidence, prediction = F.softmax(logits.float(), dim=1).max(dim=1)
    gaps = (prediction == labels).float() - confidence
    edges = torch.linspace(0, 1, bins + 1, device=logits.device)
    members = F.one_hot(torch.bucketize(confidence, edges[1:-1]), bins)
    return float((gaps[:, None] * members).sum(dim=0).abs().sum()) / len(labels)


@torch.no_grad()
def area_under_risk_coverage(logits: Tensor, labels: Tensor) -> float:
    """Return the AURC: the error rate among the i samples of highest confidence, averaged over all i = 1..N.

    0 for a net without errors; a net whose confidence says nothing has its error rate. Confidence is the highest
    probability, compared where it rounds to 1, too; of equally confident samples every order counts alike (Geifman &
    El-Yaniv, 2019, https://arxiv.org/abs/1805.08206, section 3).

    Args:
        logits: Shape (N, K).
        labels: Whole numbers in 0..K-1, shape (N,).

    Raises:
        ShapeError: Shapes, dtypes or the range of the labels do not fit.
    """
    _check(logits, labels)
    doubt, order = _log_odds_of_others(logits).sort()
    errors = (logits.argmax(dim=1) != labels).cpu()[order].double()
    _, tie, count = torch.unique_consecutive(doubt, return_inverse=True, return_counts=True)
    mean_error = torch.zeros(len(count), dtype=torch.float64).index_add(0, tie, errors) / count
    risk = mean_error[tie].cumsum(0) / torch.arange(1, len(errors) + 1)
    return float(risk.mean())


@torch.no_grad()
def non_target_mass(logits: Tensor) -> float:
    """Return the median over samples of 1 - max softmax: what a classifier says about all classes but its answer.

    It is what soft answers can tell beyond the label. Of confident nets it is far below what 1 - p can express in
    float32 (6e-8), so it is computed from the other classes' logits.

    Args:
        logits: Shape (N, K).

    Raises:
        ShapeError: The shape or dtype does not fit.
    """
    check_logits(logits=logits)
    return float(torch.sigmoid(_log_odds_of_others(logits)).quantile(0.5))


@torch.no_grad()
def mean_entropy(logits: Tensor, temperature: float = 1.0) -> float:
    """Return the mean entropy of softmax(logits/τ), in nats: 0 for certain answers, log K for even ones.

    Args:
        logits: Shape (N, K).
        temperature: τ > 0.

    Raises:
        ShapeError: The shape or dtype does not fit.
        RecipeError: ``temperature`` is out of range.
    """
    check_logits(logits=logits)
    check_temperature(temperature)
    p = F.softmax(logits.float() / temperature, dim=1)
    return float(torch.special.entr(p).sum(dim=1).mean())


def prediction_share(logits_or_predictions: Tensor) -> tuple[int, float]:
    """Return the most common answer and its share of all answers; the first class wins a tie.

    Args:
        logits_or_predictions: Logits (N, K), or predicted classes (N,).

    Raises:
        ShapeError: The shape or dtype does not fit.
    """
    predictions = _predictions(logits_or_predictions)
    answers, counts = torch.unique(predictions, return_counts=True)
    most = int(counts.argmax())
    return int(answers[most]), int(counts[most]) / len(predictions)


def is_collapsed(logits_or_predictions: Tensor, threshold: float = 0.9) -> bool:
    """Tell whether a classifier answers nearly everything with one class: more than ``threshold`` of all answers.

    A student can end there under a τ²-scaled KL divergence at a high temperature. It then says nothing about what the
    victim gives away. Meaningful on samples of which no class has such a share.

    Args:
        logits_or_predictions: Logits (N, K), or predicted classes (N,).
        threshold: In 0..1.

    Raises:
        ShapeError: The shape or dtype does not fit.
        RecipeError: ``threshold`` is out of range.
    """
    check_share("threshold", threshold)
    return prediction_share(logits_or_predictions)[1] > threshold


def _check(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits=logits)
    check_labels(labels, len(logits))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ShapeError(f"labels: expected 0..{logits.shape[1] - 1}, as there are logits, got {low}..{high}")


def _log_odds_of_others(logits: Tensor) -> Tensor:
    """Return log((1 - p)/p) of each sample's highest probability p, on the CPU in float64; the lower, the surer."""
    exact = logits.cpu().float().double()
    top, answer = exact.max(dim=1, keepdim=True)
    return (exact - top).scatter(1, answer, -torch.inf).logsumexp(dim=1)


def _predictions(logits_or_predictions: Tensor) -> Tensor:
    if logits_or_predictions.dim() == 1 and is_integer(logits_or_predictions) and len(logits_or_predictions):
        return logits_or_predictions
    check_logits(logits=logits_or_predictions)
    return logits_or_predictions.argmax(dim=1)


def _hits(logits_or_predictions: Tensor, labels: Tensor) -> Tensor:
    predictions = _predictions(logits_or_predictions)
    if logits_or_predictions.dim() == 2:
        _check(logits_or_predictions, labels)
    else:
        check_labels(labels, len(predictions))
    return predictions == labels


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)  # counted, so exact: a float32 mean is not
