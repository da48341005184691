"""Data sets by name, path or spec string.

A source is one file in this package: a function that returns a ``Dataset``, registered under its name together with
the files that it downloads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from undistill.data.convert import convert
from undistill.data.dataset import Dataset, Images, Shape
from undistill.data.download import REMOTES, FileStatus, Remote, cache_dir, fetch, import_file, verify
from undistill.data.sources import DATASETS, DatasetFactory
from undistill.errors import DataError, RecipeError, did_you_mean
from undistill.registry import Spec

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetFactory",
    "FileStatus",
    "Images",
    "Remote",
    "Shape",
    "cache_dir",
    "check_dataset_spec",
    "dataset_shape",
    "fetch",
    "import_file",
    "list_datasets",
    "load_dataset",
    "parse_dataset_spec",
    "register_dataset",
    "verify",
]

_SHAPES: dict[str, Shape] = {}
_SUBSETS = ("subset", "test_subset")
_FORMAT = ("image_size", "channels")
_WITH_PATH = ("image_folder", "mnist_m", "npz", "tiny_imagenet")


def register_dataset(
    name: str, *remotes: Remote, shape: Shape | None = None
) -> Callable[[DatasetFactory], DatasetFactory]:
    """Return a decorator that registers a source, and declare the files that it downloads and its size, if fixed."""
    if remotes:
        REMOTES[name] = remotes
    if shape is not None:
        _SHAPES[name] = shape
    return DATASETS.register(name)


def list_datasets() -> tuple[str, ...]:
    """Return the names of all data sets, sorted."""
    return DATASETS.names()


def load_dataset(spec: str | Path | Mapping[str, Any] | Spec) -> Dataset:
    """Load a data set; one that is missing and has a known address is downloaded first.

    Args:
        spec: ``digits``, ``npz(path='mine.npz')``, a mapping with a ``name``, or a bare path: a file that ends in
            ``.npz``, or a folder of images by class. Every source also takes ``subset=n`` and ``test_subset=n``:
            that many training or test images (or, between 0 and 1, that share of them), of every class alike, always
            the same ones; and ``image_size=n`` and ``channels=n`` (1 or 3): its images are converted, for a net that
            meets several domains (see ``domains.convert``).

    Returns:
        The data set. The last few are kept, so that runs of one process share them.

    Raises:
        RecipeError: The spec is wrong; holds every problem found.
        DataError: The data are missing, damaged or not usable.
    """
    problems = check_dataset_spec(spec)
    if problems:
        raise RecipeError(problems)
    parsed = parse_dataset_spec(spec)
    return _load(str(parsed), _stamp(parsed))


def dataset_shape(spec: str | Path | Mapping[str, Any] | Spec) -> Shape:
    """Return the size of a data set without downloading anything; one that declares none is loaded.

    Args:
        spec: As in ``load_dataset``.

    Raises:
        RecipeError: The spec is wrong; holds every problem found.
        DataError: It declares no size and is not on this machine, or not usable.
    """
    problems = check_dataset_spec(spec)
    if problems:
        raise RecipeError(problems)
    parsed = parse_dataset_spec(spec)
    declared = _SHAPES.get(parsed.name)
    if declared is not None:
        train, test = (
            round(size * whole) if isinstance(size, float) else size or whole
            for size, whole in zip(map(parsed.kwargs.get, _SUBSETS), (declared.train, declared.test), strict=True)
        )
        size, channels = (parsed.kwargs.get(key) for key in _FORMAT)
        form = {"image_size": size or declared.image_size, "in_channels": channels or declared.in_channels}
        return replace(declared, train=train, test=test, **form)
    if parsed.name in REMOTES and any(file.state != "ok" for file in verify(parsed.name)):
        raise DataError(f"{parsed.name} is not on this machine; run `undistill data fetch {parsed.name}`")
    return load_dataset(parsed).shape


def check_dataset_spec(spec: str | Path | Mapping[str, Any] | Spec) -> list[str]:
    """Return what is wrong with a spec, one line a problem, without loading anything."""
    try:
        parsed = parse_dataset_spec(spec)
        factory = DATASETS[parsed.name]
    except RecipeError as error:
        return list(error.problems)
    parameters = inspect.signature(factory).parameters
    known = [*parameters, *_SUBSETS, *_FORMAT]
    listing = f" known: {', '.join(known)}"
    problems = [
        f"data set {parsed.name!r} has no argument {key!r};{did_you_mean(key, known) or listing}"
        for key in parsed.kwargs
        if key not in known
    ]
    problems += [
        f"data set {parsed.name!r} needs {key!r}: {parsed.name}({key}=...)"
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in parsed.kwargs
    ]
    problems += [
        f"{key} must be a whole number above 0, or a share between 0 and 1, got {parsed.kwargs[key]!r}"
        for key in _SUBSETS
        if key in parsed.kwargs and not _is_size(parsed.kwargs[key])
    ]
    size, channels = (parsed.kwargs.get(key) for key in _FORMAT)
    if isinstance(size, float) or not _is_size(size):
        problems.append(f"image_size must be a whole number of pixels above 0, got {size!r}")
    if isinstance(channels, bool) or channels not in (None, 1, 3):
        problems.append(f"channels must be 1 (grey) or 3 (color), got {channels!r}")
    return problems


def _is_size(value: object) -> bool:
    if isinstance(value, float):
        return 0 < value < 1
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def parse_dataset_spec(spec: str | Path | Mapping[str, Any] | Spec) -> Spec:
    """Return the spec that a name, a spec or a bare path stands for; nothing is loaded.

    Raises:
        RecipeError: It is none of these, or a path where there is nothing.
    """
    if isinstance(spec, str | Path) and str(spec) not in DATASETS:
        if str(spec).endswith(".npz"):
            return Spec("npz", {"path": _plain_path(spec)})
        if Path(spec).expanduser().is_dir():
            return Spec("image_folder", {"path": _plain_path(spec)})
        if "/" in str(spec) and "(" not in str(spec):
            raise RecipeError(f"{str(spec)!r} is neither a data set nor an .npz file nor a folder that exists")
    parsed = Spec.parse(str(spec) if isinstance(spec, Path) else spec)
    kwargs = {k: str(v) if isinstance(v, Path) else v for k, v in parsed.kwargs.items()}
    if parsed.name in _WITH_PATH and "path" in kwargs:
        kwargs["path"] = _plain_path(kwargs["path"])
    return Spec(parsed.name, kwargs)


def _plain_path(path: Any) -> Any:
    """Return ``./five.npz`` and ``imgs/`` as ``five.npz`` and ``imgs``, so that equal data have equal specs.

    ``..`` stays: behind a symbolic link, ``link/..`` is another folder than the one that holds the link.
    """
    return str(Path(path)) if path and isinstance(path, str | Path) else path


@lru_cache(maxsize=3)
def _load(text: str, stamp: tuple[object, ...]) -> Dataset:
    """Load from the canonical text of a spec; ``stamp`` tells a changed source from the one in the cache."""
    spec = Spec.parse(text)
    kwargs = dict(spec.kwargs)
    subset, test_subset = (kwargs.pop(key, None) for key in _SUBSETS)
    size, channels = (kwargs.pop(key, None) for key in _FORMAT)
    data = DATASETS[spec.name](**kwargs).take(subset, test_subset)
    if size is None and channels is None:
        return data
    return convert(data, size, channels)


def _stamp(spec: Spec) -> tuple[object, ...]:
    """Return where the data lie and when they last changed: a file, or a folder and the two levels below it."""
    path, of = spec.kwargs.get("path"), spec.kwargs.get("of")
    if isinstance(of, str):  # made of another data set
        return _stamp(parse_dataset_spec(of))
    if not isinstance(path, str):
        return (str(cache_dir()),)
    root = Path(path).expanduser().resolve()
    folders = [*root.glob("*/"), *root.glob("*/*/")] if root.is_dir() else []
    return (str(root), max((p.stat().st_mtime_ns for p in [root, *folders] if p.exists()), default=0))
