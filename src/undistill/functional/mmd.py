"""How far two samples are apart: the maximum mean discrepancy with Gaussian kernels of several widths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from undistill.errors import RecipeError, ShapeError

__all__ = ["WIDTHS", "mmd"]

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

# The smallest normal number: below it 1/width overflows.
_TINY = torch.finfo(torch.float32).tiny


def mmd(x: Tensor, y: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, summed over Gaussian kernels.

    Σ_w [mean k_w(x, x') + mean k_w(y, y') - 2 mean k_w(x, y)] with k_w(a, b) = exp(-‖a - b‖² / (w d)), where d is the
    mean squared distance of two different rows of both samples together, through which no gradient flows. The means
    are over all pairs, a row and itself among them: the biased estimate, which is never negative (Gretton et al.,
    2012, https://jmlr.org/papers/v13/gretton12a.html, eq. 5; the widths are those of Long et al., ICML 2015, as the
    authors of non-transferable learning use them).

    Args:
        x: Floats (N, D), N at least 1.
        y: Floats (M, D), M at least 1.
        widths: Factors w > 0 on d, one a kernel.

    Returns:
        Scalar, float32, in 0..2 times the number of kernels, up to rounding (some 1e-6). Zero for equal samples.

    Raises:
        ShapeError: The samples are not (N, D) and (M, D) floats, or one is empty.
        RecipeError: A width is not a finite number above 0, or there is none.
    """
    _check(x, y, widths)
    both = torch.cat([x.float(), y.float()])
    both = both - both.detach().mean(dim=0)  # distances stay, and what rounding takes from them gets small
    norms = both.square().sum(dim=1)
    distances = (norms[:, None] + norms[None, :] - 2 * both @ both.T).clamp_min(0)
    distances = distances * (1 - torch.eye(len(both), device=both.device))  # a narrow kernel would see the rounding
    n = len(x)
    mean_distance = distances.detach().sum() / max(len(both) * (len(both) - 1), 1)
    total = distances.new_zeros(())
    for width in widths:
        kernel = torch.exp(-distances / (width * mean_distance).clamp_min(_TINY))
        total = total + kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return total


def _check(x: Tensor, y: Tensor, widths: Sequence[float]) -> None:
    for name, sample in (("x", x), ("y", y)):
        if sample.dim() != 2 or not len(sample) or not sample.is_floating_point():
            raise ShapeError(f"{name}: expected floats of shape (N, D), not empty, got {tuple(sample.shape)}")
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"the samples have {x.shape[1]} and {y.shape[1]} columns; expected the same number")
    if not widths or not all(0 < width < math.inf for width in widths):
        raise RecipeError(f"widths: expected finite numbers > 0, one or more, got {tuple(widths)}")
