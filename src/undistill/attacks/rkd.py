"""Relational distillation (Park et al., 2019): how images lie to each other, in twos and in threes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Nets, Paper, Range, Search, StepOutput, register_attack
from undistill.models.features import logits_and_features

__all__ = ["RKD"]

_TOGETHER = 128  # images of which all triples are taken
_SMALLEST = 1e-12  # of a squared distance, where the largest feature is 1: images closer than that have no direction
_TINY = torch.finfo(torch.float32).tiny


@register_attack("rkd")
class RKD(Attack):
    """Learn features that lie to each other as the victim's do, and from true labels.

    loss = CE(s(x), y) + distance · mean_ij h(d_ij(s) - d_ij(t)) + angle · mean_ijk h(c_ijk(s) - c_ijk(t)), where
    d_ij = ‖f_i - f_j‖/μ is the distance of the features of two images, μ that of the images i ≠ j of a batch on
    average, c_ijk is the cosine of the angle at f_j between f_i and f_k, and h is Huber's, x²/2 to |x| = 1 and
    |x| - 1/2 beyond. Features are the inputs of the last layers; neither their number nor their scale, place or
    direction matters, so that nothing has to project one on the other.

    The means are over all B² pairs and B³ triples, as in ``mdistiller``, whose weights are the defaults; an image with
    itself counts 0. So do images with equal features, which have no direction. As triples are many, a batch of more
    than 128 images is taken in parts of about the same size up to that.
    """

    access = Access.FEATURES
    uses_labels = True
    paper = Paper("Relational Knowledge Distillation", "CVPR", 2019, "https://arxiv.org/abs/1904.05068")
    search: ClassVar[Search] = {
        "distance": Range(1, 200, log=True),
        "angle": Range(1, 400, log=True),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    distance: float = Field(25.0, ge=0, description="weight of the distances")
    angle: float = Field(50.0, ge=0, description="weight of the angles")

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce``, ``distance`` and ``angle``, the last two without their weights."""
        theirs = self.victim(nets).features(batch.x)
        logits, features = logits_and_features(nets.model, batch.x)
        ce = F.cross_entropy(logits, batch.y)
        distance, angle = _apart(features.float(), theirs)
        loss = ce + self.distance * distance + self.angle * angle
        return StepOutput(loss, logits, {"ce": ce, "distance": distance, "angle": angle})


def _apart(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far two sets of features (B, D) and (B, E) of the same images differ in distances, and in angles."""
    parts = math.ceil(len(ours) / _TOGETHER)
    found = []
    for pair in zip(ours.tensor_split(parts), theirs.tensor_split(parts), strict=True):
        (d, c), (d_theirs, c_theirs) = (_relations(each) for each in pair)
        share = len(pair[0]) / len(ours)
        found.append(torch.stack([smooth_l1_loss(d, d_theirs), smooth_l1_loss(c, c_theirs)]) * share)
    distance, angle = torch.stack(found).sum(0)
    return distance, angle


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return of features (B, D) the distances (B, B), 1 on average, and the cosines at the first of three (B, B, B)."""
    count = len(features)
    features = features / features.detach().abs().amax().clamp(min=_TINY)  # squares of it are to be numbers
    apart = features - features.unsqueeze(1)
    squares = apart.square().sum(2)
    differ = squares > _SMALLEST
    lengths = squares.where(differ, 1).sqrt()  # the root of 0 has no finite gradient
    directions = (apart / lengths.unsqueeze(2)).where(differ.unsqueeze(2), 0)
    distances = lengths.where(differ, 0)
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / mean.clamp(min=_TINY), directions @ directions.transpose(1, 2)
