"""The area of generalization: where around its domain a net still works, as usual, closed to one, closed to all.

The slides draw this figure; here every point of it is measured. From the test images of the source, shifts lead away in
several directions, from nothing to the full shift: corruptions, changes of style, and the way to other domains.

References:
    Wang et al., "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability
    Authorization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from undistill._version import __version__
from undistill.data import load_dataset
from undistill.data.dataset import Dataset, Images
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.engine.evaluate import evaluate, predict
from undistill.functional import mean_interval
from undistill.recipe import Recipe
from undistill.reporting.parts import Part
from undistill.reporting.parts.areas import Areas, Disc, area
from undistill.run import Failure, Run
from undistill.storage import remember
from undistill.studies.cells import why
from undistill.studies.changes import Changes
from undistill.studies.ntl import LABELS, DomainNet, NTLStudy, make_table
from undistill.studies.study import STUDIES, Study
from undistill.workspace import Workspace

__all__ = ["SHIFTS", "AreaStudy", "ntl_figure", "shift_towards"]

_RADII = tuple(step / 8 for step in range(9))
_IMAGES = 1000  # of the source's test set, at most

Shift = Callable[[Tensor, float], Tensor]
"""Takes images in 0..1, float (N, C, H, W), and a strength in 0..1; at 0 they stay as they are."""


def _blur(x: Tensor, strength: float) -> Tensor:
    sigma = max(strength, 1e-6) * x.shape[-1] / 8
    reach = x.shape[-1] // 4
    places = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


def _noise(x: Tensor, strength: float) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def _affine(x: Tensor, scale: float, angle: float) -> Tensor:
    turn = torch.tensor(angle)
    matrix = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])]) / scale
    theta = torch.cat([matrix, torch.zeros(2, 1)], dim=1).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _tint(x: Tensor, strength: float) -> Tensor:
    color = torch.tensor([0.9, 0.3, 0.1][: x.shape[1]]).reshape(1, -1, 1, 1)
    return x + strength * color * (1 - x)


SHIFTS: dict[str, Shift] = {
    "blur": _blur,
    "noise": _noise,
    "zoom in": lambda x, strength: _affine(x, 1 + strength, 0.0),
    "zoom out": lambda x, strength: _affine(x, 1 / (1 + strength), 0.0),
    "rotation": lambda x, strength: _affine(x, 1.0, strength * torch.pi / 2),
    "fading": lambda x, strength: (1 - 0.95 * strength) * x,
    "tint": _tint,
    "negative": lambda x, strength: (1 - strength) * x + strength * (1 - x),
}
"""Blur up to a standard deviation of an eighth of the width, Gaussian noise up to 1, zoom up to 2, rotation up to 90°,
contrast down to a twentieth, an orange background, and the negative, through grey."""


def shift_towards(source: Images, target: Images) -> Shift:
    """Return the way from a domain to another: each image fades into one of the same class of the target.

    The end is images of the target, no mixture. Where the target has no image of a class, its first image is taken.

    Args:
        source: Images that will be shifted, in their order.
        target: Images of the same shape.
    """
    places = [(target.y == label).nonzero().flatten() for label in range(int(source.y.max()) + 1)]
    seen = [0] * len(places)
    partners = []
    for label in source.y.tolist():
        members = places[label]
        partners.append(int(members[seen[label] % len(members)]) if len(members) else 0)
        seen[label] += 1
    end = target.x[torch.tensor(partners)].float() / 255
    return lambda x, strength: (1 - strength) * x + strength * end


@dataclass(frozen=True)
class AreaStudy(Study):
    """Three kinds of nets of one source, and the images around it.

    Attributes:
        table: Study ``ntl``, whose nets these are.
        source: Name of the domain.
        closed: Name of the domain that the second net is closed to.
    """

    table: NTLStudy
    source: str
    closed: str

    @property
    def panels(self) -> tuple[DomainNet, ...]:
        """Their rows in the table."""
        names = (f"{self.source}-supervised", f"{self.source}-to-{self.closed}", f"{self.source}-source-only")
        found = {net.name: net for net in self.table.nets}
        return tuple(found[name] for name in names)

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The nets of the three kinds."""
        for net in self.panels:
            yield from net.recipes

    @property
    def data(self) -> Iterator[str]:
        """All domains: the figure shows the way to each."""
        yield from self.table.data

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``areas``; see ``reporting.parts.areas``."""
        nets = {net.name: {r.seed: workspace.find(r) for r in net.recipes} for net in self.panels}
        runs = {name: {seed: run for seed, run in found.items() if run is not None} for name, found in nets.items()}
        about = {
            "name": self.name,
            "title": self.title,
            "seeds": self.seeds,
            "runs": {name: {str(seed): run.folder.name for seed, run in own.items()} for name, own in runs.items()},
        }
        lost = [(net.label, recipe) for net in self.panels for recipe in net.recipes if not nets[net.name][recipe.seed]]
        if lost:
            notes = tuple(
                f"Failed: {label}, seed {recipe.seed}: {why(failures.get(recipe.hash))}" for label, recipe in lost
            )
            return Areas.make(**about, notes=notes, failed=True)
        data = load_dataset(self.table.domains[self.source])
        others = {name: load_dataset(spec) for name, spec in self.table.domains.items() if name != self.source}
        test = data.take(test=_IMAGES).test if len(data.test) > _IMAGES else data.test
        shifts = {
            **{f"to {LABELS.get(name, name)}": shift_towards(test, other.test) for name, other in others.items()},
            **SHIFTS,
        }

        def measured(run: Run) -> list[list[float]]:
            key = {
                "undistill": __version__,
                "weights": run.result["weights_sha256"],
                "data": [data.fingerprint, *(other.fingerprint for other in others.values())],
                "radii": list(_RADII),
                "shifts": list(shifts),
            }
            found = remember(cache, self.name, key, lambda: _measure(run, data, test, shifts, workspace))
            rows: list[list[float]] = found["accuracies"]
            return rows

        panels = []
        for net in self.panels:
            found = {str(seed): measured(run) for seed, run in runs[net.name].items()}
            areas = {seed: round(area(rows, _RADII), 4) for seed, rows in found.items()}
            reach = mean_interval(areas.values())
            panels.append(
                Disc(
                    name=net.name,
                    title=net.label,
                    area=reach.mean,
                    half_width=reach.half_width,
                    areas=areas,
                    accuracies=np.mean(list(found.values()), axis=0).round(4).tolist(),
                )
            )
        return Areas.make(
            **about,
            source=LABELS.get(self.source, self.source),
            directions=tuple(shifts),
            radii=_RADII,
            panels=tuple(panels),
            notes=tuple(self._remarks(panels, len(test))),
            failed=False,
        )

    def _remarks(self, panels: list[Disc], images: int) -> Iterator[str]:
        yield (
            f"{images:,} test images of the source, shifted in each direction by eighths of the full shift; the rim "
            "towards another domain is images of that domain. Usable: at least half of the answers are right."
        )
        for panel in panels:
            yield f"{panel.title}: usable on {panel.usable()} % of the disc."
        if self.seeds == 1:
            yield "One net of each kind, of seed 0 (n=1)."
        else:
            yield f"Means over {self.seeds} seeds; ± 95 % interval (Student's t)."


def _measure(
    run: Run, data: Dataset, test: Images, shifts: Mapping[str, Shift], workspace: Workspace
) -> dict[str, list[list[float]]]:
    """Return accuracies in percent, by direction and radius."""
    device = pick_device(workspace.device or run.recipe.device)
    pixels = test.x.float() / 255
    with exact_arithmetic(device):
        net = run.load_model().to(device)
        rows = []
        for shift in shifts.values():
            shifted = (
                Images((shift(pixels, radius) * 255).round().clamp(0, 255).to(torch.uint8), test.y) for radius in _RADII
            )
            answers = (predict(net, images, mean=data.mean, std=data.std, device=device) for images in shifted)
            rows.append([evaluate(logits, test.y).accuracy for logits in answers])
    return {"accuracies": rows}


@STUDIES.register("ntl_figure")
def ntl_figure(*, seeds: int, changes: Changes) -> AreaStudy:
    """Return the figure: MNIST, closed to MNIST-M, closed to all."""
    table = make_table(seeds=seeds, changes=changes)
    return AreaStudy(
        "ntl_figure", "Where around MNIST a net still works, as measured", seeds, changes, table, "mnist", "mnist_m"
    )
