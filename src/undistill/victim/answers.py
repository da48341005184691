"""What answers must be, before anybody learns from them."""

from __future__ import annotations

import torch
from torch import Tensor

from undistill.errors import RunError

__all__ = ["check_answers"]

_OFF = 1e-3  # what rounding may do to a sum or a probability


def check_answers(first: Tensor, again: Tensor, whose: str) -> None:
    """Refuse answers that are no probabilities, or others when the same is asked again.

    Args:
        first: Answers (N, K) to some images.
        again: Answers to the same images.
        whose: Who answers, in words.

    Raises:
        RunError: It says what is wrong, with how many of the images.
    """
    wrong = {
        "are not finite numbers": ~torch.isfinite(first).all(1),
        "have negative values": (first < 0).any(1),
        f"do not sum to 1 (by more than {_OFF:g})": (first.sum(1) - 1).abs() > _OFF,
        "differ when the same image is asked about again": ((first - again).abs() > _OFF).any(1),
    }
    for what, rows in wrong.items():
        if bool(rows.any()):
            at = int(rows.nonzero()[0, 0])
            raise RunError(
                f"{whose}: of the answers to {len(first)} test images {int(rows.sum())} {what}, first that to image "
                f"{at}; expected one probability a class, a function of the image alone: correct the classifier or its "
                "policy"
            )
