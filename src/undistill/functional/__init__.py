"""Pure functions on tensors: losses, metrics and statistics, in float32 whatever comes in."""

from __future__ import annotations

from undistill.functional.losses import (
    cross_entropy,
    kd_loss,
    kl_divergence,
    label_smoothing_loss,
    self_undermining_loss,
)
from undistill.functional.metrics import (
    accuracy,
    agreement,
    batch_mean_accuracy,
    expected_calibration_error,
    is_collapsed,
    mean_entropy,
    negative_log_likelihood,
    prediction_share,
    top_k_accuracy,
)
from undistill.functional.statistics import Interval, format_interval, mean_interval, wilson_interval

__all__ = [
    "Interval",
    "accuracy",
    "agreement",
    "batch_mean_accuracy",
    "cross_entropy",
    "expected_calibration_error",
    "format_interval",
    "is_collapsed",
    "kd_loss",
    "kl_divergence",
    "label_smoothing_loss",
    "mean_entropy",
    "mean_interval",
    "negative_log_likelihood",
    "prediction_share",
    "self_undermining_loss",
    "top_k_accuracy",
    "wilson_interval",
]
