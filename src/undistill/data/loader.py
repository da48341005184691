"""Batches of a resident data set: shuffled and augmented for training, in order for evaluation.

Every random number of an epoch comes from one CPU generator seeded from (seed, epoch), so any epoch can be replayed, on
any device, from any of its steps. Images of other domains, where a defense looks at such, come from generators of their
own, seeded from (seed, epoch, which): the source's batches are the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from undistill.data.augment import Draws, make_augmentation
from undistill.data.dataset import Frame, Images
from undistill.errors import DataError, RecipeError, ShapeError

__all__ = ["Batch", "EmptyBatches", "Loader", "Stream", "batches", "normalize"]


@dataclass(frozen=True)
class Batch:
    """Some images of a split.

    Attributes:
        x: Normalized images, float32 (B, C, H, W).
        y: Labels, int64 (B,); -1 where one is not known.
        index: Their rows in the split, or in what it is of, int64 (B,).
        targets: As many images of each target domain, in the order of the recipe.
        partial: Whether there may be labels that are not known.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    targets: tuple[Batch, ...] = ()
    partial: bool = False


class Loader:
    """Shuffled, augmented batches of a whole split that lives on the device as uint8.

    Every image comes exactly once an epoch, unless that is to be longer. The last, smaller batch is kept, as in the
    paper's code; only a last batch of a single image, which BatchNorm cannot be trained on, joins the batch before it.

    Args:
        images: The split.
        batch_size: Images a step.
        augment: Name of an augmentation: ``crop_flip``, ``rotation_flip``, ``crop`` or ``none``.
        mean: Mean of each channel, on the scale 0..1.
        std: Standard deviation of each channel, on the scale 0..1.
        seed: Seed of all epochs, not negative.
        device: Where the split is kept and batches are made.
        targets: Images of other domains; each batch gets as many of each, augmented and normalized like its own. In an
            epoch that is longer than a target set its images come again; in a shorter one not all come.
        rows: Which rows of another set the split has, int64 (N,), for ``Batch.index``; its own by default.
        length: Images of an epoch, where these are more than the split has: its images come again.

    Raises:
        DataError: The split, or a target set, is empty.
        RecipeError: The batch size or the seed is out of range.
        ShapeError: ``mean`` or ``std`` does not fit the channels.
        UnknownNameError: There is no such augmentation.

    Attributes:
        partial: Whether there are images without a label.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        augment: str,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device | str,
        targets: Sequence[Images] = (),
        rows: Tensor | None = None,
        length: int | None = None,
    ) -> None:
        for split in (images, *targets):
            _check(split, batch_size)
        if seed < 0:
            raise RecipeError(f"the seed is {seed}; expected 0 or more")
        self._source, *self._targets = (_Resident(split, augment, mean, std, device) for split in (images, *targets))
        self._rows = None if rows is None else rows.to(device)
        self._length = len(images) if length is None else length
        self.partial = bool((images.y < 0).any())
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        whole, rest = divmod(self._length, self.batch_size)
        return max(1, whole + (rest > 1))

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return self._length

    def sample(self, size: int) -> Tensor:
        """Return images from all over the split, normalized and not augmented, (min(size, N), C, H, W)."""
        return self._source.sample(size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of one epoch; their order and draws depend on nothing but the seed and ``epoch``.

        Args:
            epoch: Which epoch, from 0.
            start: Steps to leave out at the beginning, at no cost, 0..len(self).

        Raises:
            RecipeError: ``epoch`` or ``start`` is out of range.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise RecipeError(f"no step {start} in epoch {epoch}; expected an epoch from 0, a step in 0..{len(self)}")
        n = self._length
        source = self._source.deal(n, epoch, _generator(self.seed, epoch))
        targets = [
            target.deal(n, epoch, _generator(self.seed, epoch, which)) for which, target in enumerate(self._targets, 1)
        ]
        return (self._batch(source(rows), tuple(deal(rows) for deal in targets)) for rows in self._steps(start))

    def _batch(self, batch: Batch, targets: tuple[Batch, ...]) -> Batch:
        index = batch.index if self._rows is None else self._rows[batch.index]
        return replace(batch, index=index, partial=self.partial, targets=targets)

    def _steps(self, start: int) -> Iterator[slice]:
        last = len(self) - 1
        for step in range(start, len(self)):
            first = step * self.batch_size
            yield slice(first, self._length if step == last else first + self.batch_size)


class _Resident:
    """A split on the device, with its augmentation and normalization."""

    def __init__(
        self, images: Images, augment: str, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.x, self.y = images.x.to(device), images.y.to(device)
        self._augmentation = make_augmentation(augment, self.x)
        self._mean, self._std = _channels(mean, self.x), _channels(std, self.x)

    def sample(self, size: int) -> Tensor:
        """Return images at equal distances: the split may be sorted by class."""
        rows = torch.linspace(0, len(self.y) - 1, min(size, len(self.y)), device=self.y.device).long()
        return normalize(self.x[rows], self._mean, self._std)

    def deal(self, n: int, epoch: int, generator: torch.Generator) -> Callable[[slice], Batch]:
        """Draw the order and the augmentation of ``n`` images, each as often as any other, up to one more.

        Args:
            n: Images of an epoch.
            epoch: Which one, from 0.
            generator: Its generator.

        Returns:
            What makes the batch of some of the places 0..n-1.
        """
        size, device = len(self.y), self.y.device
        passes = -(-n // size)
        order = torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])[:n].to(device)
        draws = self._augmentation.draw(n, generator) | {"seen": epoch * passes + torch.arange(n) // size}
        draws = {name: values.to(device) for name, values in draws.items()}
        return lambda rows: self._batch(order[rows], {name: values[rows] for name, values in draws.items()})

    def _batch(self, index: Tensor, draws: Draws) -> Batch:
        x = self._augmentation.apply(index, draws)
        return Batch(normalize(x, self._mean, self._std), self.y.index_select(0, index), index)


class EmptyBatches:
    """Batches for a method that sees no image: they have a shape, and no memory behind it.

    Args:
        steps: Batches of an epoch.
        batch_size: Images that each stands for.
        frame: Their shape.
    """

    def __init__(self, steps: int, batch_size: int, frame: Frame) -> None:
        self._steps = steps
        # On the meta device tensors have no content, so nothing can be learned from these.
        shape = batch_size, frame.in_channels, frame.image_size, frame.image_size
        index = torch.empty(batch_size, dtype=torch.int64, device="meta")
        self._batch = Batch(torch.empty(shape, device="meta"), index, index)
        self.images = steps * batch_size

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch, from step ``start`` on."""
        return (self._batch for _ in range(start, self._steps))


Stream = Loader | EmptyBatches


def batches(
    images: Images, *, batch_size: int, mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> Iterator[Batch]:
    """Return the images in order, not augmented, for evaluation; the last batch may be of any size.

    Args:
        images: The split; it may live on another device than ``device``.
        batch_size: Images a batch.
        mean: Mean of each channel, on the scale 0..1.
        std: Standard deviation of each channel, on the scale 0..1.
        device: Where batches are made.

    Raises:
        DataError: The split is empty.
        RecipeError: The batch size is out of range.
        ShapeError: ``mean`` or ``std`` does not fit the channels.
    """
    _check(images, batch_size)
    index = torch.arange(len(images.y), device=device)
    first = images.x[:1].to(device)
    scale = _channels(mean, first), _channels(std, first)
    steps = (slice(i, i + batch_size) for i in range(0, len(index), batch_size))
    return (Batch(normalize(images.x[s].to(device), *scale), images.y[s].to(device), index[s]) for s in steps)


def normalize(x: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """Return ``(x / 255 - mean) / std`` in float32, each step rounded: bit-equal to ToTensor and Normalize.

    Args:
        x: uint8 (B, C, H, W).
        mean: Mean of each channel, on the scale 0..1, a tensor on the device of ``x`` or plain numbers.
        std: Standard deviation of each channel, likewise.

    Returns:
        float32 (B, C, H, W).

    Raises:
        ShapeError: ``mean`` or ``std`` does not fit the channels.
    """
    # A tensor, not a number: CUDA multiplies by the reciprocal of a number, which rounds differently. Four passes in
    # place beat a table of the 256 values by three to one: they are vectorized, a look-up is not.
    scale = torch.full((), 255.0, device=x.device)
    return x.float().div_(scale).sub_(_channels(mean, x)).div_(_channels(std, x))


def _channels(values: Tensor | Sequence[float], x: Tensor) -> Tensor:
    """Return one float32 number a channel, (C, 1, 1), on the device of ``x``."""
    tensor = torch.as_tensor(values, dtype=torch.float32, device=x.device).reshape(-1, 1, 1)
    if len(tensor) != x.shape[1]:
        raise ShapeError(
            f"mean and std have {len(tensor)} values, the images {x.shape[1]} channels; give one a channel"
        )
    return tensor


def _generator(*seeds: int) -> torch.Generator:
    """Return the generator of (seed, epoch) or (seed, epoch, which), ``which`` from 1: zeros at the end do not count.

    Numpy's ``SeedSequence`` mixes the numbers, so near seeds share nothing.
    """
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _check(images: Images, batch_size: int) -> None:
    if batch_size < 1:
        raise RecipeError(f"the batch size is {batch_size}; expected 1 or more")
    if len(images.y) == 0:
        raise DataError("the split is empty; expected at least one image")
