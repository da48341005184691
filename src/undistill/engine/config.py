"""How a net is trained: every number of the protocol, with its range."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

__all__ = ["SHARED_FIELDS", "Training", "Tuning"]

# What the batches of a job depend on, besides its images.
SHARED_FIELDS = ("seed", "batch_size", "augment", "holdout", "profile")


class Tuning(BaseModel):
    """How the profiles ``fast`` and ``turbo`` compute; what is not set is chosen for the machine and logged.

    It changes rounding and speed only, so it is not part of a recipe's hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels_last: bool | None = Field(None, description="keep the channels of a pixel side by side in memory")
    winograd: bool | None = Field(
        None, description="3x3 convolutions on CPU with a quarter of the multiplications; takes a C compiler"
    )
    compile: bool | None = Field(None, description="compile the trained net; takes a C++ compiler and half a minute")
    threads: int | None = Field(None, ge=1, strict=True, description="of the CPU")
    precision: Literal["float32", "tf32", "bf16"] | None = Field(
        None, description="of all but the last layer and the losses, which are float32; tf32 is CUDA's"
    )
    graphs: bool | None = Field(None, description="replay whole steps as CUDA graphs")
    stack: bool | None = Field(None, description="compute equal nets that are trained side by side as one")


class Training(BaseModel):
    """Protocol of one training job. The defaults are the paper's for CIFAR-10 (SGD, 160 epochs).

    Paper vs code:
        The paper's code trains on the whole training set, evaluates on the test set after every epoch and keeps the
        best: ``selection="paper"`` with ``holdout=0``. By default a stratified tenth of the training set is held out
        for that choice, and the test set is only read at the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(160, ge=1, strict=True)
    batch_size: int = Field(128, ge=2, strict=True, description="images a step; the last, smaller batch is kept")
    optimizer: Literal["sgd", "adam", "muon"] = Field(
        "sgd", description="muon: matrices turn along orthogonalized gradients, all else learns by Adam at lr/5"
    )
    lr: float = Field(0.1, gt=0, description="learning rate; the highest one under one_cycle")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="of SGD, without Nesterov, as in the paper's code; and of muon, with it"
    )
    weight_decay: float = Field(
        5e-4, ge=0, description="on every parameter, BatchNorm and biases too; 0 with muon, which keeps their length"
    )
    schedule: Literal["step", "one_cycle", "linear", "constant"] = Field(
        "step", description="one_cycle: up, then down; linear: down to zero from the start"
    )
    milestones: tuple[NonNegativeInt, ...] = Field(
        (), description="epochs, from 0, at whose start lr is multiplied by gamma; default: at 1/2 and 3/4 of the run"
    )
    gamma: float = Field(0.1, gt=0, le=1)
    augment: Literal["auto", "alternating", "none", "crop", "crop_flip", "rotation_flip", "shift_flip"] = Field(
        "auto",
        description="auto: as the data set says; alternating: where that flips, shifts over reflected borders and "
        "flips every image in every other epoch (shift_flip)",
    )
    holdout: float = Field(0.1, ge=0, lt=1, description="share of the training set that is held out for choices")
    selection: Literal["heldout", "last", "paper"] = Field(
        "heldout",
        description="weights that are kept: best on the held-out part, last, or (paper) best on the test set",
    )
    profile: Literal["exact", "fast", "turbo"] = Field(
        "exact",
        description="exact: the protocol in float32, deterministic; fast: the same up to rounding; turbo: computed "
        "like fast, by another, shorter protocol",
    )
    tuning: Tuning | None = Field(None, description="how fast and turbo compute; not part of the hash")
    seed: int = Field(0, ge=0, lt=2**32, strict=True, description="of weights, order and augmentation")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, values: Any) -> Any:
        """Put the steps where the paper's are, at 80 and 120 of 160 epochs, in proportion; no decay beside Muon."""
        if isinstance(values, dict) and values.get("optimizer") == "muon":
            values = {"weight_decay": 0.0, **values}
        if isinstance(values, dict) and values.get("schedule", "step") == "step" and not values.get("milestones"):
            epochs = values.get("epochs", cls.model_fields["epochs"].default)
            if isinstance(epochs, int) and epochs >= 1:
                return {**values, "milestones": tuple(sorted({epochs // 2, epochs * 3 // 4} - {0}))}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.selection == "heldout" and self.holdout == 0:
            raise ValueError("selection=heldout needs holdout > 0; set holdout=0.1, or selection=last")
        if self.optimizer == "muon" and self.weight_decay:
            raise ValueError(f"muon keeps the length of every matrix; set weight_decay=0, got {self.weight_decay:g}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        return self
