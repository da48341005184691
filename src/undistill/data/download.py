"""Files of known checksum: downloaded once, checked at every use, placed by hand where there is no network."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch

from undistill.data.sources import DATASETS
from undistill.errors import DataError, RecipeError, RunError
from undistill.storage import atomic_path

__all__ = ["REMOTES", "FileStatus", "Remote", "atomic_write", "cache_dir", "fetch", "import_file", "verify"]

REMOTES: dict[str, tuple[Remote, ...]] = {}
"""Files of each downloadable data set, filled by ``register_dataset``."""

_TIMEOUT_S = 30

pooch.get_logger().setLevel(logging.ERROR)  # our messages say more, and say it once


@dataclass(frozen=True)
class Remote:
    """One file of a data set.

    Attributes:
        filename: Name in the cache folder.
        url: Where it is published.
        checksum: Algorithm and hex digest: ``md5:c32a…``.
    """

    filename: str
    url: str
    checksum: str


@dataclass(frozen=True)
class FileStatus:
    """What ``verify`` found.

    Attributes:
        path: Where the file belongs.
        state: ``ok``, ``missing`` or ``altered``.
        expected: Published checksum.
        found: Checksum of the file there, empty if there is none.
        url: Where the file is published.
    """

    path: Path
    state: str
    expected: str
    found: str
    url: str


def cache_dir() -> Path:
    """Return the folder that downloads are kept in: ``$UNDISTILL_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("UNDISTILL_CACHE") or pooch.os_cache("undistill")).expanduser()


def fetch(name: str) -> tuple[Path, ...]:
    """Return the files of data set ``name``, downloading those that are missing or altered.

    Shows a progress bar on stderr if that is a terminal. A file whose checksum is wrong is never kept as good.

    Raises:
        DataError: No network, a wrong checksum, or a cache folder that cannot be written.
        RecipeError: There is no such data set, or nothing to download for it.
    """
    return tuple(_fetch_one(status, remote) for status, remote in zip(verify(name), _remotes(name), strict=True))


def verify(name: str) -> list[FileStatus]:
    """Compare the cached files of data set ``name`` with their published checksums; downloads nothing.

    Raises:
        RecipeError: There is no such data set, or nothing to download for it.
    """
    return [_status(cache_dir() / name / remote.filename, remote) for remote in _remotes(name)]


def import_file(name: str, path: Path | str) -> Path:
    """Copy a file that was downloaded by other means into the cache of data set ``name``.

    It is recognized by its checksum, so its own name does not matter.

    Returns:
        The path of the copy.

    Raises:
        DataError: The file cannot be read, or is none of the data set's files.
        RecipeError: There is no such data set, or nothing to download for it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"cannot import {path}: there is no such file")
    for remote in _remotes(name):
        if _checksum(path, remote) == remote.checksum:
            target = cache_dir() / name / remote.filename
            with atomic_write(target) as partial:
                shutil.copyfile(path, partial)
            return target
    expected = ", ".join(f"{remote.filename} ({remote.checksum})" for remote in _remotes(name))
    raise DataError(f"{path} has {_checksum(path, _remotes(name)[0])}; {name} needs {expected}")


def _remotes(name: str) -> tuple[Remote, ...]:
    DATASETS[name]  # sources declare their files when they are imported
    if name not in REMOTES:
        raise RecipeError(f"data set {name!r} has nothing to download; known: {', '.join(sorted(REMOTES))}")
    return REMOTES[name]


def _status(path: Path, remote: Remote) -> FileStatus:
    found = _checksum(path, remote) if path.is_file() else ""
    state = "ok" if found == remote.checksum else "altered" if found else "missing"
    return FileStatus(path, state, remote.checksum, found, remote.url)


def _fetch_one(status: FileStatus, remote: Remote) -> Path:
    if status.state == "ok":
        return status.path
    progress = sys.stderr.isatty()
    try:
        pooch.retrieve(
            remote.url,
            known_hash=remote.checksum,
            fname=status.path.name,
            path=status.path.parent,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT_S),
        )
    except OSError as error:
        if error.errno is not None:  # network errors of requests carry none
            raise _cannot_write(status.path, error) from error
        there = f" (the file there now is damaged: {status.found})" if status.found else ""
        raise DataError(
            f"cannot download {remote.url} ({type(error).__name__}); "
            f"place the file ({remote.checksum}) by hand at {status.path}{there}"
        ) from error
    except ValueError as error:
        found = str(error).rpartition("but got ")[2].partition(". ")[0]
        raise DataError(
            f"{remote.url} is not the published file: expected {remote.checksum}, got {found}; nothing was kept. "
            f"Try again, or place the right file at {status.path}"
        ) from error
    return status.path


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to, moved there at the end: nobody ever reads half a file.

    Raises:
        DataError: The folder is not writable or the disk is full; nothing is left behind.
    """
    try:
        with atomic_path(target) as partial:
            yield partial
    except RunError as error:
        raise DataError(f"{error}; UNDISTILL_CACHE moves the cache") from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror}; set UNDISTILL_CACHE to a writable folder with free space")


def _checksum(path: Path, remote: Remote) -> str:
    algorithm = remote.checksum.partition(":")[0]
    try:
        return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
