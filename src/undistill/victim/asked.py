"""A victim that was asked: its answers about a thief's images, kept, so that nobody asks or pays again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from undistill.errors import AccessError
from undistill.victim import Access, Victim, asked_about

__all__ = ["Asked"]


class Asked(Victim):
    """The answers of a victim about a set of images, in the place of the victim.

    It answers about batches of these images as they were when it was asked, however a thief has moved or mirrored them
    since. Its meter stands at one query an image.

    Args:
        answers: Classes (N,), int64, where the victim gives labels; probabilities or logits (N, K), float32.
        access: What they are: ``labels``, ``probs`` or ``logits``.
    """

    def __init__(self, answers: Tensor, access: Access) -> None:
        super().__init__(nn.Identity(), access=access)
        self._answers = answers
        self.queries = len(answers)

    @classmethod
    def of(cls, victim: Victim, ask_all: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Asked:
        """Ask a victim and keep what it says.

        Args:
            victim: Gives ``logits`` or more, ``probs``, or ``labels``: the best of these is kept.
            ask_all: Calls a function with all images, batch by batch, and joins what it returns.
        """
        access = min(victim.access, Access.LOGITS)
        ask = {Access.LABELS: victim.labels, Access.PROBS: victim.probs, Access.LOGITS: victim.logits}[access]
        return cls(ask_all(ask), access)

    @property
    def answers(self) -> Tensor:
        """What was kept."""
        return self._answers

    @property
    def named(self) -> Tensor:
        """The class that each answer names, (N,)."""
        return self._answers if self.access == Access.LABELS else self._answers.argmax(dim=1)

    def another(self) -> Victim:
        """Return the same answers as another thief has them, who asked for them too."""
        twin = super().another()
        twin.queries = len(self._answers)
        return twin

    def computed_by(self, rebuild: Callable[[nn.Module], nn.Module], how: object = None) -> Victim:
        """Return itself: nothing is computed."""
        return self

    def labels(self, x: Tensor) -> Tensor:
        """Return the classes that were named, (B,), int64."""
        answer = self._answer(x, Access.LABELS)
        return answer if self.access == Access.LABELS else answer.argmax(dim=1)

    def probs(self, x: Tensor) -> Tensor:
        """Return the class probabilities that were given, (B, K), float32."""
        answer = self._answer(x, Access.PROBS)
        return answer if self.access == Access.PROBS else answer.softmax(dim=1)

    @torch.no_grad()
    def _answer(self, x: Tensor, access: Access) -> Tensor:
        self._allow(access)
        rows = asked_about(x)
        if rows is None:
            raise AccessError(
                "the victim's answers are kept and its queries are spent: it says nothing of images that are no batch "
                "of the thief's own; leave out queries to ask anew at every step"
            )
        return self._answers[rows]
