"""A run as it lies on disk: one recipe, carried out once, in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from undistill.code import check_code
from undistill.data import load_dataset
from undistill.data.dataset import Dataset, Images
from undistill.engine.callbacks import read_metrics
from undistill.engine.synthetic import read_images
from undistill.errors import CheckpointError, RunError
from undistill.identity import copy_of
from undistill.models import build_model
from undistill.models.checkpoints import checksum_of, import_checkpoint, load_weights
from undistill.recipe import Recipe, load_recipe

__all__ = [
    "ANSWERS",
    "METRICS",
    "PREDICTIONS",
    "RECIPE",
    "RESULT",
    "STATE",
    "WEIGHTS",
    "Failure",
    "Run",
    "build_net",
    "checksum_of",
    "load_data",
]

RECIPE, METRICS, STATE, ANSWERS, WEIGHTS, PREDICTIONS, RESULT = (
    "recipe.yaml",
    "metrics.jsonl",
    "state.safetensors",
    "answers.safetensors",
    "model.safetensors",
    "predictions.safetensors",
    "result.json",
)


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: Holds ``recipe.yaml``, ``metrics.jsonl`` and, once finished, ``model.safetensors`` and ``result.json``.
        instances: Objects that stand for ``instance(...)`` specs of the recipe.
    """

    folder: Path
    instances: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            RunError: The folder is not a run.
        """
        if not (self.folder / RECIPE).is_file():
            raise RunError(
                f"{self.folder} is not a run: it has no {RECIPE}; give a folder that train, defend or attack made"
            )
        return load_recipe(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.folder / RESULT).is_file()

    @cached_property
    def result(self) -> dict[str, Any]:
        """Metrics and provenance of a finished run.

        Raises:
            RunError: The run is not finished, or its result is damaged.
        """
        path = self.folder / RESULT
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.folder} is not finished; run the same command again to go on") from None
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); delete it and run the same command") from error
        if not isinstance(result, dict) or result.get("recipe_hash") != self.recipe.hash:
            raise RunError(f"{path} is damaged or of another recipe; delete it and run the same command")
        return result

    @property
    def accuracy(self) -> float:
        """Test accuracy in percent of the weights that the recipe keeps."""
        return float(self.result["selected"]["batch_mean_accuracy" if self.recipe.selection == "paper" else "accuracy"])

    @property
    def collapsed(self) -> bool:
        """Whether more than 90 % of the test answers are one class."""
        return bool(self.result["selected"]["collapsed"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an epoch."""
        return read_metrics(self.folder / METRICS)

    def dataset(self) -> Dataset:
        """Return the data set that the run trained on."""
        return load_data(self.recipe.data, self.instances)

    def images(self) -> Images | None:
        """Return the images that a thief without data made (some, where it made them all along); else None."""
        return read_images(self.folder)

    def predictions(self, of: Literal["own", "victim"] = "own") -> Tensor | None:
        """Return the classes that the net, or its victim, names for the test images, int32 (N,).

        Runs that were made before these were kept have none.

        Raises:
            CheckpointError: The file is damaged.
        """
        path = self.folder / PREDICTIONS
        return import_checkpoint(path).get(of) if path.is_file() else None

    def load_model(self) -> nn.Module:
        """Return the trained net, on CPU and in eval mode.

        Raises:
            CheckpointError: The weights are not those that the run wrote.
            RunError: The source that made the net was changed.
        """
        check_code(self.recipe.code, self.recipe.code_now)
        data = self.dataset()
        model = build_net(self.recipe.model, data, None, self.instances)
        path = self.folder / WEIGHTS
        if checksum_of(path) != self.result["weights_sha256"]:
            raise CheckpointError(
                f"{path} is not what the run wrote: its checksum differs; delete the folder and run again"
            )
        load_weights(model, import_checkpoint(path), source=str(path))
        return model.eval()


@dataclass(frozen=True)
class Failure:
    """Why a run has no result.

    Attributes:
        reason: In one line.
        log: File with the whole story; None for a run that was not started, because one that it needs failed.
        name: Of the folder of the run that failed; empty for one that was not started.
    """

    reason: str
    log: Path | None = None
    name: str = ""

    def passed_on(self) -> Failure:
        """Return why a run that needs this one has no result either."""
        return self if self.log is None else Failure(f"not run: {self.name} failed: {self.reason}")


def load_data(spec: str, instances: Mapping[str, Any]) -> Dataset:
    """Return the data set of a spec, or the one that was handed over in Python."""
    if spec in instances:
        return instances[spec]  # type: ignore[no-any-return]
    return load_dataset(_not_an_instance(spec))


def build_net(spec: str, data: Dataset, seed: int | None, instances: Mapping[str, Any]) -> nn.Module:
    """Return the net of a spec for a data set, or a copy of the one that was handed over; see ``build_model``."""
    if spec in instances:
        return copy_of(instances[spec])
    return build_model(
        _not_an_instance(spec),
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        seed=seed,
    )


def _not_an_instance(spec: str) -> str:
    if spec.startswith("instance("):
        raise RunError(f"{spec} was handed over in Python and is not here; pass the same object again")
    return spec
