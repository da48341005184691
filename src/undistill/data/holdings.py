"""What a thief has to learn from: images, the labels of some of them, and how many of them it may ask about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from undistill.data.convert import convert_images
from undistill.data.dataset import UNKNOWN, Dataset, Images, stratified_split
from undistill.errors import DataError, RecipeError

__all__ = ["Holdings", "hold", "on_hand", "overlap"]


@dataclass(frozen=True, eq=False)
class Holdings:
    """Images to train on.

    Attributes:
        images: With the label ``UNKNOWN`` where there is none.
        epoch: How many images make an epoch: as many, or more, and then each comes again.
        truth: The labels as they are, whoever knows them; ``UNKNOWN`` where nobody does.
    """

    images: Images
    epoch: int
    truth: Tensor

    @classmethod
    def of(cls, images: Images) -> Self:
        """Return images with all their labels, each once an epoch."""
        return cls(images, len(images), images.y)

    @property
    def labels(self) -> int:
        """Number of images with a label."""
        return int((self.images.y != UNKNOWN).sum())


def on_hand(data: Dataset, transfer: Dataset | None, *, labels: bool) -> Images:
    """Return the images that a thief can choose from, in the size and channels of the owner's.

    Args:
        data: The owner's data set, whose test images measure the thief.
        transfer: The thief's data set; None where it is the owner's.
        labels: Whether labels of it are of use, so that they must be of the owner's classes.

    Returns:
        Training images; without any label where classes are others than the owner's.

    Raises:
        DataError: Labels are of use and of other classes, or there is no rule for the channels.
    """
    if transfer is None:
        return data.train
    alike = transfer.classes == data.classes
    if labels and not alike:
        raise DataError(
            f"the thief's images are of {transfer.name}, whose classes are not those of {data.name}, so their labels "
            "are of no use; set labels=false"
        )
    x = convert_images(transfer.train.x, data.image_size, data.in_channels, what=transfer.name)
    return Images(x, transfer.train.y if alike else torch.full_like(transfer.train.y, UNKNOWN))


def hold(images: Images, *, labels: bool | int, queries: int | None, asks: bool) -> Holdings:
    """Return what a thief with so many labels and queries trains on, always the same images.

    Of fewer queries or labels the images are among those of more, and an epoch is as long: each comes again as often as
    it takes, so that the same number of epochs is the same work, for a reference too. With labels of all, every class
    is there in proportion, as in a data set's ``subset=``; who has no labels cannot see to that and takes any.

    Args:
        images: What it can choose from, with labels where they are known.
        labels: Whether it has the label of every image of which there is one, of none, or of how many: of every class
            alike.
        queries: About how many images it asks, those with labels among them; the others are of no use to it. None for
            all.
        asks: Whether there is a victim to ask. A reference learns from the images with a label alone.

    Raises:
        RecipeError: More labels than images, or than queries.
        DataError: Fewer labels than classes.
    """
    count, there = len(images) if queries is None else min(queries, len(images)), images.y != UNKNOWN
    if labels is True and bool(there.all()):
        held = images if count == len(images) else images.subset(_alike(images.y, count, "queries"))
        return Holdings(held, len(images), held.y)
    known = int(there.sum()) if labels is True else int(labels)
    if known > count:
        told = f"{len(images):,} images" if queries is None or queries >= len(images) else f"{queries:,} queries"
        raise RecipeError(f"labels={known} is more than there are {told}; lower labels, or raise queries")
    there = there.nonzero().flatten()
    labelled = there[_alike(images.y[there], known, "labels")] if known else torch.arange(0)
    if not asks:
        return Holdings(images.subset(labelled), len(images), images.y[labelled])
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[labelled] = False
    others = rest.nonzero().flatten()
    # RandomState: NumPy promises that its stream never changes.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(others)))
    chosen = torch.cat((labelled, others[order[: count - known]])).sort().values
    y = torch.full_like(images.y, UNKNOWN)
    y[labelled] = images.y[labelled]
    return Holdings(Images(images.x, y).subset(chosen), len(images), images.y[chosen])


def overlap(images: Images, others: Images) -> int:
    """Return how many images are among others, pixel by pixel; all are of one shape."""
    known = {x.tobytes() for x in others.x.numpy()}
    return sum(x.tobytes() in known for x in images.x.numpy())


def _alike(y: Tensor, count: int, field: str) -> Tensor:
    """Return the positions of so many images, of every class alike."""
    if count == len(y):
        return torch.arange(count)
    try:
        return stratified_split(y, count, seed=0)[1]
    except DataError as error:
        raise DataError(f"{field}={count}: {error}") from None
