"""Everything that a run needs to go on where it stopped, in one file without pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from undistill.errors import CheckpointError
from undistill.objective import Companion, optimizer_tensors, restore_optimizer, under
from undistill.storage import write_tensors

__all__ = ["Position", "TrainState"]

_META = "undistill"
_FORMAT = 1


@dataclass
class Position:
    """Where training stands.

    Attributes:
        epoch: Epochs done.
        step: Steps done of the epoch that is under way.
        images: Images trained on since the run began.
        seconds: Time spent training since the run began, over all its sessions.
        best_epoch: Epoch (from 1) of the kept weights.
        best_score: Its score on the images that the choice is made on.
        last_finite_loss: Loss of the last step.
        queries: Images that a victim was asked about.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best_score: float | None = None
    last_finite_loss: float | None = None
    queries: int = 0


@dataclass
class TrainState:
    """Net and modules beside it, optimizer, companion, kept weights, sums of the epoch, and position of one run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    inputs_digest: str = ""
    companion: Companion | None = None
    modules: nn.Module = field(default_factory=nn.ModuleDict)
    position: Position = field(default_factory=Position)
    best: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        tensors = {
            **{f"model/{key}": value for key, value in self.model.state_dict().items()},
            **{f"best/{key}": value for key, value in self.best.items()},
            **{f"sums/{key}": value for key, value in self.sums.items()},
            **{f"optimizer/{key}": value for key, value in optimizer_tensors(self.optimizer).items()},
            **{f"companion/{key}": value for key, value in self._companion_tensors().items()},
            **{f"modules/{key}": value for key, value in self.modules.state_dict().items()},
            "random/cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        meta = {"format": _FORMAT, "origin": self.inputs_digest, **asdict(self.position)}
        write_tensors(path, tensors, {_META: json.dumps(meta)})

    def load(self, path: Path) -> None:
        """Take over a saved state.

        Raises:
            CheckpointError: The file is damaged or belongs to another net.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                meta = json.loads((file.metadata() or {})[_META])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if meta.pop("format") != _FORMAT:
                raise CheckpointError(f"{path} was written by another version of undistill; delete it to start anew")
            if meta.pop("origin") != self.inputs_digest:
                raise CheckpointError(
                    f"{path} was trained with other images, or another adversary or victim, than are there now; "
                    "restore them, or delete it to start anew"
                )
            self.position = Position(**meta)
            self.model.load_state_dict(under("model/", tensors))
            restore_optimizer(self.optimizer, under("optimizer/", tensors))
            if self.companion is not None:
                self.companion.load_state_dict(under("companion/", tensors))
            self.modules.load_state_dict(under("modules/", tensors))
            self.best = {key: value.to(self.device) for key, value in under("best/", tensors).items()}
            self.sums = {key: value.to(self.device) for key, value in under("sums/", tensors).items()}
            torch.set_rng_state(tensors["random/cpu"])
            if "random/cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"cannot resume from {path}: the file is damaged or the net has changed ({reason}); "
                "delete it to start anew"
            ) from error

    @property
    def finite(self) -> bool:
        """Whether no weight is infinite or NaN."""
        return all(bool(p.isfinite().all()) for net in (self.model, self.modules) for p in net.parameters())

    def keep_best(self, score: float) -> None:
        """Keep the present weights as those chosen; the caller has compared the scores."""
        self.best = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.position.best_epoch = self.position.epoch
        self.position.best_score = score

    def _companion_tensors(self) -> dict[str, Tensor]:
        return {} if self.companion is None else self.companion.state_dict()
