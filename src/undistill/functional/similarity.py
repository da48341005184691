"""How alike two nets represent the same samples."""

from __future__ import annotations

import torch
from torch import Tensor

from undistill.errors import ShapeError

__all__ = ["linear_cka"]


@torch.no_grad()
def linear_cka(a: Tensor, b: Tensor) -> float:
    """Return the linear centered kernel alignment ‖B̄ᵀĀ‖² / (‖ĀᵀĀ‖ ‖B̄ᵀB̄‖), Frobenius norms of centered columns.

    It is 1 for representations that are equal up to a rotation, a reflection, a shift and one scale, and does not
    change with those. Where one of the two is the same for all samples, nothing is shared, and it is 0 (Kornblith et
    al., 2019, https://arxiv.org/abs/1905.00414, section 3). Computed in float64: it is a ratio of fourth powers.

    Args:
        a: Representation of N >= 2 samples, floating point (N, D).
        b: Another one of the same samples, floating point (N, E).

    Returns:
        In 0..1, up to rounding.

    Raises:
        ShapeError: The shapes or dtypes do not fit.
    """
    for name, x in (("a", a), ("b", b)):
        if x.dim() != 2 or len(x) < 2 or x.shape[1] == 0 or not x.is_floating_point():
            raise ShapeError(
                f"{name}: expected floating-point values of shape (N, D) for two samples or more, "
                f"got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
            )
    if len(a) != len(b):
        raise ShapeError(f"linear_cka: expected the same samples twice, got {len(a)} and {len(b)} of them")
    a, b = (_center(x.double()) for x in (a, b))
    scale = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    if scale == 0:
        return 0.0
    return float(torch.linalg.matrix_norm(b.T @ a) ** 2 / scale)


def _center(x: Tensor) -> Tensor:
    """Subtract the mean of each column; of equal values exactly zero is left, whatever the mean is rounded to."""
    shifted = x - x[:1]
    return shifted - shifted.mean(dim=0)
