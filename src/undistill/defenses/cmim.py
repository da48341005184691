"""Minimized conditional mutual information (Ye et al., 2025): all answers to a class become one, however softened."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from undistill import functional as F
from undistill.defenses import (
    Batch,
    Companion,
    Defense,
    Field,
    Frame,
    Nets,
    Paper,
    StepOutput,
    register_defense,
)
from undistill.errors import RecipeError

__all__ = ["CMIM", "Centroids"]

_SMALLEST = torch.finfo(torch.float32).tiny  # what underflows keeps a finite logarithm


@register_defense("cmim")
class CMIM(Defense):
    """Learn the labels, and bring the answers to the images of a class together, at all temperatures at once.

    loss = CE(f(x), y) + λ mean_τ mean_x KL(softmax(f(x)/τ) ‖ Q_y^τ), where Q_c^τ is the mean of softmax(f(x)/τ) over
    the images of class c, the centroid, and has no gradient. The second term is the conditional mutual information
    I(X; Ŷ_τ | Y) of image and softened answer, given the class; it is 0 where an answer says nothing but its class. No
    twin is needed: the defense is not to be far from a normal net but to have nothing to tell.

    The claim to hold it to: no student of such a net is better than one that learns the labels with smoothing.

    Threat model:
        The attacker sees probabilities or logits, softened as he likes. The features below are not looked after.

    Paper vs ours:
        The authors' code is not public. The estimate is the one that their other works make of this quantity, without a
        gradient through the centroids: they are where the mean divergence is least, so that there is none. Those
        works have a centroid move by 0.01 % towards the mean over 8 images of its class at every step; here it is the
        mean over all images that there were, each counting by a factor 1 - 1/``memory`` less for every one of its class
        in a later batch. The images of the batch are among them: of n images with equal weights the estimate is too
        low by about 1/n. Weight, memory and temperatures are ours.
    """

    paper = Paper(
        "Towards Undistillable Models by Minimizing Conditional Mutual Information",
        "arXiv",
        2025,
        "https://arxiv.org/abs/2507.00012",
    )
    smoke: ClassVar[dict[str, Any]] = {"memory": 20.0}

    weight: float = Field(1.0, ge=0, description="λ, of the conditional mutual information in nats")
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), min_length=1, description="τ that answers are softened with"
    )
    memory: float = Field(100.0, ge=1, description="images of its class that a centroid is about the mean of")

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Companion:
        """Return the centroids, of no image yet."""
        return Centroids(len(self.temperatures), frame.num_classes, self.memory, device)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce`` and ``cmi``, the mean over the temperatures, in nats."""
        centroids = nets.companion
        if not isinstance(centroids, Centroids):
            raise RecipeError("defense 'cmim' needs the centroids that its companion() makes; got none")
        logits = nets.model(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        softened = torch.stack([logits.float() / temperature for temperature in self.temperatures])
        centers = centroids.follow(softened.detach().softmax(2), batch.y)
        cmi = F.kl_divergence(softened.flatten(0, 1), centers.clamp(min=_SMALLEST).log().flatten(0, 1))
        return StepOutput(ce + self.weight * cmi, logits, {"ce": ce, "cmi": cmi})


class Centroids(Companion):
    """The mean answer of each class at each temperature, over the images that came lately.

    Args:
        temperatures: How many there are, M.
        classes: K.
        memory: About how many images of a class count, 1 or more; with 1 those of the last batch.
        device: Where they are.
    """

    def __init__(self, temperatures: int, classes: int, memory: float, device: torch.device) -> None:
        self._keep = 1 - 1 / memory
        self._sums = torch.zeros(temperatures, classes, classes, device=device)  # (M, class, answer)
        self._counts = torch.zeros(classes, 1, device=device)

    def follow(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Add the answers of a batch and return the centroids of its labels, (M, B, K), each summing to 1.

        Args:
            answers: Probabilities (M, B, K), float32, without gradients.
            labels: (B,).
        """
        members = one_hot(labels, self._sums.shape[1]).to(answers).T
        new = members.sum(1, keepdim=True)
        kept: Tensor = self._keep**new
        self._sums = kept * self._sums + members @ answers
        self._counts = kept * self._counts + new
        return (self._sums / self._counts.clamp(min=1))[:, labels]

    def state_dict(self) -> dict[str, Tensor]:
        """Return sums and counts."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them over."""
        self._sums, self._counts = (state[name].to(self._sums.device) for name in ("sums", "counts"))
