"""Scikit-learn's handwritten digits: real data that need no download."""

from __future__ import annotations

import numpy as np
import torch

from undistill.data import register_dataset
from undistill.data.dataset import Dataset, Images, channel_stats, stratified_split

__all__ = ["digits"]

_TEST_SIZE = 500


@register_dataset("digits")
def digits() -> Dataset:
    """Return 1,797 grey images of 8x8 in 10 classes, split 1,297 to 500, stratified, always the same way.

    The values 0..16 become ``round(value * 255 / 16)``. Source: UCI, Optical Recognition of Handwritten Digits
    (Alpaydin and Kaynak, 1998), the part that scikit-learn carries; it has no official split.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    images = Images(x, torch.from_numpy(bunch.target.astype(np.int64)))
    train, test = (images.subset(index) for index in stratified_split(images.y, _TEST_SIZE, seed=0))
    mean, std = channel_stats(train)
    return Dataset("digits", train, test, tuple("0123456789"), mean, std)
