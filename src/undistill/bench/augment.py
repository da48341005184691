"""Batched augmentation against a PyTorch ``DataLoader`` over PIL, in one process, turn by turn.

The baseline does image by image what torchvision's transforms do over PIL, as in the paper's code: draw with torch,
change the image, make a float tensor of it, normalize, without torchvision's checks around that. Both sides end with
normalized float32 batches on the CPU. Ours runs in one thread: where other programs keep the cores busy, threads that
wait for each other measure those programs, not us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from undistill.data.augment import CIFAR_PADDING, MAX_DEGREES
from undistill.data.dataset import Images
from undistill.data.loader import Loader
from undistill.errors import RecipeError

__all__ = ["PILImages", "bench_augment", "pil_crop_flip"]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
_SCALE = torch.tensor((_MEAN, _STD)).view(2, 3, 1, 1)
_THREADS = 1
_SIZES = {"crop_flip": 32, "rotation_flip": 64}


def bench_augment(
    images: int = 2048,
    *,
    batch_size: int = 128,
    workers: Sequence[int] = (0, 2),
    repeats: int = 5,
    seconds: float = 0.3,
) -> dict[str, Any]:
    """Measure images a second of crop + flip at 3x32x32 and of rotation + flip at 3x64x64, on random pixels.

    Every loader runs once unmeasured (worker processes start, memory is touched). Then each takes its turn, ``repeats``
    times over, for as many whole epochs as fill ``seconds``; the median over the turns counts.

    Args:
        images: Images in the data set.
        batch_size: Images a batch.
        workers: Numbers of worker processes of the baseline, one measurement each.
        repeats: Turns of each loader.
        seconds: Shortest time of one turn.

    Returns:
        ``threads`` (of torch in our loader: 1; the baseline has its workers), ``images``, ``batch_size`` and
        ``results``, a list with a dictionary for each augmentation: ``augment``, ``image_size``, ``baseline`` (images a
        second by number of workers), ``undistill`` (images a second) and ``ratio``, the latter divided by the fastest
        baseline.

    Raises:
        RecipeError: A number is out of range, or ``workers`` is empty.
    """
    if min(images, batch_size, repeats) < 1 or not workers or min(workers) < 0:
        raise RecipeError("expected images, batch_size and repeats of 1 or more, and workers such as (0, 2)")
    results = [_compare(name, size, images, batch_size, workers, repeats, seconds) for name, size in _SIZES.items()]
    return {"threads": _THREADS, "images": images, "batch_size": batch_size, "results": results}


def _compare(
    name: str, size: int, n: int, batch_size: int, workers: Sequence[int], repeats: int, seconds: float
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.zeros(n, dtype=torch.int64))
    ours = Loader(images, batch_size=batch_size, augment=name, mean=_MEAN, std=_STD, seed=0, device="cpu")
    dataset = PILImages(pixels.permute(0, 2, 3, 1).contiguous().numpy(), _PIL_AUGMENTATIONS[name])
    baselines = {w: _data_loader(dataset, batch_size, w) for w in workers}

    epochs: list[Callable[[], Iterable[object]]] = [
        lambda: _one_thread(ours.epoch(0)),
        *(lambda b=b: b for b in baselines.values()),
    ]
    for epoch in epochs:
        _images_per_second(epoch, n, 0)
    turns = [[_images_per_second(epoch, n, seconds) for epoch in epochs] for _ in range(repeats)]
    speed, *others = (round(median(speeds), 1) for speeds in zip(*turns, strict=True))
    return {
        "augment": name,
        "image_size": size,
        "baseline": dict(zip(baselines, others, strict=True)),
        "undistill": speed,
        "ratio": round(speed / max(others), 2),
    }


def _one_thread(batches: Iterable[object]) -> Iterator[object]:
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        yield from batches
    finally:
        torch.set_num_threads(before)


def _images_per_second(epoch: Callable[[], Iterable[object]], n: int, seconds: float) -> float:
    begin = time.perf_counter()
    done = 0
    while True:
        for _ in epoch():
            pass
        done += n
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return done / elapsed


def _data_loader(dataset: PILImages, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def pil_crop_flip(image: Image.Image) -> Image.Image:
    """Return a random crop of the image padded with 4 black pixels, mirrored with probability ½."""
    width, height = image.size
    image = ImageOps.expand(image, border=CIFAR_PADDING, fill=0)
    left, top = (int(torch.randint(2 * CIFAR_PADDING + 1, (1,))) for _ in range(2))
    return _pil_flip(image.crop((left, top, left + width, top + height)))


def _pil_rotation_flip(image: Image.Image) -> Image.Image:
    angle = float(torch.empty(1).uniform_(-MAX_DEGREES, MAX_DEGREES))
    return _pil_flip(image.rotate(angle, Image.Resampling.NEAREST, expand=False, fillcolor=0))


def _pil_flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


_PIL_AUGMENTATIONS = {"crop_flip": pil_crop_flip, "rotation_flip": _pil_rotation_flip}


@dataclass(frozen=True)
class PILImages(Dataset[tuple[Tensor, int]]):
    """Images (N, H, W, 3), augmented one by one, with their labels where there are some."""

    pixels: np.ndarray[Any, Any]
    augment: Callable[[Image.Image], Image.Image]
    labels: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.augment(Image.fromarray(self.pixels[index]))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return x.sub_(_SCALE[0]).div_(_SCALE[1]), self.labels[index] if self.labels else 0
