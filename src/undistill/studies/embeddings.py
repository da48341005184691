"""Figure 2 of the paper: t-SNE of the features and logits of a normal and a nasty teacher, and what it shows measured.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
    van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill.data.loader import Batch, batches
from undistill.functional.similarity import linear_cka
from undistill.models.features import logits_and_features
from undistill.reporting.answers import NEIGHBORS, measure_space
from undistill.reporting.parts import Part
from undistill.reporting.parts.embeddings import Embeddings
from undistill.studies.changes import Changes, adapt
from undistill.studies.pair import TEACHERS, PairStudy, Teachers
from undistill.studies.protocol import nasty, normal
from undistill.studies.study import STUDIES

__all__ = ["EmbeddingStudy", "figure2"]

_IMAGES = 1000  # at most: the picture is full, and t-SNE takes its time
_BATCH = 500
_SPACES = ("features", "logits")


@dataclass(frozen=True)
class EmbeddingStudy(PairStudy):
    """Test images as points, by the features before the last layer and by the logits of both teachers.

    The slides tell neither the perplexity nor the images of the paper. t-SNE places points so that neighbors stay
    neighbors; what is far apart in it means nothing. How well classes are separated is therefore measured before it.
    """

    kind: ClassVar[type[Part]] = Embeddings

    @property
    def parameters(self) -> dict[str, Any]:
        """Number of images at most, and of neighbors."""
        return {"images": _IMAGES, "neighbors": NEIGHBORS}

    def compute(self, teachers: Teachers) -> dict[str, Any]:
        """Return ``classes``, the ``labels`` of the images, ``panels`` and ``cka``.

        There is a panel for features and logits of each teacher, with ``points`` (x, y), and, of the original space,
        its ``dimension``, the ``silhouette`` of the classes in -1..1 (None where it is not defined) and
        ``knn_accuracy`` in 0..1: the share of images whose class most of their nearest ``neighbors`` have, none being
        its own neighbor. ``cka`` is that of the two teachers, by ``features`` and ``logits``, in 0..1.
        """
        data = teachers.data
        test = data.take(test=_IMAGES).test if len(data.test) > _IMAGES else data.test
        spaces = {
            name: _represent(
                run.load_model().to(teachers.device),
                batches(test, batch_size=_BATCH, mean=data.mean, std=data.std, device=teachers.device),
            )
            for name, run in teachers.runs.items()
        }
        cka = {space: round(linear_cka(*(spaces[name][space] for name in TEACHERS)), 4) for space in _SPACES}
        labels = test.y.numpy()
        panels = [
            {
                "name": f"{space}-{name}",
                "title": f"{space.capitalize()}, {name} teacher",
                **measure_space(spaces[name][space], labels, NEIGHBORS),
            }
            for space in _SPACES
            for name in TEACHERS
        ]
        return {
            "classes": list(data.classes),
            "labels": labels.tolist(),
            "neighbors": NEIGHBORS,
            "panels": panels,
            "cka": cka,
        }

    def remarks(self, picture: Mapping[str, Any]) -> Iterator[str]:
        """Yield what the figure is made of, and the numbers."""
        yield (
            f"{len(picture['labels']):,} test images, every class in proportion. t-SNE (perplexity 30, less for fewer "
            "than 91 images) places each panel by itself: distances between groups mean nothing, so silhouette and "
            f"the {picture['neighbors']} nearest neighbors are of the original space."
        )
        yield (
            f"Linear CKA of the normal and the nasty teacher: {picture['cka']['features']:.3f} of the features, "
            f"{picture['cka']['logits']:.3f} of the logits (1: the same up to rotation and scale)."
        )


@STUDIES.register("figure2")
def figure2(*, seeds: int, changes: Changes) -> EmbeddingStudy:
    """Return Figure 2: ResNet-18 on CIFAR-10."""
    return EmbeddingStudy(
        "figure2",
        f"t-SNE of features and logits of a normal and a nasty ResNet-18 on {changes.titled('cifar10', 'CIFAR-10')}",
        seeds,
        changes,
        adapt(normal("cifar10", "resnet18", 0), changes),
        adapt(nasty("cifar10", "resnet18", 0), changes),
    )


@torch.no_grad()
def _represent(model: nn.Module, stream: Iterable[Batch]) -> dict[str, Tensor]:
    """Return features (N, D) and logits (N, K) of all images, float32 on the CPU."""
    logits, features = zip(*(logits_and_features(model, batch.x) for batch in stream), strict=True)
    return {"features": torch.cat(features).float().cpu(), "logits": torch.cat(logits).float().cpu()}
