"""Terms that thieves without data minimise: what a classifier's answers and statistics say of the images it learned.

All take tensors of any floating dtype, compute in float32 and return a float32 scalar.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from undistill.functional._checks import check_logits, check_temperature
from undistill.functional.losses import kl_divergence

__all__ = [
    "activation_loss",
    "batch_norm_loss",
    "centered_log_probs",
    "image_norm",
    "information_entropy_loss",
    "jensen_shannon",
    "one_hot_loss",
    "total_variation",
]


def one_hot_loss(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits against their own most likely class, in nats.

    Small where the classifier is sure (Chen et al., 2019, https://arxiv.org/abs/1904.01186, eq. 2).

    Args:
        logits: (B, K).

    Raises:
        ShapeError: They are not of that shape.
    """
    check_logits(logits=logits)
    return F.cross_entropy(logits.float(), logits.detach().argmax(dim=1))


def information_entropy_loss(logits: Tensor) -> Tensor:
    """Return Σ_k p̄_k log₁₀ p̄_k, where p̄ is the mean of the probabilities over the batch: -log₁₀ K to 0.

    Least where all classes occur alike (Chen et al., 2019, https://arxiv.org/abs/1904.01186, eq. 4).

    Args:
        logits: (B, K).

    Raises:
        ShapeError: They are not of that shape.

    Notes:
        Paper vs code: the paper divides by K and leaves the logarithm's base open; the authors' code takes the decimal
        logarithm and does not divide, and its weights are tuned for that, so this does the same.
    """
    check_logits(logits=logits)
    # In log space: a class that no image of the batch has underflows otherwise, and log 0 has no gradient.
    log_mean = F.log_softmax(logits.float(), dim=1).logsumexp(dim=0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum() / math.log(10)


def activation_loss(features: Tensor) -> Tensor:
    """Return minus the mean absolute feature.

    Images like those that a net was trained on excite it (Chen et al., 2019, https://arxiv.org/abs/1904.01186, eq. 3).

    Args:
        features: Any shape, such as (B, D).

    Notes:
        Paper vs code: the paper sums over a sample's features; the authors' code takes the mean, as here.
    """
    return -features.float().abs().mean()


def batch_norm_loss(mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return ‖mean - running_mean‖₂ + ‖var - running_var‖₂ of one BatchNorm layer: 0 where they agree.

    (Yin et al., CVPR 2020, https://arxiv.org/abs/1912.08795, eq. 4.)

    Args:
        mean: Over the batch, (C,).
        var: Over the batch, (C,).
        running_mean: As the layer keeps it, (C,).
        running_var: As the layer keeps it, (C,).
    """
    return _norm(mean.float() - running_mean.float()) + _norm(var.float() - running_var.float())


def image_norm(x: Tensor) -> Tensor:
    """Return ‖x‖₂ over a whole batch.

    Args:
        x: Images (B, C, H, W).
    """
    return _norm(x.float())


def total_variation(x: Tensor) -> Tensor:
    """Return how much neighbors differ: Σ ‖x - shifted x‖₂ over the four directions right, down and both diagonals.

    (Mahendran and Vedaldi, CVPR 2015, https://arxiv.org/abs/1412.0035; in the form of Yin et al., 2020, whose weights
    are for one norm over the whole batch.)

    Args:
        x: Images (B, C, H, W).
    """
    x = x.float()
    steps = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([_norm(step) for step in steps]).sum()


def jensen_shannon(logits_p: Tensor, logits_q: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean Jensen-Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2, in nats: 0 to log 2.

    p and q are softmax at temperature τ (Yin et al., CVPR 2020, https://arxiv.org/abs/1912.08795, eq. 9).

    Args:
        logits_p: (B, K).
        logits_q: (B, K).
        temperature: τ > 0.

    Raises:
        ShapeError: The shapes do not fit.
        RecipeError: ``temperature`` is out of range.
    """
    check_logits(logits_p=logits_p, logits_q=logits_q)
    check_temperature(temperature)
    log_p, log_q = (F.log_softmax(z.float() / temperature, dim=1) for z in (logits_p, logits_q))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)  # log-probabilities are logits of themselves
    return (kl_divergence(log_p, log_m) + kl_divergence(log_q, log_m)) / 2


def centered_log_probs(probs: Tensor) -> Tensor:
    """Return log p - mean_k log p: the logits behind probabilities, up to a constant, which is taken to be their mean.

    (Truong et al., CVPR 2021, https://arxiv.org/abs/2011.14779, section 3.4.) Probabilities below the smallest normal
    float32, 1.2e-38, are taken for that, so that a zero has a logarithm. The authors' code takes logarithms of the
    victim's own softmax, which has no such floor.

    Args:
        probs: (B, K), each in 0..1.
    """
    log = probs.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    return log - log.mean(dim=1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm, whose gradient at zero is zero."""
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm
