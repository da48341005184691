"""Measurements of speed, side by side with what people use otherwise."""

from undistill.bench.augment import bench_augment
from undistill.bench.train import bench_train

__all__ = ["bench_augment", "bench_train"]
