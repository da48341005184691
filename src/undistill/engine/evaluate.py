"""Measure a net on labeled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.data.dataset import Images
from undistill.data.loader import batches
from undistill.victim import asked_once

__all__ = ["PAPER_BATCH", "Evaluation", "ask_all", "evaluate", "predict"]

PAPER_BATCH = 128  # the batch size whose unweighted mean of accuracies the paper's code reports
_BATCH = 1000


@dataclass(frozen=True)
class Evaluation:
    """What a net gets right, and how sure it is.

    Attributes:
        accuracy: Percent of all images, exact.
        batch_mean_accuracy: Percent, the unweighted mean over batches of 128, as the paper's code computes it.
        nll: Mean negative log-likelihood, nats.
        ece: Expected calibration error, 15 bins, in 0..1.
        top_class: The most common answer.
        top_class_share: Its share of all answers, in 0..1.
        collapsed: More than 90 % of the answers are one class.
        aurc: Area under the risk-coverage curve, in 0..1: how wrong the surest answers are.
        non_target_mass: Median probability that is left for the classes that are not named: room for a defense that
            leaves the named class alone, and what soft answers can tell beyond labels.
    """

    accuracy: float
    batch_mean_accuracy: float
    nll: float
    ece: float
    top_class: int
    top_class_share: float
    collapsed: bool
    aurc: float
    non_target_mass: float


@torch.no_grad()
def predict(
    model: nn.Module, images: Images, *, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Tensor:
    """Return the logits of all images in order, shape (N, K), float32, on ``device``; the net's mode is kept."""
    training = model.training
    model.eval()
    try:
        return ask_all(lambda x: model(x).float(), images, mean=mean, std=std, device=device)
    finally:
        model.train(training)


def ask_all(
    ask: Callable[[Tensor], Tensor],
    images: Images,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    rows: Tensor | None = None,
) -> Tensor:
    """Return what ``ask`` says of normalized images (B, C, H, W), joined over all images in order, (N, …).

    Args:
        ask: Such as a victim's ``labels``.
        images: N of them.
        mean: Of each channel, in 0..1.
        std: Of each channel, in 0..1.
        device: Where to compute.
        rows: Which of a thief's images they are, (N,), for a victim whose answers were kept.
    """
    answers = []
    for batch in batches(images, batch_size=_BATCH, mean=mean, std=std, device=device):
        with asked_once(batch.x, rows=None if rows is None else rows[batch.index]):
            answers.append(ask(batch.x))
    return torch.cat(answers)


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Return the metrics of logits (N, K) against labels (N,)."""
    labels = labels.to(logits.device)
    top_class, share = F.prediction_share(logits)
    return Evaluation(
        accuracy=round(100 * F.accuracy(logits, labels), 4),
        batch_mean_accuracy=round(100 * F.batch_mean_accuracy(logits, labels, PAPER_BATCH), 4),
        nll=F.negative_log_likelihood(logits, labels),
        ece=F.expected_calibration_error(logits, labels),
        top_class=top_class,
        top_class_share=share,
        collapsed=F.is_collapsed(logits),
        aurc=F.area_under_risk_coverage(logits, labels),
        non_target_mass=F.non_target_mass(logits),
    )
