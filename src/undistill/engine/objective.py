"""What one training step minimises, and the nets it may look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn, no_grad

from undistill.data.loader import Batch
from undistill.registry import Registry
from undistill.victim import Victim

__all__ = ["Frozen", "Nets", "Objective", "Paper", "StepOutput", "register_in"]


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    venue: str
    year: int
    url: str

    def __str__(self) -> str:
        return f"{self.title} ({self.venue} {self.year}), {self.url}"


@dataclass(frozen=True)
class StepOutput:
    """Result of one step.

    Attributes:
        loss: Scalar with a graph.
        logits: Logits of the trained net, shape (B, K).
        logs: Scalars to average over the epoch, by name; detached by the loop.
    """

    loss: Tensor
    logits: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Frozen(nn.Module):
    """A net that only answers: in eval mode whatever is called, without gradients.

    The forward pass runs under ``no_grad``, not ``inference_mode``: the graph of a loss may save its outputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode: in train mode BatchNorm would follow the batches."""
        super().train(False)
        return self

    @no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        logits: Tensor = self.net(x)
        return logits


@dataclass(frozen=True)
class Nets:
    """The nets of one step.

    Attributes:
        model: The net that is trained.
        adversary: The frozen, normally trained twin of a defense.
        victim: What an attack steals from.
    """

    model: nn.Module
    adversary: Frozen | None = None
    victim: Victim | None = None


class Objective(BaseModel):
    """A training method: frozen hyperparameters and one step.

    Subclasses declare their hyperparameters as fields with ranges, and implement ``step``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]  # its registered name
    paper: ClassVar[Paper | None] = None
    smoke: ClassVar[dict[str, Any]]  # arguments of a quick test run; {} if the defaults do

    @abstractmethod
    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch.

        Args:
            batch: Normalized images (B, C, H, W), labels (B,).
            nets: The nets at hand; those that the method declares are there.
        """

    @property
    def spec(self) -> str:
        """The method as a spec string with every hyperparameter, e.g. ``kd(alpha=0.9, temperature=4.0)``."""
        fields = self.model_dump()
        args = ", ".join(f"{key}={fields[key]!r}" for key in sorted(fields))
        return f"{self.name}({args})" if args else self.name


M = TypeVar("M", bound=type[Objective])


def register_in(registry: Registry[M]) -> Callable[[str], Callable[[M], M]]:
    """Return the class decorator that registers methods in ``registry`` and tells each its name."""

    def register(name: str) -> Callable[[M], M]:
        def decorate(method: M) -> M:
            method.name = name
            return registry.register(name)(method)

        return decorate

    return register
