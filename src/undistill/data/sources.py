"""The data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable

from undistill.data.dataset import Dataset
from undistill.registry import Registry

__all__ = ["DATASETS", "DatasetFactory"]

DatasetFactory = Callable[..., Dataset]

DATASETS: Registry[DatasetFactory] = Registry("data set", "undistill.data")
