"""What a defended teacher and its normal twin answer to the same test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.data.dataset import Dataset
from undistill.data.loader import batches
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.engine.evaluate import evaluate, predict
from undistill.errors import CheckpointError, DataError, RunError
from undistill.models.features import logits_and_features
from undistill.recipe import Weights
from undistill.reporting.runs import RunGroup, Teacher
from undistill.run import Run
from undistill.workspace import Workspace

__all__ = ["MAPPED_CLASSES", "NEIGHBORS", "Answers", "Pair", "choose_examples", "measure_space", "pairs", "tsne"]

_MOST_PAIRS = 4  # defended teachers that get figures; a sweep would drown the page
MAPPED_CLASSES = 10  # more colors than these cannot be told apart
_MAPPED_IMAGES = 500
_BATCH = 100
NEIGHBORS = 5

Points = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Answers:
    """Of one net.

    Attributes:
        logits: Of all test images, (N, K), on CPU.
        features: Input of the last layer for the mapped images, (n, D), on CPU.
    """

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Pair:
    """A defended teacher beside its normal twin.

    Attributes:
        label: Of the defended teacher.
        seed: Of the run.
        method: Name of the defense.
        temperature: τ_A of the defense; 1 where it has none.
        data: The data set.
        mapped: Positions of the test images in the maps, (n,).
        normal: Answers of the twin.
        defended: Answers of the defended teacher.
    """

    label: str
    seed: int
    method: str
    temperature: float
    data: Dataset
    mapped: Tensor
    normal: Answers
    defended: Answers

    @property
    def distances(self) -> list[tuple[str, str, str]]:
        """Name, normal and defended value of each measure on the test set; entropies and divergences in nats."""
        normal, defended, images = self.normal.logits, self.defended.logits, self.data.test
        left, right = evaluate(normal, images.y), evaluate(defended, images.y)
        rows = [
            ("Accuracy", f"{left.accuracy:.2f} %", f"{right.accuracy:.2f} %"),
            ("Same answer as the normal one", "–", f"{100 * F.agreement(normal, defended):.2f} %"),
            ("Negative log-likelihood", f"{left.nll:.3f}", f"{right.nll:.3f}"),
            ("Calibration error (ECE)", f"{100 * left.ece:.2f} %", f"{100 * right.ece:.2f} %"),
        ]
        for tau in sorted({1.0, self.temperature}):
            left_entropy, right_entropy = (f"{F.mean_entropy(logits, tau):.3f}" for logits in (normal, defended))
            divergence = float(F.kl_divergence(defended, normal, tau))
            rows.append((f"Mean entropy at τ={tau:g}", left_entropy, right_entropy))
            rows.append((f"KL({self.method} ‖ normal) at τ={tau:g}", "–", f"{max(divergence, 0):.3f}"))
        return rows


def pairs(study: RunGroup) -> Iterator[Pair | str]:
    """Ask every defended teacher (its first seed) and its twin; say why where one cannot be asked.

    Raises:
        CheckpointError: A teacher's weights are not those that its run wrote.
    """
    defended = [
        (teacher, teacher.replicates.runs[0]) for teacher in study.teachers if teacher.twin and teacher.replicates
    ]
    for teacher, run in defended[:_MOST_PAIRS]:
        try:
            yield _ask(study, teacher, run)
        except (RunError, DataError) as error:
            yield f"{teacher.label}: no figures, because its nets or images are not at hand ({error})."
    if len(defended) > _MOST_PAIRS:
        yield f"Figures are drawn for the first {_MOST_PAIRS} of {len(defended)} defended teachers."


def tsne(x: Tensor) -> Points:
    """Lay out vectors (n, D) in the plane so that near ones stay near (van der Maaten and Hinton, 2008).

    Returns:
        Coordinates (n, 2); all in one spot where all vectors are the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    values = x.double().numpy()
    if len(values) < 4 or values.std(axis=0).max() == 0:
        return np.zeros((len(values), 2))
    perplexity = min(30.0, (len(values) - 1) / 3)
    with threadpool_limits(1):  # so few points lose more than they win by threads, and on a busy machine all of it
        layout: Points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(values)
    return layout


def measure_space(x: Tensor, labels: np.ndarray[Any, Any], neighbors: int) -> dict[str, Any]:
    """Return what a map of vectors shows, and how well their classes are separated before any map is made.

    Args:
        x: Vectors (n, D).
        labels: Their classes (n,).
        neighbors: How many of the nearest vectors vote, none being its own neighbor; fewer where there are fewer.

    Returns:
        ``dimension`` D and the ``points`` (x, y) of the map. Of the original space, the ``silhouette`` of the classes
        in -1..1, None where it is not defined, and ``knn_accuracy``, the share of vectors, in 0..1, that the vote
        puts right.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    values = x.numpy()
    defined = 1 < len(np.unique(labels)) < len(labels)
    nearest = KNeighborsClassifier(min(neighbors, len(labels) - 1)).fit(values, labels)
    return {
        "dimension": x.shape[1],
        "points": [[round(float(u), 2), round(float(v), 2)] for u, v in tsne(x)],
        "silhouette": round(float(silhouette_score(values, labels)), 4) if defined else None,
        "knn_accuracy": round(float(np.mean(nearest.predict(None) == labels)), 4),
    }


def choose_examples(labels: Tensor, right: Tensor, count: int) -> list[int]:
    """Return the first image that is classified right, of each of the first classes; the first image where none is.

    Args:
        labels: Of all images (N,).
        right: Which of them are classified right, bool (N,).
        count: Number of classes to show; fewer where there are fewer.
    """
    chosen = []
    for label in sorted(set(labels.tolist()))[:count]:
        members = (labels == label).nonzero().flatten()
        hits = members[right[members]]
        chosen.append(int((hits if len(hits) else members)[0]))
    return chosen


def _ask(study: RunGroup, teacher: Teacher, run: Run) -> Pair:
    data = run.dataset()
    if data.fingerprint != run.result["data_fingerprint"]:
        raise DataError(f"the images of {study.data} have changed since the run")
    mapped = _choose(data.test.y)
    normal, trained_on = _load_twin(study, run, data)
    return Pair(
        label=teacher.label,
        seed=run.recipe.seed,
        method=run.recipe.objective.name,
        temperature=teacher.temperature or 1.0,
        data=data,
        mapped=mapped,
        normal=_answers(normal, data, trained_on, mapped),
        defended=_answers(run.load_model(), data, data, mapped),
    )


def _load_twin(study: RunGroup, run: Run, data: Dataset) -> tuple[nn.Module, Dataset]:
    """Load the adversary of a run, never training one for a report."""
    source = run.recipe.adversary
    if isinstance(source, Weights):
        try:
            net, trained_on, _ = Workspace(run.folder.parent, instances=run.instances).source(source, data)
        except CheckpointError as error:
            raise RunError(str(error)) from error
        return net, trained_on
    twin = next((other for other in study.runs if source is not None and other.recipe.hash == source.hash), None)
    if twin is None:
        raise RunError("the run of its normal twin is not here")
    return twin.load_model(), twin.dataset()


@torch.no_grad()
def _answers(net: nn.Module, data: Dataset, trained_on: Dataset, mapped: Tensor) -> Answers:
    device = pick_device()
    mean, std = trained_on.mean, trained_on.std
    net = net.to(device).eval()
    with exact_arithmetic(device):
        logits = predict(net, data.test, mean=mean, std=std, device=device)
        stream = batches(data.test.subset(mapped), batch_size=_BATCH, mean=mean, std=std, device=device)
        features = torch.cat([logits_and_features(net, batch.x)[1].float() for batch in stream])
    return Answers(logits.cpu(), features.cpu())


def _choose(labels: Tensor) -> Tensor:
    """Return positions of the images to map: of the first classes, drawn the same way every time."""
    shown = torch.unique(labels)[:MAPPED_CLASSES]
    among = torch.isin(labels, shown).nonzero().flatten().numpy()
    drawn = np.random.RandomState(0).permutation(among)[:_MAPPED_IMAGES]
    return torch.from_numpy(np.sort(drawn))
