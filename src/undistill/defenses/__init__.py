"""Defenses, of two sorts: of the training, which make another teacher, and of the output, which change its answers.

A training defense is an objective, chosen by a recipe's ``method``. An output defense stands between any victim and
whoever asks it, and is chosen by the ``policy`` of an attack's recipe. Each is one file here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from undistill.data.dataset import Frame, Images
from undistill.data.loader import Batch
from undistill.errors import RecipeError
from undistill.objective import Companion, Configured, Frozen, Nets, Objective, Paper, StepOutput, register_in
from undistill.registry import Registry, Spec

__all__ = [
    "DEFENSES",
    "OUTPUT_DEFENSES",
    "Batch",
    "Companion",
    "Defense",
    "Field",
    "Frame",
    "Images",
    "Nets",
    "OutputDefense",
    "Paper",
    "StepOutput",
    "build_output_defense",
    "list_defenses",
    "list_output_defenses",
    "register_defense",
    "register_output_defense",
]


class Defense(Objective):
    """An objective that trains a defended teacher."""

    kind = "defense"

    def twin(self, nets: Nets) -> Frozen:
        """Return the frozen, normally trained twin.

        Raises:
            RecipeError: There is none.
        """
        if nets.adversary is None:
            raise RecipeError(f"defense {self.name!r} needs an adversary; got none")
        return nets.adversary


class OutputDefense(Configured):
    """What the owner of a classifier does to its answers before anybody sees them.

    Attributes:
        keeps_label: The first of the most probable classes stays that, whatever the answer.
    """

    kind: ClassVar[str] = "output_defense"
    keeps_label: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the probabilities (B, K) that are given away, float32: in 0..1, each row with the sum 1.

        The answer to an image depends on that image only, not on the others of its batch, and is the same each time it
        is asked for. Nothing in here waits for the device.

        Args:
            probs: What the classifier says, (B, K), float32, without gradients; to be left as it is.
            x: Images (B, C, H, W), normalized as whoever asks has them.
        """


DEFENSES: Registry[type[Defense]] = Registry("defense", "undistill.defenses")
OUTPUT_DEFENSES: Registry[type[OutputDefense]] = Registry(
    "output defense", "undistill.defenses", group="undistill.output_defenses"
)
register_defense = register_in(DEFENSES)
register_output_defense = register_in(OUTPUT_DEFENSES)


def build_output_defense(spec: str | dict[str, Any] | Spec) -> OutputDefense:
    """Return the configured output defense of a spec such as ``top_k(k=3)``.

    Raises:
        RecipeError: Unknown output defense, unknown hyperparameters or values out of range; every problem at once.
    """
    parsed = Spec.parse(spec)
    return OUTPUT_DEFENSES[parsed.name].of(parsed)


def list_defenses() -> tuple[str, ...]:
    """Return the names of all training defenses, sorted."""
    return DEFENSES.names()


def list_output_defenses() -> tuple[str, ...]:
    """Return the names of all output defenses, sorted."""
    return OUTPUT_DEFENSES.names()
