"""What one training step minimises, and the nets it may look at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn, no_grad

from undistill.data.dataset import Frame, Images
from undistill.data.loader import Batch
from undistill.errors import RecipeError
from undistill.problems import describe
from undistill.registry import Registry, Spec
from undistill.victim import Access, Victim

__all__ = [
    "Companion",
    "Configured",
    "Frozen",
    "Nets",
    "Objective",
    "Paper",
    "Range",
    "Search",
    "StepOutput",
    "optimizer_tensors",
    "register_in",
    "restore_optimizer",
    "under",
]


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
        labels: Classes (B,) that the logits are counted against; None for those of the batch.
    """

    loss: Tensor
    logits: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None


@dataclass(frozen=True)
class Range:
    """Numbers that a search may try for a hyperparameter, both ends among them.

    Attributes:
        low: Above 0 where ``log``.
        high: Above ``low``.
        log: Whether what is in the middle is the geometric mean, as of temperatures and rates.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' * self.log}"

    def at(self, share: float) -> float:
        """Return the number that lies at a share, 0 to 1, of the way from low to high; to three digits."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = ends[0] + (ends[1] - ends[0]) * share
        return float(f"{math.exp(value) if self.log else value:.3g}")


Search = Mapping[str, Range | tuple[Any, ...]]
"""What a search may try, by hyperparameter: a range of numbers, or some values."""


class Companion(ABC):
    """What a method trains or remembers beside the net: a generator, a bank of images.

    It is saved and restored with the run, so all that later steps depend on is in its state.
    """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return its state; no two names share memory that is written to."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned, from the CPU."""

    def pace(self, share: float) -> None:  # noqa: B027 - not all follow
        """Learn, before every step, the net's learning rate as a share of the recipe's ``lr``; by default, ignore it.

        A method whose own optimizer is to follow the schedule multiplies its rate by it.
        """

    def gallery(self) -> Images | None:
        """Return some of the images that it made, with the victim's labels; None if it makes none."""
        return None


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
        companion: What ``Objective.companion`` returned.
        modules: What ``Objective.modules`` returned, by name; trained together with ``model``.
        held_out: The held-out part of the training images, on the device, which no net learns from; may be empty.
    """

    model: nn.Module
    adversary: Frozen | None = None
    victim: Victim | None = None
    companion: Companion | None = None
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict, compare=False)
    held_out: Images | None = field(default=None, compare=False)


class Configured(BaseModel):
    """What a recipe chooses by a spec: a name and frozen hyperparameters, each a field with a range and a description.

    Attributes:
        paper: Where it comes from.
        added: Hyperparameters that came later, with the values at which it is what it was before; left out of the spec
            then, so that older runs keep their names.
        search: What a search may try, by hyperparameter: a range of numbers, or some values. What is not in it stays as
            it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]  # its registered name
    paper: ClassVar[Paper | None] = None
    added: ClassVar[dict[str, Any]] = {}
    search: ClassVar[Search] = {}
    smoke: ClassVar[dict[str, Any]]  # arguments of a quick test run; {} if the defaults do

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Return the member of this class that a spec describes.

        Raises:
            RecipeError: Unknown hyperparameters or values out of range; every problem at once.
        """
        try:
            return cls(**spec.kwargs)
        except ValidationError as error:
            raise RecipeError([f"{spec.name}: {problem}" for _, problem in describe(error, cls)]) from error

    @property
    def spec(self) -> str:
        """The member as a spec string with every hyperparameter, e.g. ``kd(alpha=0.9, temperature=4.0)``."""
        fields = {key: value for key, value in self.model_dump().items() if self.added.get(key, ...) != value}
        args = ", ".join(f"{key}={fields[key]!r}" for key in sorted(fields))
        return f"{self.name}({args})" if args else self.name


class Objective(Configured):
    """A training method: frozen hyperparameters and one step.

    Subclasses declare their hyperparameters as fields with ranges, what they are and need as class variables, and
    implement ``step``.

    Attributes:
        kind: What the method is for.
        access: The least that it needs of a victim.
        uses_labels: It needs the true labels of its images.
        partial_labels: Those of some of them will do, or none: it sees to images without one.
        textbook: It is what a thief does who knows of no defense; any other attack is an adaptive one.
        needs_adversary: It moves away from a frozen, normally trained twin.
        uses_targets: It can look at images of other domains, ``batch.targets``.
        images: What the batches are of: ``train``, the training set; ``synthetic``, a set that ``synthesize`` draws
            before training; ``none``, nothing: batches have a shape only, and the step makes its own images. Only with
            ``train`` does a method get to see the training set.
    """

    kind: ClassVar[Literal["reference", "defense", "attack"]]
    access: ClassVar[Access] = Access.LABELS
    uses_labels: ClassVar[bool] = True
    partial_labels: ClassVar[bool] = False
    textbook: ClassVar[bool] = False
    needs_adversary: ClassVar[bool] = False
    uses_targets: ClassVar[bool] = False
    images: ClassVar[Literal["train", "synthetic", "none"]] = "train"

    @abstractmethod
    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch.

        Args:
            batch: Normalized images (B, C, H, W), labels (B,); never written to, as others train on it too.
            nets: The nets at hand; those that the method declares are there.
        """

    def begin(self, nets: Nets, frame: Frame) -> None:
        """Give ``nets.model`` the weights that training starts from, where they are not its own random ones.

        Torch's generators are seeded. A run that goes on takes its saved weights afterwards.
        """

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Companion | None:
        """Return what ``step`` finds in ``nets.companion``, made anew; torch's generators are seeded.

        A step may train it: its own backward pass, its own optimizer. Only the net's loss is the engine's.
        """
        return None

    def modules(self, nets: Nets, frame: Frame) -> nn.ModuleDict | None:
        """Return what is trained together with the net and thrown away afterwards: regressors, adapters, projectors.

        ``step`` finds it in ``nets.modules``. The recipe's optimizer takes its parameters as it takes the net's, after
        them; it is saved and restored with the run. Torch's generators are seeded. What trains itself, by an optimizer
        of its own, is a ``companion``.

        Args:
            nets: The nets at hand, on the device; to be left as they are.
            frame: Of the images, to try the nets with.

        Returns:
            Modules by name, on any device; None for none.
        """
        return None

    def steps_per_epoch(self) -> int:
        """Return the number of batches that make an epoch where ``images`` is ``none``."""
        raise NotImplementedError(f"{self.name} sees no images and does not say how many steps make an epoch")

    def synthesize(self, nets: Nets, frame: Frame, drawn: Images, device: torch.device) -> Images | None:
        """Return the next batch of the set to train on, where ``images`` is ``synthetic``; None if the set is whole.

        Args:
            nets: The nets at hand; to be left as they are.
            frame: Of the images.
            drawn: The set as far as it is, on the CPU. The result depends on it and on torch's generators, which are
                seeded, and on nothing else.
            device: Where to compute.
        """
        raise NotImplementedError(f"{self.name} declares a synthetic set and does not draw it")


M = TypeVar("M", bound=type[Configured])


def register_in(registry: Registry[M]) -> Callable[[str], Callable[[M], M]]:
    """Return the class decorator that registers classes in ``registry`` and tells each its name."""

    def register(name: str) -> Callable[[M], M]:
        def decorate(member: M) -> M:
            member.name = name
            return registry.register(name)(member)

        return decorate

    return register


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of its parameters."""
    slots = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value
        for index, slot in slots.items()
        for name, value in slot.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer what ``optimizer_tensors`` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it: one part of a state."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
