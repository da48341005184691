"""Measurements of speed, side by side with what people use otherwise."""

from undistill.bench.augment import bench_augment

__all__ = ["bench_augment"]
