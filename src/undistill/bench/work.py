"""What the training benchmarks train: nets, objective and images, built alike for every side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from undistill.data.dataset import Dataset, Images
from undistill.engine.config import Training, Tuning
from undistill.models import build_model

__all__ = ["ALPHA", "APART", "METHODS", "STACKING", "TEMPERATURE", "WEIGHT", "Side", "Work"]

TEMPERATURE, ALPHA, WEIGHT = 4.0, 0.9, 0.04  # the paper's for CIFAR-10
METHODS = {
    "normal": "ce",
    "nasty": f"nasty(temperature={TEMPERATURE}, weight={WEIGHT})",
    "kd": f"kd(temperature={TEMPERATURE}, alpha={ALPHA})",
}
STACKING = {"separate": False, "stacked": True}  # sides of equal nets: fast, one net after the other or all as one
APART = "apart"  # a side of students: fast, each asking a victim of its own
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
_LR = 0.01  # a tenth of the paper's: the labels are random, and at 0.1 rounding would grow like an avalanche
_LONG = 160 * 391  # steps of a full protocol, for which getting ready may take its time

Side = Literal["exact", "fast", "turbo", "separate", "stacked", "apart"]


@dataclass(frozen=True)
class Work:
    """One training job, or several side by side, on random pixels.

    Attributes:
        objective: ``normal``, ``nasty`` (against a frozen net of the same kind) or ``kd`` (from ``victim``).
        models: Specs of the nets to train, each on the same images.
        victim: Spec of the net that ``kd`` steals from.
        batch_size: Images a step.
        images: Images in the data set.
        classes: Number of classes.
        image_size: Height and width in pixels.
        device: Where to compute.
        threads: Of torch on the CPU, the same for every side; None for torch's default.
        workers: Processes that load images for the plain loop.
    """

    objective: Literal["normal", "nasty", "kd"]
    models: tuple[str, ...]
    victim: str = "resnet18"
    batch_size: int = 128
    images: int = 1024
    classes: int = 10
    image_size: int = 32
    device: str = "cpu"
    threads: int | None = None
    workers: int = 0

    def net(self, spec: str, seed: int) -> nn.Module:
        """Return a net on the device, with weights that depend on the seed only."""
        net = build_model(spec, num_classes=self.classes, in_channels=3, image_size=self.image_size, seed=seed)
        return net.to(self.device)

    def data(self) -> Dataset:
        """Return the images."""
        generator = torch.Generator().manual_seed(0)
        shape = self.images, 3, self.image_size, self.image_size
        x = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        images = Images(x, torch.arange(self.images) % self.classes)
        names = tuple(map(str, range(self.classes)))
        return Dataset("random pixels", images, images.subset(torch.arange(2)), names, _MEAN, _STD, "crop_flip")

    def training(self, side: Side) -> Training:
        """Return the protocol of a side: a profile, one of ``STACKING``, or ``APART``."""
        epochs = max(1, _LONG * self.batch_size // self.images)
        return Training(
            epochs=epochs,
            batch_size=self.batch_size,
            lr=_LR,
            schedule="constant",
            holdout=0,
            selection="last",
            profile="fast" if side in STACKING or side == APART else side,
            tuning=Tuning(stack=False if side == APART else STACKING.get(side)),
        )
