"""The victim: a teacher as an attacker meets it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor, nn

from undistill.errors import AccessError

__all__ = ["Access", "Victim"]


class Access(enum.IntEnum):
    """What a victim gives away, from weak to strong; each level includes those before it."""

    LABELS = 0
    PROBS = 1
    LOGITS = 2
    FEATURES = 3
    GRADIENTS = 4

    def __str__(self) -> str:
        return self.name.lower()


Pixels = tuple[Sequence[float], Sequence[float]]


class Victim:
    """A frozen classifier behind an access level and a query meter.

    Args:
        model: The classifier, logits of shape (B, K) from normalized images (B, C, H, W).
        access: The strongest answer that an attacker may have.
        trained_on: Mean and standard deviation (per channel, of pixels in 0..1) that the classifier expects.
        queried_with: Mean and standard deviation of the images that it is asked about. Where the two differ, queries
            are normalized anew.
        policy: Output transform, logits (B, K) to logits (B, K), applied to every answer; None for none.

    Attributes:
        queries: Number of images asked about so far.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        access: Access = Access.LOGITS,
        trained_on: Pixels | None = None,
        queried_with: Pixels | None = None,
        policy: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._policy = policy
        self._affine = _affine(queried_with, trained_on)
        self._affine_on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._last = _Last()
        self.access = access
        self.queries = 0

    def another(self) -> Victim:
        """Return the same victim as another thief meets it: with a query meter of its own.

        Where both ask about the same tensor, one after the other, the classifier computes once for both.
        """
        twin = copy(self)
        twin.queries = 0
        return twin

    def require(self, access: Access, attack: str) -> None:
        """Refuse an attack that needs more than this victim gives.

        Raises:
            AccessError: ``access`` is above the victim's level.
        """
        if access > self.access:
            raise AccessError(
                f"attack {attack!r} needs the victim's {access}, but it gives {self.access}; "
                f"choose an attack that needs no more than {self.access}, or declare access={access}"
            )

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted classes (B,), int64."""
        return self._answer(x, Access.LABELS).argmax(dim=1)

    def probs(self, x: Tensor) -> Tensor:
        """Return the class probabilities (B, K) at temperature 1, float32."""
        return self._answer(x, Access.PROBS).softmax(dim=1)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, K), float32."""
        return self._answer(x, Access.LOGITS)

    @torch.no_grad()
    def _answer(self, x: Tensor, access: Access) -> Tensor:
        if access > self.access:
            raise AccessError(f"the victim gives {self.access}, not {access}")
        self.queries += len(x)
        logits = self._last.answer(x, lambda: self._model(self._renormalize(x)).float())
        return logits if self._policy is None else self._policy(logits)

    def _renormalize(self, x: Tensor) -> Tensor:
        if self._affine is None:
            return x
        if x.device not in self._affine_on:  # once a device: a copy from the host at every query would stall it
            scale, shift = self._affine
            self._affine_on[x.device] = scale.to(x.device), shift.to(x.device)
        scale, shift = self._affine_on[x.device]
        return (x * scale + shift).to(x.dtype)


class _Last:
    """The last answer, for whoever asks about the very same tensor next."""

    def __init__(self) -> None:
        self._asked: tuple[Tensor, int, Tensor] | None = None

    def answer(self, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        # A tensor that was written to has another version; one made under inference mode has none, so it may have been.
        version = None if x.is_inference() else x._version
        if self._asked is not None and self._asked[0] is x and self._asked[1] == version:
            return self._asked[2]
        logits = compute()
        if version is not None:
            self._asked = x, version, logits
        return logits


def _affine(source: Pixels | None, target: Pixels | None) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift (C, 1, 1) that take images normalized by ``source`` to those normalized by ``target``."""
    if source is None or target is None:
        return None
    (mean_s, std_s), (mean_t, std_t) = (
        tuple(torch.tensor(list(v), dtype=torch.float64) for v in pixels) for pixels in (source, target)
    )
    if torch.equal(mean_s, mean_t) and torch.equal(std_s, std_t):
        return None
    return (std_s / std_t).float()[:, None, None], ((mean_s - mean_t) / std_t).float()[:, None, None]
