"""Make, attack and measure undistillable classifiers."""

from undistill._version import __version__

__all__ = ["__version__"]
