"""The files below a folder, as every reader of folders sees them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from undistill.errors import DataError

__all__ = ["files_below", "tree_state"]


def files_below(root: Path) -> dict[str, os.stat_result]:
    """Return the files below a folder by their path in it, with ``/`` between the parts, in no order.

    Links are followed, those that lead nowhere or back up are left out, and so is what is hidden: a name that starts
    with a dot is a note of the system (``._cat.jpeg`` of macOS, ``.DS_Store``), not data.

    Raises:
        DataError: A folder cannot be read.
    """
    try:
        return dict(_walk(os.fspath(root), "", ()))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root} ({error.strerror}); make it readable") from error


def tree_state(root: Path) -> str:
    """Return a digest in hex that changes when a file is added below a folder, removed, renamed or written to.

    Raises:
        DataError: A folder cannot be read.
    """
    files = sorted((name, found.st_size, found.st_mtime_ns) for name, found in files_below(root).items())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _walk(folder: str, within: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            found = None if entry.name.startswith(".") else _stat(entry)
            if found is None:
                continue
            this = (found.st_dev, found.st_ino)
            if stat.S_ISDIR(found.st_mode) and this not in above:
                yield from _walk(entry.path, f"{within}{entry.name}/", (*above, this))
            elif stat.S_ISREG(found.st_mode):
                yield within + entry.name, found


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:  # a link that leads nowhere
        return None
