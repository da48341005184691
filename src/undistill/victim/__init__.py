"""The victim: a teacher as an attacker meets it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undistill.errors import AccessError, ShapeError
from undistill.models.features import logits_and_features, logits_and_output

__all__ = ["Access", "BatchStatistics", "Victim", "WhiteBox", "asked_about", "asked_once"]


class Access(enum.IntEnum):
    """What a victim gives away, from weak to strong; each level includes those before it."""

    LABELS = 0
    PROBS = 1
    LOGITS = 2
    FEATURES = 3
    GRADIENTS = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class BatchStatistics:
    """What flows into one BatchNorm layer, and what did while the victim was trained; each is of shape (C,).

    Attributes:
        mean: Mean over the batch, with a graph.
        var: Variance over the batch (divided by the count, as BatchNorm normalizes), with a graph.
        running_mean: Mean that the layer keeps.
        running_var: Variance that the layer keeps.
    """

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


@dataclass(frozen=True)
class WhiteBox:
    """An answer that gradients flow through, back to the images.

    Attributes:
        logits: (B, K), float32.
        features: Input of the last layer, (B, D).
        statistics: Of every BatchNorm layer, in the order in which they run; empty unless asked for.
    """

    logits: Tensor
    features: Tensor
    statistics: tuple[BatchStatistics, ...] = ()


Pixels = tuple[Sequence[float], Sequence[float]]

# The least probability whose logarithm is given away: what float32 can still tell from nothing.
_FLOOR = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _AtHand:
    """The tensor that victims are asked about once, the logits that they have given for it, and which images it is."""

    x: Tensor
    answers: dict[object, Tensor]
    rows: Tensor | None


_at_hand: ContextVar[_AtHand | None] = ContextVar("_at_hand", default=None)


@contextmanager
def asked_once(
    x: Tensor, answers: Mapping[object, Tensor] | None = None, *, rows: Tensor | None = None
) -> Iterator[None]:
    """Have a victim compute its answer about one tensor once, whoever asks inside, however often.

    Each thief has his own copy of the answer, and his own meter counts each of his questions. Nobody writes to the
    tensor inside: it is known by what it is, not by what is in it.

    Args:
        x: What the thieves of a group will ask about, such as the images of their batch.
        answers: What ``Victim.write_answer`` has written about these images.
        rows: Which of a thief's images they are, int64 (B,), for a victim whose answers were kept.
    """
    before = _at_hand.set(_AtHand(x, dict(answers or {}), rows))
    try:
        yield
    finally:
        _at_hand.reset(before)


def asked_about(x: Tensor) -> Tensor | None:
    """Return which of a thief's images a tensor is of, as ``asked_once`` was told; None if it was not."""
    at_hand = _at_hand.get()
    return at_hand.rows if at_hand is not None and at_hand.x is x else None


class Victim:
    """A frozen classifier behind an access level and a query meter.

    Args:
        model: The classifier, logits of shape (B, K) from normalized images (B, C, H, W).
        access: The strongest answer that an attacker may have.
        trained_on: Mean and standard deviation (per channel, of pixels in 0..1) that the classifier expects.
        queried_with: Mean and standard deviation of the images that it is asked about. Where the two differ, queries
            are normalized anew.
        policy: Output defense, from probabilities (B, K) and the images that they are about to probabilities (B, K);
            None for none. ``labels``, ``probs`` and ``logits`` are what it lets out. ``features`` and ``white_box``
            pass it by: the first are no probabilities, and whoever has the weights answers himself. A recipe refuses
            a policy together with access to the gradients, as it would protect nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        access: Access = Access.LOGITS,
        trained_on: Pixels | None = None,
        queried_with: Pixels | None = None,
        policy: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._policy = policy
        self._affine = _affine(queried_with, trained_on)
        self._affine_on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._computes: tuple[object, object] = object(), None  # which classifier, and how: equal for equal answers
        self._meter = [0]
        self.access = access

    @property
    def queries(self) -> int:
        """Number of images asked about so far."""
        return self._meter[0]

    @queries.setter
    def queries(self, count: int) -> None:
        self._meter[0] = count

    def another(self) -> Victim:
        """Return the same victim as another thief meets it: with a query meter of its own."""
        twin = copy(self)
        twin._meter = [0]
        return twin

    def undefended(self) -> Victim:
        """Return the same victim as its owner knows it: giving logits without any policy, with a meter of its own."""
        twin = self.another()
        twin._policy, twin.access = None, max(self.access, Access.LOGITS)
        return twin

    def computed_by(self, rebuild: Callable[[nn.Module], nn.Module], how: object = None) -> Victim:
        """Return the same victim, with the same meter, its classifier rebuilt to answer the same in less time.

        Under ``asked_once`` it shares answers with those that were rebuilt to compute in the same way, ``how``.
        """
        twin = copy(self)
        twin._model = rebuild(self._model)
        twin._computes = self._computes[0], how if how is not None else self._computes[1]
        return twin

    def write_answer(self, x: Tensor, answers: dict[object, Tensor]) -> None:
        """Write the logits of a tensor to where they were written before; no meter counts it.

        A captured step reads them there under ``asked_once``, with whatever access and policy then make of them.
        """
        logits = self._logits(x)
        answers.setdefault(self._computes, torch.empty_like(logits)).copy_(logits)

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

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the classifier's weights and buffers, for a thief who has the file itself.

        Raises:
            AccessError: The victim gives less than its gradients.
        """
        self._open()
        return {name: value.clone() for name, value in self._model.state_dict().items()}

    @property
    def same_pixels(self) -> bool:
        """Whether the classifier takes images normalized as they are asked about."""
        return self._affine is None

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted classes (B,), int64; with a policy, the first of the most probable that it lets out."""
        return self._answer(x, Access.LABELS).argmax(dim=1)

    def probs(self, x: Tensor) -> Tensor:
        """Return the class probabilities (B, K) at temperature 1, float32."""
        answer = self._answer(x, Access.PROBS)
        return answer.softmax(dim=1) if self._policy is None else answer

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, K), float32.

        With a policy they are the natural logarithms of the probabilities that it lets out, with the least normal
        number of float32 for whatever is smaller: no logarithm is of zero, and their softmax is ``probs`` again.
        """
        answer = self._answer(x, Access.LOGITS)
        return answer if self._policy is None else answer.clamp(min=_FLOOR).log()

    def scores(self, x: Tensor) -> Tensor:
        """Return what answers can be softened by, (B, K), float32: softmax(scores/τ), the same for all that give probs.

        They are the logits where these are given, else the logarithms of the probabilities, which differ from them by a
        number an image.
        """
        if self.access >= Access.LOGITS:
            return self.logits(x)
        return self.probs(x).clamp(min=_FLOOR).log()

    @torch.no_grad()
    def features(self, x: Tensor, layer: str = "") -> Tensor:
        """Return what one of the classifier's modules answers on the way, (B, D), float32.

        Each question counts, also where the logits of the same images were asked for. No policy changes features.

        Args:
            x: Normalized images (B, C, H, W).
            layer: Name of the module; ``""`` for the input of the last layer.

        Raises:
            AccessError: The victim gives less than its features.
            ShapeError: The classifier has no last linear layer, or the module did not run.
            UnknownNameError: The classifier has no such module.
        """
        self._allow(Access.FEATURES)
        self.queries += len(x)
        return logits_and_output(self._model, self._renormalize(x), layer)[1].float()

    @property
    def has_statistics(self) -> bool:
        """Whether the classifier has BatchNorm layers that keep statistics."""
        return bool(self._norms())

    def white_box(self, x: Tensor, *, statistics: bool = False) -> WhiteBox:
        """Return the answer with everything that a thief who holds the weights can see; gradients flow to ``x`` only.

        It is the classifier's own answer, whatever the policy: that is no part of the weights. They and the statistics
        that the layers keep stay as they are.

        Args:
            x: Normalized images (B, C, H, W).
            statistics: Whether those of the BatchNorm layers are wanted.

        Raises:
            AccessError: The victim gives less than its gradients.
            ShapeError: The classifier has no last linear layer.
        """
        self._open()
        self.queries += len(x)
        found: list[BatchStatistics] = []
        with ExitStack() as hooks:
            for norm in self._norms() if statistics else ():
                hooks.callback(norm.register_forward_pre_hook(_listen(found)).remove)
            logits, features = logits_and_features(self._model, self._renormalize(x))
        return WhiteBox(logits.float(), features, tuple(found))

    def _open(self) -> None:
        self._allow(Access.GRADIENTS)

    def _allow(self, access: Access) -> None:
        if access > self.access:
            raise AccessError(f"the victim gives {self.access}, not {access}")

    def _norms(self) -> list[_BatchNorm]:
        norms = (module for module in self._model.modules() if isinstance(module, _BatchNorm))
        return [norm for norm in norms if norm.running_mean is not None]

    @torch.no_grad()
    def _answer(self, x: Tensor, access: Access) -> Tensor:
        """Return the logits (B, K) or, where there is a policy, the probabilities that it lets out."""
        self._allow(access)
        self.queries += len(x)
        logits = self._logits(x)
        if self._policy is None:
            return logits
        defended = self._policy(logits.softmax(dim=1), x)
        if defended.shape != logits.shape:
            raise ShapeError(
                f"the policy answers {tuple(defended.shape)} to probabilities {tuple(logits.shape)}; "
                "it must keep their shape"
            )
        return defended.float()

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        at_hand = _at_hand.get()
        if at_hand is None or x is not at_hand.x:
            return self._model(self._renormalize(x)).float()  # type: ignore[no-any-return]
        if self._computes not in at_hand.answers:
            at_hand.answers[self._computes] = self._model(self._renormalize(x)).float()
        return at_hand.answers[self._computes].clone()  # whoever gets it may write to it

    def _renormalize(self, x: Tensor) -> Tensor:
        if self._affine is None:
            return x
        if x.device not in self._affine_on:  # once a device: a copy from the host at every query would stall it
            scale, shift = self._affine
            self._affine_on[x.device] = scale.to(x.device), shift.to(x.device)
        scale, shift = self._affine_on[x.device]
        return (x * scale + shift).to(x.dtype)


def _listen(found: list[BatchStatistics]) -> Callable[[_BatchNorm, tuple[Tensor, ...]], None]:
    """Return a hook that takes note of what flows into a BatchNorm layer."""

    def note(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if norm.running_mean is None or norm.running_var is None:
            return
        x = inputs[0].float()
        var, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
        found.append(BatchStatistics(mean, var, norm.running_mean, norm.running_var))

    return note


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
