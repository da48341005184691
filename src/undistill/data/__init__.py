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
from undistill.data.files import tree_state
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
    "source_path",
    "verify",
]

_SHAPES: dict[str, Shape | Callable[..., Shape]] = {}
_SUBSETS = ("subset", "test_subset")
_FORMAT = ("image_size", "channels")
_WITH_PATH = ("image_folder", "mnist_m", "npz", "tiny_imagenet")


def register_dataset(
    name: str, *remotes: Remote, shape: Shape | Callable[..., Shape] | None = None
) -> Callable[[DatasetFactory], DatasetFactory]:
    """Return a decorator that registers a source, and declare what is known of it before it is loaded.

    Args:
        name: Of the source.
        remotes: The files that it downloads.
        shape: The size of the published set; or a function of the source's own arguments that finds the size without
            decoding an image. None if only the images tell.
    """
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
    declared = _declared(parsed)
    if declared is not None:
        train, test = (
            _count(parsed, key, whole, declared.num_classes)
            for key, whole in zip(_SUBSETS, (declared.train, declared.test), strict=True)
        )
        size, channels = (parsed.kwargs.get(key) for key in _FORMAT)
        form = {"image_size": size or declared.image_size, "in_channels": channels or declared.in_channels}
        return replace(declared, train=train, test=test, **form)
    if parsed.name in REMOTES and any(file.state != "ok" for file in verify(parsed.name)):
        raise DataError(f"{parsed.name} is not on this machine; run `undistill data fetch {parsed.name}`")
    return load_dataset(parsed).shape


def source_path(spec: str | Path | Mapping[str, Any] | Spec) -> Path | None:
    """Return the file or folder that a data set is read from, or the one that it is made of; None if it names none.

    Raises:
        RecipeError: It is no spec of a data set.
    """
    parsed = parse_dataset_spec(spec)
    path, of = parsed.kwargs.get("path"), parsed.kwargs.get("of")
    if isinstance(of, str):
        return source_path(of)
    return Path(path).expanduser() if isinstance(path, str) else None


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


def _declared(spec: Spec) -> Shape | None:
    """Return the size that a source declares, before any subset; None if the images must be asked."""
    declared = _SHAPES.get(spec.name)
    if declared is None or isinstance(declared, Shape):  # of the published set: files by hand may be others
        return declared if source_path(spec) is None else None
    return declared(**{key: value for key, value in spec.kwargs.items() if key not in (*_SUBSETS, *_FORMAT)})


def _count(spec: Spec, key: str, whole: int, num_classes: int) -> int:
    """Return how many images a subset has, which are drawn from every class alike."""
    size = spec.kwargs.get(key)
    count = round(size * whole) if isinstance(size, float) else whole if size is None else int(size)
    if count != whole and not num_classes <= count <= whole - num_classes:
        raise DataError(
            f"{spec.name}: {key}={size}: cannot take {count:,} of {whole:,} images: one of each of {num_classes} "
            "classes must be taken, and one left"
        )
    return count


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
def _load(text: str, stamp: tuple[str, ...]) -> Dataset:
    """Load from the canonical text of a spec; ``stamp`` tells a changed source from the one in the cache."""
    spec = Spec.parse(text)
    kwargs = dict(spec.kwargs)
    subset, test_subset = (kwargs.pop(key, None) for key in _SUBSETS)
    size, channels = (kwargs.pop(key, None) for key in _FORMAT)
    data = DATASETS[spec.name](**kwargs).take(subset, test_subset)
    if size is None and channels is None:
        return data
    return convert(data, size, channels)


def _stamp(spec: Spec) -> tuple[str, ...]:
    """Return where the data lie and what tells a changed file, or folder of files, from the one before."""
    path = source_path(spec)
    if path is None:
        return (str(cache_dir()),)
    path = path.resolve()
    if path.is_dir():
        return (str(path), tree_state(path))
    return (str(path), *((str(path.stat().st_size), str(path.stat().st_mtime_ns)) if path.is_file() else ()))
