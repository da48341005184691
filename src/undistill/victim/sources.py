"""Where a victim, or the frozen twin of a defense, comes from.

A recipe is a source too: its net is trained first. Every other one is a class here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import nn

from undistill.code import check_code
from undistill.errors import CheckpointError
from undistill.identity import source_of
from undistill.models import check_model_spec, maker_of
from undistill.models.checkpoints import checksum_of, import_checkpoint, load_weights
from undistill.problems import checked_spec
from undistill.registry import Spec
from undistill.storage import sha256_of
from undistill.victim import Access

__all__ = ["Build", "Given", "Source", "Weights"]

Build = Callable[[str], nn.Module]
"""Returns an untrained net of a model spec, for the images and classes that it will be asked about."""


class Source(Protocol):
    """What a net comes from that others learn from."""

    @property
    def key(self) -> str:
        """What identifies it: equal for two that stand for the same net, or for repetitions of it over seeds."""

    @property
    def label(self) -> str:
        """What it is called where people read."""

    @property
    def gives(self) -> Access:
        """The most that can be had of it; a recipe may declare less, and not more."""


class Given(Source, Protocol):
    """A source that is there: nothing is trained for it."""

    @property
    def checksum(self) -> str:
        """What a result that builds on it notes of it, and a saved state holds it to."""

    def load(self, build: Build) -> nn.Module:
        """Return the net in eval mode, logits (B, K) from images (B, C, H, W).

        Args:
            build: Makes the net that weights are loaded into.

        Raises:
            CheckpointError: It cannot be read, or is not what it was.
        """


class Weights(BaseModel):
    """A trained net that no recipe of ours made: a checkpoint, or a module handed over in Python.

    Attributes:
        model: Model spec that the weights fit.
        checkpoint: Path of a ``.safetensors`` or PyTorch file; not part of the hash.
        sha256: Of the file, read from it where it is not given; of a module, its ``identity.digest_of``.
        code: As of a recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    checkpoint: str | None = None
    sha256: str
    code: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_checksum(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("checkpoint") and not values.get("sha256"):
            path = Path(str(values["checkpoint"]))
            if not path.is_file():
                raise ValueError(f"no checkpoint at {str(path)!r}")
            return {**values, "sha256": sha256_of(path)}
        return values

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> str:
        return checked_spec(value, Spec.parse, check_model_spec)

    @model_validator(mode="after")
    def _note_code(self) -> Self:
        if "code" not in self.model_fields_set:
            object.__setattr__(self, "code", source_of([maker_of(self.model)]))
        return self

    @property
    def key(self) -> str:
        """What identifies them."""
        return "-".join(("weights", self.sha256, *self.code))

    @property
    def label(self) -> str:
        """The model, and the beginning of the checksum."""
        return f"{self.model} (weights {self.sha256[:8]})"

    @property
    def gives(self) -> Access:
        """Everything: the net is here."""
        return Access.GRADIENTS

    @property
    def checksum(self) -> str:
        """That of the weights."""
        return self.sha256

    def load(self, build: Build) -> nn.Module:
        """Return the net in eval mode.

        Args:
            build: Makes the net of ``model``; of a module that was handed over, a copy with its weights.

        Raises:
            CheckpointError: The file cannot be read, does not fit the model, or is another one than it was.
            RunError: The source of the model was changed.
        """
        check_code(self.code, source_of([maker_of(self.model)]))
        net = build(self.model)
        if self.checkpoint is not None:
            path = Path(self.checkpoint)
            state = import_checkpoint(path)
            if checksum_of(path) != self.sha256:
                raise CheckpointError(
                    f"{path} is not the file of the recipe: its checksum differs from {self.sha256[:12]}…"
                )
            load_weights(net, state, source=str(path))
        return net.eval()
